"""From scored candidates to labelled pairs: pure functions, one outcome per comparison, none lost.

penalised = score - lambda * characters         selects the pair AND says which response is better
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from rlhf_lab.bradley_terry import sample_preferences
from rlhf_lab.online.settings import OnlineSettings


class Scored(NamedTuple):
    """A candidate as pairing sees it: its text, the judge's score, and the score minus the length penalty."""

    text: str
    score: float
    penalised: float


class Comparison(NamedTuple):
    """What became of one comparison of a prompt's candidates.

    status: "pair", "tie" (equal penalised scores) or "identical" (fewer distinct texts than it needs). better, worse:
    indices of the candidates, None if identical. flipped: the label drawn goes against the penalised score.
    """

    status: str
    better: int | None = None
    worse: int | None = None
    flipped: bool = False


def penalised_scores(texts: Sequence[str], scores: Sequence[float], length_penalty: float) -> list[Scored]:
    """score - length_penalty * number of characters, for each candidate of a prompt."""
    return [Scored(text, score, score - length_penalty * len(text)) for text, score in zip(texts, scores, strict=True)]


def compare(row: Sequence[Scored], settings: OnlineSettings, seed: Sequence[int]) -> list[Comparison]:
    """`pairs_per_prompt` comparisons of one prompt's candidates, chosen and labelled as the settings say.

    seed: of this prompt's random choices and labels alone, so that no prompt depends on another. With an opponent the
    first half of `row` are the current policy's draws and the second half the opponent's.
    """
    generator = np.random.default_rng(seed)
    chosen = _drawn_pairs(row, settings) if settings.opponent else _ranked_pairs(row, settings, generator)
    return [_labelled(row, pair, settings, generator) for pair in chosen]


def identical_share(row: Sequence[Scored], opponent: bool) -> float:
    """Share of the draws' pairs (across the two policies, if there is an opponent) whose texts are equal."""
    half = len(row) // 2
    indices = [(i, j) for j in range(len(row)) for i in range(j) if not opponent or i < half <= j]
    return float(np.mean([row[i].text == row[j].text for i, j in indices]))


def _ranked_pairs(row: Sequence[Scored], settings: OnlineSettings, generator) -> list[tuple[int, int] | None]:
    """Best against worst (second best against second worst, ..) or against a random other one, by distinct text."""
    first = {candidate.text: i for i, candidate in reversed(list(enumerate(row)))}
    ranked = sorted(first.values(), key=lambda i: (-row[i].penalised, i))
    pairs: list[tuple[int, int] | None] = []
    for k in range(settings.pairs_per_prompt):
        rest = ranked[k + 1 : len(ranked) - k]
        if not rest:
            pairs.append(None)
        elif settings.pairs == "best/worst":
            pairs.append((ranked[k], rest[-1]))
        else:
            rest = ranked[k + 1 :]
            pairs.append((ranked[k], rest[int(generator.integers(len(rest)))]))
    return pairs


def _drawn_pairs(row: Sequence[Scored], settings: OnlineSettings) -> list[tuple[int, int] | None]:
    """k-th draw of the current policy against the k-th of the opponent, the better one first."""
    half = settings.pairs_per_prompt
    pairs: list[tuple[int, int] | None] = []
    for i, j in zip(range(half), range(half, 2 * half), strict=True):
        ordered = (i, j) if row[i].penalised >= row[j].penalised else (j, i)
        pairs.append(None if row[i].text == row[j].text else ordered)
    return pairs


def _labelled(row: Sequence[Scored], pair: tuple[int, int] | None, settings: OnlineSettings, generator) -> Comparison:
    if pair is None:
        return Comparison("identical")
    better, worse = pair
    if row[better].penalised == row[worse].penalised:
        return Comparison("tie", better, worse)
    if settings.labels == "argmax":
        return Comparison("pair", better, worse)
    draw = torch.Generator().manual_seed(int(generator.integers(2**62)))
    scores = (torch.tensor(row[i].penalised, dtype=torch.float64) for i in (better, worse))
    flipped = not bool(sample_preferences(*scores, settings.label_temperature, generator=draw))
    return Comparison("pair", better, worse, flipped)
