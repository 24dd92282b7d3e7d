"""Token views: every token's own text with its spaces, colours that can be read on any page."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rlhf_lab.common.assets import small_model_path
from rlhf_lab.data.records import SFTRecord
from rlhf_lab.data.token_view import CSS, PAPER, token_dump, token_texts
from rlhf_lab.data.tokens import tokenize_record
from tests.test_records_traps import sentencepiece_style
from tests.test_tokens import EOS_ID, PLAIN, TLDR_ID
from tests.toy import toy_tokenizer

SENTENCEPIECE = sentencepiece_style()
SHIPPED = AutoTokenizer.from_pretrained(small_model_path("tiny"))


def wordpiece() -> PreTrainedTokenizerFast:
    """As BERT: "##" continues a word."""
    pieces = {piece: i for i, piece in enumerate(["[UNK]", "a", "read", "##er", "the", "."])}
    tokenizer = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


@pytest.mark.parametrize(
    ("tokenizer", "text", "expected"),
    [
        (SENTENCEPIECE, "it is", [" ", "i", "t", " ", "i", "s"]),
        (SENTENCEPIECE, "a\nb", [" ", "a", "\n", "b"]),
        (wordpiece(), "the reader", [" the", " read", "er"]),
        (toy_tokenizer(), "read file", [" read", " file"]),
    ],
)
def test_no_token_loses_its_space(tokenizer, text, expected):
    """Decoded one by one, SentencePiece's " " is empty and every word of the others lacks its space."""
    assert token_texts(tokenizer(text, add_special_tokens=False).input_ids, tokenizer) == expected


@given(
    st.text("abcxyz019 .?+", min_size=1, max_size=20).filter(lambda text: text[0] != " "),
    st.sampled_from([SENTENCEPIECE, SHIPPED]),
)
def test_texts_join_to_the_text(text, tokenizer):
    joined = "".join(token_texts(tokenizer(text, add_special_tokens=False).input_ids, tokenizer))
    assert joined == " " + text  # both put a space before a text


def test_parts_of_a_character_are_spelled_and_nothing_is_empty():
    ids = PLAIN("é", add_special_tokens=False).input_ids
    assert token_texts(ids, PLAIN) == PLAIN.convert_ids_to_tokens(ids) and len(ids) == 2
    assert token_texts([3, TLDR_ID, EOS_ID], PLAIN)[1:] == ["<tldr>", "<eos>"]
    assert all(token_texts(range(300), SHIPPED))


def test_the_dump_shows_ids_texts_and_kinds():
    example = tokenize_record(SFTRecord("the\ncat <tldr>", "é <b> $5 or $6", row=5), PLAIN)
    dump = token_dump(example, PLAIN)
    plain = re.sub("\033\\[[0-9;]*m", "", dump)
    assert plain.startswith(f"row 5, prompt ({len(example.prompt)} tokens): ")
    assert f"{TLDR_ID}:<tldr>" in plain and f"{EOS_ID}:<eos>" in plain and "↵" in plain and ":·" in plain
    assert f"\033[1;7m{TLDR_ID}:<tldr>\033[0m" in dump  # special tokens are marked by more than a hue
    page = token_dump(example, PLAIN, html=True)
    assert "&lt;tldr&gt;" in page and "<b>" not in page and page.count("<span style") == example.num_tokens
    assert page.count("<span>$</span>") == page.count("$") == 2


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("kind", CSS)
def test_every_colour_can_be_read_on_its_paper(kind):
    """Contrast of at least 4.5 : 1 (WCAG 2, level AA), with both colours named: a dark page changes neither."""
    ink = re.search(r"(?<![\w-])color:(#[0-9a-f]{6})", CSS[kind])[1]
    light, dark = sorted((luminance(PAPER), luminance(ink)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_the_dump_names_its_paper():
    page = token_dump(tokenize_record(SFTRecord("the cat", "sat"), PLAIN), PLAIN, html=True)
    assert page.startswith(f"<pre style='white-space:pre-wrap;background:{PAPER};color:#000000")
    assert set(re.findall(r"style='([^']*)'", page)[1:]) <= set(CSS.values())
