"""Judges that are not the true reward: a learned one, one that likes length, and what optimising them costs in gold.

Rewards are also given in standard deviations of pi_0's draws to one document, since reward models have no unit.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from rlhf_lab.common.intervals import Interval, difference_interval
from rlhf_lab.data.docstrings import DocstringPair
from rlhf_lab.judges.gold import Judge
from rlhf_lab.judges.report import Verdicts, best_of_n, judge_report
from rlhf_lab.judges.reward_model import reward_judge, train_reward
from rlhf_lab.studies.text.measuring import loop_measures
from rlhf_lab.studies.text.paths import Path as Points
from rlhf_lab.studies.text.summaries import World, training_settings
from rlhf_lab.workflow.artefacts import Artefact, read_rows
from rlhf_lab.workflow.candidates import Candidate
from rlhf_lab.workflow.pairs import compare, make_pairs, pair_examples, penalised_scores
from rlhf_lab.workflow.prompts import prompt_text
from rlhf_lab.workflow.run import by_prompt
from rlhf_lab.workflow.settings import PairSettings

# The reward model learns from three comparisons a document of eight draws, with noisy labels as people's would be.
JUDGE = {"draws": 8, "pairs_per_prompt": 3, "label_temperature": 0.05, "learning_rate": 2e-4, "epochs": 2.0}

Draws = list[list[Candidate]]


class Scale(NamedTuple):
    """Rewards of pi_0's draws: their mean, and their standard deviation within a document."""

    mean: float
    std: float

    @classmethod
    def of(cls, rewards: np.ndarray) -> "Scale":
        """rewards: [P, N], of N draws to each of P documents."""
        return cls(float(rewards.mean()), float(rewards.var(1).mean() ** 0.5))

    def units(self, reward: float) -> float:
        """In standard deviations above pi_0's mean; in the reward's own unit if all of pi_0's draws are equal."""
        return (reward - self.mean) / (self.std or 1.0)


def learned_judge(world: World, documents: list[DocstringPair], candidates: Draws, folder: str) -> Judge:
    """A reward model trained on comparisons of pi_0's draws to these documents, and saved in `folder`."""
    options = {name: JUDGE[name] for name in ("pairs_per_prompt", "label_temperature")}
    pairs, _ = make_pairs(candidates, PairSettings(labels="bradley-terry", **options), world.seed)
    settings = training_settings(world, folder, JUDGE["learning_rate"], JUDGE["epochs"], save_steps=0)
    examples = pair_examples(pairs, world.ids(documents))
    return reward_judge(train_reward(world.model, world.tokenizer, examples, settings).model, world.tokenizer)


def bias_of_length(candidates: Draws) -> float:
    """b that gives b * characters the standard deviation of gold, both within a document; a multiple of 2^-20."""
    lengths = Scale.of(np.array([[characters(c) for c in row] for row in candidates]))
    gold = Scale.of(np.array([[c.reward for c in row] for row in candidates]))
    return round(gold.std / (lengths.std or 1.0) * 2**20) / 2**20


def biased_score(gold: float, text: str, bias: float) -> float:
    """gold + bias * characters, gold rounded to 2^-40: with a bias of `bias_of_length` no sum of them is ever rounded.

    So a penalty of `bias` leaves the rounded gold itself. Of unrounded numbers it would leave ties apart by 1e-17, and
    what was dropped as a tie would become a comparison.
    """
    return round(gold * 2**40) / 2**40 + bias * len(text)


def biased_judge(gold: Judge, bias: float) -> Judge:
    """`biased_score` of every response, from its gold reward. Raises ValueError as the gold judge does."""

    def judge(prompts, responses, references=None) -> list[list[float]]:
        scores = gold(prompts, responses, references)
        rows = zip(scores, responses, strict=True)
        return [[biased_score(s, text, bias) for s, text in zip(*row, strict=True)] for row in rows]

    return judge


def rewards(world: World, draws: Draws, judge: Judge) -> np.ndarray:
    """[P, N]: the judge's scores of draws to the held-out documents."""
    prompts, references = zip(*((prompt_text(d.description), d.summary) for d in world.held_out), strict=True)
    return np.array(judge(prompts, [[c.text for c in row] for row in draws], references))


