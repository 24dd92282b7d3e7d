"""The command line: flags from dataclasses, YAML, refusals in one line, and whole runs from files."""

import ast
import importlib
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import yaml
from transformers import AutoModelForCausalLM

from rlhf_lab.commands import cli, doctor
from rlhf_lab.commands.train_preference import PreferenceArguments
from rlhf_lab.commands.train_reward import RewardArguments
from rlhf_lab.commands.workflow import SHARED
from rlhf_lab.common.arguments import Parser, add_fields, build, read_values, read_yaml, type_hints
from rlhf_lab.common.conversion import convert
from rlhf_lab.common.files import PathText
from rlhf_lab.common.words import counted
from rlhf_lab.data.problems import RowReport
from rlhf_lab.data.tokens import TruncationCounts
from rlhf_lab.judges.cross_validation import JudgeSettings
from rlhf_lab.training.settings import TrainingSettings
from rlhf_lab.workflow.settings import WorkflowSettings
from tests.training_helpers import tiny_llama, tiny_tokenizer

ROOT = Path(__file__).parents[1]
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)


@dataclass(frozen=True)
class Cake:
    name: str
    eggs: int = 2
    sugar: float | None = 0.5
    vegan: bool = False
    form: Literal["round", "square"] = "round"
    layers: tuple[Literal["cream", "jam"], ...] = ()
    map: dict[str, str | None] | str | None = None
    shelf: PathText | None = None


def parse(*flags):
    parser = Parser(prog="bake")
    add_fields(parser, Cake)
    return read_values(parser.parse_args(flags), Cake)


def test_flags_become_typed_values():
    assert parse() == {}
    flags = ("--name", "x", "--eggs", "3", "--sugar=1e-5", "--vegan", "--form", "square", "--layers", "cream,jam")
    assert build(Cake, parse(*flags)) == Cake("x", 3, 1e-5, True, "square", ("cream", "jam"))
    assert parse("--sugar", "none", "--vegan", "false", "--layers", "none") == {
        "sugar": None,
        "vegan": False,
        "layers": (),
    }
    assert parse("--map", "a=b,c=none") == {"map": {"a": "b", "c": None}}
    assert parse("--map", "org/data") == {"map": "org/data"}


@pytest.mark.parametrize("written", ["~/cakes", "${HOME}/cakes", "$HOME/cakes", "/home/baker/cakes"])
def test_paths_are_expanded_in_flags_and_files(tmp_path, monkeypatch, written):
    """A shell does it for --shelf ~/cakes, but not for --shelf=~/cakes and not in YAML."""
    monkeypatch.setenv("HOME", "/home/baker")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(f"shelf: {written}\nname: ~\nform: round\n")
    assert parse(f"--shelf={written}") == {"shelf": "/home/baker/cakes"}
    with pytest.raises(ValueError, match="--name must be TEXT"):  # YAML's own ~ is null
        parse("--config", "c.yaml")
    (tmp_path / "c.yaml").write_text(f"shelf: {written}\nname: $HOME\n")
    assert parse("--config", "c.yaml") == {"shelf": "/home/baker/cakes", "name": "$HOME"}  # a text is no path
    assert parse("--shelf", "org/model") == {"shelf": "org/model"} and parse("--shelf", "none") == {"shelf": None}


@pytest.mark.parametrize("written", ["${NOWHERE_TO_BE_FOUND}/x", "$NOWHERE_TO_BE_FOUND/x", "~nobody-of-this-name/x"])
def test_a_path_of_an_unknown_variable_or_user_is_refused(written):
    with pytest.raises(ValueError, match=r"--shelf .*NOWHERE_TO_BE_FOUND|--shelf .*~nobody-of-this-name"):
        parse(f"--shelf={written}")


def test_every_setting_that_is_a_path_is_expanded(monkeypatch):
    """By name, over all dataclasses of settings: a new path field that is a plain text would fail here."""
    monkeypatch.setenv("HOME", "/home/baker")
    named = ("model_name_or_path", "train_file", "dataset_name", "eval_file", "reference", "cache_dir", "output_dir")
    named += ("out", "model", "prompts_file", "judge", "data")
    words = ((WorkflowSettings, "data"), (WorkflowSettings, "reference"))  # one of a few words, no paths there
    checked = 0
    for cls in (PreferenceArguments, RewardArguments, TrainingSettings, JudgeSettings, *SHARED):
        for name, hint in type_hints(cls).items():
            if name in named and (cls, name) not in words:
                assert convert("~/x", hint, name) == "/home/baker/x", (cls, name)
                checked += 1
    assert checked >= 18
    assert TrainingSettings("~/x").output_dir == "/home/baker/x"


