"""Small inputs that a fresh reader broke the project with: each is a kind of fault, with the right value."""

import json
from dataclasses import replace

import pytest
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from transformers import PreTrainedTokenizerFast

from rlhf_lab.common.markdown import markdown_table
from rlhf_lab.credit.tokens import PlantedError, error_mask
from rlhf_lab.data.problems import InvalidRecords
from rlhf_lab.data.records import load_preferences
from rlhf_lab.data.rows import SFTRecord
from rlhf_lab.data.tokens import tokenize_sft
from rlhf_lab.engine.loading import load_model, load_tokenizer
from rlhf_lab.engine.serving.exchange import ServerError
from rlhf_lab.judges.cross_validation import JudgeSettings, judge
from rlhf_lab.judges.rouge import rouge_l
from rlhf_lab.judges.rows import encode_responses
from rlhf_lab.training import run_folder
from rlhf_lab.training.run_folder import RunRecord, write_run
from rlhf_lab.training.settings import TrainingSettings
from rlhf_lab.workflow.loop import run_workflow
from rlhf_lab.workflow.prompts import prompt_pools
from rlhf_lab.workflow.scores import named_judge
from tests.test_server import answer, draw, fake_server
from tests.test_workflow import by_length, chat_tokenizer, table
from tests.toy import save_toy, toy_corpus, toy_tokenizer
from tests.workflow_toy import toy_run


@pytest.mark.parametrize(("a", "b"), [("दिल", "दाल"), ("की", "का"), ("ดี", "ดู"), ("سَلام", "سِلام"), ("x̄", "x")])
def test_words_that_differ_in_a_vowel_sign_are_two_words(a, b):
    assert rouge_l(a, b) == 0.0 and rouge_l(a, a) == 1.0
    assert rouge_l(f"{a} one", f"{b} one") == 0.5


def test_a_sign_inside_a_word_does_not_part_it():
    assert rouge_l("தமிழ்", "தமி") == 0.0


def test_a_document_of_both_splits_is_held_out_only():
    corpus = [replace(pair, split=split) for pair in toy_corpus(12) for split in ("validation", "test")]
    plan = toy_run("out", "model", prompts=1, eval_prompts=4)
    pool, held_out = prompt_pools(plan.settings, toy_tokenizer(), 0, 26, corpus)
    assert not {row["prompt"] for row in pool} & {row["prompt"] for row in held_out} and len(pool) == 8


def test_an_empty_reference_is_named_before_anything_is_drawn(tmp_path):
    save_toy(tmp_path / "sft")
    rows = [{"prompt": f"{d.description} <tldr>", "reference": "key"} for d in toy_corpus()[:20]]
    rows[3]["reference"] = "  "
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="row 3: `reference` is empty"):
        run_workflow(*toy_run(tmp_path / "run", str(tmp_path / "sft"), prompts_file=str(tmp_path / "p.jsonl")))


def test_a_response_that_the_template_cuts_is_judged_as_it_stands(tmp_path):
    """A template that keeps only what follows "row", as some drop what precedes </think>: a score, and not an error."""
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "open {{ m.content }}", "open {{ m.content.split('row')[-1] }}"
    )
    prompt = ({"role": "user", "content": "read file"},)
    ((_, (whole, cut)),) = encode_responses([prompt], [["key table", "write row key"]], tokenizer)
    assert tokenizer.decode(whole) == "key table <tldr>" and tokenizer.decode(cut) == "write row key <eos>"


def test_what_a_stranger_calls_unfinished_stays(tmp_path):
    thesis = tmp_path / "run" / ".unfinished-thesis"
    thesis.mkdir(parents=True)
    with run_folder.run_folder(TrainingSettings(str(tmp_path / "run")), {"task": "test"}):
        assert thesis.is_dir()
    note = tmp_path / "loop" / "iteration-1" / ".unfinished-notes"
    note.mkdir(parents=True)
    save_toy(tmp_path / "sft")
    plan = toy_run(tmp_path / "loop", str(tmp_path / "sft"), iterations=1, judge="length")
    run_workflow(*plan, corpus=toy_corpus(), judge=by_length)
    assert note.is_dir()


