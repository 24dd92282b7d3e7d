"""The cells of the optimism map: regret with and without optimism, on worlds that all settings share.

10 arms, rewards uniform in [0, 2], one context, one comparison per round, |r| <= 3, alpha_t = alpha sqrt(t),
calibration pi_ref. Every alpha meets the same worlds, so differences are paired by world.
"""

from dataclasses import replace

import torch
from torch import Tensor

from rlhf_lab.common.intervals import Interval, difference_interval, mean_interval, sign
from rlhf_lab.worlds.bandit import Bandit, random_bandit
from rlhf_lab.worlds.exact import optimal_logps, suboptimality
from rlhf_lab.worlds.online import OnlineResult, OnlineSettings, run_grid
from rlhf_lab.worlds.optimistic import fit_optimistic

ARMS = 10
ALPHAS, BETAS = (0.0, 0.1, 0.3, 1.0, 3.0), (0.1, 0.2, 0.3, 0.5, 1.0, 2.0)
QUALITIES, PAIRS = ("bad", "uniform", "good"), ("current/current", "current/previous", "current/reference")
# Settings with bad pi_ref whose regret over alpha was reported before: (pairs, beta, bound, searches of the fit).
REGIMES = {
    "small beta, own pairs": ("current/current", 0.1, 3.0, 3),
    "small beta, own pairs, bound 1.5": ("current/current", 0.1, 1.5, 3),
    "small beta, own pairs, no search": ("current/current", 0.1, 3.0, 0),
    "middle beta, own pairs": ("current/current", 0.3, 3.0, 3),
    "large beta, own pairs": ("current/current", 1.0, 3.0, 3),
    "large beta, own pairs, bound 1.5": ("current/current", 1.0, 1.5, 3),
    "small beta, pairs with pi_ref": ("current/reference", 0.1, 3.0, 3),
}


def measure_cells(seeds: int, rounds: int, betas: tuple[float, ...]) -> tuple[list[dict], list[dict]]:
    """(cells, conditions), per pairs, quality and beta: what each alpha does to the regret, and what DPO does alone.

    seeds: worlds of each quality of pi_ref.
    """
    # The worlds of all qualities stand in one batch [3 seeds, K]: one run of a setting serves them all.
    worlds = _join([random_bandit(seeds, ARMS, reference=quality) for quality in QUALITIES])
    dataless = {beta: dataless_loss(worlds, beta) for beta in betas}
    cells, conditions = [], []
    for pairs in PAIRS:
        by_beta = _run_all(worlds, OnlineSettings(pairs=pairs, rounds=rounds), betas)
        for index, quality in enumerate(QUALITIES):
            mine = slice(index * seeds, (index + 1) * seeds)
            for beta, results in by_beta.items():
                where = {"pairs": pairs, "quality": quality, "beta": beta}
                group = [_of_worlds(result, mine) for result in results]
                conditions.append(where | _condition(group[0], dataless[beta][mine]))
                cells += [where | cell for cell in _against_no_optimism(group)]
    return cells, conditions


def _run_all(worlds: Bandit, settings: OnlineSettings, betas: tuple[float, ...]) -> dict[float, list[OnlineResult]]:
    """{beta: [the result of each alpha]}."""
    grid = [replace(settings, alpha=alpha, beta=beta) for beta in betas for alpha in ALPHAS]
    results, count = run_grid(worlds, grid), len(ALPHAS)
    return {beta: results[i * count : (i + 1) * count] for i, beta in enumerate(betas)}


def _of_worlds(result: OnlineResult, worlds: slice) -> OnlineResult:
    """The rows of some worlds: every part of the result has the worlds in front."""
    return type(result)(*(part[worlds] for part in result))


def _against_no_optimism(group: list[OnlineResult]) -> list[dict]:
    """A cell for each alpha above 0. group: the results of all alphas, in their order."""
    baseline, cells = group[0].regret[:, -1], []
    for alpha, result in zip(ALPHAS[1:], group[1:], strict=True):
        cells.append({"alpha": alpha} | _effect(result.regret[:, -1], baseline))
    return cells


def _join(bandits: list[Bandit]) -> Bandit:
    """All worlds in one batch."""
    rewards = torch.cat([bandit.rewards for bandit in bandits])  # [sum of S, K]
    ref_logps = torch.cat([bandit.ref_logps for bandit in bandits])
    return Bandit(rewards, ref_logps)


def dataless_loss(worlds: Bandit, beta: float, bound: float = 3.0) -> Tensor:
    """J*(r*) - J(r*, pi), [S], of the optimistic fit to no comparison at all: what optimism bets on, whatever alpha."""
    nothing = worlds.rewards.new_zeros(*worlds.rewards.shape, worlds.arms)
    fit = fit_optimistic(nothing, worlds.ref_logps, beta=beta, alpha=1.0, bound=bound)
    policy = optimal_logps(fit.rewards, worlds.ref_logps, beta)
    return suboptimality(worlds.rewards, policy, worlds.ref_logps, beta)


def _condition(dpo: OnlineResult, dataless: Tensor) -> dict:
    """What happens at alpha = 0, and without data."""
    half = dpo.suboptimality.shape[1] // 2
    early, late = dpo.suboptimality[:, :half].mean(), dpo.suboptimality[:, half:].mean()
    numbers = {
        "identical": dpo.identical.mean(),
        "covered": dpo.arms_covered.mean(),
        "late": late,
        "wasted": (dpo.suboptimality * dpo.identical)[:, half:].mean(),
        "stall": late / early,
        "dataless": dataless.mean(),
        "bet": late - dataless.mean(),
        "first": dpo.suboptimality[:, 0].mean(),
    }
    return {name: round(float(value), 4) for name, value in numbers.items()} | {"regret": _short(dpo.regret[:, -1])}


def _effect(regret: Tensor, baseline: Tensor) -> dict:
    difference = difference_interval(regret, baseline)
    return {"percent": round(100 * difference["mean"] / float(baseline.mean()), 1), "sign": sign(difference)} | {
        "difference": {key: round(value, 3) for key, value in difference.items()}
    }


def _short(values: Tensor) -> Interval:
    return {key: round(value, 3) for key, value in mean_interval(values).items()}


def measure_regimes(seeds: int, rounds: int) -> dict:
    """The regret of every alpha in each of REGIMES, and how it differs from that of alpha = 0."""
    world, found = random_bandit(seeds, ARMS, reference="bad"), {}
    for name, (pairs, beta, bound, searches) in REGIMES.items():
        settings = OnlineSettings(pairs=pairs, beta=beta, bound=bound, searches=searches, rounds=rounds)
        results = run_grid(world, [replace(settings, alpha=alpha) for alpha in ALPHAS])
        regrets = [result.regret[:, -1] for result in results]
        found[name] = {"pairs": pairs, "beta": beta, "bound": bound, "searches": searches} | {
            "regret": [_short(regret) for regret in regrets],
            "change": [_effect(regret, regrets[0]) for regret in regrets[1:]],
        }
    return found
