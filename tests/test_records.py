"""Records: every source, the implicit prompt, every kind of bad row, dropping with counts, the hub and its absence."""

import csv
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rlhf_lab.data.contents import split_prompt
from rlhf_lab.data.known_datasets import KNOWN_DATASETS
from rlhf_lab.data.problems import InvalidRecords
from rlhf_lab.data.records import (
    PreferenceRecord,
    SFTRecord,
    load_preferences,
    load_sft,
    preference_records,
    sft_records,
)

GOOD = [
    {"prompt": "2 + 2?", "chosen": "four", "rejected": "five"},
    {"prompt": 'a, "b"\nand c?', "chosen": "d é", "rejected": "e\n"},
]


def user(content: str) -> dict:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict:
    return {"role": "assistant", "content": content}


def write_jsonl(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_csv(path, rows) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def write_parquet(path, rows) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


WRITERS = {"jsonl": write_jsonl, "csv": write_csv, "parquet": write_parquet}


# Sources


@pytest.mark.parametrize("suffix", WRITERS)
def test_local_files(tmp_path, suffix):
    scored = [{**row, "chosen_score": 1.5, "rejected_score": -2} for row in GOOD]
    records, report = load_preferences(WRITERS[suffix](tmp_path / f"pairs.{suffix}", scored))
    expected = [PreferenceRecord(**row, chosen_score=1.5, rejected_score=-2.0, row=n) for n, row in enumerate(GOOD)]
    assert records == expected
    assert not report.problems and "all 2 rows are usable" in str(report)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_messages_survive_the_file(tmp_path, suffix):
    row = {"prompt": [user("2 + 2?")], "chosen": [assistant("four")], "rejected": [assistant("five")]}
    (record,), _ = load_preferences(WRITERS[suffix](tmp_path / f"pairs.{suffix}", [row]))
    assert record.prompt == (user("2 + 2?"),) and record.responses["rejected"] == (assistant("five"),)


def test_column_mapping_reaches_inside_and_ignores(tmp_path):
    rows = [{"info": {"post": "2 + 2?"}, "better": "four", "worse": "five", "chosen": 7, "rejected_score": "junk"}]
    columns = {"prompt": "info.post", "chosen": "better", "rejected": "worse", "rejected_score": None}
    records, _ = load_preferences(write_jsonl(tmp_path / "a.jsonl", rows), columns=columns)
    assert records == [PreferenceRecord("2 + 2?", "four", "five")]


def test_column_mapping_errors(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", GOOD)
    with pytest.raises(ValueError, match=r"--columns winner=chosen: 'winner' is none of prompt, chosen"):
        load_preferences(path, columns={"winner": "chosen"})
    with pytest.raises(ValueError, match=r"--columns chosen=better, but .* has the columns prompt, chosen, rejected"):
        load_preferences(path, columns={"chosen": "better"})
    with pytest.raises(
        ValueError, match=r"--columns someone/else: neither .*trl-lib/tldr-preference, .*nor chosen=their_name"
    ):
        load_preferences(path, columns="someone/else")


def test_unreadable_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl: no such file"):
        load_preferences(tmp_path / "nowhere.jsonl")
    (tmp_path / "pairs.txt").write_text("x")
    with pytest.raises(ValueError, match=r"cannot read \.txt; use \.jsonl"):
        load_preferences(tmp_path / "pairs.txt")
    (tmp_path / "pairs.parquet").write_bytes(b"PAR1 but no table")
    with pytest.raises(ValueError, match="not a readable Parquet file"):
        load_preferences(tmp_path / "pairs.parquet")
    (tmp_path / "pairs.csv").write_text('prompt,chosen,rejected\na,"b" c,d\n')
    with pytest.raises(ValueError, match="line 2 is not valid CSV"):
        load_preferences(tmp_path / "pairs.csv")
    with pytest.raises(ValueError, match="a file has no splits"):
        load_preferences(write_jsonl(tmp_path / "a.jsonl", GOOD), split="train")
    with pytest.raises(ValueError, match="no usable row"):
        load_preferences(write_jsonl(tmp_path / "empty.jsonl", []))


def test_jsonl_rows_are_lines(tmp_path):
    """Blank lines are skipped but counted; a line that is no UTF-8, no JSON or no object is named by its number."""
    good = json.dumps(GOOD[0]).encode()
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join([good, b"", b'{"prompt": "\xff"}', b'{"prompt": ', b"[1]", good]))
    with pytest.raises(InvalidRecords) as caught:
        load_preferences(path)
    message = str(caught.value)
    assert "3 of 5 rows" in message
    assert "undecodable bytes: 1 row (2)" in message and "line 3: byte 12" in message
    assert "malformed JSON: 1 row (3)" in message and "line 4" in message
    assert "not a JSON object: 1 row (4)" in message
    records, _ = load_preferences(path, drop_invalid=True)
    assert [record.row for record in records] == [0, 5]


def test_undecodable_bytes_in_csv_and_parquet(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"prompt,chosen,rejected\na,b,c\nd,\xff,e\n")
    column = pa.array([b"b", b"\xff"], pa.binary()).view(pa.string())  # a string column that holds no UTF-8
    pq.write_table(pa.table({"prompt": ["a", "d"], "chosen": column, "rejected": ["c", "e"]}), tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        with pytest.raises(InvalidRecords, match=r"undecodable bytes: 1 row \(1\)"):
            load_preferences(tmp_path / name)
        assert load_preferences(tmp_path / name, drop_invalid=True)[0] == [PreferenceRecord("a", "b", "c")]


def test_csv_cells_and_scores(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,chosen,rejected,chosen_score,rejected_score\na,b,c,1,x\na,b,c,1,0,7\na,b\na,b,c,,\n")
    _, report = load_preferences(path, drop_invalid=True)
    assert report.counts == {
        "rejected_score: wrong type": 1,
        "row: more cells than the header": 1,
        "rejected: missing": 1,
    }


# Validation


BAD = {
    "chosen: missing": {"chosen": None},
    "rejected: empty": {"rejected": " \n"},
    "prompt: empty": {"prompt": ""},
    "prompt: wrong type": {"prompt": 3},
    "chosen: wrong type": {"chosen": [{"role": "assistant", "content": 5}]},
    "rejected: undecodable bytes": {"rejected": "\udcff"},
    "rejected: equal to chosen": {"rejected": "four"},
    "rejected: mixed formats": {"rejected": [assistant("five")]},
    "chosen_score: not finite": {"chosen_score": float("nan"), "rejected_score": 0.0},
    "rejected_score: wrong type": {"chosen_score": 1.0, "rejected_score": True},
    "rejected_score: missing": {"chosen_score": 1.0},
    "chosen_score: below rejected_score": {"chosen_score": 1.0, "rejected_score": 2.0},
    "calibration: missing": {"calibration": "six"},
}


@pytest.mark.parametrize("key", BAD)
def test_every_kind_of_bad_row_is_named(key):
    """Rows 1 and 3 of 5 are bad: the error has column, kind, row numbers, count and an example, and nothing else."""
    rows = [GOOD[0], {**GOOD[0], **BAD[key]}, GOOD[1], {**GOOD[0], **BAD[key]}, GOOD[1]]
    with pytest.raises(InvalidRecords) as caught:
        preference_records(rows)
    message = str(caught.value)
    if key == "calibration: missing":  # the rows with a calibration response are the rarer kind
        assert "a calibration response here, but no calibration response in most rows" in message
    assert "2 of 5 rows" in message and f"{key}: 2 rows (1, 3); for example row 1: " in message
    assert caught.value.report.counts == {key: 2}
    records, report = preference_records(rows, drop_invalid=True)
    assert [record.row for record in records] == [0, 2, 4]
    assert report.counts == {key: 2} and report.total == 5


def test_many_rows_are_counted_and_few_are_listed():
    with pytest.raises(InvalidRecords, match=r"chosen: missing: 40 rows \(0, 1, 2, 3, 4, \.\.\.\)") as caught:
        preference_records([{"prompt": "a", "answer": "b", "rejected": "c"}] * 40)
    said = "has the columns answer, prompt, rejected; say where the missing ones are with --columns chosen=their_name."
    assert said in str(caught.value) and "go on without them with --drop_invalid" in str(caught.value)


def test_text_and_message_rows_do_not_mix():
    message_row = {"prompt": [user("a")], "chosen": [assistant("b")], "rejected": [assistant("c")]}
    with pytest.raises(InvalidRecords, match=r"mixed formats: 1 row \(2\).*messages here, but text in most rows"):
        preference_records([*GOOD, message_row])


@pytest.mark.parametrize("row", [7, None, "text"])
def test_rows_that_are_no_tables(row):
    with pytest.raises(InvalidRecords, match=r"row: not a table row: 1 row \(0\)"):
        preference_records([row, *GOOD])


def test_a_response_is_the_assistants():
    row = {"prompt": [user("a")], "chosen": [user("b")], "rejected": [assistant("c")]}
    with pytest.raises(InvalidRecords, match="chosen: wrong role"):
        preference_records([row])
    row = {"prompt": "a", "chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]}
    with pytest.raises(InvalidRecords, match=r"prompt is text, chosen is messages.*--columns prompt=none takes"):
        preference_records([row])


kinds = st.sampled_from(sorted(set(BAD) - {"calibration: missing"}))


@settings(deadline=None)
@given(bad=st.dictionaries(st.integers(0, 9), kinds, max_size=9))
def test_kept_and_dropped_make_the_whole(bad):
    rows = [{**GOOD[0], **BAD.get(bad.get(n), {})} for n in range(10)]
    records, report = preference_records(rows, drop_invalid=True)
    assert [record.row for record in records] == [n for n in range(10) if n not in bad]
    assert report.rows == set(bad) and sum(report.counts.values()) == len(bad)
    assert len(records) + len(report.rows) == report.total == 10


# The implicit prompt


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("2+2? It is four", "2+2? It is five", ("2+2? It is", " four", " five")),  # a word is never split: "f"
        ("Q: 2+2?\nA: four", "Q: 2+2?\nA: 5", ("Q: 2+2?\nA:", " four", " 5")),
        ("2+2?\nfour", "2+2?\nfive", ("2+2?\n", "four", "five")),
        ("It is four", "It is four five", ("It is four", "", " five")),
        ("four", "five", ("", "four", "five")),
        ("2+2?\n\nfour", "2+2?\nfour", ("2+2?\n", "\nfour", "four")),
    ],
)
def test_implicit_prompt_of_text(chosen, rejected, expected):
    assert split_prompt(chosen, rejected) == expected


@settings(deadline=None)
@given(st.text("ab \n", max_size=20), st.text("ab \n", max_size=9), st.text("ab \n", max_size=9))
def test_implicit_prompt_properties(prompt, first, second):
    """The largest common prefix with whitespace (or nothing) after it, or a line's end before it, by brute force."""
    assume(first != second)
    chosen, rejected = prompt + first, prompt + second

    def is_boundary(size: int) -> bool:
        ends = {text[size : size + 1] for text in (chosen, rejected)}
        return ends <= {"", " ", "\n"} or chosen[:size].endswith("\n")

    sizes = [n for n in range(len(chosen) + 1) if chosen[:n] == rejected[:n] and (n == 0 or is_boundary(n))]
    size = max(sizes)
    assert split_prompt(chosen, rejected) == (chosen[:size], chosen[size:], rejected[size:])


def test_implicit_prompt_of_messages():
    start = [user("a"), assistant("b"), user("c")]
    (record,), _ = preference_records([{"chosen": [*start, assistant("d")], "rejected": [*start, assistant("e")]}])
    assert record.prompt == tuple(start) and record.chosen == (assistant("d"),)


def test_implicit_prompt_takes_calibration_along():
    row = {"chosen": "2+2? four", "rejected": "2+2? five", "calibration": "2+2? six"}
    (record,), _ = preference_records([row])
    assert record.responses == {"chosen": " four", "rejected": " five", "calibration": " six"}
    with pytest.raises(InvalidRecords, match="calibration: does not begin with the prompt"):
        preference_records([{**row, "calibration": "six"}])


def test_no_common_beginning():
    with pytest.raises(InvalidRecords, match=r"prompt: missing.*no prompt column"):
        preference_records([{"chosen": "four", "rejected": "five"}])


# SFT


def test_sft_layouts():
    for name in ("response", "completion"):
        assert sft_records([{"prompt": "a", name: "b"}])[0] == [SFTRecord("a", "b")]
    messages = [user("a"), assistant("b"), user("c"), assistant("d")]
    assert sft_records([{"messages": messages}])[0] == [SFTRecord(tuple(messages[:3]), (assistant("d"),))]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "a"}, "response: missing"),
        ({"prompt": "a", "response": "b", "completion": "c"}, "completion: ambiguous"),
        ({"messages": [assistant("b")]}, "messages: no conversation"),
        ({"messages": "a"}, "messages: no conversation"),
        ({"messages": [assistant("a"), user("b")]}, "response: wrong role"),
        ({"prompt": "a", "response": [assistant("b")]}, "response: mixed formats"),
    ],
)
def test_sft_bad_rows(tmp_path, row, expected):
    path = write_jsonl(tmp_path / "a.jsonl", [row])
    with pytest.raises(InvalidRecords, match=expected):
        load_sft(path)


