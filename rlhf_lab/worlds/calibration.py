"""What an offline fit is calibrated by: the policy pi_cal, and the weight of each context in E_x."""

import torch
from torch import Tensor

from rlhf_lab.bradley_terry.estimate import check_probabilities
from rlhf_lab.objective import Calibration

OFFLINE_CALIBRATIONS = ("reference", "chosen", "rejected", "given")


def calibration_policy(
    calibration: Calibration,
    wins: Tensor,
    ref_logps: Tensor,
    calibration_logps: Tensor | None = None,
    rho: Tensor | None = None,
) -> Tensor:
    """pi_cal(y|x) as probabilities [..., X, K]; `chosen`: the share of context x's comparisons that y won.

    A context without comparisons has no chosen arm: it gets pi_ref and weight zero, or, if rho gives it weight,
    ValueError. `previous` raises: an offline fit has no previous iterate.
    """
    if calibration not in OFFLINE_CALIBRATIONS:
        raise ValueError(f"calibration={calibration!r}: an offline fit knows {', '.join(OFFLINE_CALIBRATIONS)}")
    if (calibration == "given") != (calibration_logps is not None):
        raise ValueError(
            f"calibration={calibration!r}: `calibration_logps` belongs to calibration='given', and only there"
        )
    if calibration == "reference":
        return ref_logps.exp()
    if calibration == "given":
        check_probabilities("calibration_logps", calibration_logps.exp())
        return calibration_logps.exp()
    counts = wins.sum(-1 if calibration == "chosen" else -2)
    total = counts.sum(-1, keepdim=True)
    if rho is not None and bool(((total[..., 0] == 0) & (rho > 0)).any()):
        raise ValueError(f"calibration={calibration!r} with rho: a context of positive weight has no comparisons")
    return torch.where(total > 0, counts / total.clamp(min=1e-300), ref_logps.exp())


def context_weights(wins: Tensor, rho: Tensor | None = None) -> Tensor:
    """rho, or each context's share of the comparisons, [..., X]. Raises ValueError if a world has no comparison."""
    if rho is not None:
        check_probabilities("rho", rho)
        return rho
    counts = wins.sum((-2, -1))
    total = counts.sum(-1, keepdim=True)
    if bool((total == 0).any()):
        raise ValueError(f"wins: {named_worlds(total[..., 0] == 0)}: N = 0 comparisons; at least one is needed, or rho")
    return counts / total


def named_worlds(which: Tensor) -> str:
    """'worlds 3, 7 (2 of 64)': at most eight of them by number."""
    numbers = which.flatten().nonzero().flatten().tolist()
    shown = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    return f"worlds {shown} ({len(numbers)} of {which.numel()})"
