"""Getting a model ready: its mode, its dropout off, its examples of the right shape."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from rlhf_lab.data.examples import Example


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """No dropout and the like within this block; the mode is given back afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def disable_dropout(model: PreTrainedModel) -> None:
    """Set every dropout rate to 0, as TRL does for DPO: the reference has none, and noise would look like a margin.

    Rates lie in nn.Dropout modules, in numbers that a layer hands to `functional.dropout`, and in the configuration,
    which some layers read on every call (so a model that is saved afterwards says 0 there).
    Raises ValueError by name if two passes in training mode still differ.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        _zero_rates(module)
        if isinstance(getattr(module, "config", None), PreTrainedConfig):
            _zero_rates(module.config)
    _check_repeatable(model)


def _zero_rates(holder: object) -> None:
    """ "dropout", "resid_pdrop", "layerdrop", "router_jitter_noise": every number whose name says that it is noise."""
    for name, value in list(vars(holder).items()):
        if isinstance(value, float) and ("drop" in name or "jitter" in name):
            setattr(holder, name, 0.0)


@torch.no_grad()
def _check_repeatable(model: PreTrainedModel) -> None:
    ids = torch.arange(8, device=model.device)[None] % model.get_input_embeddings().num_embeddings
    modes = {module: module.training for module in model.modules()}
    model.train()
    try:
        with torch.random.fork_rng():
            first, second = (model.get_decoder()(input_ids=ids, use_cache=False)[0] for _ in range(2))
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not bool(first.isfinite().all()):
        raise FloatingPointError(
            f"{type(model).__name__}: its hidden states are not numbers; weights may have diverged"
        )
    if not torch.equal(first, second):
        raise ValueError(
            f"{type(model).__name__} draws noise in training mode that could not be switched off (two passes over the "
            "same tokens differ): set its dropout and jitter to 0 in the configuration before it is loaded"
        )


def set_gradient_checkpointing(model: PreTrainedModel, on: bool) -> None:
    """Recompute activations in backward instead of keeping them; transformers renamed the switch in 5.x."""
    renamed = hasattr(model, "activation_checkpointing_enable")
    name = "activation_checkpointing" if renamed else "gradient_checkpointing"
    if on:
        getattr(model, f"{name}_enable")(**{f"{name}_kwargs": {"use_reentrant": False}})
    else:
        getattr(model, f"{name}_disable")()


def check_responses(examples: Sequence[Example], count: int, name: str, task: str) -> None:
    """Raises ValueError if an example has not exactly `count` responses."""
    wrong = [example for example in examples if len(example.responses) != count]
    if wrong:
        found = len(wrong[0].responses)
        unread = ". A column `calibration` that is not to be read is left out with --columns calibration=none"
        raise ValueError(
            f"{name}: {task} needs {count} response(s) per example, but {len(wrong)} of {len(examples)} examples have "
            f"another number, e.g. row {wrong[0].row} with {found}{unread if (count, found) == (2, 3) else ''}"
        )
