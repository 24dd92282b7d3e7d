"""The corpus: cleaning, the split by content, duplicates, reading without importing, and the cache."""

import json
import platform
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lab.common.assets import PACKAGE
from rlhf_lab.data import docstrings
from rlhf_lab.data.docstrings import (
    Docstring,
    DocstringPair,
    clean_pairs,
    corpus_fingerprint,
    description_key,
    read_docstrings,
    split_docstring,
    split_of,
)
from rlhf_lab.data.prose import description_prose, first_sentences, is_prose, paragraphs, plain, sentences

WORDS = (4, 25), (20, 120)
PROSE = (
    "The cache keeps every value that was computed before, under a key made from its arguments. "
    "Values that were not asked for in a long time are dropped first when it grows too large."
)


def pair_of(text: str):
    return split_docstring(Docstring("package", "name", text), *WORDS)


def test_a_docstring_becomes_summary_and_description():
    pair = pair_of(f"Return a value from the cache.\n\n{PROSE}\n\nArgs:\n    key: what to look up.\n")
    assert pair.summary == "Return a value from the cache."
    assert pair.description == PROSE


@pytest.mark.parametrize(
    "tail",
    [
        "Parameters\n----------\nkey : str\n    What to look up.",
        ":param key: what to look up",
        ".. versionadded:: 3.1\n    And more of it.",
        ">>> cache['a']\n1",
        "    indented = code(1)",
        "- a list item that is not a sentence of the description",
        "See Also\n--------\nother : Does another thing.",
    ],
)
def test_lists_code_and_directives_are_dropped(tail):
    assert pair_of(f"Return a value from the cache.\n\n{PROSE}\n\n{tail}").description == PROSE


def test_the_description_may_follow_without_a_blank_line():
    pair = pair_of(f"Return a value from the cache.\n{PROSE}")
    assert (pair.summary, pair.description) == ("Return a value from the cache.", PROSE)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"Return.\n\n{PROSE}", "summary of one word"),
        ("Return a value from the cache.\n\nToo short.", "short description"),
        ("Return a value from the cache.", "no description"),
        (f"x = f(1) == 2 -> y for all {{}}.\n\n{PROSE}", "summary is code"),
        (f"The cache keeps every value.\n\nThe cache keeps every value. {PROSE}", "summary is in the description"),
    ],
)
def test_what_does_not_read_as_a_pair_is_left_out(text, why):
    assert pair_of(text) is None, why


def test_markup_becomes_prose():
    text = "Use :class:`~a.b.Foo` or ``bar`` with *care* [1]_, see `the page <https://x.y>`_ and [`Baz`](../baz)."
    assert plain(text) == "Use a.b.Foo or bar with care, see the page and Baz."


def test_a_long_description_is_cut_at_a_sentence():
    blocks = paragraphs("\n\n".join([PROSE] * 10))
    description = description_prose(blocks, 120)
    assert 90 < len(description.split()) <= 120
    assert description.endswith(".")


@given(st.lists(st.sampled_from(["One two three.", "Four five!", "Is it six?", "Seven eight nine ten."]), min_size=1))
def test_sentences_partition_the_text(parts):
    text = " ".join(parts)
    assert sentences(text) == parts
    assert len(first_sentences(text, 5).split()) <= 5


def test_code_and_fragments_are_not_prose():
    assert is_prose("This sentence reads as plain English.")
    for text in ("a = b == c.", "No full stop at the end", "See https://example.org/a for more on this.", "Too short."):
        assert not is_prose(text)


def test_copies_that_differ_in_a_class_name_are_one_description():
    a, b = f"{PROSE} It is used by LlamaModel.", f"{PROSE} It is used by GemmaModel."
    assert description_key(a) == description_key(b) != description_key(PROSE)
    pairs = clean_pairs([Docstring("p", "a", f"Return a value from it.\n\n{x}") for x in (a, b)])
    assert len(pairs) == 1


def numbered(i: int) -> Docstring:
    word = "".join(chr(ord("a") + int(d)) for d in str(i))
    text = f"Return the value number {word} of it.\n\nThe {word} " + f"{word} ".join(PROSE.split(" "))
    return Docstring("p", f"f{i}", text)


