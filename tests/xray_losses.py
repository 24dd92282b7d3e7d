"""Losses for the X-ray's tests: right ones, each written in another way, and mutants that public code has had."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf_lab.objective import Objective, preset, wpo_weights

Loss = Callable[..., Tensor]


def margin(
    chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor
) -> Tensor:
    return (chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps)


# Right losses on sums


def logsigmoid_dpo(
    policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta=0.1
):
    """As in the authors' release: losses first, and two more things."""
    m = margin(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
    return -F.logsigmoid(beta * m), policy_chosen_logps.detach(), policy_rejected_logps.detach()


def softplus_dpo(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=0.3):
    return F.softplus(beta * -margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)).mean()


def bce_dpo(a, b, c, d):
    """Unknown names: the usual order."""
    m = 0.05 * margin(a, b, c, d)
    return F.binary_cross_entropy_with_logits(m, torch.ones_like(m), reduction="none")


def log1p_dpo(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=0.01):
    return torch.log1p(
        torch.exp(-beta * margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps))
    ).sum()


def slic(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=0.1):
    return torch.relu(1 - beta * margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps))


def ipo(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=0.1):
    return (margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps) - 1 / (2 * beta)).square()


def cdpo(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=0.1, label_smoothing=0.1):
    """-log sigma(m) + eps m, which is (1 - eps) [-log sigma(m)] + eps [-log sigma(-m)]."""
    m = beta * margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return F.softplus(-m) + label_smoothing * m


def robust(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=0.1, label_smoothing=0.1):
    m = beta * margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    kept, flipped = (1 - label_smoothing) * F.softplus(-m), label_smoothing * F.softplus(m)
    return (kept - flipped) / (1 - 2 * label_smoothing)


def rpo(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=0.01, eta=0.005):
    """DPO plus an SFT term that has no reference."""
    m = beta * margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return -F.logsigmoid(m) - eta * chosen_logps


def vpo_online(
    chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, calibration_logps, ref_calibration_logps
):
    m = 0.1 * margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return F.softplus(-m) + 1e-4 * 0.1 * (calibration_logps - ref_calibration_logps)


class TuneDPO(nn.Module):
    """A module on bundles, as torchtune's losses are."""

    def __init__(self, beta: float = 0.1, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.beta, self.label_smoothing = beta, label_smoothing

    def forward(self, policy_inputs: SimpleNamespace, reference_inputs: SimpleNamespace):
        ratio = policy_inputs.chosen_logps - policy_inputs.rejected_logps
        m = self.beta * (ratio - (reference_inputs.chosen_logps - reference_inputs.rejected_logps))
        return -F.logsigmoid(m) * (1 - self.label_smoothing) - F.logsigmoid(-m) * self.label_smoothing, m.detach()


# Losses on tokens: one function, whose parts the mutants exchange


def total(logps: Tensor, mask: Tensor) -> Tensor:
    return (logps * mask).sum(-1)


def unchanged(mask: Tensor) -> Tensor:
    return mask


def product(w: Tensor, v: Tensor) -> Tensor:
    return (w * v).clamp(max=1)


def token_loss(
    chosen_token_logps: Tensor,
    rejected_token_logps: Tensor,
    ref_chosen_token_logps: Tensor,
    ref_rejected_token_logps: Tensor,
    chosen_mask: Tensor,
    rejected_mask: Tensor,
    chosen_alignment: Tensor,
    rejected_alignment: Tensor,
    *,
    beta: float = 0.1,
    reduce: Callable[[Tensor, Tensor], Tensor] = total,
    masked: Callable[[Tensor], Tensor] = unchanged,
    weigh: Callable[[Tensor, Tensor], Tensor] | None = None,
    detach: bool = True,
    bonus: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """w [-log sigma(beta (h+ - h-))] + bonus, per pair."""
    h = reduce(chosen_token_logps - ref_chosen_token_logps, masked(chosen_mask))
    g = reduce(rejected_token_logps - ref_rejected_token_logps, masked(rejected_mask))
    loss = -F.logsigmoid(beta * (h - g))
    if weigh is not None:
        w = length_normalised(chosen_token_logps - chosen_alignment, chosen_mask)
        v = length_normalised(rejected_token_logps - rejected_alignment, rejected_mask)
        weight = weigh(w, v)
        loss = (weight.detach() if detach else weight) * loss
    return loss if bonus is None else loss + bonus(h, g, chosen_mask.sum(-1))


def length_normalised(excess: Tensor, mask: Tensor) -> Tensor:
    return torch.exp((excess * mask).sum(-1) / mask.sum(-1))


def library_wpo(
    chosen_token_logps,
    rejected_token_logps,
    ref_chosen_token_logps,
    ref_rejected_token_logps,
    chosen_mask,
    rejected_mask,
    chosen_alignment,
    rejected_alignment,
):
    """The house's weights in a loss on tokens."""
    w = wpo_weights(chosen_token_logps, chosen_alignment, chosen_mask)
    v = wpo_weights(rejected_token_logps, rejected_alignment, rejected_mask)
    chosen, rejected = total(chosen_token_logps, chosen_mask), total(rejected_token_logps, rejected_mask)
    refs = total(ref_chosen_token_logps, chosen_mask), total(ref_rejected_token_logps, rejected_mask)
    return (w * v).clamp(max=1) * F.softplus(-0.1 * margin(chosen, rejected, *refs))


# Parts of the mutants


def mean(logps: Tensor, mask: Tensor) -> Tensor:
    return total(logps, mask) / mask.sum(-1)


def padded_mean(logps: Tensor, mask: Tensor) -> Tensor:
    return (logps * mask).mean(-1)


def bf16_total(logps: Tensor, mask: Tensor) -> Tensor:
    return (logps.bfloat16() * mask).sum(-1).double()


def until_the_end(mask: Tensor) -> Tensor:
    return mask.cumsum(-1) > 0


def from_the_start(mask: Tensor) -> Tensor:
    return mask.flip(-1).cumsum(-1).flip(-1) > 0


def without_last(mask: Tensor) -> Tensor:
    return mask & (mask.cumsum(-1) < mask.sum(-1, keepdim=True))


def without_first(mask: Tensor) -> Tensor:
    return mask & (mask.cumsum(-1) > 1)


def one_early(mask: Tensor) -> Tensor:
    return torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], 1)


