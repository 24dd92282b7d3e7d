"""From text and messages to token ids: the one place that owns BOS, EOS, special tokens and chat templates.

Prompt and response are tokenised separately and joined as ids, because that is what generation does (the model goes on
from the prompt's ids) and because a BPE merge across the boundary would make a prompt depend on its response.

Special tokens spelled inside user text (a document about "<eos>") stay text: they are never turned into the token.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from rlhf_lab.data.chat import assistant_text, rendered
from rlhf_lab.data.contents import Content, Messages
from rlhf_lab.data.problems import TokenError, shorten

Ids = tuple[int, ...]


def add_bos_eos(prompt: Ids, responses: Sequence[Ids], tokenizer: PreTrainedTokenizerBase) -> tuple[Ids, list[Ids]]:
    """BOS once at the prompt's start if the tokenizer adds one, EOS once at each response's end; the only such place.

    A chat template has often written both already; its own end-of-turn token counts as the end of a response, and
    whitespace that it writes behind that token is dropped, for no model ever generates it.
    Raises ValueError if the tokenizer has no EOS: a model trained without one never stops.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "the tokenizer has no eos_token: name the token that ends a response in its tokenizer_config.json"
        )
    bos = bos_id(tokenizer)
    if bos is not None and prompt[:1] != (bos,):
        prompt = (bos, *prompt)
    return prompt, [_with_eos(response, tokenizer) for response in responses]


def _with_eos(response: Ids, tokenizer: PreTrainedTokenizerBase) -> Ids:
    """Ends are EOS and a template's special tokens; <unk> is none, it stands for text."""
    ends = set(special_tokens(tokenizer).values()) - {tokenizer.unk_token_id} | {tokenizer.eos_token_id}
    if ends.isdisjoint(response):
        return (*response, tokenizer.eos_token_id)
    end = len(response)
    while end and response[end - 1] not in ends and not tokenizer.decode([response[end - 1]]).strip():
        end -= 1
    return response[:end] if response[end - 1] in ends else (*response, tokenizer.eos_token_id)


def encode_prompt(prompt: Content, tokenizer: PreTrainedTokenizerBase, *, trusted: bool = False) -> Ids:
    """The ids that generation starts from: BOS if the tokenizer adds it, then the text or the rendered messages.

    trusted: special tokens spelled in the text are meant. A special token at the very end always is ("... <tldr>",
    the space before it goes), except BOS, EOS and padding. Messages end where the assistant's turn begins.
    Raises TokenError (a ValueError) if no token results or the messages cannot be rendered.
    """
    return add_bos_eos(bare_prompt_ids(prompt, tokenizer, trusted=trusted), (), tokenizer)[0]


def encode_response(response: str, tokenizer: PreTrainedTokenizerBase) -> Ids:
    """The ids of a response's text and EOS; an EOS that the text spells at its end is that same EOS."""
    return add_bos_eos((), (response_ids(response, tokenizer),), tokenizer)[1][0]


def bare_prompt_ids(prompt: Content, tokenizer: PreTrainedTokenizerBase, *, trusted: bool = False) -> Ids:
    """`encode_prompt` before BOS."""
    if isinstance(prompt, str):
        body, ending = split_ending(prompt, tokenizer)
        ids = (*_ids(body, tokenizer, special=trusted), *ending)
    else:
        if not trusted:
            _refuse_spellings(prompt, tokenizer)
        ids = _ids(rendered(prompt, tokenizer, generation=True), tokenizer, special=True)
    if not ids:
        raise TokenError("no token", shorten(prompt))
    return ids


def response_ids(response: str, tokenizer: PreTrainedTokenizerBase) -> Ids:
    """`encode_response` before EOS. Raises TokenError if no token results."""
    ids = _ids_within(response.removesuffix(tokenizer.eos_token or ""), tokenizer)
    if not ids:
        raise TokenError("no token", shorten(response))
    return ids