def test_the_split_is_by_content_alone_and_no_held_out_run_is_trained_on():
    found = [numbered(i) for i in range(400)]
    pairs = clean_pairs(found)
    assert pairs == clean_pairs(reversed(found))
    counts = {split: sum(p.split == split for p in pairs) for split in docstrings.SPLITS}
    assert all(counts.values())
    assert counts["train"] > 0.8 * len(pairs)
    assert all(p.split == split_of(p.description) for p in pairs)
    held_out = next(p for p in pairs if p.split == "test")
    near_copy = next(
        text
        for i in range(200)
        if split_of(text := f"{held_out.description} This is copy {chr(97 + i % 26) * (i + 1)} here.") == "train"
    )
    copied = Docstring("p", "copy", f"Return a near copy of it.\n\n{near_copy}")
    assert [p.name for p in clean_pairs([*found, copied])] == [p.name for p in pairs]


def test_files_are_parsed_not_run(tmp_path):
    file = tmp_path / "module.py"
    file.write_text('"""Module docs."""\nraise SystemExit\ndef f():\n    """Function docs."""\n')
    assert [d.text for d in read_docstrings(("p", str(file)))] == ["Module docs.", "Function docs."]
    file.write_text("def broken(:\n")
    assert read_docstrings(("p", str(file))) is None
    file.write_bytes(b"\xff\xfe\x00bad")
    assert read_docstrings(("p", str(file))) is None
    assert read_docstrings(("p", str(tmp_path / "absent.py"))) is None


def test_the_corpus_of_this_machine(tmp_path, monkeypatch):
    """At least 8,000 pairs, all splits, lengths kept; the second reading comes from the cache and is the same."""
    pairs = docstrings.docstring_pairs(tmp_path, progress=False)
    assert len(pairs) >= 8000
    assert {p.split for p in pairs} == set(docstrings.SPLITS)
    assert len({p.description for p in pairs}) == len(pairs)
    for pair in pairs:
        assert 4 <= len(pair.summary.split()) <= 25
        assert 20 <= len(pair.description.split()) <= 120
    monkeypatch.setattr(docstrings, "harvest", None)  # read back, not harvested: to call it would fail
    assert docstrings.docstring_pairs(tmp_path, progress=False) == pairs
    (file,) = tmp_path.glob("corpus-*.json")
    found = json.loads(file.read_text(encoding="utf8"))["value"]
    assert found["files"] > 1000 > found["skipped"]
    assert found["pairs"][0]["description"] == pairs[0].description


@pytest.mark.parametrize("left", [0, 1, 0.5, 0.99])
def test_a_broken_cache_is_named_and_made_again(tmp_path, monkeypatch, capsys, left):
    """Empty, or cut anywhere, as a power loss leaves it; also cut behind a whole line."""
    harvested = [numbered(i) for i in range(30)]
    monkeypatch.setattr(docstrings, "harvest", lambda progress: (harvested, 7, 2))
    reading = docstrings.read_corpus(tmp_path)
    (file,) = tmp_path.glob("corpus-*.json")
    whole = file.read_bytes()
    monkeypatch.setattr(docstrings, "harvest", lambda progress: 1 / 0)
    assert docstrings.read_corpus(tmp_path) == reading and reading.files == 7 and len(reading.pairs) > 20
    file.write_bytes(whole[: left if left in (0, 1) else int(left * len(whole))])
    monkeypatch.setattr(docstrings, "harvest", lambda progress: (harvested, 7, 2))
    assert docstrings.read_corpus(tmp_path) == reading and file.read_bytes() == whole
    assert f"{file} is broken" in capsys.readouterr().out


def test_the_fingerprint_knows_every_pair_and_its_split():
    pairs = [DocstringPair("what it does at length", "What it does", "train", "package", name) for name in "ab"]
    moved = [pairs[0], replace(pairs[1], split="test")]
    prints = [corpus_fingerprint(each) for each in (pairs, pairs[:1], moved)]
    assert len(set(prints)) == 3 and corpus_fingerprint(list(pairs)) == prints[0]


def test_the_locked_versions_give_the_corpus_of_the_published_numbers():
    """Skipped where other versions are installed: then `rlhf-lab docs` and every report say so."""
    lines = (PACKAGE.parent / "constraints.txt").read_text().splitlines()
    locked = dict(line.split("==") for line in lines if "==" in line)
    versions = {name: d.version.partition("+")[0] for name, d in docstrings._declared_distributions().items()}
    other = {name for name, version in versions.items() if locked.get(name) != version}
    if other or platform.python_version() != docstrings.SHIPPED_PYTHON:
        pytest.skip(f"other versions than those of the published numbers: Python or {sorted(other)}")
    assert corpus_fingerprint(docstrings.docstring_pairs(progress=False)) == docstrings.SHIPPED_CORPUS
