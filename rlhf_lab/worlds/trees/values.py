"""Soft dynamic programming on token trees: Q*, V*, A*, pi*, the way back from Q* to r, and shaping.

    pi*(a|s) = exp((Q*(s,a) - V*(s)) / beta)                    V*(s) = beta log sum_a exp(Q*(s,a) / beta)
    Q*(s,a)  = r(s,a) + beta log pi_ref(a|s) + V*(s')           A*(s,a) = beta log(pi*/pi_ref)(a|s) = r + V*(s') - V*(s)

Levels as in `worlds.trees.tree`: [S, W^t, V] for state-actions, [S, W^t] for states. Everything is differentiable.
Source: From r to Q* (2404.12358).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_lab.worlds.exact import checked_beta
from rlhf_lab.worlds.trees.tree import Levels, ending_tokens, prefix_sums, successor, successors


class SoftValues(NamedTuple):
    """Q*, A* and log pi*: levels [S, W^t, V]; V*: levels [S, W^t]."""

    q: Levels
    v: Levels
    advantages: Levels
    logps: Levels


def soft_values(rewards: Levels, ref_logps: Levels, beta: float | Tensor) -> SoftValues:
    """Q*(s,a) = r + beta log pi_ref(a|s) + V*(s'), V*(s) = beta logsumexp_a Q*/beta, pi* = exp((Q* - V*)/beta).

    A*(s,a) = r + V*(s') - V*(s) is computed from its own definition, not from pi*. beta: > 0, a number or
    [S, 1, 1]. Source: From r to Q* (2404.12358), eq. 5-8.
    """
    beta = checked_beta(beta)
    q, v, advantages = [], [], []
    following = torch.zeros_like(rewards[-1])
    for t in reversed(range(len(rewards))):
        q.append(rewards[t] + beta * ref_logps[t] + following)
        v.append((beta * torch.logsumexp(q[-1] / beta, -1, keepdim=True)).squeeze(-1))
        advantages.append(rewards[t] + following - v[-1].unsqueeze(-1))
        if t > 0:
            following = successor(v[-1], rewards[t - 1])
    logps = tuple((level - value.unsqueeze(-1)) / beta for level, value in zip(q, v, strict=True))
    return SoftValues(tuple(q[::-1]), tuple(v[::-1]), tuple(advantages[::-1]), logps[::-1])


def rewards_from_q(q: Levels, ref_logps: Levels, beta: float | Tensor) -> Levels:
    """r(s,a) = Q(s,a) - beta log pi_ref(a|s) - V(s'), V = beta logsumexp Q/beta: Lemma 1, the way back from Q* to r."""
    beta = checked_beta(beta)
    v = tuple((beta * torch.logsumexp(level / beta, -1, keepdim=True)).squeeze(-1) for level in q)
    following = successors(v, q)
    return tuple(level - beta * ref - after for level, ref, after in zip(q, ref_logps, following, strict=True))


def implicit_rewards(logps: Levels, ref_logps: Levels, beta: float | Tensor) -> Levels:
    """beta log(pi/pi_ref)(a|s): the reward of its class whose V* is 0 in every state; equals A* if pi = pi*."""
    beta = checked_beta(beta)
    return tuple(beta * (pi - ref) for pi, ref in zip(logps, ref_logps, strict=True))


def shaped(rewards: Levels, potentials: Levels) -> Levels:
    """r(s,a) + Phi(s') - Phi(s), Phi(terminal) = 0: changes neither pi* nor a preference. potentials: [S, W^t].

    Every return changes by the same -Phi(s_0). Source: Ng et al. 1999; From r to Q*, theorem 1.
    """
    following = successors(potentials, rewards)
    parts = zip(rewards, following, potentials, strict=True)
    return tuple(r + after - before.unsqueeze(-1) for r, after, before in parts)


def terminal_only(rewards: Levels) -> Levels:
    """The same returns, paid with the last token: shaping by Phi(s) = -(what was paid on the way to s)."""
    moved = shaped(rewards, tuple(-paid for paid in prefix_sums(rewards)))
    # What is left on the other tokens is rounding error: make it the zero that it is.
    return tuple(level * mask for level, mask in zip(moved, ending_tokens(moved), strict=True))


def visits(logps: Levels) -> Levels:
    """P(s, a) under pi: the probability that a sequence passes through the state and takes the token, [S, W^t, V]."""
    return tuple((before.unsqueeze(-1) + pi).exp() for before, pi in zip(prefix_sums(logps), logps, strict=True))


def expected_sum(logps: Levels, levels: Levels) -> Tensor:
    """E_{y~pi} sum_t x(s_t, a_t), [S], by visiting states, not sequences; of log(pi/pi_ref): KL(pi || pi_ref).

    A token that is never written costs nothing, whatever x says of it: 0 * inf is 0 here, as in `worlds.exact`.
    """
    parts = zip(visits(logps), levels, strict=True)
    return torch.stack([(seen * x.masked_fill(seen == 0, 0.0)).sum((-2, -1)) for seen, x in parts]).sum(0)
