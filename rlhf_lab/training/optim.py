"""Optimizers and the one pass that turns summed gradients into a clipped mean."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from rlhf_lab.training.settings import TrainingSettings


def make_optimizers(model: nn.Module, settings: TrainingSettings) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the hidden matrices and AdamW for the rest.

    Weight decay acts on matrices only: not on norms, biases and embeddings. Muon's update is rescaled to AdamW's
    typical size (RMS 0.2, arXiv 2502.16982), so that one learning rate serves both.
    """
    lookup = _lookup_tables(model)
    matrices, others = [], []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (matrices if parameter.ndim >= 2 and id(parameter) not in lookup else others).append(parameter)
    optimizers: list[torch.optim.Optimizer] = []
    if settings.optimizer == "muon":
        head = {id(p) for p in _output_head(model)}
        hidden = [p for p in matrices if p.ndim == 2 and id(p) not in head]
        moved = {id(p) for p in hidden}
        matrices = [p for p in matrices if id(p) not in moved]
        optimizers.append(_muon(hidden, settings))
    groups = [(matrices, settings.weight_decay), (others, 0.0)]
    optimizers.append(_adamw([{"params": ps, "weight_decay": decay} for ps, decay in groups if ps], settings))
    return optimizers


def scale_and_clip(parameters: Iterable[nn.Parameter], total_weight: Tensor, max_norm: float) -> Tensor:
    """g <- g / W * min(1, max_norm / ||g / W||) in place; returns ||g / W||, the norm before clipping.

    Gradients of SUMMED losses come in; dividing by the weight W of the whole accumulated step makes the result
    independent of how the step was cut into batches. max_norm 0: no clipping.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        raise ValueError("no parameter received a gradient; does the loss depend on the model, and is any trainable?")
    norm = torch.nn.utils.get_total_norm(gradients) / total_weight
    shrink = torch.clamp(max_norm / (norm + 1e-6), max=1.0) if max_norm > 0 else torch.ones_like(norm)
    torch._foreach_mul_(gradients, (shrink / total_weight).to(gradients[0].dtype))
    return norm


def _adamw(groups: list[dict], settings: TrainingSettings) -> torch.optim.Optimizer:
    devices = {p.device.type for group in groups for p in group["params"]}
    return torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_epsilon,
        fused=devices <= {"cpu", "cuda"} or None,
    )


def _muon(hidden: list[nn.Parameter], settings: TrainingSettings) -> torch.optim.Optimizer:
    if not hidden:
        raise ValueError("optimizer='muon' needs hidden 2-D matrices, and this model has none; use 'adamw'")
    return torch.optim.Muon(
        hidden, lr=settings.learning_rate, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"
    )


def _lookup_tables(model: nn.Module) -> set[int]:
    """Embeddings (and an output head tied to one): their rows are looked up, so decay would only forget rare tokens."""
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    return {id(parameter) for table in tables for parameter in table.parameters()}


def _output_head(model: nn.Module) -> Iterable[nn.Parameter]:
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return [] if head is None else head.parameters()
