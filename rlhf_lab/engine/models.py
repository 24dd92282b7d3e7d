"""Getting a model ready: from a path in float32, its dropout off, its examples of the right shape."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from rlhf_lab.data.examples import Example

# Without max_length: this, or the model's context if that is shorter.
DEFAULT_MAX_LENGTH = 1024


def load_model(model: PreTrainedModel | str | Path) -> PreTrainedModel:
    """The model itself, or the causal language model at a path or hub id, with float32 master weights."""
    if isinstance(model, nn.Module):
        return model
    try:
        return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    except OSError as error:
        raise ValueError(f"cannot load a model from {str(model)!r}: {str(error).splitlines()[0]}") from error


def load_tokenizer(path: str):
    """The tokenizer beside the model; raises ValueError that names the path."""
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot load a tokenizer from {path!r}: {str(error).splitlines()[0]}") from error


def choose_max_length(model, wanted: int | None) -> int:
    """`wanted`, or 1024 within the model's context; raises ValueError if the context is shorter than wanted."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or DEFAULT_MAX_LENGTH
    if wanted is not None and wanted > context:
        raise ValueError(f"--max_length {wanted} is longer than the model's context of {context} tokens")
    return wanted or min(DEFAULT_MAX_LENGTH, context)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """No dropout and the like within this block; the mode is given back afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout rate to 0, as TRL does for DPO: the reference has none, and noise would look like a margin."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout_prob", "resid_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


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
        raise ValueError(
            f"{name}: {task} needs {count} response(s) per example, but {len(wrong)} of {len(examples)} examples have "
            f"another number, e.g. row {wrong[0].row} with {len(wrong[0].responses)}"
        )
