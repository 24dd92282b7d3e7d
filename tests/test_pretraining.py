"""The small models' recipe: what is read, in which shares, never a held-out text; and the recipe itself, end to end."""

import ast
import itertools
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_lab.commands import pretrain as command
from rlhf_lab.common.assets import small_model_path
from rlhf_lab.data import docstrings as docstrings_module
from rlhf_lab.data.docstrings import Docstring, clean_pairs, word_runs
from rlhf_lab.engine.batches import collate
from rlhf_lab.judges.cross_validation import JudgeSettings
from rlhf_lab.pretraining import human_labels, recipe
from rlhf_lab.pretraining.card import export
from rlhf_lab.pretraining.code import Documented, Source, harvest_sources, read_source
from rlhf_lab.pretraining.mixture import LATE_SHARES, SHARES, Task, central_sentence, tasks
from rlhf_lab.pretraining.packing import Rows, encode, pack
from rlhf_lab.pretraining.recipe import Recipe, RowExamples, build_model, row_loss_fn
from rlhf_lab.pretraining.tokenizer import for_transformers, train_tokenizer

SUBJECTS = ("cache", "parser", "server", "matrix", "graph", "reader", "token", "window", "socket", "figure")
VERBS = ("keeps", "drops", "copies", "sorts", "merges", "counts", "writes", "checks")


def folder_of(package) -> Path:
    return Path(package.__file__).parent


def docstring(i: int) -> Docstring:
    rng = np.random.default_rng(i)
    words = [SUBJECTS[k] for k in rng.integers(len(SUBJECTS), size=6)]
    a, b, c, d, e, f = words
    v, w = (VERBS[k] for k in rng.integers(len(VERBS), size=2))
    text = (
        f"Return the {a} of a {b}.\n\n"
        f"The {a} {v} every {b} that a {c} asked for before it was closed. Each {d} {w} one {e} and one {f} in turn. "
        f"A {b} without any {a} is an error that the {e} reports to the {c} at once."
    )
    return Docstring("package", f"f{i}", text)


@pytest.fixture(scope="module")
def docstrings():
    short = [f"Open {s} {i}.\n\nTakes one {s}, its name and two numbers." for s in SUBJECTS for i in range(4)]
    return [docstring(i) for i in range(400)] + [Docstring("package", "g", text) for text in short]


@pytest.fixture(scope="module")
def documented():
    subjects = ("cache", "graph", "socket")
    return [
        Documented(f"def get_{s}(self): return self.{s}{i}", f"Return {s} {i}.") for s in subjects for i in range(9)
    ]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([docstring(i).text for i in range(200)], 400)


def test_shares_sum_to_one():
    for shares in (SHARES, LATE_SHARES):
        assert sum(shares.values()) == pytest.approx(1)
    assert SHARES.keys() == LATE_SHARES.keys()


def test_special_tokens_and_round_trip(tokenizer):
    wrapped = for_transformers(tokenizer, 64)
    assert [tokenizer.token_to_id(t) for t in ("<pad>", "<eos>", "<tldr>")] == [0, 1, 2]
    assert (wrapped.pad_token_id, wrapped.eos_token_id, wrapped.bos_token_id) == (0, 1, None)
    ids = wrapped("Return naïve \U0001f600 text <tldr>")["input_ids"]
    assert ids[-1] == 2 and wrapped.decode(ids[:-1]).strip() == "Return naïve \U0001f600 text"


def test_a_summary_begins_with_the_token_it_has_inside_a_sentence(tokenizer):
    first, *_ = tokenizer.encode("cache", add_special_tokens=False).ids
    assert first in tokenizer.encode("The cache", add_special_tokens=False).ids


def test_code_is_read_without_its_docstring_and_in_one_line(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        'class Box:\n    """A box.\n\n    It holds."""\n    size = 1\n\n    def open(self):\n        """Open it."""\n'
        "        return self.size\n\n\ndef bare(): return 2\n"
    )
    assert sorted(read_source(("p", str(path))).documented) == [
        Documented('class Box: size = 1 def open(self): """Open it.""" return self.size', "A box.\n\nIt holds."),
        Documented("def open(self): return self.size", "Open it."),
    ]
    path.write_text("def broken(:\n")
    assert read_source(("p", str(path))) == ([], [])
    path.write_bytes(b'# coding: latin-1\ndef caf\xe9():\n    """Docs."""\n')
    assert read_source(("p", str(path))) == ([Docstring("p", "café", "Docs.")], [])