# Directories, known layouts and the hub

TLDR = {"prompt": "SUBREDDIT: r/a\n\nTL;DR:", "chosen": " four", "rejected": " five", "extra": 1}
FEEDBACK = {
    "info": {"id": "t3", "post": "A post.", "title": "A title", "subreddit": "tifu", "site": None, "article": None},
    "summaries": [
        {"text": " worse", "policy": "sup1", "note": None},
        {"text": "better", "policy": "ref", "note": None},
    ],
    "choice": 1,
}
ULTRA = {
    "prompt": "2 + 2?",
    "chosen": [user("2 + 2?"), assistant("four")],
    "rejected": [user("2 + 2?"), assistant("five")],
    "score_chosen": 8.5,
    "score_rejected": 8.0,
}
DIALOGUE = "\n\nHuman: 2+2?\n\nAssistant: hm\n\nHuman: well?\n\nAssistant:"
HH = {"chosen": DIALOGUE + " It is four", "rejected": DIALOGUE + " It is five"}
LAYOUTS = {
    "trl-lib/tldr-preference": (TLDR, PreferenceRecord("SUBREDDIT: r/a\n\nTL;DR:", " four", " five")),
    "openai/summarize_from_feedback": (
        FEEDBACK,
        PreferenceRecord("SUBREDDIT: r/tifu\n\nTITLE: A title\n\nPOST: A post.\n\nTL;DR:", " better", " worse"),
    ),
    "HuggingFaceH4/ultrafeedback_binarized": (
        ULTRA,
        PreferenceRecord((user("2 + 2?"),), (assistant("four"),), (assistant("five"),), 8.5, 8.0),
    ),
    "Anthropic/hh-rlhf": (HH, PreferenceRecord(DIALOGUE, " It is four", " It is five")),
}