def one_late(mask: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(mask[:, :1]), mask[:, :-1]], 1)


def filled(mask: Tensor) -> Tensor:
    """From the first token to the last, whoever speaks."""
    return until_the_end(mask) & from_the_start(mask)


def swapped(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=0.1):
    return logsigmoid_dpo(rejected_logps, chosen_logps, ref_rejected_logps, ref_chosen_logps, beta)[0]


def deaf(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=0.1, label_smoothing=0.1):
    """label_smoothing is an argument, and nothing else."""
    return softplus_dpo(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta)


def without_reference(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=0.1):
    return F.softplus(-beta * (chosen_logps - rejected_logps))


def half_reference(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=0.1):
    return F.softplus(-beta * (chosen_logps - rejected_logps - ref_chosen_logps))


def per_response(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=0.1):
    """Each response against 0, as in BCO: no function of the margin."""
    h, g = chosen_logps - ref_chosen_logps, rejected_logps - ref_rejected_logps
    return F.softplus(-beta * h) + F.softplus(beta * g)


def outer(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, weights):
    """Weights of shape [B, 1] against losses of shape [B]: every weight meets every pair."""
    loss = F.softplus(-0.1 * margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps))
    return (weights.detach()[:, None] * loss).mean()


def centred(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps):
    m = margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return F.softplus(-0.1 * (m - 0.5 * m.mean())).mean()


def half_detached(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps):
    return F.softplus(-0.1 * margin(chosen_logps, rejected_logps.detach(), ref_chosen_logps, ref_rejected_logps))


def cubic(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps):
    return torch.relu(1 - 0.1 * margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)) ** 3


def twice(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=0.1):
    """beta in the rewards, and again in the loss."""
    rewards = [beta * (chosen_logps - ref_chosen_logps), beta * (rejected_logps - ref_rejected_logps)]
    return F.softplus(-beta * (rewards[0] - rewards[1]))


def halved(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=0.1):
    return softplus_dpo(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta) / 2


def summed_weight(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=0.1):
    """The weight of summed log-probs, for want of lengths."""
    weight = torch.exp(chosen_logps + rejected_logps).detach()
    return weight * logsigmoid_dpo(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta)[0]


OFFLINE = preset("vpo-offline", alpha=0.2)  # alpha beta = .02, pessimistic, on the chosen response

