"""From scored candidates to labelled comparisons: best against worst, the label a Bradley-Terry draw on the rewards."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from rlhf_lab.bradley_terry import preference_probability, sample_preferences
from rlhf_lab.data.examples import Example
from rlhf_lab.summarization.candidates import Candidate


class Pair(NamedTuple):
    """A labelled comparison of two summaries of document number `document`."""

    document: int
    chosen: Candidate
    rejected: Candidate


class PairCounts(NamedTuple):
    """What became of the comparisons: kept pairs, ties dropped, and labels that go against the reward."""

    pairs: int
    ties: int
    flipped: int


def make_pairs(
    candidates: Sequence[Sequence[Candidate]],
    *,
    labels: str = "bradley-terry",
    label_temperature: float = 0.05,
    pairs_per_prompt: int = 1,
    seed: int = 0,
) -> tuple[list[Pair], PairCounts]:
    """Best against worst candidate of each document (then second best against second worst, ...), labelled.

    labels: "bradley-terry" prefers the better one with probability sigma(difference / label_temperature), "argmax"
    always. Candidates of one text count once; comparisons of equal reward are ties, dropped and counted: they say
    nothing, and as wins they would teach noise.
    """
    comparisons, ties = [], 0
    for document, row in enumerate(candidates):
        ranked = sorted({c.text: c for c in row}.values(), key=lambda c: c.reward, reverse=True)
        for k in range(pairs_per_prompt):
            if len(ranked) < 2 * (k + 1) or ranked[k].reward == ranked[-1 - k].reward:
                ties += 1
            else:
                comparisons.append((document, ranked[k], ranked[-1 - k]))
    better_wins = _draw_labels(comparisons, labels, label_temperature, seed)
    pairs = [
        Pair(document, better, worse) if wins else Pair(document, worse, better)
        for (document, better, worse), wins in zip(comparisons, better_wins, strict=True)
    ]
    return pairs, PairCounts(len(pairs), ties, better_wins.count(False))


def expected_flips(pairs: Sequence[Pair], label_temperature: float) -> float:
    """The share of labels that Bradley-Terry draws at this temperature turn around, in expectation."""
    gaps = torch.tensor([abs(pair.chosen.reward - pair.rejected.reward) for pair in pairs])
    return float(preference_probability(torch.zeros_like(gaps), gaps, label_temperature).mean())


def pair_examples(pairs: Sequence[Pair], prompts: Sequence[Sequence[int]]) -> list[Example]:
    """Pairs as the training loop takes them: the sampled token ids as they are, never tokenised again."""
    return [
        Example(tuple(prompts[pair.document]), (pair.chosen.tokens, pair.rejected.tokens), row=pair.document)
        for pair in pairs
    ]


def _draw_labels(comparisons, labels: str, temperature: float, seed: int) -> list[bool]:
    if labels == "argmax":
        return [True] * len(comparisons)
    if labels != "bradley-terry":
        raise ValueError(f"labels={labels!r}: must be bradley-terry or argmax")
    better = torch.tensor([b.reward for _, b, _ in comparisons], dtype=torch.float64)
    worse = torch.tensor([w.reward for _, _, w in comparisons], dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    return sample_preferences(better, worse, temperature, generator=generator).tolist()
