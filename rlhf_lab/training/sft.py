"""Supervised fine-tuning: - log pi(y | x) per response token."""

from collections.abc import Sequence

from torch import Tensor

from rlhf_lab.data.examples import Example
from rlhf_lab.engine.batches import Batch
from rlhf_lab.engine.loading import load_model
from rlhf_lab.engine.logps import response_logps
from rlhf_lab.engine.models import check_responses
from rlhf_lab.training.defaults import with_defaults
from rlhf_lab.training.fingerprints import data_fingerprint, model_fingerprint
from rlhf_lab.training.loop import Losses, TrainingResult, train
from rlhf_lab.training.run_folder import refuse_model_folder
from rlhf_lab.training.settings import TrainingSettings


def sft_loss(model, batch: Batch, rows: Tensor) -> Losses:
    """loss_i = - sum_t log pi(y_t | x, y_<t), weight_i = number of response tokens: the mean over tokens is minimised.

    In evaluation also `mean_token_accuracy`, the share of response tokens that are the model's first choice.
    """
    result = response_logps(model, batch, weighting=None if model.training else "greedy")
    metrics = {}
    if result.alignment is not None:  # log max_v pi(v)
        hits = (result.token_logps >= result.alignment - 1e-6) & result.mask
        metrics["mean_token_accuracy"] = hits.sum((1, 2)) / result.mask.sum((1, 2))
    return Losses(-result.logps.sum(1), result.lengths.sum(1), metrics).plus_balancing(result.balancing)


def train_sft(
    model,
    tokenizer,
    examples: Sequence[Example],
    settings: TrainingSettings,
    *,
    eval_examples: Sequence[Example] | None = None,
) -> TrainingResult:
    """Train a model (or the model at a path or hub id) on the responses of `examples`, one response each.

    The loss is the mean over all response tokens of a step, EOS included; prompts carry no loss. The result in
    settings.output_dir opens in plain transformers. Raises ValueError for examples with another number of responses.
    """
    check_responses(examples, 1, "examples", "SFT")
    check_responses(eval_examples or (), 1, "eval_examples", "SFT")
    refuse_model_folder(settings.output_dir, model)
    model = load_model(model)
    settings = with_defaults(settings, "sft", model)
    identity = {"task": "sft", "model": model_fingerprint(model), "data": data_fingerprint(examples)}
    return train(
        model, examples, sft_loss, settings, eval_examples=eval_examples, tokenizer=tokenizer, identity=identity
    )
