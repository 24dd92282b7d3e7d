"""The online loop: play, compare, label, refit, round after round, in thousands of exact worlds at once.

    round t:  y1 ~ pi_t,  y2 ~ pi_t | pi_ref | pi_{t-1} | the enhancer     one comparison per round and context
              label ~ Bradley-Terry(r*)
              r_{t+1} = argmin l(r, D_t) + alpha_t beta E_cal[log pi_r / pi_ref],     pi_{t+1} = pi_r

pi_1 is pi_ref. DPO (alpha = 0), VPO online, XPO and SELM are settings of it. Rounds count from 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rlhf_lab.bradley_terry.comparisons import count_wins, draw_arms, draw_wins
from rlhf_lab.worlds.bandit import Bandit
from rlhf_lab.worlds.exact import implicit_rewards, kl, optimal_logps, over_contexts, suboptimality
from rlhf_lab.worlds.optimistic import fit_optimistic

Pairs = Literal["current/current", "current/reference", "current/previous", "current/enhancer", "uniform"]
OnlineCalibration = Literal["reference", "previous", "chosen", "rejected"]
PAIRS = ("current/current", "current/reference", "current/previous", "current/enhancer", "uniform")
CALIBRATIONS = ("reference", "previous", "chosen", "rejected")
SCHEDULES = ("constant", "sqrt")
# Of the fit in one round: a row that needs more steps goes on in the next round, from where it is.
ACCURACY = {"tolerance": 1e-5, "max_steps": 10}


@dataclass(frozen=True)
class OnlineSettings:
    """One online experiment; the defaults are DPO on pairs of its own responses.

    alpha: >= 0, of the SUM of losses; 0 is DPO. schedule: alpha_t = alpha, or alpha sqrt(t). pairs: who writes the two
    responses; "uniform" draws both uniformly, the control that explores without regard to reward. calibration: the
    policy whose responses VPO pushes down; `chosen` and `rejected` are those of all pairs so far. bound: rewards lie in
    [-bound, bound] (linear rewards: ||theta|| <= bound). searches: further starts of the fit per round, in turn, beside
    the last solution. kl_radius: nats that the enhancer may be away from pi_t. Raises ValueError for bad values.
    """

    beta: float = 0.1
    alpha: float = 0.0
    schedule: Literal["constant", "sqrt"] = "sqrt"
    pairs: Pairs = "current/current"
    calibration: OnlineCalibration = "reference"
    rounds: int = 120
    bound: float = 3.0
    searches: int = 3
    kl_radius: float = 1.0

    def __post_init__(self) -> None:
        for name, choices in {"schedule": SCHEDULES, "pairs": PAIRS, "calibration": CALIBRATIONS}.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be one of {', '.join(choices)}")
        for name in ("beta", "bound", "kl_radius"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: must be finite and above 0")
        if not 0 <= self.alpha < math.inf:
            raise ValueError(f"alpha={self.alpha}: must be finite, 0 or above")
        for name, least in {"rounds": 1, "searches": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {least}")


class OnlineResult(NamedTuple):
    """Each [S, T], of the policy pi_t that was played in round t.

    suboptimality: J*(r*) - J(r*, pi_t). regret: its sum over rounds 1..t. pair_regret: the sum of the mean
    suboptimality of the two policies that wrote the pair, the price if users see both. identical: share of contexts
    whose two responses are the same arm, and teach nothing. kl: KL(pi_t || pi_ref), nats. bonus: alpha_t beta
    E_cal[log pi_{t+1} / pi_ref], the term of the fit after round t. starts_differ: 1 where the starts of that fit ended
    at different objectives. arms_covered: exp of the entropy of pi_t, mean over contexts, in [1, K].
    """

    regret: Tensor
    suboptimality: Tensor
    pair_regret: Tensor
    identical: Tensor
    kl: Tensor
    bonus: Tensor
    starts_differ: Tensor
    arms_covered: Tensor


METHODS: dict[str, dict[str, object]] = {
    "dpo": {"alpha": 0.0},
    "vpo-online": {"calibration": "reference"},
    "selm": {"calibration": "previous"},
    "xpo": {"calibration": "reference", "pairs": "current/reference"},
    "enhancer": {"alpha": 0.0, "pairs": "current/enhancer"},
    "uniform": {"alpha": 0.0, "pairs": "uniform"},
}


def method(name: str, *, alpha_xpo: float | None = None, **changes: object) -> OnlineSettings:
    """The named method's settings. alpha_xpo: alpha * beta, the coefficient of the summed log-ratio, in place of alpha.

    Like alpha it is of the SUM of losses; XPO's own bonus (2405.21046, algorithm 1) is a sum over comparisons, too, so
    that t of them at its printed coefficient are alpha_xpo = t * that.
    Raises ValueError for an unknown name, or `alpha_xpo` for a method other than XPO or together with `alpha`.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; choose one of {', '.join(METHODS)}")
    if clash := {key: value for key, value in METHODS[name].items() if changes.get(key, value) != value}:
        raise ValueError(f"method {name!r} has {clash}; change it and it is another method: use OnlineSettings")
    settings = OnlineSettings(**{**METHODS[name], **changes})
    if alpha_xpo is None:
        return settings
    if name != "xpo" or "alpha" in changes:
        raise ValueError(f"alpha_xpo={alpha_xpo} belongs to method 'xpo' alone, instead of alpha")
    return replace(settings, alpha=alpha_xpo / settings.beta)


