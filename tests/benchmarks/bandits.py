"""python -m tests.benchmarks.bandits [--quick] [--json FILE]: the online worlds against the loop a student would write.

All times are CPU seconds of this process (`time.process_time`) on one thread, so that a busy machine disturbs little;
the memory is the process's peak. The plain loop refits one world at a time in readable numpy: two hundred projected
gradient steps per start. It runs on few seeds, and its time is scaled by the number of refits.
"""

import argparse
import json
import math
import resource
import time
from collections.abc import Callable

import numpy as np
import torch

from rlhf_lab.worlds.bandit import Bandit, random_bandit
from rlhf_lab.worlds.online import OnlineSettings, run_grid, run_online

ALPHAS = (0.0, 0.1, 0.3, 1.0, 3.0)


def plain_loop(
    rewards: np.ndarray, ref: np.ndarray, alpha: float, beta: float, rounds: int, bound: float, seed: int
) -> float:
    """Regret of online VPO in one world, as one would first write it. rewards, ref (probabilities): [K]."""
    rng, arms, comparisons = np.random.default_rng(seed), len(rewards), []
    optimum = beta * np.log((ref * np.exp(rewards / beta)).sum())
    r, pi, regret = np.zeros(arms), ref, 0.0
    for t in range(1, rounds + 1):
        regret += optimum - (pi * rewards).sum() + beta * (pi * np.log(pi / ref)).sum()
        i, j = rng.choice(arms, size=2, p=pi)
        if i != j:
            wins = rng.random() < 1 / (1 + np.exp(rewards[j] - rewards[i]))
            comparisons.append((i, j) if wins else (j, i))
        corners = [np.where(np.arange(arms) == (2 * t + k) % arms, bound, -bound) for k in range(2)]
        fits = [plain_fit(start, comparisons, ref, alpha * math.sqrt(t), beta, bound) for start in (r, *corners)]
        r = min(fits, key=lambda fit: fit[0])[1]
        pi = ref * np.exp((r - r.max()) / beta)
        pi = np.maximum(pi / pi.sum(), 1e-300)
    return regret


def plain_fit(
    r: np.ndarray, comparisons: list[tuple[int, int]], ref: np.ndarray, alpha: float, beta: float, bound: float
) -> tuple[float, np.ndarray]:
    """Projected gradient descent on l(r) - alpha (J*(r) - E_ref r), two hundred steps."""
    winners, losers = (np.array([pair[side] for pair in comparisons], dtype=int) for side in (0, 1))
    step = 1 / (1 + len(comparisons) / 2)
    for _ in range(200):
        lost = 1 / (1 + np.exp(r[winners] - r[losers]))
        weights = ref * np.exp((r - r.max()) / beta)
        gradient = alpha * (ref - weights / weights.sum())
        np.add.at(gradient, winners, -lost)
        np.add.at(gradient, losers, lost)
        r = np.clip(r - step * gradient, -bound, bound)
    value = beta * np.log((ref * np.exp((r - r.max()) / beta)).sum()) + r.max()
    return np.log1p(np.exp(r[losers] - r[winners])).sum() - alpha * (value - (ref * r).sum()), r


def cpu_seconds(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def measure(quick: bool) -> list[dict[str, object]]:
    """One row per measurement: name, seconds, refits, microseconds per refit."""
    rows: list[dict[str, object]] = []

    def add(name: str, seconds: float, refits: int) -> None:
        rows.append({"name": name, "cpu_seconds": seconds, "refits": refits, "us_per_refit": seconds / refits * 1e6})

    seeds, rounds = (50, 40) if quick else (1000, 200)
    world = random_bandit(seeds, 10, reference="bad")
    grid = [OnlineSettings(alpha=alpha, rounds=rounds) for alpha in ALPHAS]
    add(f"{seeds} seeds x {rounds} rounds x 5 alphas", cpu_seconds(lambda: run_grid(world, grid)), 5 * seeds * rounds)
    panel, setting = random_bandit(64, 10, reference="bad"), OnlineSettings(alpha=0.3, rounds=100)
    best = min(cpu_seconds(lambda: run_online(panel, setting)) for _ in range(1 if quick else 5))
    add("panel: 64 seeds x 100 rounds", best, 6400)
    add("plain loop, 1 seed x 40 rounds", cpu_seconds(lambda: _plain(world, 40)), 40 * len(ALPHAS))
    return rows


def _plain(world: Bandit, rounds: int) -> None:
    rewards, ref = world.rewards[0, 0].numpy(), world.ref_logps[0, 0].exp().numpy()
    for alpha in ALPHAS:
        plain_loop(rewards, ref, alpha, 0.1, rounds, 3.0, seed=0)


def main() -> None:
    """Print the table; `--json FILE` also writes it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a hundredth of the work")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(options.quick)
    ratio = rows[-1]["us_per_refit"] / rows[0]["us_per_refit"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for row in rows:
        print(f"{row['name']:<42}{row['cpu_seconds']:>9.2f} s CPU{row['us_per_refit']:>12.1f} us per refit")
    print(f"the batch is {ratio:.0f} times faster per refit than the plain loop; peak memory {peak:.0f} MB")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"rows": rows, "ratio": ratio, "peak_mb": peak, "threads": 1}, file, indent=1)


if __name__ == "__main__":
    main()
