"""`rlhf-lab train reward`."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_lab.commands.training import DataArguments, announce_defaults, load_examples, report_rulers, report_training
from rlhf_lab.common.arguments import add_fields, build, read_values
from rlhf_lab.data.examples import Example
from rlhf_lab.data.records import PreferenceRecord, load_preferences
from rlhf_lab.data.tokens import tokenize_preferences
from rlhf_lab.engine.limits import choose_max_length
from rlhf_lab.engine.loading import load_tokenizer
from rlhf_lab.judges.reward_model import reward_model, train_reward
from rlhf_lab.training.run_folder import refuse_model_folder
from rlhf_lab.training.settings import TrainingSettings


@dataclass(frozen=True)
class RewardArguments(DataArguments):
    """DataArguments, and what the labels are worth."""

    label_smoothing: float = 0.0
    """probability that a label is flipped, in [0, .5)"""
    margin_scale: float = 0.0
    """chosen is to win by margin_scale * (chosen_score - rejected_score); above 0 every record needs scores"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.label_smoothing < 0.5:
            raise ValueError(f"--label_smoothing {self.label_smoothing}: must be in [0, 0.5)")
        if not 0.0 <= self.margin_scale < float("inf"):
            raise ValueError(f"--margin_scale {self.margin_scale}: must be a finite number, 0 or above")


CLASSES = (RewardArguments, TrainingSettings)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A flag for every field of RewardArguments and TrainingSettings."""
    add_fields(parser, *CLASSES)


def main(args: argparse.Namespace) -> None:
    """Read, check and tokenise the comparisons, then `train_reward`."""
    values = read_values(args, *CLASSES)
    data, settings = build(RewardArguments, values), build(TrainingSettings, values)
    refuse_model_folder(settings.output_dir, data.model_name_or_path)
    model, tokenizer = (
        reward_model(data.model_name_or_path, seed=settings.seed),
        load_tokenizer(data.model_name_or_path),
    )
    max_length = choose_max_length(model, data.max_length)
    sources: list[list[PreferenceRecord]] = []  # the training file's records come first

    def load(source: str, **options):
        records, found = load_preferences(source, **options)
        sources.append(records)
        return records, found

    examples, eval_examples, facts = load_examples(data, tokenizer, max_length, load, tokenize_preferences)
    margins = score_margins(sources[0], examples, data.margin_scale) if data.margin_scale > 0 else None
    options = {"margins": margins, "label_smoothing": data.label_smoothing, "eval_examples": eval_examples}
    announce_defaults(settings, "reward", model)
    result = train_reward(model, tokenizer, examples, settings, **options)
    report_training(result, facts)
    if eval_examples:
        report_rulers(result.metrics["eval_rewards/accuracies"], eval_examples)


def score_margins(records: Sequence[PreferenceRecord], examples: Sequence[Example], scale: float) -> list[float]:
    """scale * (chosen_score - rejected_score) of each example's record. Raises ValueError if a record has no scores."""
    unscored = [record.row for record in records if record.chosen_score is None]
    if unscored:
        raise ValueError(
            f"--margin_scale {scale} needs chosen_score and rejected_score, but {len(unscored)} of {len(records)} "
            f"records have none, e.g. row {unscored[0]}; name their columns with --columns, or leave the margin out"
        )
    gaps = {record.row: record.chosen_score - record.rejected_score for record in records}
    return [scale * gaps[example.row] for example in examples]
