"""The load-balancing loss of mixture-of-experts models: without it training lets a few experts take every token.

    loss = task loss + router_aux_loss_coef * aux,    aux = E sum_e f_e p_e   (arXiv 2101.03961, eq. 4)

with E experts, f_e the share of tokens sent to expert e, p_e its mean probability. As in transformers it is part of the
loss if the configuration says output_router_logits=True. On a packed row every prompt counts once, not once a response.
"""

import sys

from torch import Tensor
from transformers import PreTrainedModel


def balances_experts(model: PreTrainedModel) -> bool:
    """Whether the configuration asks for the load-balancing loss."""
    return bool(getattr(model.config.get_text_config(), "output_router_logits", False))


def balancing_weight(model: PreTrainedModel) -> float:
    """router_aux_loss_coef of the configuration."""
    return float(model.config.get_text_config().router_aux_loss_coef)


def balancing_loss(model: PreTrainedModel, router_logits: tuple[Tensor, ...]) -> Tensor:
    """aux over the tokens of a packed row, a scalar, by the function that the model's own file has for it.

    router_logits: per layer [tokens, E]. Raises ValueError if that file has none.
    """
    config = model.config.get_text_config()
    own = getattr(sys.modules[type(model).__module__], "load_balancing_loss_func", None)
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if own is None or experts is None:
        raise ValueError(
            f"{type(model).__name__} asks for a load-balancing loss, but no function for it is known: put false for "
            "output_router_logits into its config.json to train without"
        )
    return own(router_logits, experts, config.num_experts_per_tok, None)
