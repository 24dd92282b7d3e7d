"""From scored candidates to labelled pairs: one outcome per comparison, none lost.

penalised = score - lambda * characters         selects the pair AND says which response is better
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from rlhf_lab.bradley_terry import preference_probability, sample_preferences
from rlhf_lab.data.examples import Example
from rlhf_lab.workflow.artefacts import Artefact, read_rows, stage, write_rows
from rlhf_lab.workflow.candidates import Candidate
from rlhf_lab.workflow.run import IDS, Loop, by_prompt
from rlhf_lab.workflow.settings import PairSettings

STATUSES = ("pair", "tie", "identical")
SIDE = {"tokens": IDS, "text": pa.string(), "score": pa.float64(), "penalised": pa.float64()}
PAIRS = {
    **{"prompt": pa.int32(), "status": pa.string(), "distinct": pa.int32(), "identical_share": pa.float64()},
    **{f"{side}_{name}": kind for side in ("chosen", "rejected") for name, kind in SIDE.items()},
    "flipped": pa.bool_(),
}


class Comparison(NamedTuple):
    """What became of one comparison of a prompt's candidates.

    status: "pair", "tie" (equal scores) or "identical" (fewer distinct texts than it needs). better, worse: indices of
    the candidates, None if identical. flipped: the label drawn goes against the score.
    """

    status: str
    better: int | None = None
    worse: int | None = None
    flipped: bool = False

    @property
    def sides(self) -> tuple[int | None, int | None]:
        """(chosen, rejected): indices as the label has them."""
        return (self.worse, self.better) if self.flipped else (self.better, self.worse)


class Pair(NamedTuple):
    """A labelled comparison of two responses to prompt number `document`."""

    document: int
    chosen: Candidate
    rejected: Candidate


class PairCounts(NamedTuple):
    """What became of the comparisons: kept pairs, ties, too few distinct texts, and labels against the score."""

    pairs: int
    ties: int
    identical: int
    flipped: int


def penalised_scores(texts: Sequence[str], scores: Sequence[float], length_penalty: float) -> list[float]:
    """score - length_penalty * number of characters, for each candidate of a prompt."""
    return [score - length_penalty * len(text) for text, score in zip(texts, scores, strict=True)]


def compare(
    texts: Sequence[str], scores: Sequence[float], settings: PairSettings, seed: Sequence[int]
) -> list[Comparison]:
    """`pairs_per_prompt` comparisons of one prompt's candidates, chosen and labelled as the settings say.

    scores: penalised already. seed: of this prompt's random choices and labels alone, so that no prompt depends on
    another. With an opponent the first half are the current policy's draws and the second half the opponent's.
    """
    generator = np.random.default_rng(seed)
    if settings.opponent:
        chosen = _drawn_pairs(texts, scores, settings.pairs_per_prompt)
    else:
        chosen = _ranked_pairs(texts, scores, settings, generator)
    return [_labelled(scores, pair, settings, generator) for pair in chosen]


def make_pairs(
    candidates: Sequence[Sequence[Candidate]], settings: PairSettings, seed: int = 0
) -> tuple[list[Pair], PairCounts]:
    """`compare` for candidates in memory, whose reward is the score: the kept pairs, and what became of the others."""
    pairs, counts = [], dict.fromkeys(STATUSES, 0)
    flipped = 0
    for document, row in enumerate(candidates):
        texts, rewards = [c.text for c in row], [c.reward for c in row]
        scores = penalised_scores(texts, rewards, settings.length_penalty)
        for comparison in compare(texts, scores, settings, (seed, document)):
            counts[comparison.status] += 1
            flipped += comparison.flipped
            if comparison.status == "pair":
                chosen, rejected = comparison.sides
                pairs.append(Pair(document, row[chosen], row[rejected]))
    return pairs, PairCounts(*counts.values(), flipped)


def pair_examples(pairs: Sequence[Pair], prompts: Sequence[Sequence[int]]) -> list[Example]:
    """Pairs as the training loop takes them: the sampled token ids as they are, never tokenised again."""
    return [
        Example(tuple(prompts[pair.document]), (pair.chosen.tokens, pair.rejected.tokens), row=pair.document)
        for pair in pairs
    ]


def expected_flips(pairs: Sequence[Pair], label_temperature: float) -> float:
    """The share of labels that Bradley-Terry draws at this temperature turn around, in expectation."""
    gaps = torch.tensor([abs(pair.chosen.reward - pair.rejected.reward) for pair in pairs])
    return float(preference_probability(torch.zeros_like(gaps), gaps, label_temperature).mean())


def identical_share(texts: Sequence[str], opponent: bool) -> float:
    """Share of the draws' pairs (across the two policies, if there is an opponent) whose texts are equal."""
    half = len(texts) // 2
    same = []
    for j in range(len(texts)):
        for i in range(j):
            if not opponent or i < half <= j:
                same.append(texts[i] == texts[j])
    return float(np.mean(same))