def test_each_source_file_is_parsed_once_and_nothing_else_changes(monkeypatch, tmp_path):
    """Against two passes of their own, on two packages of the standard library and files that cannot be read."""
    (tmp_path / "broken.py").write_text("def broken(:\n")
    (tmp_path / "latin.py").write_bytes(b'# coding: latin-1\n"""caf\xe9"""\n')
    files = [("python", str(path)) for package in (json, logging) for path in sorted(folder_of(package).glob("*.py"))]
    files += [("own", str(path)) for path in sorted(tmp_path.iterdir())]
    parsed, parse = [], ast.parse
    monkeypatch.setattr(docstrings_module, "source_files", lambda: iter(files))
    # A process of its own would count alone; and one thread, because Python 3.11's parser is not safe in several.
    monkeypatch.setattr(docstrings_module, "ProcessPoolExecutor", lambda max_workers: ThreadPoolExecutor(1))
    monkeypatch.setattr(ast, "parse", lambda content: parsed.append(content) or parse(content))
    found = harvest_sources(progress=False)
    assert len(parsed) == len(files) > 8
    assert found.docstrings == docstrings_module.harvest(progress=False)[0] and len(found.docstrings) > 100
    nodes = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    expected = []
    for path in [path for _, path in files if path.endswith(("json/decoder.py", "logging/config.py"))]:
        lines = Path(path).read_text(encoding="utf8").splitlines()
        for node in ast.walk(parse(Path(path).read_bytes())):
            if isinstance(node, nodes) and ast.get_docstring(node):
                kept = (
                    lines[node.lineno - 1 : node.body[0].lineno - 1] + lines[node.body[0].end_lineno : node.end_lineno]
                )
                expected.append(Documented(" ".join(" ".join(kept).split())[:480], ast.get_docstring(node)))
    assert len(expected) > 10 and [d for d in found.documented if d in expected] == expected


def test_no_task_shares_twelve_words_with_a_held_out_description(docstrings, documented):
    pairs = clean_pairs(docstrings)
    held_out = [pair for pair in pairs if pair.split != "train"]
    assert held_out
    leak = Docstring("package", "leak", f"Tell the same again.\n\nIn short: {held_out[0].description} And no more.")
    stolen = Documented("def steal(): pass", leak.text), Documented(f"def f(): '{held_out[0].description}'", "Leak it.")
    found = tasks([*docstrings, leak], pairs, [*documented, *stolen])
    forbidden = set().union(*(word_runs(pair.description) for pair in held_out))
    assert len(found["code"]) == len(documented)
    assert not {t.target for t in found["wide"]} & {t.target for t in found["clean"]}
    for kind in ("text", "code", "wide", "gap", "extract"):
        assert found[kind]
        assert not any(word_runs(task.document) & forbidden for task in found[kind])
    assert len(found["clean"]) == sum(pair.split == "train" for pair in pairs)


def test_central_sentence_shares_most_words_with_the_others():
    paragraph = "The cat sat on the mat. The cat and the dog sat on the mat. A dog barked at night."
    assert central_sentence(paragraph) == "The cat and the dog sat on the mat."
    assert central_sentence("Only one sentence here.") is None


def test_encode_marks_where_the_target_begins(tokenizer):
    task, text = encode(tokenizer, [Task("a parser", "the token"), Task("a parser", None)])
    ids, num_prompt = task
    assert ids[num_prompt - 1] == 2 and ids[-1] == 1
    assert tokenizer.decode(ids[num_prompt:-1].tolist()).strip() == "the token"
    assert text[1] == len(text[0])  # plain text has no target