def judge_numbers(learned: np.ndarray, gold: np.ndarray, draws: Draws) -> dict[str, float]:
    """The judge on comparisons of a document's 1st and 2nd, 3rd and 4th, .. draw; gold, never equal, says who is right.

    accuracy; always_longer: that of preferring the longer one; prefers_longer, gold_prefers_longer: shares of
    comparisons of unequal length. A share that nothing defines is 1/2.
    """
    lengths = np.array([[characters(c) for c in row] for row in draws])
    first, second = (np.stack([a[:, k::2].ravel() for a in (learned, gold, lengths)]) for k in (0, 1))
    better = np.where(first[1] > second[1], first, second)[:, first[1] != second[1]]
    worse = np.where(first[1] > second[1], second, first)[:, first[1] != second[1]]
    scores, golds, counts = np.stack([better, worse], -1)
    report = judge_report(Verdicts(1 / (1 + np.exp(scores[:, 1] - scores[:, 0])), counts, scores, golds))
    sides = {"prefers_longer": "prefers_longer", "gold_prefers_longer": "chosen_longer"}
    shares = {name: report["length"][value] for name, value in sides.items()}
    return {name: report[name]["mean"] for name in ("accuracy", "always_longer")} | {
        name: 0.5 if value is None else value for name, value in shares.items()
    }


def chosen_points(proxy: np.ndarray, gold: np.ndarray) -> list[dict[str, float]]:
    """Best-of-n by the proxy from pi_0's draws, for n = 1, 2, 4, ..; best: by gold itself."""
    of_proxy, of_gold = Scale.of(proxy), Scale.of(gold)
    return [
        {
            **{"n": row["n"], "kl": row["kl"], "gold": row["gold"]["mean"], "best": row["best"]["mean"]},
            "proxy_sd": of_proxy.units(row["proxy"]["mean"]),
            "gold_sd": of_gold.units(row["gold"]["mean"]),
        }
        for row in best_of_n(proxy, gold)
    ]


def points(rows: list[dict], start: dict, proxy: Scale, gold: Scale) -> list[dict[str, float]]:
    """Measures of pi_0 and of every iterate, by `loop_measures`.

    start: what pi_0's many draws, which set the scales, say of it more exactly than its evaluation does.
    """
    first = loop_measures(rows[0]) | {"iteration": 0, **start, "gold": gold.mean, "proxy_sd": 0.0, "gold_sd": 0.0}
    found = [first]
    for row in rows[1:]:
        score = row.get("score", row["gold"])["reward"]["mean"]
        measures = loop_measures(row)
        scaled = {"proxy_sd": proxy.units(score), "gold_sd": gold.units(measures["gold"])}
        found.append({"iteration": row["iteration"]} | measures | scaled)
    return found


def same_pairs(folder: Path, bias: float) -> float:
    """Share of a gold-judged run's comparisons that the biased judge with the full penalty makes the same way.

    If it is 1, the two runs are one: the same pairs train the same policy, which makes the same next draws.
    """
    settings, same = PairSettings(), []
    for iteration in sorted(folder.glob("iteration-[1-9]*")):
        tables = [by_prompt(_table(iteration, name)) for name in ("candidates", "scores")]
        for draws, values in zip(*tables, strict=True):
            texts, gold = [d["text"] for d in draws], [v["gold"] for v in values]
            biased = [biased_score(g, text, bias) for g, text in zip(gold, texts, strict=True)]
            by_gold = compare(texts, gold, settings, (0,))
            same.append(by_gold == compare(texts, penalised_scores(texts, biased, bias), settings, (0,)))
    return float(np.mean(same))


def _table(iteration: Path, name: str) -> list[dict]:
    (path,) = iteration.glob(f"{name}-*")
    return read_rows(Artefact(path, "", {}))


def characters(candidate: Candidate) -> int:
    """Length of the text, as the penalty counts it."""
    return len(candidate.text)


def mean_length(draws: Draws) -> dict[str, float]:
    """length: mean number of tokens, EOS included; characters: of the text."""
    drawn = [c for row in draws for c in row]
    return {
        "length": float(np.mean([len(c.tokens) for c in drawn])),
        "characters": float(np.mean([characters(c) for c in drawn])),
    }


def reached(learned: Points, chosen: Points, axis: str) -> int:
    """The last point of best-of-n that training reaches on this axis in every seed; 0 if there is none but pi_0."""
    most = np.max(learned[axis], axis=0)
    inside = [bool((np.array(values) <= most).all()) for values in chosen[axis]]
    return max((i for i, ok in enumerate(inside) if ok), default=0)


def against_training(learned: Points, chosen: Points, axis: str, point: int, measure: str) -> Interval:
    """Best-of-n minus training where both have the same `axis`, seed by seed.

    Rewards of trained policies are nearly straight in sqrt(KL) (Gao et al., arXiv 2210.10760), so that is interpolated.
    """
    values = []
    for seed, wanted in enumerate(chosen[axis][point]):
        path = {name: np.array(learned[name])[:, seed] for name in ("kl", axis, measure)}
        path["kl"] = np.sqrt(np.maximum(path["kl"], 0.0))
        wanted = wanted**0.5 if axis == "kl" else wanted
        value = np.interp(wanted, np.maximum.accumulate(path[axis]), path[measure])
        values.append(float(value**2 if measure == "kl" else value))
    return difference_interval(chosen[measure][point], values)
