"""Credit: are the tokens with the lowest beta log(pi/pi_ref) the bad ones? Planted errors, and the AUC of any score.

Levels as in `worlds.trees.tree`. Source: From r to Q* (2404.12358), section 4.2.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rlhf_lab.worlds.trees.tree import Levels, TokenTree, along, ending_tokens, path_sums, sequences


def plant_bad_tokens(
    tree: TokenTree, shares: Sequence[float], penalty: float, seed: int = 0
) -> tuple[TokenTree, Levels]:
    """The tree with r(s,a) lowered by `penalty` at random tokens, and which they are, bool [S, W^t, V].

    shares: for each position t the share of bad tokens in [0, 1]; EOS is never bad. penalty: > 0, reward units.
    Raises ValueError for bad input.
    """
    if len(shares) != tree.horizon or not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"shares={list(shares)}: needs {tree.horizon} numbers in [0, 1], one for each position")
    if not 0 < penalty < float("inf"):
        raise ValueError(f"penalty={penalty}: must be finite and above 0")
    eos = _eos(tree.rewards)
    bad: list[list[Tensor]] = []
    for s in range(tree.rewards[0].shape[0]):  # one generator a world: world s never depends on S
        generator = torch.Generator().manual_seed(seed * 1_000_003 + s)
        draws = [torch.rand(level.shape[1:], generator=generator, dtype=level.dtype) for level in tree.rewards]
        bad.append([(draw < share) & ~eos for draw, share in zip(draws, shares, strict=True)])
    levels = tuple(torch.stack(level) for level in zip(*bad, strict=True))
    lowered = tuple(r - penalty * mask for r, mask in zip(tree.rewards, levels, strict=True))
    return replace(tree, rewards=lowered), levels


def token_scores(levels: Levels) -> Tensor:
    """x(s_t, a_t) of every token of every complete sequence, [S, L, H], 0 after the end."""
    return along(levels, sequences(levels))


def token_weights(logps: Levels) -> Tensor:
    """pi(y) for every token of y, 0 after the end, [S, L, H]: expectations over the tokens that pi writes, exactly."""
    alive = sequences(logps) >= 0
    return path_sums(logps).exp().unsqueeze(-1) * alive


def shared_evenly(levels: Levels) -> Tensor:
    """sum_t x / length on each token, [S, L, H]: what a sequence-level score can say about its tokens."""
    lengths = (sequences(levels) >= 0).sum(-1)
    return (path_sums(levels) / lengths).unsqueeze(-1).expand(-1, -1, len(levels))


def auc(scores: Tensor, positives: Tensor, weights: Tensor) -> Tensor:
    """P(score of a positive > score of a negative) + P(equal)/2, both drawn by weight, [S]; .5 is chance.

    scores, weights: [S, M], weights finite and >= 0; positives: bool [S, M]. Raises ValueError if a world has no
    positive or no negative of weight above 0, or a score that is not a number. Source: Mann and Whitney (1947).
    """
    if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        raise ValueError("weights: every entry must be finite, 0 or above")
    if bool((scores.isnan() & (weights > 0)).any()):  # sorted, it would count as the highest of all scores
        raise ValueError("scores: an entry is not a number (nan), so it is neither above nor below another")
    results = []
    for s, (score, positive, weight) in enumerate(zip(scores, positives, weights, strict=True)):
        up, down = weight * positive, weight * ~positive
        if float(up.sum()) <= 0 or float(down.sum()) <= 0:
            raise ValueError(f"world {s}: an AUC needs at least one positive and one negative of weight above 0")
        _, rank = score.unique(return_inverse=True)
        ups, downs = (torch.zeros(int(rank.max()) + 1, dtype=up.dtype).index_add(0, rank, part) for part in (up, down))
        below = downs.cumsum(0) - downs / 2
        results.append((ups * below).sum() / (ups.sum() * downs.sum()))
    return torch.stack(results)


def _eos(levels: Levels) -> Tensor:
    """True for EOS, [V]; nothing in a tree without EOS. The horizon ends a sequence, too, but is no token."""
    ends = ending_tokens(levels)[0].bool()
    return ends if len(levels) > 1 else torch.zeros_like(ends)