@pytest.mark.parametrize("hub_id", KNOWN_DATASETS)
def test_known_layouts_from_the_hub_and_from_a_copy(tmp_path, monkeypatch, hub_id):
    """The hub is asked with the right configuration; a copy of the same rows gives the same records."""
    row, expected = LAYOUTS[hub_id]
    asked = {}

    def load_dataset(path, name=None, *, split, revision=None):
        asked.update(path=path, name=name, split=split, revision=revision)
        return datasets.Dataset.from_list([row])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_preferences(hub_id)[0] == [expected]
    known = KNOWN_DATASETS[hub_id]
    assert asked == {"path": hub_id, "name": known.name, "split": known.split, "revision": known.revision}
    load_preferences(hub_id, split="test[:10]")
    assert asked["split"] == "test[:10]"
    assert load_preferences(write_parquet(tmp_path / "copy.parquet", [row]), columns=hub_id)[0] == [expected]


def test_news_articles_and_unusable_choices():
    adapt = KNOWN_DATASETS["openai/summarize_from_feedback"].adapt
    assert adapt({**FEEDBACK, "info": {"article": "News."}})["prompt"] == "Article: News.\n\nTL;DR:"
    with pytest.raises(ValueError, match="choice=-1"):
        adapt({**FEEDBACK, "choice": -1})