def test_a_record_that_names_files_outside_deletes_nothing(tmp_path):
    victim, folder = tmp_path / "victim.txt", tmp_path / "run"
    victim.write_text("mine")
    folder.mkdir()
    write_run(folder, RunRecord({"task": "test"}, ("../victim.txt",)))
    settings = TrainingSettings(str(folder), resume=False)
    with pytest.raises(ValueError, match="outside the folder"), run_folder.run_folder(settings, {"task": "test"}):
        pass
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("name", ["data.json", "special_tokens_map.json", "adapter_config.json", "vocab.json"])
def test_a_strangers_file_of_a_models_name_is_not_taken_over(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with (
        pytest.raises(ValueError, match="nothing there is touched"),
        run_folder.run_folder(TrainingSettings(str(tmp_path)), {"task": "test"}),
    ):
        pass


def test_a_long_prompt_is_refused_cut_or_dropped(tmp_path, capsys):
    """One prompt of 40 words among twenty; 26 positions are left beside a response."""
    save_toy(tmp_path / "sft")
    rows = [{"prompt": f"{d.description} <tldr>", "reference": "key"} for d in toy_corpus()[:20]]
    rows[5]["prompt"] = "row " * 39 + "<tldr>"
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"prompts_file": str(tmp_path / "p.jsonl"), "iterations": 1, "prompts": 14}
    with pytest.raises(ValueError, match=r"row 5: 40 tokens.*--long_prompts truncate or drop"):
        run_workflow(*toy_run(tmp_path / "a", str(tmp_path / "sft"), **options))
    run_workflow(*toy_run(tmp_path / "b", str(tmp_path / "sft"), long_prompts="truncate", **options))
    assert "1 prompt of more than 26 tokens is cut to the last 26 tokens" in capsys.readouterr().out
    longest = max(
        table(tmp_path / "b", 0, "prompts") + table(tmp_path / "b", 1, "prompts"), key=lambda r: len(r["ids"])
    )
    assert len(longest["ids"]) == 26 and longest["ids"][-1] == 2
    with pytest.raises(ValueError, match="there are 13 and 6"):
        run_workflow(*toy_run(tmp_path / "c", str(tmp_path / "sft"), long_prompts="drop", **options))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "read", "tools": [{"name": "f"}]}', "`tools`, which is not supported"),
        ('{"prompt": "read", "prompt": "write"}', "key given twice"),
        ('{"prompt": "read"', "malformed JSON"),
    ],
)
def test_rows_of_a_prompts_file_are_refused_by_name(tmp_path, line, message):
    save_toy(tmp_path / "sft")
    (tmp_path / "p.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        run_workflow(*toy_run(tmp_path / "run", str(tmp_path / "sft"), prompts_file=str(tmp_path / "p.jsonl")))


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "[" * 5000])
@pytest.mark.parametrize("name", ["generation_config.json", "config.json", "tokenizer_config.json", "tokenizer.json"])
def test_a_broken_config_is_named(tmp_path, name, content):
    """Without a generation config transformers goes on, and the model would end its responses elsewhere."""
    save_toy(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name} (is not whole|holds no settings).*take it from the model's source"):
        load_tokenizer(tmp_path) if "tokenizer" in name else load_model(tmp_path)


