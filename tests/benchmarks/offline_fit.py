"""The offline fit for a panel: Newton on a whole batch against a plain loop over seeds, in CPU milliseconds.

    python -m tests.benchmarks.offline_fit [--json FILE] [--repeats N]

64 worlds of 10 arms. `ours` is `fit_offline` to a gradient norm of 1e-8; `plain` is what one would write first: for
each seed L-BFGS with autograd on the policy's logits. CPU time of this process on one thread, the median of the
repeats; the first call (warm-up) does not count. `same` is the largest difference of the two policies.
"""

import argparse
import json
import time
from statistics import median

import torch
from torch import Tensor

from rlhf_lab.worlds.bandit import random_bandit
from rlhf_lab.worlds.offline import count_comparisons, draw_comparisons
from rlhf_lab.worlds.pessimistic import fit_offline

SEEDS, ARMS = 64, 10
CASES = [(beta, num, alpha) for beta in (0.1, 0.5) for num in (20, 100, 500) for alpha in (0.3, 3.0)]


def plain(wins: Tensor, ref_logps: Tensor, beta: float, alpha: float) -> Tensor:
    """One world after the other: minimise l - alpha beta E_ref[h] over logits."""
    policies = []
    for w, ref in zip(wins, ref_logps, strict=True):
        logits = ref.clone().requires_grad_()
        optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-8, line_search_fn="strong_wolfe")

        def closure(w: Tensor = w, ref: Tensor = ref, logits: Tensor = logits) -> Tensor:
            h = torch.log_softmax(logits, -1) - ref
            margins = beta * (h.unsqueeze(-1) - h.unsqueeze(-2))
            loss = -(w * torch.nn.functional.logsigmoid(margins)).sum() - alpha * beta * (ref.exp() * h).sum()
            logits.grad = torch.autograd.grad(loss, logits)[0]
            return loss

        optimizer.step(closure)
        policies.append(torch.log_softmax(logits.detach(), -1))
    return torch.stack(policies)


def measure(repeats: int) -> list[dict[str, float]]:
    """One row per (beta, N, alpha)."""
    bandit, rows = random_bandit(SEEDS, ARMS, reference="random"), []
    drawn = draw_comparisons(bandit, bandit.ref_logps, 500, torch.Generator().manual_seed(0))
    for beta, num, alpha in CASES:
        wins = count_comparisons(drawn, num, bandit)
        ours, times = fit_offline(wins, bandit.ref_logps, beta, alpha), []
        for _ in range(repeats):
            began = time.process_time()
            fit_offline(wins, bandit.ref_logps, beta, alpha)
            times.append(1000 * (time.process_time() - began))
        began = time.process_time()
        loop = plain(wins, bandit.ref_logps, beta, alpha)
        slow = 1000 * (time.process_time() - began)
        rows.append(
            {
                "beta": beta,
                "comparisons": num,
                "alpha": alpha,
                "ours_ms": median(times),
                "plain_ms": slow,
                "ratio": slow / median(times),
                "newton_steps": ours.iterations,
                "same": float((loop.exp() - ours.logps.exp()).abs().max()),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(options.repeats)
    for row in rows:
        print("  ".join(f"{name} {value:.3g}" for name, value in row.items()))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
