"""What `rlhf-lab train sft` and `rlhf-lab train preference` share: model, tokenizer, data, and the closing words."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import nn

from rlhf_lab.common.files import PathText, write_atomically
from rlhf_lab.common.intervals import number
from rlhf_lab.common.words import counted
from rlhf_lab.data.examples import Example
from rlhf_lab.data.truncation import LongPrompts
from rlhf_lab.judges.report import length_rules
from rlhf_lab.training.defaults import Task, defaults_taken
from rlhf_lab.training.loop import TrainingResult
from rlhf_lab.training.settings import TrainingSettings


@dataclass(frozen=True)
class DataArguments:
    """Which model learns from which data: one of train_file and dataset_name."""

    model_name_or_path: PathText
    """the model that is trained, with its tokenizer: a folder, a hub id, or a shipped model, small or tiny"""
    train_file: PathText | None = None
    """records to train on: JSONL (or .jsonl.gz), CSV or Parquet"""
    dataset_name: PathText | None = None
    """records to train on: a hub id, or a folder written by datasets' save_to_disk"""
    dataset_split: str | None = None
    """which split of dataset_name"""
    eval_file: PathText | None = None
    """records to evaluate on, at the end and every eval_steps: a file or folder as above"""
    eval_split: str | None = None
    """which split of eval_file, if that is a folder of several"""
    columns: dict[str, str | None] | str | None = None
    """where the standard columns come from, chosen=better,rejected=worse, or the id of a data set of the same
    layout"""
    max_length: int | None = None
    """tokens of the prompt plus any one response; none: 1024, or the model's context if that is shorter"""
    max_prompt_length: int | None = None
    """tokens of a prompt; longer ones keep their end"""
    max_response_length: int | None = None
    """tokens of a response; longer ones keep their beginning, without an end of text"""
    long_prompts: LongPrompts | None = None
    """what becomes of a prompt of more than max_prompt_length tokens or, without that, of max_length or more:
    refuse the file, truncate it (BOS and the prompt's end stay, half of max_length or more), or drop the row and
    count it; none: truncate if max_prompt_length is given, else refuse. A prompt that fits alone, but not with its
    response, is cut at its start in any case, and counted"""
    drop_invalid: bool = False
    """leave out rows that cannot be used, and report them, instead of refusing the file"""

    def __post_init__(self) -> None:
        empty = [name for name in ("train_file", "dataset_name", "eval_file") if getattr(self, name) == ""]
        if empty:
            raise ValueError(f"--{empty[0]} is empty: name a file, or leave the flag out")
        if (self.train_file is None) == (self.dataset_name is None):
            raise ValueError("give one of --train_file and --dataset_name: where are the records to train on?")
        if self.train_file is not None and self.dataset_split is not None:
            raise ValueError("--dataset_split belongs to --dataset_name; a --train_file has no splits")
        several = self.eval_file is not None and (Path(self.eval_file) / "dataset_dict.json").is_file()
        if several and self.eval_split is None:
            raise ValueError(f"--eval_file {self.eval_file} holds several splits: say which by --eval_split")
        if self.eval_split is not None and self.eval_file is None:
            raise ValueError("--eval_split belongs to --eval_file, which is not given")


class Loaded(NamedTuple):
    """Examples to train on and to evaluate on (None: no such file), and what was cut or left out of each source."""

    train: list[Example]
    evaluation: list[Example] | None
    facts: dict[str, dict]


def load_examples(data: DataArguments, tokenizer, max_length: int, load: Callable, tokenize: Callable) -> Loaded:
    """The examples of all sources, each reported on the screen.

    load, tokenize: load_preferences and tokenize_preferences, or the pair for SFT.
    """
    limits = {
        "max_length": max_length,
        "max_prompt_length": data.max_prompt_length,
        "max_response_length": data.max_response_length,
        "long_prompts": data.long_prompts,
    }
    facts: dict[str, dict] = {}

    def read(name: str, source: str, split: str | None) -> list[Example]:
        records, found = load(source, columns=data.columns, split=split, drop_invalid=data.drop_invalid)
        examples, counts = tokenize(records, tokenizer, drop_invalid=data.drop_invalid, **limits)
        print(f"{found}\n{source}: {counts}")
        facts[name] = {"source": Path(source).name, "rows": found.total, "invalid": found.counts, **counts.facts}
        return examples

    train = read("train", data.train_file or data.dataset_name, data.dataset_split)
    return Loaded(train, read("eval", data.eval_file, data.eval_split) if data.eval_file else None, facts)


def announce_defaults(settings: TrainingSettings, task: Task, model: nn.Module) -> None:
    """Say on the screen which learning rate and epochs are taken, where none were given."""
    taken = defaults_taken(settings, task, model)
    if taken:
        print(taken)


def report_training(result: TrainingResult, facts: dict[str, dict]) -> None:
    """The last metrics, whether anything was learnt, and where everything lies; data.json beside it has `facts`."""
    write_atomically(Path(result.output_dir) / "data.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    shown = {name: value for name, value in result.metrics.items() if name not in ("step", "learning_rate", "epoch")}
    print("\n".join(f"  {name:<28} {value:.4g}" for name, value in shown.items()))
    if result.learning is not None:
        print(result.learning.sentence())
    before = result.resumed_from is not None and result.resumed_from.name == f"checkpoint-{result.steps}"
    trained = f"{counted(result.steps, 'step')} in {result.seconds:.0f} s"
    how = "nothing was trained: it was finished before" if before else trained
    print(f"{how}; the model is in {Path(result.output_dir)}")


def report_rulers(accuracy: float, examples: Sequence[Example]) -> None:
    """Beside the accuracy on these comparisons, that of who always takes the longer response, and of the opposite.

    accuracy: the model's, in [0, 1]. examples: (chosen, rejected), measured in tokens; intervals over prompts.
    """
    lengths = np.array([[len(response) for response in example.responses[:2]] for example in examples])
    rules = length_rules(lengths, [example.prompt for example in examples])
    for name, share in rules.items():
        print(f"  {name:<28} {number(share, '.3f')}")
    best = max(rules, key=lambda name: rules[name]["mean"])
    if accuracy <= rules[best]["mean"]:
        print(
            f"No better than a ruler: {best.replace('_', ' ')} is right in {rules[best]['mean']:.3f} of the "
            f"{len(examples)} evaluation comparisons, the model in {accuracy:.3f}."
        )