def test_a_judge_whose_config_holds_no_settings_is_named(tmp_path):
    save_toy(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json holds no settings, but list"):
        named_judge(str(tmp_path))


@pytest.mark.parametrize("wrong", ["{{ 1 + 'a' }}", "{{ 1 / 0 }}", "{{ {}.a.b }}", "{{ messages[9].content + 1 }}"])
def test_a_template_that_computes_nonsense_names_the_row(wrong):
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = wrong
    record = SFTRecord(({"role": "user", "content": "read"},), ({"role": "assistant", "content": "file"},), row=3)
    with pytest.raises(InvalidRecords, match=r"refused by the chat template: 1 row \(3\)"):
        tokenize_sft([record], tokenizer, max_length=20)


@pytest.mark.parametrize("score", ["1" + "0" * 400, "-1" + "0" * 400, "1e400"])
def test_a_score_that_no_float_holds_is_named(tmp_path, score):
    (tmp_path / "p.jsonl").write_text(
        f'{{"prompt": "a", "chosen": "b", "rejected": "c", "chosen_score": {score}, "rejected_score": 0}}'
    )
    with pytest.raises(InvalidRecords, match=r"chosen_score: not finite: 1 row \(0\)"):
        load_preferences(tmp_path / "p.jsonl")


@pytest.mark.parametrize("depth", [300, 900, 100_000])
def test_cells_that_are_nested_deeply_are_named(tmp_path, depth):
    """What can still be parsed may be too deep to be shown."""
    (tmp_path / "p.jsonl").write_text(f'{{"prompt": "a", "chosen": {"[" * depth}{"]" * depth}, "rejected": "c"}}')
    with pytest.raises(InvalidRecords, match=r"chosen: wrong type|malformed JSON"):
        load_preferences(tmp_path / "p.jsonl")


@pytest.mark.parametrize("depth", [150, 900, 100_000])
@pytest.mark.parametrize("status", [200, 400])
def test_an_answer_that_is_nested_deeply_is_named(depth, status):
    deep = f'{{"choices": {"[" * depth}{"]" * depth}}}'.encode()
    with fake_server(lambda _: (status, {}, deep)) as (url, _), pytest.raises(ServerError, match=r"nested|levels|400"):
        draw(url, n=1)


@pytest.mark.parametrize("listed", [{"data": 3}, {"data": {"id": 3}}, {"data": "none"}, {}])
def test_a_server_that_lists_nonsense_is_asked_for_the_model(listed):
    with fake_server(answer, lambda: listed) as (url, _):
        assert draw(url, n=1)
    with (
        fake_server(lambda _: (404, {}, b"no such model"), lambda: listed) as (url, _),
        pytest.raises(ServerError, match=r"it lists no model; asked for it: .*no such model"),
    ):
        draw(url, n=1)


def test_the_planted_token_is_found_behind_a_space_mark():
    """A SentencePiece-like tokenizer marks the text's first word; a response goes on, so that its ids have no mark."""
    vocabulary = [("<unk>", 0.0), ("<eos>", 0.0), ("\u2581", -1.0), ("\n", -1.0)]
    vocabulary += [
        (piece, -2.0) for piece in ("\u2581returns", "returns", "\u2581the", "\u2581number", "\u25817", "7", "\u2581of")
    ]
    backend = Tokenizer(Unigram(vocabulary, unk_id=0))
    backend.pre_tokenizer = Metaspace(prepend_scheme="always")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")
    text = "returns the number 7 of"
    ids, mask = error_mask(PlantedError(0, text, 19, 20, "4", "number"), tokenizer)
    assert [tokenizer.convert_ids_to_tokens(i) for i, wrong in zip(ids, mask, strict=True) if wrong] == ["\u25817"]


def test_a_special_token_in_a_table_is_text_and_no_tag():
    assert markdown_table([["a"], ["<eos> and `<b>`"]]).splitlines()[2] == "| &lt;eos> and `<b>` |"


def test_a_judge_takes_over_no_stranger_and_no_model(tmp_path):
    (tmp_path / "report.json").write_text("mine")
    with pytest.raises(ValueError, match=r"report\.json that no judge wrote"):
        judge(JudgeSettings("pairs.jsonl", output_dir=str(tmp_path)))
    save_toy(tmp_path / "model")
    with pytest.raises(ValueError, match="is the folder of the model"):
        judge(JudgeSettings("p.jsonl", output_dir=str(tmp_path / "model"), model_name_or_path=str(tmp_path / "model")))
    assert (tmp_path / "report.json").read_text() == "mine"


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_a_judge_that_is_not_whole_is_refused_before_anything_is_computed(tmp_path, name):
    save_toy(tmp_path / "sft")
    save_toy(tmp_path / "judge")
    file = tmp_path / "judge" / name
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ValueError, match=rf"{name} is not whole"):
        run_workflow(
            *toy_run(tmp_path / "run", str(tmp_path / "sft"), judge=str(tmp_path / "judge")), corpus=toy_corpus()
        )
    assert not list((tmp_path / "run").glob("iteration-*"))


def test_a_judge_without_weights_is_refused_before_anything_is_computed(tmp_path):
    save_toy(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no weights"):
        named_judge(str(tmp_path))


def test_a_judge_of_another_head_is_refused_before_anything_is_computed(tmp_path):
    save_toy(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "a", "1": "b", "2": "c"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="has 3 labels; a reward model has num_labels 1"):
        named_judge(str(tmp_path))


@pytest.mark.parametrize(
    ("column", "message"), [("prompt", "undecodable bytes"), ("reference", "`reference`: undecod")]
)
def test_undecodable_bytes_of_a_prompts_file_are_named(tmp_path, column, message):
    save_toy(tmp_path / "sft")
    cells = {"prompt": b"read", "reference": b"key"} | {column: b"caf\xe9"}
    (tmp_path / "p.csv").write_bytes(b"prompt,reference\n" + cells["prompt"] + b"," + cells["reference"] + b"\n")
    with pytest.raises(ValueError, match=rf"row 0: {message}"):
        run_workflow(*toy_run(tmp_path / "run", str(tmp_path / "sft"), prompts_file=str(tmp_path / "p.csv")))
