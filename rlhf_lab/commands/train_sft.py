"""`rlhf-lab train sft`."""

import argparse

from rlhf_lab.commands.training import DataArguments, announce_defaults, load_examples, report_training
from rlhf_lab.common.arguments import add_fields, build, read_values
from rlhf_lab.data.records import load_sft
from rlhf_lab.data.tokens import tokenize_sft
from rlhf_lab.engine.limits import choose_max_length
from rlhf_lab.engine.loading import load_model, load_tokenizer
from rlhf_lab.training.run_folder import refuse_model_folder
from rlhf_lab.training.settings import TrainingSettings
from rlhf_lab.training.sft import train_sft

CLASSES = (DataArguments, TrainingSettings)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A flag for every field of DataArguments and TrainingSettings."""
    add_fields(parser, *CLASSES)


def main(args: argparse.Namespace) -> None:
    """Read, check and tokenise the records, then `train_sft`."""
    values = read_values(args, *CLASSES)
    data, settings = build(DataArguments, values), build(TrainingSettings, values)
    refuse_model_folder(settings.output_dir, data.model_name_or_path)
    model, tokenizer = load_model(data.model_name_or_path), load_tokenizer(data.model_name_or_path)
    max_length = choose_max_length(model, data.max_length)
    examples, eval_examples, facts = load_examples(data, tokenizer, max_length, load_sft, tokenize_sft)
    announce_defaults(settings, "sft", model)
    report_training(train_sft(model, tokenizer, examples, settings, eval_examples=eval_examples), facts)
