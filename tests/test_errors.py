"""Messages: the cause of an error is not cut away, and Ctrl-C says what is kept and what is not."""

import json

import pytest

from rlhf_lab.commands import cli
from rlhf_lab.common.errors import LONGEST, cause, interruptible
from rlhf_lab.engine import loading
from rlhf_lab.judges import cross_validation
from rlhf_lab.training import loop
from tests.training_helpers import tiny_llama, tiny_tokenizer


def test_a_cause_is_whole_and_on_one_line():
    assert cause(ValueError("it failed\n\n  because of that")) == "it failed because of that"
    assert cause(NotImplementedError()) == "NotImplementedError"
    long = cause(ValueError("begin " + "x" * 2000 + " end"))
    assert long.startswith("begin ") and long.endswith(" end") and len(long) <= LONGEST


@pytest.mark.parametrize("kind", [ImportError, KeyError, OSError, RuntimeError])
def test_a_model_or_tokenizer_that_cannot_be_loaded_is_named_with_the_cause(monkeypatch, kind):
    """The second line has the reason, as where transformers wants a package."""

    def fail(*args, **kwargs):
        raise kind("cannot read it\nthe package sentencepiece is missing")

    for automatic in (loading.AutoTokenizer, loading.AutoConfig):
        monkeypatch.setattr(automatic, "from_pretrained", fail)
    for load in (loading.load_tokenizer, loading.load_config):
        with pytest.raises(ValueError, match=r"'org/model': .*cannot read it.*the package sentencepiece is missing"):
            load("org/model")


def test_the_outermost_block_says_how_to_go_on():
    with pytest.raises(KeyboardInterrupt) as stop, interruptible(lambda: "outer"), interruptible(lambda: "inner"):
        raise KeyboardInterrupt
    assert stop.value.__notes__ == ["outer"]


@pytest.fixture
def arguments(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"w{i + 2} w3", "chosen": f" w{i + 5} w6", "rejected": f" w{i + 6} w7"} for i in range(8)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = {"model_name_or_path": tmp_path / "model", "train_file": tmp_path / "pairs.jsonl", "max_steps": 6}
    given |= {"output_dir": tmp_path / "out", "learning_rate": "1e-3", "save_steps": 2, "disable_tqdm": "true"}
    return [text for name, value in given.items() for text in (f"--{name}", str(value))]


@pytest.mark.parametrize(
    ("step", "more", "message"),
    [
        (1, (), "no checkpoint was saved yet (save_steps=2): the same command starts again"),
        (4, (), "the same command goes on from {out}/checkpoint-2"),
        (
            4,
            ("--resume", "false"),
            "with --resume false the same command starts again; without it, it goes on from {out}",
        ),
    ],
)
def test_ctrl_c_says_what_the_same_command_will_do(arguments, tmp_path, monkeypatch, capsys, step, more, message):
    original, calls = loop.scale_and_clip, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == step:
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "scale_and_clip", interrupted)
        assert cli.main(["train", "preference", *arguments, *more]) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("rlhf-lab: interrupted; " + message.format(out=tmp_path / "out"))
    assert cli.main(["train", "preference", *arguments, *more]) == 0  # and it does


def test_a_command_that_keeps_nothing_promises_nothing(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("rlhf_lab.commands.docs.main", interrupted)
    assert cli.main(["docs"]) == 130
    assert capsys.readouterr().err == "rlhf-lab: interrupted\n"


def test_a_judge_says_that_finished_folds_are_kept(tmp_path, monkeypatch, capsys):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cross_validation, "_judge", interrupted)
    assert cli.main(["judge", "--data", "x.jsonl", "--output_dir", str(tmp_path)]) == 130
    assert "finished folds are kept" in capsys.readouterr().err