def chat_response_ids(
    prompt: Messages, response: Messages, tokenizer: PreTrainedTokenizerBase, *, trusted: bool = False
) -> Ids:
    """The ids of `chat.response_text`, which go on from the ids of the rendered prompt as a generating model would.

    Raises TokenError if the template makes the prompt depend on the response, or drops a part of it.
    """
    _refuse_spellings(response, tokenizer)
    before = bare_prompt_ids(prompt, tokenizer, trusted=trusted)
    text = assistant_text(prompt, response, tokenizer)
    whole = _ids(rendered(prompt, tokenizer, generation=True) + text, tokenizer, special=True)
    # Where the two merge into one token, they are tokenised apart: the model has the prompt's ids before it writes.
    ids = whole[len(before) :] if whole[: len(before)] == before else _ids_within(text, tokenizer, special=True)
    if not ids:
        raise TokenError("no token", shorten(response))
    return ids


def split_ending(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, Ids]:
    """("description", (tldr_id,)) of "description <tldr>"; (text, ()) if no such token ends the text."""
    framing = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    for token, token_id in special_tokens(tokenizer).items():
        if token not in framing and text.rstrip().endswith(token):
            return text.rstrip().removesuffix(token).rstrip(), (token_id,)
    return text, ()


def _ids(text: str, tokenizer: PreTrainedTokenizerBase, special: bool = False) -> Ids:
    return tuple(tokenizer(text, add_special_tokens=False, split_special_tokens=not special).input_ids)


def _ids_within(text: str, tokenizer: PreTrainedTokenizerBase, special: bool = False) -> Ids:
    """The ids of a text that goes on from other text: no space mark is put before its first word.

    SentencePiece tokenizers (Llama 2, Mistral 0.1, Phi-3) begin every text with a space mark, so that " four" alone
    would be two spaces after a prompt, and "four" one that is not there. Behind a line end none is added.
    """
    if not _begins_with_a_mark(tokenizer):
        return _ids(text, tokenizer, special)
    before, whole = _ids("\n", tokenizer), _ids("\n" + text, tokenizer, special)
    if whole[: len(before)] != before:
        raise TokenError("no ids of its own", f"{shorten(text)} merges with what comes before it")
    return whole[len(before) :]


@lru_cache(maxsize=8)
def _begins_with_a_mark(tokenizer: PreTrainedTokenizerBase) -> bool:
    return tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False).input_ids)[0].startswith("\u2581")


def _refuse_spellings(messages: Messages, tokenizer: PreTrainedTokenizerBase) -> None:
    """In a rendered conversation nobody can tell a message's own "<eos>" from the template's: refuse the message."""
    for message in messages:
        if special_pattern(tokenizer).search(message["content"]):
            raise TokenError("special token in a message", shorten(message["content"]))


def bos_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that the tokenizer puts at the start of every text, or None if it puts none."""
    return _bos_id(tokenizer, tokenizer.bos_token_id, getattr(tokenizer, "add_bos_token", None))


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """{spelling: id} of all special tokens, those that only the tokenizer's file knows included."""
    return _special_tokens(tokenizer, len(tokenizer))


def special_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern:
    """Matches the spelling of any special token."""
    return _special_pattern(tuple(special_tokens(tokenizer)))


@lru_cache(maxsize=8)  # the further arguments are what may change about a tokenizer
def _bos_id(tokenizer: PreTrainedTokenizerBase, bos_token_id: int | None, adds_bos: bool | None) -> int | None:
    framed, plain = tokenizer("a").input_ids, tokenizer("a", add_special_tokens=False).input_ids
    return bos_token_id if framed[:1] == [bos_token_id] and framed != plain else None


@lru_cache(maxsize=8)
def _special_tokens(tokenizer: PreTrainedTokenizerBase, size: int) -> dict[str, int]:
    added = {str(token): i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    return {**added, **dict(named)}


@lru_cache(maxsize=8)
def _special_pattern(spellings: tuple[str, ...]) -> re.Pattern:
    return re.compile("|".join(map(re.escape, sorted(spellings, key=len, reverse=True))) or r"(?!)")
