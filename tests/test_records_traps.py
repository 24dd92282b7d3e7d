"""Tables that look right and would train on something else: each is named, or read as its author meant it."""

import csv
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from rlhf_lab.commands.training import DataArguments
from rlhf_lab.data.problems import InvalidRecords
from rlhf_lab.data.records import load_preferences, preference_records, sft_records
from rlhf_lab.data.tokens import tokenize_record


def user(content: str) -> dict:
    return {"role": "user", "content": content}


def assistant(content: str, **fields) -> dict:
    return {"role": "assistant", "content": content} | fields


def test_whether_prompts_are_implicit_is_a_property_of_the_table():
    """Among rows with prompts, `None` is a missing prompt, not an invitation to cut one from the responses."""
    rows = [
        {"prompt": "Say a number.", "chosen": "four", "rejected": "five"},
        {"prompt": None, "chosen": "Sure, here is a list of primes", "rejected": "Sure, here is a joke"},
    ]
    with pytest.raises(InvalidRecords, match=r"prompt: missing: 1 row \(1\)"):
        preference_records(rows)
    (record,), _ = preference_records(rows[1:])
    assert record.prompt == "Sure, here is a"


@pytest.mark.parametrize(
    "fields",
    [{"tool_calls": [{"name": "f"}]}, {"reasoning_content": "I think"}, {"weight": 0}, {"name": "Ada"}],
)
def test_message_fields_that_a_template_reads_are_not_dropped_silently(fields):
    name = next(iter(fields))
    with pytest.raises(InvalidRecords, match=f"unsupported message field '{name}'"):
        sft_records([{"messages": [user("a"), assistant("b", **fields)]}])
    empty = {"tool_calls": [], "reasoning_content": "", "weight": None, "id": 7, "name": None}  # what Parquet fills in
    assert sft_records([{"messages": [user("a"), assistant("b", **empty)]}])[0]


@pytest.mark.parametrize(("name", "value"), [("tools", [{"name": "f"}]), ("chat_template_kwargs", {"tone": "dry"})])
def test_what_a_template_would_read_besides_messages_is_not_dropped_silently(name, value, tmp_path):
    row = {"prompt": [user("a")], "chosen": [assistant("b")], "rejected": [assistant("c")], name: value}
    with pytest.raises(InvalidRecords, match=f"{name}: unsupported column"):
        preference_records([row])
    assert preference_records([row | {name: type(value)()}])[0]
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row))
    with pytest.raises(InvalidRecords, match=f"{name}: unsupported column"):
        load_preferences(tmp_path / "pairs.jsonl", columns={"chosen": "chosen"})


AS_TEXT = [
    "[{'role': 'user', 'content': 'hi', 'name': None}]",
    "[{'name': None, 'weight': True, 'role': 'user', 'content': 'hi'}]",
    '[{"id": 1, "content": "hi", "role": "user"}]',
    "({'content': 'hi', 'role': 'user'},)",
    "array([{'content': 'hi', 'role': 'user'}], dtype=object)",
    '"[{\\"role\\": \\"user\\", \\"content\\": \\"hi\\"}]"',
    "[{'from': 'human', 'value': 'hi'}]",
]


@pytest.mark.parametrize("text", AS_TEXT)
def test_a_message_list_as_text_is_named_in_every_spelling(text):
    with pytest.raises(InvalidRecords, match="chosen: message list as text"):
        preference_records([{"prompt": "Say hi", "chosen": text, "rejected": "no"}])


@pytest.mark.parametrize("text", ["[{'name': 'f', 'args': 1}]", "a [{'role': 'x', 'content': 1}]", '{"role": "admin"}'])
def test_other_lists_as_text_are_text(text):
    assert preference_records([{"prompt": "Say hi", "chosen": text, "rejected": "no"}])[0]


@pytest.mark.parametrize("column", ["chosen", "rejected"])
def test_a_prompt_that_only_one_response_repeats_is_named(column):
    row = {"prompt": "Name a large city.", "chosen": " Cairo", "rejected": " Paris"}
    row[column] = row["prompt"] + row[column]
    with pytest.raises(InvalidRecords, match=f"{column}: repeats the prompt: .*cut the prompt off, or drop the row"):
        preference_records([row])
    chat = {"prompt": [user("a")], "chosen": [assistant("b")], "rejected": [assistant("c")]}
    chat[column] = chat["prompt"] + chat[column]
    with pytest.raises(InvalidRecords, match=f"{column}: repeats the prompt"):
        preference_records([chat])


def test_undecodable_bytes_of_parquet_matter_in_the_columns_that_are_read(tmp_path):
    """Latin-1 in a column of nobody's; the row of a used column is named with it, and only that row."""
    texts = pa.array([b"caf\xe9", b"good"], pa.binary()).view(pa.string())
    table = {"prompt": pa.array(["a", "b"]), "chosen": pa.array(["c", "d"]), "rejected": pa.array(["e", "f"])}
    pq.write_table(pa.table(table | {"note": texts}), tmp_path / "note.parquet")
    records, _ = load_preferences(tmp_path / "note.parquet")
    assert [record.chosen for record in records] == ["c", "d"]
    pq.write_table(pa.table(table | {"chosen": texts}), tmp_path / "chosen.parquet")
    with pytest.raises(InvalidRecords, match=r"chosen: undecodable bytes: 1 row \(0\)"):
        load_preferences(tmp_path / "chosen.parquet")


