"""`rlhf-lab train preference`."""

import argparse
from dataclasses import dataclass

from rlhf_lab.commands.training import DataArguments, announce_defaults, load_examples, report_rulers, report_training
from rlhf_lab.common.arguments import add_fields, build, pick, read_values
from rlhf_lab.common.files import PathText
from rlhf_lab.data.records import load_preferences
from rlhf_lab.data.tokens import tokenize_preferences
from rlhf_lab.engine.limits import choose_max_length
from rlhf_lab.engine.loading import load_model, load_tokenizer
from rlhf_lab.objective import PRESETS, Objective, preset
from rlhf_lab.training.preference import train_preference
from rlhf_lab.training.run_folder import refuse_model_folder
from rlhf_lab.training.settings import TrainingSettings


@dataclass(frozen=True)
class PreferenceArguments(DataArguments):
    """DataArguments, and which objective against which reference."""

    objective: str = "dpo"
    """a preset of the loss (below), any of whose fields a flag changes"""
    reference: PathText | None = None
    """folder or hub id of pi_ref; none: the model itself, as it is before training"""
    cache_dir: PathText | None = None
    """where the reference's log-probs are kept; none: output_dir/reference"""


CLASSES = (PreferenceArguments, Objective, TrainingSettings)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A flag for every field of PreferenceArguments, Objective and TrainingSettings."""
    parser.epilog = f"objectives: {', '.join(PRESETS)}"
    add_fields(parser, *CLASSES)


def main(args: argparse.Namespace) -> None:
    """Read, check and tokenise the comparisons, then `train_preference`."""
    values = read_values(args, *CLASSES)
    data, settings = build(PreferenceArguments, values), build(TrainingSettings, values)
    objective = preset(data.objective, **pick(Objective, values))
    print(f"{objective}\nreference: {data.reference or 'the model itself, as it is before training'}")
    refuse_model_folder(settings.output_dir, data.model_name_or_path, data.reference)
    model, tokenizer = load_model(data.model_name_or_path), load_tokenizer(data.model_name_or_path)
    max_length = choose_max_length(model, data.max_length)
    examples, eval_examples, facts = load_examples(data, tokenizer, max_length, load_preferences, tokenize_preferences)
    options = {"eval_examples": eval_examples, "reference": data.reference, "cache_dir": data.cache_dir}
    announce_defaults(settings, "preference", model)
    result = train_preference(model, tokenizer, examples, objective, settings, **options)
    report_training(result, facts)
    if eval_examples:
        report_rulers(result.metrics["eval_rewards/accuracies"], eval_examples)
