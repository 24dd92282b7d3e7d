"""Token trees: a deterministic token MDP in which Q*, V*, A*, pi* and every sequence are known exactly.

State = the tokens so far, action = the next token, discount 1, V*(terminal) = 0. The last token of the vocabulary is
EOS (with `eos=True`): it ends a sequence; at the horizon every token does. Only states that can be reached are stored,
so nothing is dead or masked. With W = V - 1 tokens that go on (W = V without EOS), a quantity is a tuple of H levels:

    states         level t: [S, W^t]         token a < W leads from state n to state n * W + a of the next level
    state-actions  level t: [S, W^t, V]      rewards r(s,a), log-probs log pi(a|s), Q*, A*

and the L = sum_{t<H-1} (V-W) W^t + V W^(H-1) complete sequences are one axis, [S, L], shortest first: the arms of a
bandit, to which everything in `worlds.exact` applies. Source: From r to Q* (2404.12358); signs as printed there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_lab.worlds.bandit import check_logps

Levels = tuple[Tensor, ...]
RewardPlace = Literal["token", "terminal"]

MAX_BYTES = 2 * 1024**3
COPIES = 8  # rewards, ref_logps, Q, A, log pi, and three that live while they are computed


@dataclass(frozen=True)
class TokenTree:
    """rewards and ref_logps: levels [S, W^t, V]. Raises ValueError for shapes that are no tree, rewards that are not
    finite, and a pi_ref that is not a distribution with full support in every state.
    """

    rewards: Levels
    ref_logps: Levels

    def __post_init__(self) -> None:
        check_levels("rewards", self.rewards)
        if len(self.ref_logps) != self.horizon:
            raise ValueError(f"ref_logps has {len(self.ref_logps)} levels: {self.horizon} are needed, as of rewards")
        for t, (rewards, logps) in enumerate(zip(self.rewards, self.ref_logps, strict=True)):
            if not bool(torch.isfinite(rewards).all()):
                raise ValueError(f"rewards[{t}]: every entry must be finite")
            check_logps(f"ref_logps[{t}]", logps, rewards.shape)

    @property
    def vocab(self) -> int:
        """V, EOS included."""
        return self.rewards[0].shape[-1]

    @property
    def horizon(self) -> int:
        """H, the most tokens of a sequence."""
        return len(self.rewards)

    @property
    def returns(self) -> Tensor:
        """sum_t r(s_t, a_t) of every complete sequence, [S, L]."""
        return path_sums(self.rewards)

    @property
    def ref_sequence_logps(self) -> Tensor:
        """log pi_ref(y) of every complete sequence, EOS included, [S, L]."""
        return path_sums(self.ref_logps)


def prefix_sums(levels: Levels) -> Levels:
    """sum of x(s,a) on the way to each state, levels [S, W^t]; of log pi: log-prob of reaching the state."""
    sums = [torch.zeros_like(levels[0][..., 0])]
    for level, below in pairwise(levels):
        sums.append((sums[-1].unsqueeze(-1) + level)[..., : _width(level, below)].flatten(-2))
    return tuple(sums)


def path_sums(levels: Levels) -> Tensor:
    """sum_t x(s_t, a_t) of every complete sequence, [S, L]: log pi(y) from log pi(a|s), a return from rewards."""
    whole = [before.unsqueeze(-1) + level for before, level in zip(prefix_sums(levels), levels, strict=True)]
    ended = [level[..., _width(level, below) :] for level, below in zip(whole, levels[1:], strict=False)]
    return torch.cat([level.flatten(-2) for level in [*ended, whole[-1]]], dim=-1)


def token_logps(sequence_logps: Tensor, like: Levels) -> Levels:
    """log pi(a|s) = log pi(prefix + a) - log pi(prefix): the inverse of `path_sums` on log-probs.

    sequence_logps: [S, L], a distribution (or unnormalised: it is normalised) in the order of `path_sums`; -inf is a
    probability of 0. `like`: any levels [S, W^t, V] of the same tree. So sequence distributions and token policies are
    the same set, up to states that are never reached: uniform. Raises ValueError if a world has no sequence at all.
    """
    if not bool((sequence_logps > -math.inf).any(-1).all()) or bool(sequence_logps.isnan().any()):
        raise ValueError("sequence_logps: each world needs a sequence of positive probability, and numbers only")
    widths = [_width(level, below) for level, below in pairwise(like)]
    sizes = [level.shape[-2] * (level.shape[-1] - width) for level, width in zip(like, widths, strict=False)]
    *ended, joint = sequence_logps.split([*sizes, like[-1].shape[-2] * like[-1].shape[-1]], dim=-1)
    joint = joint.unflatten(-1, like[-1].shape[-2:])
    conditional, reached = _conditional(joint)
    levels = [conditional]
    for t in reversed(range(len(like) - 1)):
        states = like[t].shape[-2]
        going_on = reached.unflatten(-1, (states, widths[t]))
        joint = torch.cat([going_on, ended[t].unflatten(-1, (states, -1))], dim=-1) if sizes[t] else going_on
        conditional, reached = _conditional(joint)
        levels.append(conditional)
    return tuple(levels[::-1])


def _conditional(joint: Tensor) -> tuple[Tensor, Tensor]:
    """(log pi(a|s), log-prob of reaching s) from log pi(prefix + a), [..., V]; uniform in a state never reached."""
    dead = (joint == -math.inf).all(-1)
    alive = joint.masked_fill(dead.unsqueeze(-1), 0.0)  # -inf less -inf would be nan, in gradients too
    return torch.log_softmax(alive, -1), torch.logsumexp(alive, -1).masked_fill(dead, -math.inf)


def sequences(like: Levels) -> Tensor:
    """The tokens of every complete sequence, int64 [L, H], -1 after the end, in the order of `path_sums`."""
    vocab, horizon = like[0].shape[-1], len(like)
    prefixes, done = torch.zeros(1, 0, dtype=torch.int64), []
    for t, level in enumerate(like):
        tokens = torch.arange(vocab).repeat(len(prefixes)).unsqueeze(-1)
        grown = torch.cat([prefixes.repeat_interleave(vocab, 0), tokens], dim=-1)
        width = _width(level, like[t + 1]) if t + 1 < horizon else 0
        done.append(F.pad(grown[tokens.squeeze(-1) >= width], (0, horizon - t - 1), value=-1))
        prefixes = grown[tokens.squeeze(-1) < width]
    return torch.cat(done)


def leaf_indices(like: Levels) -> Levels:
    """Where each ending (s, a) stands among the L sequences, int64 [W^t, V]; -1 where the sequence goes on."""
    indices, seen = [], 0
    for level, ends in zip(like, ending_tokens(like), strict=True):
        ending = ends.bool().expand(level.shape[-2:])
        count = int(ending.sum())
        index = torch.full(ending.shape, -1, dtype=torch.int64)
        index[ending] = torch.arange(seen, seen + count)
        indices.append(index)
        seen += count
    return tuple(indices)


def along(levels: Levels, tokens: Tensor) -> Tensor:
    """x(s_t, a_t) for the tokens of some sequences, [S, M, H], 0 after the end. tokens: int64 [S, M, H] or [M, H]."""
    seeds = levels[0].shape[0]
    tokens = tokens.expand(seeds, -1, -1) if tokens.dim() == 2 else tokens
    state, out = torch.zeros_like(tokens[..., 0]), []
    for t, level in enumerate(levels):
        alive = tokens[..., t] >= 0
        token = tokens[..., t].clamp(min=0)
        index = torch.where(alive, state, 0) * level.shape[-1] + token
        out.append(torch.where(alive, level.flatten(-2).gather(-1, index), 0.0))
        state = state * _width(level, levels[t + 1]) + token if t + 1 < len(levels) else state
    return torch.stack(out, dim=-1)


def successors(values: Levels, like: Levels) -> Levels:
    """x(s') of every (s, a), levels [S, W^t, V], 0 where the sequence has ended. values: [S, W^t]."""
    following = [successor(below, level) for below, level in zip(values[1:], like, strict=False)]
    return (*following, torch.zeros_like(like[-1]))


def successor(values: Tensor, level: Tensor) -> Tensor:
    """x(s') for the state-actions of one level [S, W^t, V], from the next level's states [S, W^(t+1)]."""
    children = values.unflatten(-1, (level.shape[-2], -1))
    return F.pad(children, (0, level.shape[-1] - children.shape[-1]))


def random_tree(
    seeds: int,
    vocab: int,
    horizon: int,
    *,
    eos: bool = True,
    place: RewardPlace = "token",
    reward_scale: float = 1.0,
    sharpness: float = 1.0,
    seed: int = 0,
    max_bytes: int = MAX_BYTES,
) -> TokenTree:
    """S trees with rewards reward_scale * normal and pi_ref ~ exp(sharpness * normal); world s never depends on S.

    place: "token" (a reward on each token) or "terminal" (only with the token that ends the sequence). Raises
    ValueError for bad input and if the tree would need more than `max_bytes`.
    """
    if place not in ("token", "terminal"):
        raise ValueError(f"place={place!r}: must be one of token, terminal")
    for name, number in {"reward_scale": reward_scale, "sharpness": sharpness}.items():
        if not 0 <= number < math.inf:
            raise ValueError(f"{name}={number}: must be finite, 0 or above")
    check_size(seeds, vocab, horizon, eos, max_bytes)
    width = vocab - 1 if eos else vocab
    rewards: list[list[Tensor]] = []
    tilts: list[list[Tensor]] = []
    for s in range(seeds):
        options = {"generator": torch.Generator().manual_seed(seed * 1_000_003 + s), "dtype": torch.float64}
        rewards.append([torch.randn(width**t, vocab, **options) for t in range(horizon)])
        tilts.append([torch.randn(width**t, vocab, **options) for t in range(horizon)])
    reward_levels = [reward_scale * torch.stack(level) for level in zip(*rewards, strict=True)]
    if place == "terminal":
        reward_levels = [level * mask for level, mask in zip(reward_levels, ending_tokens(reward_levels), strict=True)]
    ref_logps = (torch.log_softmax(sharpness * torch.stack(level), -1) for level in zip(*tilts, strict=True))
    return TokenTree(tuple(reward_levels), tuple(ref_logps))


def leaf_count(vocab: int, horizon: int, eos: bool = True) -> int:
    """L, the number of complete sequences; V^H without EOS."""
    width = vocab - 1 if eos else vocab
    return sum(width**t for t in range(horizon - 1)) * (vocab - width) + vocab * width ** (horizon - 1)


def memory_bytes(seeds: int, vocab: int, horizon: int, eos: bool = True) -> int:
    """Bytes of a solved tree at its peak: 8 float64 copies of all state-actions, sum_t S W^t V entries each."""
    width = vocab - 1 if eos else vocab
    return COPIES * 8 * seeds * vocab * sum(width**t for t in range(horizon))


def check_size(seeds: int, vocab: int, horizon: int, eos: bool = True, max_bytes: int = MAX_BYTES) -> None:
    """Raises ValueError unless the tree is one and fits; says the leaves, the bytes and the horizon that would fit."""
    for name, number, least in (("seeds", seeds, 1), ("vocab", vocab, 2), ("horizon", horizon, 1)):
        if number < least:
            raise ValueError(f"{name}={number}: must be at least {least}")
    need = memory_bytes(seeds, vocab, horizon, eos)
    if need <= max_bytes:
        return
    fits = max((h for h in range(1, horizon) if memory_bytes(seeds, vocab, h, eos) <= max_bytes), default=0)
    advice = f"horizon {fits} would fit" if fits else "not even horizon 1 would fit: take fewer seeds"
    raise ValueError(
        f"horizon={horizon} with vocab={vocab}: {leaf_count(vocab, horizon, eos):,} leaves in each of {seeds} worlds "
        f"need {need:,} bytes, but max_bytes={max_bytes:,}; {advice}"
    )


def check_levels(name: str, levels: Levels) -> None:
    """Raises ValueError unless the levels have the shapes of a tree: [S, W^t, V] with W = V or V - 1."""
    if len(levels) == 0 or levels[0].dim() != 3 or levels[0].shape[1] != 1 or levels[0].shape[2] < 2:
        first = tuple(levels[0].shape) if levels else "nothing"
        raise ValueError(f"{name}: level 0 is {first}; [S, 1, V] with V >= 2 tokens is needed")
    seeds, _, vocab = levels[0].shape
    width = levels[1].shape[1] if len(levels) > 1 else vocab
    shapes = [tuple(level.shape) for level in levels]
    if width not in (vocab, vocab - 1) or shapes != [(seeds, width**t, vocab) for t in range(len(levels))]:
        raise ValueError(f"{name}: levels of shapes {shapes}; [S, W^t, V] with W = V or V - 1 (EOS) is needed")


def ending_tokens(levels: Sequence[Tensor]) -> Levels:
    """1 for the tokens that end a sequence, else 0, levels [V]: EOS, and every token of the last level."""
    going_on = [_width(level, below) for level, below in pairwise(levels)]
    return tuple((torch.arange(levels[0].shape[-1]) >= width).double() for width in [*going_on, 0])


def _width(level: Tensor, below: Tensor) -> int:
    """W, the number of tokens that go on: read from the shapes, so that it is written down nowhere else."""
    return below.shape[-2] // level.shape[-2]