def test_turns_of_the_user_inside_a_response_are_refused():
    """They would carry loss like the assistant's own words."""
    chosen = [assistant("b"), user("and now?"), assistant("c")]
    with pytest.raises(InvalidRecords, match="chosen: turns of others"):
        preference_records([{"prompt": [user("a")], "chosen": chosen, "rejected": [assistant("d")]}])


def test_a_prompt_that_the_assistant_has_begun_is_refused():
    row = {"prompt": [user("a"), assistant("Sure,")], "chosen": [assistant(" b")], "rejected": [assistant(" c")]}
    with pytest.raises(InvalidRecords, match="prompt: ends with an assistant"):
        preference_records([row])


def test_message_lists_that_became_strings_are_refused():
    """As DataFrame.to_csv writes them."""
    text = str([user("a"), assistant("b")])
    with pytest.raises(InvalidRecords, match="chosen: message list as text"):
        preference_records([{"prompt": "a question", "chosen": text, "rejected": "c"}])
    assert preference_records([{"prompt": "a question", "chosen": "[{1: 2}] is a list", "rejected": "c"}])[0]


def test_responses_that_repeat_the_prompt_are_refused():
    prompt = "What is two plus two?"
    row = {"prompt": prompt, "chosen": prompt + " Four.", "rejected": prompt + " Five."}
    with pytest.raises(InvalidRecords, match=r"chosen: repeats the prompt.*--columns prompt=none takes"):
        preference_records([row])
    messages = {"prompt": [user("a")], "chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]}
    with pytest.raises(InvalidRecords, match="chosen: repeats the prompt"):
        preference_records([messages])
    assert preference_records([{"prompt": "Yes", "chosen": "Yes it is", "rejected": "Yes or no"}])[0]  # by chance


# ---- tokens in their context


def sentencepiece_style() -> PreTrainedTokenizerFast:
    """As Llama 2: a space mark before every text, marks for spaces, bytes for line ends; one piece a character."""
    pieces = ["<unk>", "<s>", "</s>", "<0x0A>", "\u2581", *"abcdefghijklmnopqrstuvwxyz0123456789+?.IT"]
    model = BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


@pytest.mark.parametrize(
    ("prompt", "chosen"),
    [("2+2? It is", " four"), ("2+2?\n", "four"), ("2+2? It is ", "four"), ("list.", "\nfour")],
)
def test_a_response_has_the_ids_that_it_has_in_its_context(prompt, chosen):
    """No second space after a prompt, and none where there is none: prompt and response read back as they were."""
    tokenizer = sentencepiece_style()
    (record,), _ = preference_records([{"prompt": prompt, "chosen": chosen, "rejected": chosen + " ten"}])
    example = tokenize_record(record, tokenizer)
    for response, text in zip(example.responses, (chosen, chosen + " ten"), strict=True):
        assert tokenizer.decode([*example.prompt, *response], skip_special_tokens=True) == prompt + text
        assert [*example.prompt, *response[:-1]] == tokenizer(prompt + text, add_special_tokens=False).input_ids


# ---- files


def pairs(suffix: str) -> list[dict]:
    return [{"prompt": "a b", "chosen": f"c {suffix} {i}", "rejected": "d"} for i in range(3)]


def test_splits_are_chosen_not_guessed(tmp_path):
    both = datasets.DatasetDict({s: datasets.Dataset.from_list(pairs(s)) for s in ("train", "test")})
    both.save_to_disk(str(tmp_path / "both"))
    both["train"].save_to_disk(str(tmp_path / "one"))
    with pytest.raises(ValueError, match=r"holds several splits: say which by --eval_split"):
        DataArguments("m", train_file="a.jsonl", eval_file=str(tmp_path / "both"))
    with pytest.raises(ValueError, match="--eval_split belongs to --eval_file"):
        DataArguments("m", train_file="a.jsonl", eval_split="test")
    records, _ = load_preferences(tmp_path / "both", split="test")
    assert records[0].chosen == "c test 0"
    with pytest.raises(ValueError, match="holds one data set"):
        load_preferences(tmp_path / "one", split="test")


def write_csv(path, header: list[str], *rows: list[str]):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_csv_cells_are_as_long_as_documents(tmp_path):
    long = "word " * 40_000
    path = write_csv(tmp_path / "a.csv", ["prompt", "chosen", "rejected"], [long, "b", "c"])
    assert load_preferences(path)[0][0].prompt == long


def test_csv_numbers_are_those_of_the_score_columns_whatever_their_name(tmp_path):
    header = ["prompt", "best_scored", "rejected", "points", "fewer"]
    path = write_csv(tmp_path / "a.csv", header, ["a", "12", "b", "2.5", "1"])
    columns = {"chosen": "best_scored", "chosen_score": "points", "rejected_score": "fewer"}
    (record,), _ = load_preferences(path, columns=columns)
    assert (record.chosen, record.chosen_score, record.rejected_score) == ("12", 2.5, 1.0)


def test_csv_columns_have_names_of_their_own(tmp_path):
    path = write_csv(tmp_path / "a.csv", ["prompt", "chosen", "chosen", "rejected"], ["a", "b", "c", "d"])
    with pytest.raises(ValueError, match="'chosen' names more than one column"):
        load_preferences(path)


def test_a_date_beyond_the_calendar_in_an_unused_column_does_no_harm(tmp_path):
    columns = {name: [row[name] for row in pairs("x")] for name in ("prompt", "chosen", "rejected")}
    table = pa.table(columns | {"seen": pa.array([0, 10**12, 1], pa.timestamp("s"))})
    pq.write_table(table, tmp_path / "a.parquet")
    assert len(load_preferences(tmp_path / "a.parquet")[0]) == 3
