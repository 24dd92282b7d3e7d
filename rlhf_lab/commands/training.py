"""What `rlhf-lab train sft` and `rlhf-lab train preference` share: model, tokenizer, data, and the closing words."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from rlhf_lab.common.files import PathText
from rlhf_lab.data.examples import Example
from rlhf_lab.training.defaults import Task, defaults_taken
from rlhf_lab.training.loop import TrainingResult
from rlhf_lab.training.settings import TrainingSettings


@dataclass(frozen=True)
class DataArguments:
    """Which model learns from which data.

    Give train_file (JSONL, CSV, Parquet) or dataset_name (a hub id or a directory, with dataset_split).
    columns: where the standard columns come from, "chosen=better,rejected=worse", or the id of a data set of the same
    layout. eval_split: which split of a saved data set --eval_file means, if it is a directory of several.
    max_length: tokens of prompt plus any one response; default: 1024, or the model's context if shorter.
    drop_invalid: leave out rows that cannot be used, and report them, instead of refusing the file.
    """

    model_name_or_path: PathText
    train_file: PathText | None = None
    dataset_name: PathText | None = None
    dataset_split: str | None = None
    eval_file: PathText | None = None
    eval_split: str | None = None
    columns: dict[str, str | None] | str | None = None
    max_length: int | None = None
    max_prompt_length: int | None = None
    max_response_length: int | None = None
    drop_invalid: bool = False

    def __post_init__(self) -> None:
        if (self.train_file is None) == (self.dataset_name is None):
            raise ValueError("give one of --train_file and --dataset_name: where are the records to train on?")
        if self.train_file is not None and self.dataset_split is not None:
            raise ValueError("--dataset_split belongs to --dataset_name; a --train_file has no splits")
        several = self.eval_file is not None and (Path(self.eval_file) / "dataset_dict.json").is_file()
        if several and self.eval_split is None:
            raise ValueError(f"--eval_file {self.eval_file} holds several splits: say which by --eval_split")
        if self.eval_split is not None and self.eval_file is None:
            raise ValueError("--eval_split belongs to --eval_file, which is not given")


def load_examples(
    data: DataArguments, tokenizer, max_length: int, load: Callable, tokenize: Callable
) -> tuple[list[Example], list[Example] | None]:
    """(training examples, evaluation examples or None), each reported on the screen.

    load, tokenize: load_preferences and tokenize_preferences, or the pair for SFT.
    """
    limits = {
        "max_length": max_length,
        "max_prompt_length": data.max_prompt_length,
        "max_response_length": data.max_response_length,
    }

    def read(source: str, split: str | None) -> list[Example]:
        records, report = load(source, columns=data.columns, split=split, drop_invalid=data.drop_invalid)
        examples, counts = tokenize(records, tokenizer, drop_invalid=data.drop_invalid, **limits)
        print(f"{report}\n{source}: {counts}")
        return examples

    train = read(data.train_file or data.dataset_name, data.dataset_split)
    return train, read(data.eval_file, data.eval_split) if data.eval_file else None


def announce_defaults(settings: TrainingSettings, task: Task, model: nn.Module) -> None:
    """Say on the screen which learning rate and epochs are taken, where none were given."""
    taken = defaults_taken(settings, task, model)
    if taken:
        print(taken)


def report(result: TrainingResult) -> None:
    """The last metrics, whether anything was learnt, and where everything lies."""
    shown = {name: value for name, value in result.metrics.items() if name not in ("step", "learning_rate", "epoch")}
    print("\n".join(f"  {name:<28} {value:.4g}" for name, value in shown.items()))
    if result.learning is not None:
        print(result.learning.sentence())
    print(f"{result.steps} steps in {result.seconds:.0f} s; the model is in {Path(result.output_dir)}")
