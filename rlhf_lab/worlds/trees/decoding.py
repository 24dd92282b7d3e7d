"""Decoding on token trees: beam search, decoding guided by a value function, and proxy tuning.

    max sum(r + beta log pi_ref) + V*(s_K) = V*(s_0) + max sum beta log pi*

so at the optimum, beams on likelihood are beams guided by V*, prefix by prefix. Levels as in `worlds.trees.tree`.
Source: From r to Q* (2404.12358), section 4.3; proxy tuning (Liu et al. 2024, 2401.08565).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_lab.worlds.trees.tree import Levels, ending_tokens, leaf_indices, path_sums, successors, token_logps


class Beams(NamedTuple):
    """leaves: int64 [S, b], indices of sequences in the order of `path_sums`, best first; scores: [S, b].

    A beam wider than the tree has sequences is filled with leaf -1 and score -inf.
    """

    leaves: Tensor
    scores: Tensor


def tree_beam_search(increments: Levels, width: int, values: Levels | None = None) -> Beams:
    """Keep the b prefixes with the highest sum of x(s,a) so far + V(s'); finished sequences keep their place by score.

    increments: x(s,a), [S, W^t, V]: log pi for likelihood, r + beta log pi_ref for guided decoding. values: V(s) of
    the prefix's last state, [S, W^t]; None is zero. width: b >= 1; 1 is greedy. Raises ValueError if b < 1.
    """
    if width < 1:
        raise ValueError(f"width={width}: a beam holds at least one sequence")
    seeds, _, vocab = increments[0].shape
    ahead = successors(values, increments) if values is not None else [torch.zeros_like(x) for x in increments]
    parts = zip(increments, ahead, ending_tokens(increments), leaf_indices(increments), strict=True)
    # A candidate is (sum so far, rank = sum + V, state of this level, leaf or -1 while it goes on).
    sums, ranks = torch.zeros(2, seeds, 1, dtype=torch.float64).unbind(0)
    states, leaves = torch.zeros(2, seeds, 1, dtype=torch.int64).unbind(0)
    leaves = leaves - 1
    for level, following, ends, index in parts:
        going = (leaves < 0) & (sums > -math.inf)
        rows = states.unsqueeze(-1).expand(-1, -1, vocab)
        grown = torch.where(going.unsqueeze(-1), sums.unsqueeze(-1) + level.gather(1, rows), -math.inf)
        going_on = int((ends == 0).sum())
        children = (states.unsqueeze(-1) * going_on + torch.arange(vocab)) * (ends == 0).long()
        pool = (
            torch.cat([torch.where(going, -math.inf, sums), grown.flatten(1)], 1),
            torch.cat([torch.where(going, -math.inf, ranks), (grown + following.gather(1, rows)).flatten(1)], 1),
            torch.cat([torch.zeros_like(states), children.flatten(1)], 1),
            torch.cat([leaves, index[states].flatten(1)], 1),
        )
        best = pool[1].topk(min(width, pool[1].shape[1]), dim=1).indices
        sums, ranks, states, leaves = (part.gather(1, best) for part in pool)
        leaves = torch.where(sums == -math.inf, -1, leaves)
    return Beams(leaves, sums)


def guided_beams(rewards: Levels, ref_logps: Levels, values: Levels, beta: float, width: int) -> Beams:
    """Beams ranked by sum(r + beta log pi_ref) + V(s): decoding guided by a value function."""
    increments = tuple(r + beta * ref for r, ref in zip(rewards, ref_logps, strict=True))
    return tree_beam_search(increments, width, values)


def proxy_tuned(base_logps: Levels, small_logps: Levels, small_ref_logps: Levels, scale: float = 1.0) -> Levels:
    """pi(a|s) ~ pi_base(a|s) (pi_small(a|s) / pi_small_ref(a|s))^scale, normalised in every state.

    scale: finite; beta_small / beta for a small model tuned at beta_small. The normalisation drops each state's
    log-normaliser, which the product over whole sequences (`proxy_sequences`) keeps: this is guidance by A* of the
    SMALL reference.
    """
    if not math.isfinite(scale):
        raise ValueError(f"scale={scale}: must be finite")
    parts = zip(base_logps, small_logps, small_ref_logps, strict=True)
    return tuple(torch.log_softmax(base + scale * (small - ref), -1) for base, small, ref in parts)


def proxy_sequences(base_logps: Levels, small_logps: Levels, small_ref_logps: Levels, scale: float = 1.0) -> Levels:
    """pi(y) ~ pi_base(y) (pi_small(y) / pi_small_ref(y))^scale over whole sequences, as a token policy.

    If pi_small is optimal for R at beta_small, this is optimal for R at beta = beta_small / scale from pi_base.
    """
    base, small, ref = (path_sums(levels) for levels in (base_logps, small_logps, small_ref_logps))
    return token_logps(base + scale * (small - ref), base_logps)