RIGHT: dict[str, tuple[Loss, Objective | None]] = {
    "logsigmoid": (logsigmoid_dpo, None),
    "softplus, mean": (softplus_dpo, None),
    "binary cross-entropy": (bce_dpo, None),
    "log1p(exp), sum": (log1p_dpo, None),
    "hinge = SLiC": (slic, None),
    "squared = IPO": (ipo, None),
    "cDPO": (cdpo, None),
    "robust DPO": (robust, None),
    "RPO": (rpo, preset("rpo")),
    "VPO offline": (partial(token_loss, bonus=lambda h, g, n: -0.02 * h), OFFLINE),
    "VPO online": (vpo_online, preset("vpo-online")),
    "WPO": (partial(token_loss, weigh=product), preset("wpo")),
    "WPO by the house's weights": (library_wpo, preset("wpo")),
    "WPO of the paper": (partial(token_loss, weigh=torch.mul), preset("wpo", max_weight=None)),
    "tokens": (token_loss, None),
    "bundles, smoothed": (TuneDPO(0.2, 0.05), None),
}

MUTANTS: dict[str, tuple[Loss, Objective | None, list[str]]] = {
    "mean over tokens": (partial(token_loss, reduce=mean), None, ["mean for sum"]),
    "mean over the padded row": (partial(token_loss, reduce=padded_mean), None, ["padding in the mean"]),
    "beta twice": (twice, None, ["beta"]),
    "half the loss": (halved, None, ["scale"]),
    "bonus with the wrong sign": (partial(token_loss, bonus=lambda h, g, n: 0.02 * h), OFFLINE, ["sign of the bonus"]),
    "bonus on the rejected response": (
        partial(token_loss, bonus=lambda h, g, n: -0.02 * g),
        OFFLINE,
        ["bonus on the wrong response"],
    ),
    "bonus per token": (
        partial(token_loss, bonus=lambda h, g, n: -0.02 * h / n),
        OFFLINE,
        ["mean for sum in the bonus"],
    ),
    "bonus twice as large": (partial(token_loss, bonus=lambda h, g, n: -0.04 * h), OFFLINE, ["size of the bonus"]),
    "bonus forgotten": (token_loss, OFFLINE, ["no bonus"]),
    "weight not detached": (partial(token_loss, weigh=product, detach=False), None, ["weight not detached"]),
    "weight clipped per response": (
        partial(token_loss, weigh=lambda w, v: w.clamp(max=1) * v.clamp(max=1)),
        None,
        ["weight clipped per response"],
    ),
    "weight not clamped": (partial(token_loss, weigh=torch.mul), None, ["weight not clamped"]),
    "weight of the chosen response only": (partial(token_loss, weigh=lambda w, v: w), None, ["weight of one response"]),
    "weight of summed log-probs": (summed_weight, None, ["weight of summed log-probs"]),
    "weight forgotten": (token_loss, preset("wpo"), ["no weight"]),
    "padding counted": (partial(token_loss, masked=until_the_end), None, ["padding counted", "user turn counted"]),
    "prompt counted": (partial(token_loss, masked=from_the_start), None, ["prompt counted", "user turn counted"]),
    "EOS dropped": (partial(token_loss, masked=without_last), None, ["EOS dropped"]),
    "first token dropped": (partial(token_loss, masked=without_first), None, ["first token dropped"]),
    "mask one early": (partial(token_loss, masked=one_early), None, ["mask off by one"]),
    "mask one late": (partial(token_loss, masked=one_late), None, ["mask off by one"]),
    "user turn counted": (partial(token_loss, masked=filled), None, ["user turn counted"]),
    "label smoothing ignored": (deaf, None, ["label smoothing ignored"]),
    "label smoothing that nobody claimed": (cdpo, preset("dpo"), ["label smoothing"]),
    "hinge for logistic": (slic, preset("dpo"), ["another fit"]),
    "a weight that nobody claimed": (partial(token_loss, weigh=product), preset("dpo"), ["a weight"]),
    "a bonus that nobody claimed": (rpo, preset("dpo", beta=0.01), ["a bonus"]),
    "sums in bf16": (partial(token_loss, reduce=bf16_total), None, ["low-precision sums"]),
    "chosen and rejected swapped": (swapped, None, ["chosen and rejected swapped"]),
    "no reference": (without_reference, None, ["no reference"]),
    "one reference": (half_reference, None, ["unknown fit", "not of the margin alone", "no reference"]),
    "no margin": (per_response, None, ["unknown fit", "not of the margin alone"]),
    "weights against losses": (outer, None, ["weight not clamped", "pairs of a batch mix"]),
    "margins centred in the batch": (centred, None, ["pairs of a batch mix"]),
    "rejected response detached": (half_detached, None, ["part of the loss is detached"]),
    "another curve": (cubic, None, ["unknown fit"]),
}
