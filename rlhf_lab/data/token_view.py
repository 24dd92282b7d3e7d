"""Token ids for eyes: the text of each token with its spaces, and an example as coloured `id:text`."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from rlhf_lab.common.pages import plain_html
from rlhf_lab.common.words import counted
from rlhf_lab.data.encoding import special_tokens
from rlhf_lab.data.examples import Example

ANSI = {"prompt": "\033[36m", "response": "\033[32m", "special": "\033[1;7m"}  # cyan, green, bold and inverted
# Colours and paper together, so that they can be read on a dark page too: at least 4.5 : 1 (WCAG 2, level AA).
PAPER = "#ffffff"
CSS = {
    "label": "color:#000000",
    "prompt": "color:#1f4e79",
    "response": "color:#1b5e20",
    "special": "color:#000000;font-weight:bold;outline:1px solid",
}


def token_texts(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Each token's text behind other text, so that its space is kept; joined they are the text of the ids.

    Many tokenizers drop the space before the first word that they decode (SentencePiece, WordPiece), so no token is
    decoded as the first. Part of a character that is split over tokens is spelled as the tokenizer has it.
    """
    before = list(tokenizer("a", add_special_tokens=False).input_ids)
    start = _decoded(before, tokenizer)
    texts = []
    for token_id in ids:
        whole = _decoded([*before, token_id], tokenizer)
        text = whole.removeprefix(start) if whole.startswith(start) else ""
        texts.append(text if text and "\ufffd" not in text else tokenizer.convert_ids_to_tokens(token_id))
    return texts


def token_dump(example: Example, tokenizer: PreTrainedTokenizerBase, *, html: bool = False) -> str:
    """`id:text` of every token for eyes: prompt, responses and special tokens in colours (ANSI codes, or HTML).

    Spaces show as · and line ends as ↵; a piece of a character that is split over tokens shows as the tokenizer has it.
    Look here for a double BOS, a missing EOS, a prompt that lost its beginning, a special token that is only text.
    """
    parts = {f"row {example.row}, prompt": example.prompt}
    parts |= {f"response {k}": response for k, response in enumerate(example.responses)}
    special = set(special_tokens(tokenizer).values())
    lines = []
    for name, ids in parts.items():
        colour = "response" if name.startswith("response") else "prompt"
        texts = [text.replace(" ", "·").replace("\n", "↵") for text in token_texts(ids, tokenizer)]
        kinds = ["special" if token_id in special else colour for token_id in ids]
        shown = [_paint(f"{i}:{text}", kind, html) for i, text, kind in zip(ids, texts, kinds, strict=True)]
        lines.append(f"{name} ({counted(len(ids), 'token')}): " + " ".join(shown))
    if not html:
        return "\n".join(lines)
    return f"<pre style='white-space:pre-wrap;background:{PAPER};{CSS['label']};padding:4px'>{'<br>'.join(lines)}</pre>"


def _decoded(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def _paint(text: str, colour: str, html: bool) -> str:
    return f"<span style='{CSS[colour]}'>{plain_html(text)}</span>" if html else f"{ANSI[colour]}{text}\033[0m"
