"""What nobody has to learn anything for: the SFT model at lower temperatures, best of n, copied and templated texts.

A claim of a gain stands beside these. A lower temperature is the strongest of them: it sharpens the SFT model, which
comparisons by the reward that SFT learned already do too, at a KL that is known exactly.
"""

from collections.abc import Sequence
from itertools import chain, groupby
from pathlib import Path

import numpy as np
import pyarrow as pa

from rlhf_lab.common.intervals import bootstrap_mean
from rlhf_lab.engine.generate import sample
from rlhf_lab.workflow.artefacts import Artefact, read_rows, stage, write_rows
from rlhf_lab.workflow.evaluation import TABLE, Written, add_logps, judged, of_decoding, parts
from rlhf_lab.workflow.measures import LEAD_WORDS, lead_texts, mean_over, part_means, reward_measures
from rlhf_lab.workflow.prompts import Row, unpacked
from rlhf_lab.workflow.run import Loop, NamedJudge
from rlhf_lab.workflow.scores import references_of, scores, wins_against

SAMPLES = 2  # to each prompt at each temperature
TEMPLATE_WORDS = 8
Points = dict[float, list[list[dict]]]  # {temperature: rows, prompt by prompt}


def tempered_stage(loop: Loop, prompts: Artefact, sft: Artefact) -> Artefact:
    """What pi_0 writes to the held-out prompts at lower temperatures, judged; sft: its evaluation at temperature 1.

    Rows as an evaluation's, with their temperature; logp is that of the tempered policy, ref_logp that of pi_0, so that
    logp - ref_logp is the log-ratio whose mean is the exact KL. The last rows have temperature 0: the greedy responses
    of `sft`, whose log-prob under the greedy policy is 0. A relative judge compares all with sampled ones of `sft`.
    """
    temperatures = loop.settings.baseline_temperatures
    facts = {"prompts": prompts.content, "policy": loop.sft.content, "sft": sft.content}
    facts |= {"temperatures": temperatures, "samples": SAMPLES, "seed": loop.seed(0, "tempered")}
    facts |= {"max_new_tokens": loop.settings.max_new_tokens}
    # Two judges may agree on everything in `sft`, whose content would not tell them apart: a relative one gives 1/2.
    facts |= {"judge": loop.judge.identity, "gold": loop.gold.identity}

    def make(path: Path) -> None:
        asked, model, written = unpacked(read_rows(prompts)), loop.load(loop.sft), read_rows(sft)
        heats = tuple(t for t in temperatures for _ in range(SAMPLES))
        options = loop.sampling("iteration 0, temperatures") | {"seed": facts["seed"], "temperatures": heats}
        drawn = sample(model, [row["ids"] for row in asked], n=len(heats), **options)
        rows = []
        for k, temperature in enumerate(temperatures):
            responses = [row[k * SAMPLES : (k + 1) * SAMPLES] for row in drawn]
            rows += _tempered(loop, model, asked, responses, temperature, written)
        write_rows(path, rows + _greedy(loop, model, asked, written), pa.schema(TABLE | {"temperature": pa.float64()}))

    return stage(loop.folder(0), "tempered", facts, make)


def _tempered(loop: Loop, model, asked: Sequence[Row], responses, temperature: float, sft: Written) -> list[dict]:
    against = [row[:SAMPLES] for row in of_decoding(sft, "sampled")]
    # A relative judge compares with as many of pi_0's responses as there are.
    paired = [row[: len(against[0])] for row in responses]
    rows = judged(loop, asked, {"sampled": paired}, list(chain.from_iterable(against)))
    add_logps(rows, "logp", model, asked, paired, temperature)
    add_logps(rows, "ref_logp", model, asked, paired)
    return [row | {"temperature": temperature} for row in rows]


def _greedy(loop: Loop, model, asked: Sequence[Row], sft: Written) -> list[dict]:
    """pi_0's greedy responses, as those of temperature 0."""
    rows = [dict(row, temperature=0.0, logp=0.0) for row in sft if row["decoding"] == "greedy"]
    if loop.judge.relative:  # in `sft` they were compared with themselves
        against = [[r["text"] for r in row[:SAMPLES]] for row in of_decoding(sft, "sampled")]
        ours = [[row["text"]] * len(against[0]) for row in rows]
        wins = wins_against(loop.judge, [row["prompt"] for row in asked], ours, against)
        rows = [row | {"score": float(np.mean(won))} for row, won in zip(rows, wins, strict=True)]
    add_logps(rows, "ref_logp", model, asked, [[row["tokens"]] for row in rows])
    return rows


def by_temperature(tempered: Written, sft: Written) -> Points:
    """{temperature: rows, prompt by prompt}, from 1 (sft's sampled ones) down to 0."""
    found = {1.0: of_decoding(sft, "sampled")}
    for temperature, rows in groupby(tempered, key=lambda row: row["temperature"]):
        found[temperature] = [list(group) for _, group in groupby(rows, key=lambda row: row["prompt"])]
    return found


def curve(points: Points, judge: str) -> tuple[np.ndarray, np.ndarray]:
    """(KL [T], rewards [T, P]) of the tempered SFT model, in order of KL; rewards are means over a prompt's draws.

    judge: the column "gold" or "score".
    """
    kl, rewards = [], []
    for rows in points.values():
        kl.append(np.mean([np.mean([row["logp"] - row["ref_logp"] for row in written]) for written in rows]))
        rewards.append([np.mean([row[judge] for row in written]) for written in rows])
    order = np.argsort(kl)
    return np.array(kl)[order], np.array(rewards)[order]