def test_a_row_in_another_layout_is_named(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [FEEDBACK, GOOD[0], {**FEEDBACK, "choice": 3}])
    with pytest.raises(InvalidRecords, match=r"not in the layout of openai/summarize_from_feedback: 2 rows \(1, 2\)"):
        load_preferences(path, columns="openai/summarize_from_feedback")


def test_hub_id_with_a_mapping(monkeypatch):
    rows = datasets.Dataset.from_list([{"question": "a", "best": "b", "worst": "c"}])
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: rows)
    columns = {"prompt": "question", "chosen": "best", "rejected": "worst"}
    assert load_preferences("someone/pairs", columns=columns)[0] == [PreferenceRecord("a", "b", "c")]


@pytest.mark.parametrize(
    ("error", "kind"), [(ConnectionError("unreachable"), ConnectionError), (RuntimeError("a script"), ValueError)]
)
def test_no_network_says_what_to_do(monkeypatch, error, kind):
    def load_dataset(*args, **kwargs):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(kind) as caught:
        load_preferences("Anthropic/hh-rlhf")
    message = str(caught.value)
    assert str(error) in message and "Without a network, download it on another machine" in message
    assert message.endswith("give that file instead, with --columns Anthropic/hh-rlhf")


def test_directories(tmp_path, monkeypatch):
    """What `save_to_disk` writes (one split, or several), and a directory of files as the hub has it."""
    rows = datasets.Dataset.from_list(GOOD)
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(tmp_path / "splits")
    (tmp_path / "files").mkdir()
    rows.to_parquet(tmp_path / "files" / "train.parquet")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("one", "splits", "files"):
        assert [record.chosen for record in load_preferences(tmp_path / name)[0]] == ["four", "d é"]
    assert len(load_preferences(tmp_path / "splits", split="test")[0]) == 1
    with pytest.raises(ValueError, match="no split 'dev'; it has train, test"):
        load_preferences(tmp_path / "splits", split="dev")