def run_online(bandit: Bandit, settings: OnlineSettings, *, seed: int = 0) -> OnlineResult:
    """One setting in S worlds, [S, T]; the same seed gives the same numbers, bit for bit."""
    return run_grid(bandit, [settings], seed=seed)[0]


def run_grid(bandit: Bandit, grid: Sequence[OnlineSettings], *, seed: int = 0) -> list[OnlineResult]:
    """Settings that differ only in alpha and beta, together in one batch: one result each, on the same worlds.

    Raises ValueError if they differ in anything else, or if the batch would need more than 4 GB.
    """
    if not grid:
        raise ValueError("grid=[]: at least one setting is needed")
    common = [f.name for f in fields(OnlineSettings) if f.name not in ("alpha", "beta")]
    if different := [name for name in common if len({getattr(s, name) for s in grid}) > 1]:
        raise ValueError(f"one batch shares everything but alpha and beta, but {', '.join(different)} differ")
    worlds, batch = len(bandit.rewards), bandit.repeat(len(grid))
    needed = 8 * batch.rewards.numel() * batch.arms * 4 + 8 * len(batch.rewards) * grid[0].rounds * 9
    if needed > 4e9:
        raise ValueError(f"{len(grid)} settings of {worlds} worlds need about {needed / 1e9:.0f} GB: split the grid")
    alpha, beta = (torch.tensor([getattr(s, n) for s in grid], dtype=torch.float64) for n in ("alpha", "beta"))
    whole = _run(batch, grid[0], alpha.repeat_interleave(worlds), beta.repeat_interleave(worlds), seed)
    return [OnlineResult(*(part[i * worlds : (i + 1) * worlds] for part in whole)) for i in range(len(grid))]


def alpha_at(settings: OnlineSettings, alpha: float | Tensor, t: int) -> float | Tensor:
    """alpha_t = alpha, or alpha sqrt(t), t = 1, 2, .."""
    return alpha * math.sqrt(t) if settings.schedule == "sqrt" else alpha


def _run(bandit: Bandit, settings: OnlineSettings, alpha: Tensor, beta: Tensor, seed: int) -> OnlineResult:
    generator, ref, arms = torch.Generator().manual_seed(seed), bandit.ref_logps, bandit.arms
    tilt, logps, previous, parameters = beta[:, None, None], ref, ref, None
    wins = torch.zeros(*ref.shape, arms, dtype=ref.dtype)
    seen = torch.zeros(2, *ref.shape, dtype=ref.dtype)  # how often each arm was chosen, rejected
    known = {"rho": bandit.rho, "features": bandit.features, "bound": settings.bound, "beta": beta}
    record = {name: torch.zeros(settings.rounds, len(ref), dtype=ref.dtype) for name in OnlineResult._fields}
    for t in range(1, settings.rounds + 1):
        writers = writing_policies(settings, bandit, logps, previous, wins)
        first, second = (draw_arms(writer, generator, 1) for writer in writers)
        won = draw_wins(bandit.rewards, first, second, generator)
        chosen, rejected = torch.where(won, first, second), torch.where(won, second, first)
        wins += count_wins(chosen, rejected, arms)
        seen.scatter_add_(-1, torch.stack([chosen, rejected]), torch.ones_like(seen[..., :1]))
        pi_cal, alpha_t = calibration_logps(settings.calibration, ref, logps, seen), alpha_at(settings, alpha, t)
        search = {"start": parameters, "attempts": search_order(arms, t, settings.searches)}
        fit = fit_optimistic(wins, ref, alpha=alpha_t, calibration_logps=pi_cal, **known, **search, **ACCURACY)
        numbers = _measure(bandit, logps, writers, tilt) | {"starts_differ": fit.objectives_differ.to(ref.dtype)}
        numbers["identical"] = over_contexts((first == second).squeeze(-1).to(ref.dtype), bandit.rho)
        previous, logps, parameters = logps, optimal_logps(fit.rewards, ref, tilt), fit.parameters
        h = (pi_cal.exp() * implicit_rewards(logps, ref, tilt)).sum(-1)
        numbers["bonus"] = alpha_t * over_contexts(h, bandit.rho)
        for name, values in numbers.items():
            record[name][t - 1] = values
    record["regret"], record["pair_regret"] = record["suboptimality"].cumsum(0), record["pair_regret"].cumsum(0)
    return OnlineResult(**{name: values.T for name, values in record.items()})