def test_pack_keeps_the_shares_and_weighs_targets(docstrings, documented, tokenizer):
    """With much text asked for, what is left over at the ends of rows adds nothing to it: each share is met."""
    found = tasks(docstrings, clean_pairs(docstrings), documented)
    encoded = {kind: encode(tokenizer, task_list) for kind, task_list in found.items()}
    options = {"num_rows": 64, "length": 128, "target_weight": 4.0, "seed": 0}
    rows = pack(encoded, shares=SHARES, **options)
    assert rows.ids.shape == rows.weights.shape == (64, 129)
    assert set(np.unique(rows.weights)) == {1.0, 4.0}
    again = pack(encoded, shares=SHARES, **options)
    assert (rows.ids == again.ids).all() and (rows.weights == again.weights).all()
    assert (rows.ids != pack(encoded, shares=SHARES, **(options | {"seed": 1})).ids).any()
    only_text = pack(encoded, shares={"text": 1.0}, **options)
    assert (only_text.weights == 1).all()
    a_fifth = pack(encoded, shares={"clean": 0.2, "text": 0.8}, **options)
    per_clean = np.mean([len(ids) - n for ids, n in encoded["clean"]]) / np.mean([len(i) for i, _ in encoded["clean"]])
    assert (a_fifth.weights == 4).mean() == pytest.approx(0.2 * per_clean, rel=0.1)
    with pytest.raises(ValueError, match="gap"):
        pack(encoded | {"gap": []}, shares=SHARES, **options)


def test_no_task_is_cut_by_the_end_of_a_row(docstrings, tokenizer):
    """In every row each target has its whole document before it; too long a task loses its document's end only."""
    found = tasks(docstrings, clean_pairs(docstrings))
    clean = encode(tokenizer, found["clean"])
    whole = {tuple(ids.tolist()): n for ids, n in clean}
    options = {"shares": {"clean": 1.0}, "num_rows": 32, "target_weight": 4.0, "seed": 0}
    longest = max(map(len, whole))
    rows = pack({"clean": clean, "text": encode(tokenizer, found["text"])}, length=longest + 20, **options)
    for ids, weights in zip(rows.ids.tolist(), rows.weights, strict=True):
        (targets,) = np.nonzero(np.diff(weights, prepend=1.0) > 0)
        assert len(targets)
        for begin in targets:
            end = begin + ids[begin:].index(1) + 1
            assert any(tuple(ids[begin - n : end]) == task for task, n in whole.items())
    short = pack({"clean": clean, "text": encode(tokenizer, found["text"])}, length=40, **options)
    for ids, weights in zip(short.ids.tolist(), short.weights, strict=True):
        assert ids[-1] == 1 and ids.count(2) == 1 and weights[0] == 1 and weights[-1] == 4
        begin = int(np.nonzero(weights == 4)[0][0])
        assert ids[begin - 1] == 2
        assert any(
            tuple(ids[begin:]) == task[n:] and tuple(ids[: begin - 1]) == task[: begin - 1] for task, n in whole.items()
        )


def test_row_loss_is_the_weighted_sum_of_token_losses():
    """loss_i = sum_t w_t * -log pi(y_t | y_<t), weight_i = sum_t w_t."""
    model = build_model(Recipe(50, 16, 1, 32, 2, short_steps=1, long_steps=1))
    ids = np.random.default_rng(0).integers(50, size=(3, 9)).astype(np.uint16)
    weights = np.where(np.arange(9) % 3 == 0, 4.0, 1.0).astype(np.float16)[None].repeat(3, 0)
    rows = Rows(ids, weights)
    examples = RowExamples(rows)
    chosen = [2, 0]
    batch = collate([examples[i] for i in chosen])
    losses = row_loss_fn(rows, compiled=False)(model, batch, torch.tensor(chosen))
    logps = model(input_ids=torch.from_numpy(ids.astype(np.int64))[chosen]).logits.log_softmax(-1)
    expected = [
        -sum(weights[i, t] * logps[k, t - 1, int(ids[i, t])].item() for t in range(1, 9)) for k, i in enumerate(chosen)
    ]
    assert losses.loss.tolist() == pytest.approx(expected, rel=1e-5)
    assert losses.weights.tolist() == [weights[i, 1:].sum() for i in chosen]


