"""When do comparisons have a finite maximum likelihood? When the win graph is strongly connected (Ford 1957).

Draw an arrow i -> j if i ever beat j. If from every item a path of wins leads to every other, the maximum exists and is
unique up to a shift. If some group never lost to the rest, raising all of its rewards together never lowers the
likelihood: the maximum lies at infinity. If two groups never met, their distance is free.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def reachable(wins: Tensor) -> Tensor:
    """[..., K, K] bool: does a path of wins lead from i to j? Every item reaches itself. By repeated squaring."""
    items = wins.shape[-1]
    paths = ((wins > 0) | torch.eye(items, dtype=torch.bool)).float()
    for _ in range(max(1, (items - 1).bit_length())):
        paths = ((paths @ paths) > 0).float()
    return paths > 0


def strong_components(wins: Tensor) -> list[list[int]]:
    """Groups of items that reach one another by wins, of one matrix [K, K]; who beats whom from the top down."""
    paths = reachable(wins)
    mutual = paths & paths.mT
    first = mutual.float().argmax(-1)  # the least member names the group
    groups = [torch.nonzero(first == label).flatten().tolist() for label in first.unique().tolist()]
    return sorted(groups, key=lambda group: -int(paths[group[0]].sum()))


def check_connected(wins: Tensor, names: Sequence[str] | None = None) -> None:
    """Raises ValueError unless every win graph [..., K, K] is strongly connected; the message names the groups.

    names: K names of the items for the message; without it their numbers.
    """
    matrices = wins.reshape(-1, *wins.shape[-2:])
    broken = torch.nonzero(~reachable(matrices).all(-1).all(-1)).flatten().tolist()
    if not broken:
        return
    where = f" (matrix {broken[0]} of {len(matrices)}; {len(broken)} are affected)" if len(matrices) > 1 else ""
    raise ValueError(f"wins: {_explanation(matrices[broken[0]], names)}{where}; compare more, drop items, or set ridge")


def _explanation(wins: Tensor, names: Sequence[str] | None) -> str:
    met = strong_components(wins + wins.mT)
    if len(met) > 1:
        listed = " and ".join(_named(group, names) for group in met)
        return f"no comparison links the items {listed}, so the distance of their rewards is unknown"
    groups = strong_components(wins)
    rest = sorted(item for group in groups[1:] for item in group)
    order = " | ".join(_named(group, names) for group in groups)
    return (
        f"no item of {_named(rest, names)} ever won against {_named(groups[0], names)}, so the likelihood has no "
        f"finite maximum; the groups that beat one another are {order}"
    )


def _named(group: Sequence[int], names: Sequence[str] | None) -> str:
    return "{" + ", ".join(str(item if names is None else names[item]) for item in group) + "}"