def _measure(bandit: Bandit, logps: Tensor, writers: tuple[Tensor, Tensor], tilt: Tensor) -> dict[str, Tensor]:
    """What round t costs and how far and wide pi_t plays, [S] each; `pair_regret` not yet summed over rounds."""
    # by identity: pi_t often is both writers, and is measured once
    losses = {id(pi): suboptimality(bandit.rewards, pi, bandit.ref_logps, tilt, bandit.rho) for pi in (logps, *writers)}
    covered = torch.special.entr(logps.exp()).sum(-1).exp()
    return {
        "suboptimality": losses[id(logps)],
        "pair_regret": sum(losses[id(writer)] for writer in writers) / 2,
        "kl": kl(logps, bandit.ref_logps, bandit.rho),
        "arms_covered": over_contexts(covered, bandit.rho),
    }


def writing_policies(
    settings: OnlineSettings, bandit: Bandit, logps: Tensor, previous: Tensor, wins: Tensor
) -> tuple[Tensor, Tensor]:
    """The policies of the first and the second response, [S, X, K] each."""
    if settings.pairs == "uniform":
        uniform = torch.full_like(logps, -math.log(logps.shape[-1]))
        return uniform, uniform
    if settings.pairs == "current/enhancer":
        return logps, enhancer(logps, uncertainty(wins, bandit.features), settings.kl_radius)
    return logps, {"current": logps, "reference": bandit.ref_logps, "previous": previous}[settings.pairs.split("/")[1]]


def calibration_logps(name: str, ref_logps: Tensor, logps: Tensor, seen: Tensor) -> Tensor:
    """log pi_cal of the fit that follows pi_t = logps. seen: [2, S, X, K], counts of chosen and of rejected arms."""
    if name in ("chosen", "rejected"):
        counts = seen[("chosen", "rejected").index(name)]
        return (counts / counts.sum(-1, keepdim=True)).clamp(min=1e-300).log()
    return ref_logps if name == "reference" else logps


def uncertainty(wins: Tensor, features: Tensor | None = None, ridge: float = 1.0) -> Tensor:
    """||phi_i - phi_j||_{Sigma^-1}, [S, X, K, K], Sigma = ridge I + sum over pairs (phi_i - phi_j)(phi_i - phi_j)^T.

    Free rewards are one-hot features: Sigma is the comparison graph's Laplacian plus the ridge, context by context.
    """
    pairs = wins + wins.mT
    laplacian = torch.diag_embed(pairs.sum(-1)) - pairs
    eye = torch.eye(wins.shape[-1] if features is None else features.shape[-1], dtype=wins.dtype)
    if features is None:
        covariance = torch.linalg.inv(laplacian + ridge * eye)
    else:
        sigma = torch.einsum("sxkd,sxkl,sxle->sde", features, laplacian, features) + ridge * eye
        covariance = torch.einsum("sxkd,sde,sxle->sxkl", features, torch.linalg.inv(sigma), features)
    spread = torch.diagonal(covariance, dim1=-2, dim2=-1)
    return (spread.unsqueeze(-1) + spread.unsqueeze(-2) - 2 * covariance).clamp(min=0).sqrt()


def enhancer(logps: Tensor, distances: Tensor, kl_radius: float) -> Tensor:
    """argmax_{pi2} E_{y1~pi, y2~pi2} ||phi1 - phi2||_{Sigma^-1} with KL(pi2 || pi) <= kl_radius in each context.

    Its solution is pi2 ~ pi exp(lambda u), u(y2) = E_{y1~pi} ||phi1 - phi2||; lambda by bisection, up to 2^20 where the
    ball already holds the most uncertain arm. The expectation stands outside the norm, so that the problem is linear
    in pi2. Source: RLHF Workflow (2405.07863), its theory of online iteration.
    """
    gain = torch.einsum("...i,...ij->...j", logps.exp(), distances)
    low, high = torch.full_like(gain[..., :1], -20.0), torch.full_like(gain[..., :1], 20.0)  # log2 of lambda
    for _ in range(40):
        middle = (low + high) / 2
        tilted = torch.log_softmax(logps + 2**middle * gain, -1)
        inside = (tilted.exp() * (tilted - logps)).sum(-1, keepdim=True) <= kl_radius
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return torch.log_softmax(logps + 2**low * gain, -1)


def search_order(arms: int, t: int, searches: int) -> list[int]:
    """Which starts to try in round t: single arms in turn, every third start a set of arms (`optimistic.hopes`)."""
    sets, singles = searches // 3, searches - searches // 3
    single = [(singles * t + i) % arms for i in range(singles)]
    return list(dict.fromkeys(single + [arms + (sets * t + i) % max(arms - 2, 1) for i in range(sets)]))
