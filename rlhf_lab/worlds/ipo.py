"""IPO: a target for the gap of log-ratios instead of a race.

    L(h) = sum_ij wins_ij (h_i - h_j - 1 / (2 beta))^2,     h = log pi - log pi_ref

A quadratic, so that its minimum is a linear equation, and finite whatever the data say.
Source: IPO (2310.12036), eq. 17, tau = beta. Shapes as in `worlds.exact`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_lab.bradley_terry.comparisons import num_comparisons
from rlhf_lab.worlds.exact import checked_beta


def ipo_loss(beta: float, wins: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """mean over comparisons of (h(y+) - h(y-) - 1/(2 beta))^2, a loss for `descent.descend`.

    beta: > 0. wins: [S, X, K, K]. Raises ValueError for a bad beta, or if a seed has no comparison.
    """
    counts, target = num_comparisons(wins), 1 / (2 * checked_beta(beta))

    def loss(logps: Tensor, ref_logps: Tensor) -> Tensor:
        h = logps - ref_logps
        return (wins * (h.unsqueeze(-1) - h.unsqueeze(-2) - target) ** 2).sum((-3, -2, -1)) / counts

    return loss


def ipo_logps(wins: Tensor, ref_logps: Tensor, beta: float) -> Tensor:
    """log pi of argmin L(h), without iteration, [..., X, K]. wins: [..., X, K, K]. beta: > 0.

    (diag(n 1) - n) h = (wins 1 - wins^T 1) / (2 beta), n = wins + wins^T. Of all solutions the smallest h: an arm
    that was never compared keeps h = 0 before normalisation.
    """
    pairs = wins + wins.mT
    laplacian = torch.diag_embed(pairs.sum(-1)) - pairs
    target = (wins.sum(-1) - wins.sum(-2)) / (2 * checked_beta(beta))
    h = (torch.linalg.pinv(laplacian, hermitian=True) @ target.unsqueeze(-1)).squeeze(-1)
    return torch.log_softmax(ref_logps + h, -1)
