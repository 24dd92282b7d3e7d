"""Pairs of responses whose log-probs are known exactly, and what a loss does with them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rlhf_lab.objective import Objective

Level = Literal["sequences", "tokens", "trainer"]

# What a position of a row is, in the order in which a row is laid out.
ROLES = ("prompt", "prompt end", "first", "middle", "user turn", "EOS", "after EOS", "padding")
RESPONSE = ("first", "middle", "EOS")
# Log-probs of positions that must not count: far from each other, so that counting them shows.
OUTSIDE = {"prompt": (-1.7, -2.9), "prompt end": (-0.6, -2.3), "user turn": (-1.3, -0.4)}
OUTSIDE |= {"after EOS": (-2.1, -0.7), "padding": (-0.8, -3.1)}


@dataclass(frozen=True)
class ExactPairs:
    """B pairs as rows of T positions; side 0 is the chosen response, side 1 the rejected one.

    policy, reference: [2, B, T] float64, log pi and log pi_ref of each position's token, in nats. alignment:
    [2, B, T], what WPO subtracts (`objective.wpo_weights`). roles: [2, B, T], indices into ROLES. calibration: [2, B],
    summed log-probs of a third response under the policy and the reference.
    """

    policy: Tensor
    reference: Tensor
    alignment: Tensor
    roles: Tensor
    calibration: Tensor

    @property
    def mask(self) -> Tensor:
        """[2, B, T] bool: the response's tokens, EOS included."""
        return sum((self.roles == ROLES.index(role)) for role in RESPONSE).bool()

    @property
    def lengths(self) -> Tensor:
        """[2, B]: response tokens, EOS included."""
        return self.mask.sum(-1)

    def __len__(self) -> int:
        return self.roles.shape[1]

    def take(self, rows: list[int]) -> "ExactPairs":
        """These pairs, in this order."""
        return ExactPairs(*(tensor[:, rows] for tensor in vars(self).values()))


class Observed(NamedTuple):
    """What a loss did: gradient [2, B, T], d loss / d log-prob of each position; value [B] or [1], if it is known.

    calibration: [B], the gradient of the third response's log-prob, None if the loss takes none. padding: the gradient
    of padding where its rows cannot be told apart. stray: the share of the gradient that no log-prob explains.
    """

    gradient: Tensor
    value: Tensor | None = None
    calibration: Tensor | None = None
    padding: float = 0.0
    stray: float = 0.0


@dataclass(frozen=True)
class Target:
    """A loss under the X-ray.

    alone: each pair by itself, in units of one pair. together: one batch, cut into `accumulation` parts, in the units
    of the loss itself. knobs: the same loss with another setting, by the setting's name. declared: what the loss says
    of itself (beta, label_smoothing). runs: further probes, that need a trainer: facts so far -> more of them.
    """

    name: str
    level: Level
    alone: Callable[[ExactPairs], Observed]
    together: Callable[[ExactPairs, int], Observed]
    alignments: Callable[[ExactPairs], dict[str, Tensor]]
    declared: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    claim: Objective | None = None
    knobs: Mapping[str, Callable[[float], "Target"]] = field(default_factory=lambda: MappingProxyType({}))
    runs: Callable[..., dict[str, object]] | None = None
    returns: Literal["one number per pair", "one number"] = "one number"


def exact_pairs(
    policy: Tensor,
    reference: Tensor,
    lengths: tuple[int, int] = (4, 4),
    alignment: Tensor | None = None,
    user_turn: int = 0,
) -> ExactPairs:
    """Pairs in which every token of a response has the same log-prob.

    policy, reference: [2, B], log-prob of each response token. lengths: tokens of the chosen and of the rejected
    responses, at least 2. alignment: [2, B], default 0. user_turn: positions of another speaker inside a response.
    """
    width = 4 + user_turn + max(lengths)
    roles = torch.stack([_roles(length, user_turn, width) for length in lengths])[:, None]  # [2, 1, T]
    roles = roles.expand(2, policy.shape[1], width).clone()
    spread = [_with_outside(each, roles, place) for place, each in enumerate((policy, reference))]
    alignment = torch.zeros_like(policy) if alignment is None else alignment
    aligned = alignment[:, :, None].expand(roles.shape).clone()
    calibration = torch.stack([torch.full((len(policy[0]),), value, dtype=policy.dtype) for value in (-5.0, -6.5)])
    return ExactPairs(spread[0], spread[1], aligned, roles, calibration)


def _roles(length: int, user_turn: int, width: int) -> Tensor:
    names = ["prompt", "prompt end", "first", *["user turn"] * user_turn, *["middle"] * (length - 2), "EOS"]
    names += ["after EOS", *["padding"] * (width - len(names) - 1)]
    return torch.tensor([ROLES.index(name) for name in names])


def _with_outside(levels: Tensor, roles: Tensor, place: int) -> Tensor:
    """[2, B] levels -> [2, B, T]: the level on the response, the values of OUTSIDE elsewhere."""
    spread = levels[:, :, None].expand(roles.shape).clone()
    for role, values in OUTSIDE.items():
        spread[roles == ROLES.index(role)] = values[place]
    return spread


def by_role(gradient: Tensor, roles: Tensor) -> dict[str, float]:
    """Mean gradient of the positions of each role that occurs; gradient, roles: [B, T], of one side."""
    here = {role: roles == place for place, role in enumerate(ROLES)}
    return {role: float(gradient[mask].mean()) for role, mask in here.items() if bool(mask.any())}


def joined(each: list[ExactPairs]) -> ExactPairs:
    """One batch of them, padded to the longest row."""
    width = max(pairs.roles.shape[-1] for pairs in each)
    fills = {"policy": -0.8, "reference": -3.1, "alignment": 0.0, "roles": ROLES.index("padding")}
    columns = {}
    for name, fill in fills.items():
        rows = [getattr(pairs, name) for pairs in each]
        columns[name] = torch.cat([_padded(row, width, fill) for row in rows], 1)
    return ExactPairs(**columns, calibration=torch.cat([pairs.calibration for pairs in each], 1))


def _padded(row: Tensor, width: int, fill: float) -> Tensor:
    return torch.nn.functional.pad(row, (0, width - row.shape[-1]), value=fill)
