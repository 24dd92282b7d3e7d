"""What is known exactly when responses can be listed: the optimal policy, values, KL, regret, win rates.

Shapes: `...` are batch dimensions (seeds, settings), X contexts, K arms. Policies are log-probabilities [..., X, K],
rewards [..., X, K], rho [X] or [..., X] the distribution of contexts (None: uniform); results are [...].
Everything broadcasts over the batch dimensions and is differentiable. Notation: docs/notation.md; the value is DPO's
(2305.18290, eq. 3) and VPO's (2405.19320),

    J(r, pi) = E_x [ E_{y~pi} r(x,y) - beta KL(pi(.|x) || pi_ref(.|x)) ]
"""

import math

import torch
from torch import Tensor

from rlhf_lab.bradley_terry.comparisons import preference_matrix
from rlhf_lab.bradley_terry.estimate import check_probabilities


def optimal_logps(rewards: Tensor, ref_logps: Tensor, beta: float | Tensor) -> Tensor:
    """log pi_r(y|x) = log pi_ref(y|x) + r(x,y)/beta - log Z_r(x): the maximiser of J(r, .), [..., X, K].

    beta: > 0, a number or a tensor that broadcasts against [..., X, K]. Source: DPO (2305.18290), eq. 4.
    """
    return torch.log_softmax(ref_logps + rewards / checked_beta(beta), dim=-1)


def implicit_rewards(logps: Tensor, ref_logps: Tensor, beta: float | Tensor) -> Tensor:
    """beta h(x,y) = beta (log pi - log pi_ref): the reward whose optimal policy is pi, up to a shift by context."""
    return checked_beta(beta) * (logps - ref_logps)


def value(rewards: Tensor, logps: Tensor, ref_logps: Tensor, beta: float | Tensor, rho: Tensor | None = None) -> Tensor:
    """J(r, pi) = E_x [ E_{y~pi} r - beta KL(pi || pi_ref) ], [...]."""
    beta = checked_beta(beta)
    inner = logps.exp() * rewards - beta * _plogp(logps, logps - ref_logps)
    return over_contexts(inner.sum(-1), rho)


def optimal_value(rewards: Tensor, ref_logps: Tensor, beta: float | Tensor, rho: Tensor | None = None) -> Tensor:
    """J*(r) = E_x [ beta log Z_r(x) ], Z_r(x) = sum_y pi_ref(y|x) exp(r(x,y)/beta), [...]."""
    beta = checked_beta(beta)
    log_z = torch.logsumexp(ref_logps + rewards / beta, dim=-1, keepdim=True)
    return over_contexts((beta * log_z).squeeze(-1), rho)


def suboptimality(
    rewards: Tensor, logps: Tensor, ref_logps: Tensor, beta: float | Tensor, rho: Tensor | None = None
) -> Tensor:
    """J*(r) - J(r, pi) = beta E_x KL(pi || pi_r) >= 0, [...]; the right side is computed: no cancellation."""
    gap = _plogp(logps, logps - optimal_logps(rewards, ref_logps, beta))
    return over_contexts((checked_beta(beta) * gap).sum(-1), rho)


def kl(logps: Tensor, other_logps: Tensor, rho: Tensor | None = None) -> Tensor:
    """E_x KL(pi || other) = E_x sum_y pi (log pi - log other), nats, [...]; the first argument is the one sampled."""
    return over_contexts(_plogp(logps, logps - other_logps).sum(-1), rho)


def win_rate(rewards: Tensor, logps: Tensor, other_logps: Tensor, rho: Tensor | None = None) -> Tensor:
    """P(y > y') = E_x E_{y~pi, y'~other} sigma(r(x,y) - r(x,y')), Bradley-Terry, [...] in [0, 1]."""
    wins = torch.einsum("...i,...ij,...j->...", logps.exp(), preference_matrix(rewards), other_logps.exp())
    return over_contexts(wins, rho)


def calibrated(rewards: Tensor, calibration_logps: Tensor, rho: Tensor | None = None) -> Tensor:
    """r - E_{x, y~pi_cal} r: of all shifts by one constant the one with mean 0 under pi_cal (VPO), [..., X, K].

    Raises ValueError if pi_cal does not sum to 1 in some context: the shift would then not drop out.
    """
    check_probabilities("calibration_logps", calibration_logps.exp())
    mean = over_contexts((calibration_logps.exp() * rewards).sum(-1), rho)
    return rewards - mean[..., None, None]


def over_contexts(values: Tensor, rho: Tensor | None = None) -> Tensor:
    """E_{x~rho} of values [..., X] -> [...]; rho None is uniform. Raises ValueError if rho is no distribution."""
    if rho is None:
        return values.mean(-1)
    check_probabilities("rho", rho)
    return (values * rho).sum(-1)


def checked_beta(beta: float | Tensor) -> float | Tensor:
    """beta itself. Raises ValueError unless every entry is finite and above 0."""
    number = beta if isinstance(beta, Tensor) else torch.tensor(float(beta))
    if not bool(((number > 0) & (number < math.inf)).all()):
        raise ValueError(f"beta={beta}: must be finite and above 0")
    return beta


def _plogp(logps: Tensor, difference: Tensor) -> Tensor:
    """pi * difference, where 0 * inf is 0: an arm that is never played costs nothing."""
    # The mask goes on the factor, not on the product: a product of 0 * inf behind a mask still has the gradient nan.
    return logps.exp() * difference.masked_fill(logps == -math.inf, 0.0)