def test_the_whole_recipe_runs_resumes_and_ships(tmp_path, monkeypatch, docstrings, documented):
    """From docstrings to a folder that plain transformers opens; run again, nothing is trained twice."""
    monkeypatch.setattr(recipe, "harvest_sources", lambda progress: Source(docstrings, documented))
    small = Recipe(400, 32, 2, 64, 2, short_steps=6, long_steps=3, short_length=64, tokens_per_step=1024, sft_epochs=1)
    monkeypatch.setitem(recipe.RECIPES, "tiny", small)
    arguments = command.argparse.Namespace(name="tiny", output_dir=tmp_path, share=1.0, no_compile=True)
    command.main(arguments)
    folder = tmp_path / "model"
    results = json.loads((folder / "results.json").read_text(encoding="utf8"))
    assert results["stages"]["short"]["num_tokens"] > 5 * 1024
    assert results["stages"]["sft"]["loss"] < np.log(400)
    card = (folder / "README.md").read_text(encoding="utf8")
    assert f"{results['quality']['loss']:.3f} nats" in card and "ROUGE-L" in card
    shipped = AutoModelForCausalLM.from_pretrained(folder)
    assert shipped.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(folder).eos_token_id == 1
    first = {name: value.clone() for name, value in shipped.state_dict().items()}
    before = sorted((tmp_path / "short").glob("checkpoint-*"))
    command.main(arguments)
    again = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert sorted((tmp_path / "short").glob("checkpoint-*")) == before


def test_export_measures_the_shipped_weights(tmp_path, docstrings, documented, monkeypatch):
    """The card's loss is that of the bf16 files, not of the float32 model that they were rounded from."""
    monkeypatch.setattr(recipe, "harvest_sources", lambda progress: Source(docstrings, documented))
    small = Recipe(400, 32, 2, 64, 2, short_steps=2, long_steps=2, short_length=64, tokens_per_step=1024)
    data = recipe.prepare(small, progress=False)
    facts = {
        "recipe": vars(small),
        "stages": {name: {"num_tokens": 1, "minutes": 1.0} for name in ("short", "long", "sft")},
        "command": "rlhf-lab pretrain tiny",
        "machine": "a test",
    }
    quality = export(build_model(small), data, facts, "tiny", tmp_path)
    assert quality.loss == pytest.approx(np.log(400), abs=0.3)  # an untrained model knows nothing
    assert quality.documents == sum(pair.split == "test" for pair in data.pairs)


def test_what_a_judge_measured_comes_into_the_card(tmp_path):
    """Everything else in card and results stays; the command names each setting that is not its default."""
    for file in ("results.json", "README.md"):
        (tmp_path / file).write_bytes((small_model_path("tiny") / file).read_bytes())
    before = json.loads((tmp_path / "results.json").read_text(encoding="utf8"))
    settings = JudgeSettings(
        "pairs.csv", model_name_or_path="tiny", columns={"prompt": "doc"}, seeds=(0, 3), learning_rate=2e-4
    )
    share = {"mean": 0.6, "low": 0.55, "high": 0.65}
    report = {"groups": 7, "accuracy": share, "always_longer": share, "gain_over_longer": share}
    measured = {"settings": asdict(settings), "cuts": {"examples": 12}, "report": report}
    measured |= {"accuracy_by_seed": {"0": 0.58, "3": 0.62}}
    (tmp_path / "report.json").write_text(json.dumps(measured))
    assert human_labels.main([str(tmp_path), str(tmp_path / "report.json"), "some labels"]) == 0
    after = json.loads((tmp_path / "results.json").read_text(encoding="utf8"))
    assert {name: value for name, value in after.items() if name != "human_labels"} == before
    card = (tmp_path / "README.md").read_text(encoding="utf8")
    assert "| this model | 0.600 (0.550 to 0.650) |" in card and "some labels: 12 comparisons" in card
    assert "rlhf-lab judge --data pairs.csv --columns prompt=doc --seeds 0,3 --learning_rate 0.0002\n" in card
    (tmp_path / "report.json").write_text(
        json.dumps(measured | {"settings": asdict(settings) | {"model_name_or_path": "small"}})
    )
    with pytest.raises(ValueError, match=r"of the model 'small', but .* is of 'tiny'"):
        human_labels.main([str(tmp_path), str(tmp_path / "report.json"), "some labels"])


def test_a_share_outside_its_range_is_refused(tmp_path):
    for share in (0.0, 1.5, -1.0):
        with pytest.raises(ValueError, match="--share"):
            command.main(command.argparse.Namespace(name="tiny", output_dir=tmp_path, share=share, no_compile=True))
    assert not list(itertools.islice(tmp_path.iterdir(), 1))