def at_kl(points: tuple[np.ndarray, np.ndarray], kl: float) -> np.ndarray:
    """[P], each prompt's reward on the curve at this KL: linear between temperatures, beyond the ends the ends."""
    known, rewards = points
    kl = float(np.clip(kl, known[0], known[-1]))
    i = int(np.clip(np.searchsorted(known, kl), 1, len(known) - 1))
    share = (kl - known[i - 1]) / (known[i] - known[i - 1]) if known[i] > known[i - 1] else 0.0
    return (1.0 - share) * rewards[i - 1] + share * rewards[i]


def same_length(own: Sequence[Sequence[dict]], points: Points, judge: str) -> list[float]:
    """Per prompt, what a policy's responses have more reward than pi_0's of the nearest length, at any temperature.

    Among equally near ones pi_0's mean counts. It is no zero for pi_0 itself: at one length a low temperature may have
    more reward than a high one, and the pool has all of them. `own_same_length` is what pi_0 gets.
    """
    gains = []
    for i, written in enumerate(own):
        pool = [row for rows in points.values() for row in rows[i]]
        lengths = np.array([len(row["tokens"]) for row in pool])
        rewards = np.array([row[judge] for row in pool])
        each = []
        for row in written:
            distance = np.abs(lengths - len(row["tokens"]))
            each.append(row[judge] - rewards[distance == distance.min()].mean())
        gains.append(float(np.mean(each)))
    return gains


def own_same_length(points: Points, judge: str) -> tuple[list[float], list[float]]:
    """`same_length` of pi_0's own sampled responses, each left out of the pool, and of its greedy ones, by prompt.

    A policy that learned nothing gets this: what `same_length` says of another stands beside it.
    """
    sampled, gains = points[1.0], []
    for k in range(len(sampled[0])):
        others = [row[:k] + row[k + 1 :] for row in sampled]
        gains.append(same_length([[row[k]] for row in sampled], points | {1.0: others}, judge))
    return np.mean(gains, axis=0).tolist(), same_length(points[0.0], points, judge)


def unlearned_texts(asked: Sequence[Row], gold: NamedJudge) -> dict[str, list[str]]:
    """{name: one text a prompt} that no model wrote: the prompt's first words, and a template that knows the style.

    The template is the corpus' shortest command with the document's first words and a period: it breaks no rule of the
    house style, and says nothing that it has understood.
    """
    texts = {f"first {LEAD_WORDS} words": lead_texts(asked)}
    if gold.verbs is not None:
        verb = "return" if "return" in gold.verbs else min(gold.verbs, key=lambda word: (len(word), word))
        name = f'"{verb.capitalize()}", first {TEMPLATE_WORDS} words, period'
        texts[name] = [f"{verb.capitalize()} {lead.rstrip('.,;:')}." for lead in lead_texts(asked, TEMPLATE_WORDS)]
    return texts


def unlearned_measures(asked: Sequence[Row], gold: NamedJudge, *, seed: int = 0) -> dict[str, dict]:
    """{name: its reward {mean, low, high}, and the means of its parts} of the texts that no model wrote."""
    prompts, found = [row["prompt"] for row in asked], {}
    for name, texts in unlearned_texts(asked, gold).items():
        rewards = scores(gold, prompts, [[text] for text in texts], references_of(asked))
        made_of = [parts(gold, row, text) for row, text in zip(asked, texts, strict=True)]
        found[name] = reward_measures(rewards, seed=seed) | {"parts": part_means(made_of)}
    return found


def tempered_measures(points: Points, judges: Sequence[str], *, seed: int = 0) -> list[dict]:
    """A row a temperature, from 1 down to 0: kl, length and, by judge, the reward, each {mean, low, high}; parts."""
    found = []
    for temperature, rows in points.items():
        row: dict = {"temperature": temperature}
        row["kl"] = mean_over(rows, lambda r: r["logp"] - r["ref_logp"], seed)
        row["length"] = mean_over(rows, lambda r: len(r["tokens"]), seed)
        row |= {judge: mean_over(rows, lambda r, judge=judge: r[judge], seed) for judge in judges}
        found.append(row | {"parts": part_means(list(chain.from_iterable(rows)))})
    return found


def sft_against_itself(points: Points, judge: str, *, seed: int = 0) -> tuple[dict, dict]:
    """vs_same_length of pi_0, sampled and greedy, as `against_tempered` has it for the others."""
    sampled, greedy = (bootstrap_mean(gains, seed=seed) for gains in own_same_length(points, judge))
    return {"vs_same_length": sampled}, {"vs_same_length": greedy}


def against_tempered(own: Written, points: Points, judge: str, *, seed: int = 0) -> tuple[dict, dict]:
    """Sampled and greedy reward against pi_0 at all temperatures, paired by prompt, {mean, low, high} each.

    vs_tempered, of sampled responses: against the temperature that has the policy's KL. The interval takes both KLs as
    known, and the straight line between two temperatures lies a little below a curve that bends down. vs_same_length:
    `same_length`.
    """
    rows, greedy = of_decoding(own, "sampled"), of_decoding(own, "greedy")
    kl = float(np.mean([np.mean([r["logp"] - r["ref_logp"] for r in written]) for written in rows]))
    means = np.array([np.mean([r[judge] for r in written]) for written in rows])
    sampled = {"vs_tempered": bootstrap_mean(means - at_kl(curve(points, judge), kl), seed=seed)}
    sampled["vs_same_length"] = bootstrap_mean(same_length(rows, points, judge), seed=seed)
    return sampled, {"vs_same_length": bootstrap_mean(same_length(greedy, points, judge), seed=seed)}