def test_dashes_are_underscores():
    @dataclass(frozen=True)
    class Two:
        two_words: int = 0

    parser = Parser(prog="bake")
    add_fields(parser, Two)
    assert (
        vars(parser.parse_args(["--two-words", "5"]))
        == vars(parser.parse_args(["--two_words=5"]))
        == {"two_words": "5"}
    )


def test_flags_override_the_file(tmp_path):
    (tmp_path / "c.yaml").write_text("name: lemon\neggs: 4\nsugar: 1e-3\nlayers: [jam]\nmap: {a: null}\n")
    values = parse("--config", str(tmp_path / "c.yaml"), "--eggs", "1")
    # YAML reads 1e-3 as text: the field's type makes it a number.
    assert values == {"name": "lemon", "eggs": 1, "sugar": 1e-3, "layers": ("jam",), "map": {"a": None}}


@pytest.mark.parametrize(("written", "number"), [("010", 10), ("1_000", 1000), ("-7", -7), ("+3", 3)])
def test_a_number_is_read_as_it_is_written_in_flags_and_in_files(tmp_path, written, number):
    """010 is ten, which YAML 1.1 reads as octal."""
    (tmp_path / "c.yaml").write_text(f"eggs: {written}\nsugar: {written}\nname: {written}\n")
    expected = {"eggs": number, "sugar": float(number), "name": written}
    assert parse("--config", str(tmp_path / "c.yaml")) == expected
    assert parse(f"--eggs={written}", f"--sugar={written}", f"--name={written}") == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--egs", "3"), r"unknown argument --egs \(did you mean --eggs\?\)"),
        (("--egg=3",), "did you mean --eggs"),  # no guessed abbreviations
        (("--eggs", "many"), "--eggs must be int, got 'many'"),
        (("--eggs", "2.5"), "--eggs must be int"),
        (("--sugar", "lots"), r"--sugar must be float or none, got 'lots'"),
        (("--form", "star"), r"--form must be round\|square, got 'star'"),
        (("--layers", "cream,mud"), "--layers"),
        (("--vegan", "maybe"), "--vegan must be true"),
        (("--eggs",), "--eggs: expected one argument"),
        (("--eggs", "1", "--name", "lemon", "--eggs=2"), "--eggs is given twice: keep one"),
        (("--config", "a.yaml", "--config", "b.yaml"), "--config is given twice"),
        (("--vegan", "--vegan", "false"), "--vegan is given twice"),
        (("--map", "a=b,c=d,a=e"), "--map a=b,c=d,a=e: 'a' is given twice"),
    ],
)
def test_wrong_flags_are_named(flags, message):
    with pytest.raises(ValueError, match=message):
        parse(*flags)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("egs: 3", r"unknown setting 'egs' \(did you mean eggs\?\)"),
        ("eggs: true", "--eggs must be int"),
        ("eggs: 2.5", "--eggs must be int"),
        ("eggs: 0x10", "--eggs must be int, got '0x10'"),
        ("eggs: 1:30", "--eggs must be int, got '1:30'"),  # 90 in YAML 1.1
        ("sugar: 1:30.5", "--sugar must be float or none, got '1:30.5'"),
        ("- eggs", "must hold `name: value` lines"),
        ("eggs: [", "not valid YAML"),
    ],
)
def test_wrong_files_are_named(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        parse("--config", str(tmp_path / "c.yaml"))


def test_missing_fields_and_unknown_types():
    with pytest.raises(ValueError, match="--name must be given"):
        build(Cake, {})
    assert convert("3", int | str, "x") == 3 and convert("three", int | str, "x") == "three"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model with its tokenizer, 12 comparisons and 12 SFT records."""
    folder = tmp_path_factory.mktemp("files")
    tiny_llama().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    pairs = [
        {"prompt": f"w{i + 2} w3 w4", "chosen": f" w{i + 5} w6", "rejected": f" w{i + 7} w8 w9"} for i in range(12)
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    sft = [{"prompt": pair["prompt"], "response": pair["chosen"]} for pair in pairs]
    (folder / "sft.jsonl").write_text("\n".join(map(json.dumps, sft)))
    return folder


def test_train_preference_from_a_config_file(files, tmp_path, capsys):
    config = {
        "model_name_or_path": str(files / "model"),
        "train_file": str(files / "pairs.jsonl"),
        "eval_file": str(files / "pairs.jsonl"),
        "objective": "vpo-offline",
        "learning_rate": 0.01,
        "max_steps": 4,
        "logging_steps": 2,
        "disable_tqdm": True,
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    flags = ["--config", str(tmp_path / "run.yaml"), "--output-dir", str(tmp_path / "out"), "--beta", "0.5"]
    assert cli.main(["train", "preference", *flags]) == 0
    shown = capsys.readouterr().out
    assert "beta=0.5" in shown and "stance='pessimistic'" in shown and "12 examples" in shown
    assert "eval_rewards/accuracies" in shown and "reference: the model itself" in shown
    # Every rejected response is longer; Wilson's interval of 12 of 12.
    assert "always_shorter               1.000 (0.758 to 1.000)" in shown, shown
    assert "always_longer                0.000" in shown
    assert "always shorter is right in 1.000 of the 12 evaluation comparisons, the model in" in shown
    state = json.loads((tmp_path / "out" / "checkpoint-4" / "state.json").read_text())
    assert state["identity"]["settings.learning_rate"] == "0.01" and "beta=0.5" in state["identity"]["objective"]
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_train_sft(files, tmp_path, capsys):
    flags = {"model_name_or_path": files / "model", "train_file": files / "sft.jsonl", "output_dir": tmp_path}
    arguments = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    assert cli.main(["train", "sft", *arguments, "--max_steps", "2", "--disable_tqdm"]) == 0
    assert "2 steps" in capsys.readouterr().out


@pytest.mark.parametrize(("task", "data"), [("preference", "pairs"), ("sft", "sft"), ("reward", "pairs")])
def test_long_prompts_are_dropped_or_cut_and_recorded(files, tmp_path, capsys, task, data):
    """Three of fifteen prompts fill the context of 64: refused, and told how to go on; dropped; cut."""
    rows = [json.loads(line) for line in (files / f"{data}.jsonl").read_text().splitlines()]
    rows += [row | {"prompt": "w2 w3 " * 40} for row in rows[:3]]
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = ["train", task, "--model_name_or_path", str(files / "model"), "--train_file", str(tmp_path / "long.jsonl")]
    flags += ["--max_steps", "1", "--disable_tqdm", "--output_dir"]
    assert cli.main([*flags, str(tmp_path / "refused")]) == 2
    said = capsys.readouterr().err
    assert "3 rows (12, 13, 14)" in said and "--long_prompts drop" in said and not (tmp_path / "refused").exists()
    assert cli.main([*flags, str(tmp_path / "drop"), "--long_prompts", "drop"]) == 0
    assert "3 rows left out" in capsys.readouterr().out
    facts = json.loads((tmp_path / "drop" / "data.json").read_text())["train"]
    assert (facts["rows"], facts["examples"], facts["prompts_dropped"]) == (15, 12, 3)
    assert facts["dropped"] == {"prompt: fills the length": 3} and facts["source"] == "long.jsonl"
    assert cli.main([*flags, str(tmp_path / "cut"), "--long-prompts=truncate"]) == 0
    assert "15 examples; 3 prompts cut at the start" in capsys.readouterr().out
    assert json.loads((tmp_path / "cut" / "data.json").read_text())["train"]["prompts_cut"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta": "-1"}, "beta must be a finite number above 0"),
        ({"objective": "dpoo"}, "unknown objective 'dpoo'"),
        ({"train_file": None}, "one of --train_file and --dataset_name"),
        ({"train_file": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"model_name_or_path": "no/such/model"}, "no/such/model"),
        ({"model_name_or_path": None}, "--model_name_or_path must be given"),
        ({"max_length": "5000"}, "longer than the model's context of 64"),
        ({"lerning_rate": "1"}, "did you mean --learning_rate"),
        ({"optimizer": "sgd"}, r"--optimizer must be adamw|muon"),
        ({"objective": "xpo"}, "needs 3 responses"),
        ({"objective": "vpo-online"}, "Either --calibration chosen"),
        ({"columns": "chosen=better"}, "better"),
    ],
)
def test_bad_input_ends_with_one_clear_line_and_2(files, tmp_path, capsys, change, message):
    flags = {"model_name_or_path": files / "model", "train_file": files / "pairs.jsonl", "output_dir": tmp_path}
    given = {name: value for name, value in (flags | change).items() if value is not None}
    arguments = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    assert cli.main(["train", "preference", *arguments]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert any(message in line for line in said) and "Traceback" not in "".join(said)
    assert any(line.startswith("rlhf-lab: error: ") for line in said)


def test_unknown_commands(capsys):
    assert cli.main(["trian"]) == cli.main(["train"]) == cli.main(["train", "dpo"]) == 2
    said = capsys.readouterr().err
    assert "'trian'" in said and "train preference, train sft" in said
    assert cli.main([]) == cli.main(["--help"]) == cli.main(["--version"]) == 0


def test_debug_shows_the_traceback(capsys):
    assert cli.main(["--debug", "trian"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_help_imports_neither_torch_nor_transformers():
    code = "import sys; from rlhf_lab.commands import cli; cli.main(['--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "False" and "doctor" in done.stdout


def test_every_command_exists_and_describes_its_flags(capsys):
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit, match="0"):
            cli.main([*name.split(), "--help"])
        assert f"rlhf-lab {name}" in capsys.readouterr().out


def parser_of(name: str) -> Parser:
    module = importlib.import_module(cli.COMMANDS[name].module)
    parser = Parser(prog=f"rlhf-lab {name}")
    module.add_arguments(parser)
    return parser


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_flag_of_every_command_says_what_it_means_and_its_default(name):
    """The meaning is more than a word, and stands before the default in brackets."""
    silent = []
    for action in parser_of(name)._actions:
        meaning = re.sub(r"\((default: .*|required)\)$", "", action.help or "").strip()
        shows_default = action.help.endswith(")") or action.required or action.nargs == 0 or not action.option_strings
        if len(meaning.split()) < 2 or not (shows_default or action.dest in ("help", "config", "split")):
            silent.append(action.option_strings)
    assert silent == []


def test_help_is_the_text_under_the_field_and_the_default_of_the_preset():
    @dataclass(frozen=True)
    class Bread:
        """Flour and water."""

        flour: int
        """grams of
        wheat, 100% of it"""
        salt: float = 0.02
        """share of the flour"""

    @dataclass(frozen=True)
    class Rye(Bread):
        salt: float = 0.03

    parser = Parser(prog="bake")
    add_fields(parser, Rye, defaults={"flour": 500})
    said = {action.dest: action.help for action in parser._actions}
    assert said["flour"] == "grams of wheat, 100%% of it (required)"
    assert said["salt"] == "share of the flour (default: 0.03)"
    assert "100% of it (required)" in " ".join(parser.format_help().split())


def test_doctor(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["versions"]["torch"].startswith("2.") and report["would be used"]["device"]
    assert cli.main(["doctor"]) == 0 and "usable of" in capsys.readouterr().out
    total, available = doctor.main_memory()
    assert 0 < available <= total
    assert doctor.usable_cores() >= 1


def test_docs_prints_counts_and_examples(capsys, monkeypatch):
    from rlhf_lab.commands import docs as docs_command
    from rlhf_lab.data.docstrings import DocstringPair, Reading

    pairs = [DocstringPair(f"long {i}", f"short {i}", ("train", "test")[i % 2], "json", f"f{i}") for i in range(7)]
    monkeypatch.setattr(docs_command, "read_corpus", lambda cache_dir: Reading(pairs, 20, 3))
    assert cli.main(["docs", "--examples", "2", "--split", "test"]) == 0
    shown = capsys.readouterr().out
    assert "from 20 source files, 3 of them skipped" in shown
    assert "7 pairs: 4 train, 0 validation, 3 test" in shown and "json 7" in shown
    assert shown.count("-> short") == 2 and "(train)" not in shown


@pytest.mark.parametrize("text", ["beta: 0.1\nbeta: 0.2\n", "learning_rate: 1.0e-4\nlearning-rate: 1.0e-5\n"])
def test_a_setting_that_a_file_gives_twice_is_refused(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"'(beta|learning_rate)' is given twice"):
        read_yaml(tmp_path / "a.yaml", ["beta", "learning_rate"])


def test_advice_is_in_flags_and_not_in_python():
    """No message that a command can show tells to write Python where a flag does it."""
    python = re.compile(r"(columns|split|resume|drop_invalid|max_length|long_prompts)=(True|False|None|\{'|'|\{\{)")
    calls = re.compile(r"(load_preferences|load_sft|reward_model|train_\w+)\(")
    for path in sorted((ROOT / "rlhf_lab").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documented = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, DOCUMENTED)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in documented:
                assert not python.search(node.value) and not calls.search(node.value), f"{path.name}:{node.lineno}"


def test_help_of_the_first_word_lists_its_commands(capsys):
    assert cli.main(["train", "--help"]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["train", kind] for kind in ("preference", "sft", "reward", "online")
    ]
    assert cli.main(["train", "dpo"]) == 2


def test_a_config_that_is_not_there_is_named(capsys):
    assert cli.main(["summarize", "--config", "nope.yaml"]) == 2
    assert "--config nope.yaml: No such file or directory; name a YAML file" in capsys.readouterr().err


RENAMED = [
    ("summarize", "out", "output_dir"),
    ("summarize", "methods", "objective"),
    ("summarize", "epochs", "num_train_epochs"),
    ("summarize", "batch-size", "per_device_train_batch_size"),
    ("summarize", "eval_documents", "eval_prompts"),
    ("summarize", "temperature", "temperatures"),
    ("train online", "model", "model_name_or_path"),
    ("train preference", "data", "train_file"),
    ("judge", "out", "output_dir"),
    ("judge", "model", "model_name_or_path"),
    ("pretrain tiny", "out", "output_dir"),
    ("study beam-width", "out", "output_dir"),
]


@pytest.mark.parametrize(("command", "before", "now"), RENAMED)
def test_a_flag_of_former_days_names_the_one_of_today(command, before, now, tmp_path, capsys):
    for flags in ([f"--{before}", "x"], [f"--{before}=x"]):
        assert cli.main([*command.split(), *flags]) == 2
        assert f"unknown argument --{before} (it is now --{now});" in capsys.readouterr().err
    if command in ("summarize", "judge", "train online"):
        (tmp_path / "c.yaml").write_text(f"{before}: x\n")
        assert cli.main([*command.split(), "--config", str(tmp_path / "c.yaml")]) == 2
        assert f"(it is now {now})" in capsys.readouterr().err


def test_a_name_that_a_command_still_has_is_no_former_one(capsys):
    assert cli.main(["judge", "--data", "x.jsonl", "--epochs", "nan"]) == 2
    assert "it is now" not in capsys.readouterr().err


FRAGMENT = re.compile(r"(of|at|by|for|with|in|to|from|per|on|each is)\b")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_help_of_a_flag_says_what_the_flag_is(name):
    """It does not go on from the flag's name: "of the sampler" is no sentence, and no part of one."""
    parser = Parser(prog=f"rlhf-lab {name}")
    importlib.import_module(cli.COMMANDS[name].module).add_arguments(parser)
    assert [action.help for action in parser._actions if action.help and FRAGMENT.match(action.help)] == []


def test_numbers_with_their_nouns():
    assert [counted(n, "row") for n in (0, 1, 2, 123456789)] == ["0 rows", "1 row", "2 rows", "123456789 rows"]
    assert [counted(x, "epoch") for x in (1.0, 1.5, 2.0)] == ["1 epoch", "1.5 epochs", "2 epochs"]


def test_no_message_has_a_number_before_a_plural_of_its_own(tmp_path):
    """One row, one prompt, one problem: as a table of one row has them."""
    report = RowReport("p.jsonl", 1)
    assert str(report) == "p.jsonl: its only row is usable"
    assert str(TruncationCounts(examples=1, prompts_cut=1, prompt_tokens_cut=1, special_spellings=1)).splitlines() == [
        "1 example; 1 prompt cut at the start (1 token), 0 responses cut at the end (0 tokens)",
        "1 text spells a special token: read as plain text",
    ]