def pairs_stage(loop: Loop, iteration: int, candidates: Artefact, judged: Artefact) -> Artefact:
    """One row per comparison, whatever became of it: a pair (with its label), a tie, or identical texts.

    Raises ValueError if no pair is left to learn from.
    """
    settings = loop.settings
    names = ("pairs", "pairs_per_prompt", "labels", "label_temperature", "length_penalty")
    facts = {name: getattr(settings, name) for name in names}
    facts |= {"read": [candidates.content, judged.content]}
    if settings.pairs == "best/random" or settings.labels == "bradley-terry":
        facts["seed"] = loop.seed(iteration, "pairs")

    def make(path) -> None:
        drawn, scored = (by_prompt(read_rows(artefact)) for artefact in (candidates, judged))
        rows = []
        for i, (draws, values) in enumerate(zip(drawn, scored, strict=True)):
            texts, scores = [d["text"] for d in draws], [v["score"] for v in values]
            penalised = penalised_scores(texts, scores, settings.length_penalty)
            sides = [
                draw | {"score": score, "penalised": value}
                for draw, score, value in zip(draws, scores, penalised, strict=True)
            ]
            shared = {"prompt": i, "distinct": len(set(texts))}
            shared["identical_share"] = identical_share(texts, settings.opponent is not None)
            for comparison in compare(texts, penalised, settings, (loop.seed(iteration, "pairs"), i)):
                rows.append(shared | _outcome(comparison, sides))
        _check_some_pair(rows)
        write_rows(path, rows, pa.schema(PAIRS))

    return stage(loop.folder(iteration), "pairs", facts, make)


def pair_counts(pairs: Artefact) -> dict:
    """What became of an iteration's comparisons, and how alike the draws were."""
    rows = read_rows(pairs)
    counts = _counts(rows)
    prompts = {row["prompt"]: row for row in rows}.values()
    return {
        **{"pairs": counts["pair"], "ties": counts["tie"], "identical": counts["identical"]},
        "flipped": sum(row["flipped"] for row in rows),
        "prompts": len(prompts),
        "prompts_without_two_texts": sum(row["distinct"] < 2 for row in prompts),
        "identical_share": sum(row["identical_share"] for row in prompts) / len(prompts),
    }


def _ranked_pairs(
    texts: Sequence[str], scores: Sequence[float], settings: PairSettings, generator
) -> list[tuple[int, int] | None]:
    """Best against worst (second best against second worst, ..) or against a random other one, by distinct text."""
    first = {text: i for i, text in reversed(list(enumerate(texts)))}
    ranked = sorted(first.values(), key=lambda i: (-scores[i], i))
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


def _drawn_pairs(texts: Sequence[str], scores: Sequence[float], count: int) -> list[tuple[int, int] | None]:
    """k-th draw of the current policy against the k-th of the opponent, the better one first."""
    pairs: list[tuple[int, int] | None] = []
    for i, j in zip(range(count), range(count, 2 * count), strict=True):
        ordered = (i, j) if scores[i] >= scores[j] else (j, i)
        pairs.append(None if texts[i] == texts[j] else ordered)
    return pairs


def _labelled(scores: Sequence[float], pair: tuple[int, int] | None, settings: PairSettings, generator) -> Comparison:
    if pair is None:
        return Comparison("identical")
    better, worse = pair
    if scores[better] == scores[worse]:
        return Comparison("tie", better, worse)
    if settings.labels == "argmax":
        return Comparison("pair", better, worse)
    draw = torch.Generator().manual_seed(int(generator.integers(2**62)))
    values = (torch.tensor(scores[i], dtype=torch.float64) for i in (better, worse))
    flipped = not bool(sample_preferences(*values, settings.label_temperature, generator=draw))
    return Comparison("pair", better, worse, flipped)


def _outcome(comparison: Comparison, sides: Sequence[dict]) -> dict:
    """A comparison's columns; without a pair, `chosen` and `rejected` say what was compared, or nothing."""
    columns = {"status": comparison.status, "flipped": comparison.flipped}
    for side, index in zip(("chosen", "rejected"), comparison.sides, strict=True):
        values = {} if index is None else sides[index]
        columns |= {f"{side}_{name}": values.get(name) for name in SIDE}
    return columns


def _counts(rows: Sequence[dict]) -> dict[str, int]:
    return {status: sum(row["status"] == status for row in rows) for status in STATUSES}


def _check_some_pair(rows: Sequence[dict]) -> None:
    counts = _counts(rows)
    if not counts["pair"]:
        raise ValueError(
            f"no pair is left: of {len(rows)} comparisons {counts['tie']} tie in score and {counts['identical']} have "
            "identical texts. Draw more candidates or at a higher temperature, or use a judge that tells them apart"
        )
