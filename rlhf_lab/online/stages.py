"""The stages up to the pairs, each a function from artefacts to an artefact: what it reads is what its key holds.

    prompts -> candidates -> scores -> pairs (-> calibration) -> policy -> evaluation

A stage names in its facts only the settings that it uses, and its inputs by their content. So `length_penalty` reaches
the pairs but not the scores, and `data="all"` and "newest" are one thing at iteration 1.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pyarrow as pa

from rlhf_lab.common.files import key_of
from rlhf_lab.engine.generate import sample
from rlhf_lab.engine.loading import load_model
from rlhf_lab.engine.precision import pick_device
from rlhf_lab.engine.serving.connection import kept
from rlhf_lab.engine.serving.sampling import Responses
from rlhf_lab.objective import Objective
from rlhf_lab.online.artefacts import Artefact, read_table, stage, write_table
from rlhf_lab.online.judging import GOLD, NamedJudge, scores
from rlhf_lab.online.pairing import Comparison, Scored, compare, identical_share, penalised_scores
from rlhf_lab.online.prompts import Row
from rlhf_lab.online.served import kept_draws, served_draws
from rlhf_lab.online.settings import OnlineSettings, OnlineTraining
from rlhf_lab.summarization.candidates import summary_text

IDS = pa.list_(pa.int32())
SIDE = {"tokens": IDS, "text": pa.string(), "score": pa.float64(), "penalised": pa.float64()}
PROMPTS = {"prompt": pa.string(), "ids": IDS, "reference": pa.string()}
DRAWS = {"prompt": pa.int32(), "policy": pa.string(), "temperature": pa.float64(), "tokens": IDS, "text": pa.string()}
SCORES = {"prompt": pa.int32(), "score": pa.float64(), "gold": pa.float64()}
PAIRS = {
    **{"prompt": pa.int32(), "status": pa.string(), "distinct": pa.int32(), "identical_share": pa.float64()},
    **{f"{side}_{name}": kind for side in ("chosen", "rejected") for name, kind in SIDE.items()},
    "flipped": pa.bool_(),
}


@dataclass(frozen=True)
class Loop:
    """What every stage of a run may ask for; `sft` is pi_0 with its tokenizer, as the first artefact."""

    settings: OnlineSettings
    objective: Objective
    training: OnlineTraining
    tokenizer: object
    sft: Artefact
    judge: NamedJudge

    def folder(self, iteration: int) -> Path:
        """Where the stages of an iteration lie; iteration 0 is pi_0."""
        return Path(self.training.output_dir) / f"iteration-{iteration}"

    def seed(self, iteration: int, purpose: str) -> int:
        """A random stream of its own for everything that is drawn."""
        return zlib.crc32(f"{self.training.seed}/{iteration}/{purpose}".encode())

    def sampling(self, label: str) -> dict:
        """What every call of `sample` has in common; the bar carries the label."""
        return {
            "max_new_tokens": self.settings.max_new_tokens,
            "eos_token_id": self.tokenizer.eos_token_id,
            "progress": None if self.training.disable_tqdm else label,
        }

    def sampler_facts(self) -> dict:
        """What a stage that draws says of its sampler: a server's draws are others than the loop's own."""
        return {} if self.settings.sampler == "local" else {"sampler": self.settings.sampler}

    def load(self, policy: Artefact):
        """The policy in float32 on the run's device, in evaluation mode."""
        return load_model(policy.path).to(pick_device(self.training.device)).eval()


def by_prompt(rows: Sequence[dict]) -> list[list[dict]]:
    """A table's rows, prompt by prompt; the tables are written in this order."""
    return [list(group) for _, group in groupby(rows, key=lambda row: row["prompt"])]


def prompts_stage(loop: Loop, iteration: int, rows: Sequence[Row]) -> Artefact:
    """The iteration's prompts (of iteration 0: the held-out ones), one row each: prompt, ids, reference."""
    facts = {"rows": len(rows), "content": key_of(rows=list(rows))}
    return stage(loop.folder(iteration), "prompts", facts, lambda path: write_table(path, rows, pa.schema(PROMPTS)))


def candidates_stage(loop: Loop, iteration: int, prompts: Artefact, current: Artefact, other: Artefact) -> Artefact:
    """`candidates` responses to each prompt, prompt by prompt; with an opponent, its draws come second.

    other: the opponent's policy; not read, and no part of the key, if the pairs have no opponent.
    """
    settings = loop.settings
    policies = {"current": current} | ({settings.opponent: other} if settings.opponent else {})
    facts = {
        "prompts": prompts.content,
        "policies": {name: policy.content for name, policy in policies.items()},
        "draws": settings.draws,
        "temperatures": settings.temperatures,
        "max_new_tokens": settings.max_new_tokens,
        "seed": loop.seed(iteration, "candidates"),
    } | loop.sampler_facts()

    def make(path: Path) -> None:
        ids = [row["ids"] for row in read_table(prompts)]
        with kept(kept_draws(path)) as done:
            drawn = {name: draw(loop, iteration, name, policy, ids, done[name]) for name, policy in policies.items()}
            rows = [row | {"prompt": i} for i in range(len(ids)) for name in policies for row in drawn[name][i]]
            write_table(path, rows, pa.schema(DRAWS))

    return stage(loop.folder(iteration), "candidates", facts, make)


def draw(
    loop: Loop, iteration: int, name: str, policy: Artefact, prompts: Sequence[Sequence[int]], done: Responses
) -> list[list[dict]]:
    """The candidates of one policy: as many at each temperature, {"policy", "temperature", "tokens", "text"} each."""
    each = loop.settings.draws // len(loop.settings.temperatures)
    temperatures = [temperature for temperature in loop.settings.temperatures for _ in range(each)]
    label, seed = f"iteration {iteration}, candidates, {name} policy", loop.seed(iteration, f"candidates/{name}")
    drawn = draw_responses(loop, policy, prompts, done, label=label, temperatures=temperatures, seed=seed)
    return [
        [
            {"policy": name, "temperature": t, "tokens": tokens, "text": summary_text(loop.tokenizer, tokens)}
            for t, tokens in zip(temperatures, row, strict=True)
        ]
        for row in drawn
    ]


def draw_responses(
    loop: Loop,
    policy: Artefact,
    prompts: Sequence[Sequence[int]],
    done: Responses,
    *,
    label: str,
    temperatures: Sequence[float],
    seed: int,
) -> list[list[list[int]]]:
    """One response of the policy at each of `temperatures` to each prompt, as ids: drawn here, or by the server.

    done: a server's responses to an earlier call that failed; it receives those of this one.
    """
    draws, options = {"temperatures": temperatures, "seed": seed}, loop.sampling(label)
    if loop.settings.sampler == "local":
        return sample(loop.load(policy), prompts, n=len(temperatures), **draws, **options)
    draws["progress"] = options["progress"]
    return served_draws(loop.settings, policy, loop.tokenizer, prompts, done, **draws)


def scores_stage(loop: Loop, iteration: int, prompts: Artefact, candidates: Artefact) -> Artefact:
    """The judge's score of every candidate, and the gold reward where there are references; rows as the candidates'."""
    facts = {"prompts": prompts.content, "candidates": candidates.content, "judge": loop.judge.identity}

    def make(path: Path) -> None:
        texts = [[c["text"] for c in row] for row in by_prompt(read_table(candidates))]
        judged = judge_texts(loop.judge, read_table(prompts), texts)
        rows = [{"prompt": i, **judgement} for i, row in enumerate(judged) for judgement in row]
        write_table(path, rows, pa.schema(SCORES))

    return stage(loop.folder(iteration), "scores", facts, make)


def judge_texts(judge: NamedJudge, prompts: Sequence[Row], texts: Sequence[Sequence[str]]) -> list[list[dict]]:
    """{"score", "gold"} of every text; gold is None without references. Raises ValueError as `judging.scores` does."""
    questions, references = [row["prompt"] for row in prompts], [row["reference"] for row in prompts]
    known = None if None in references else references
    score = scores(judge, questions, texts, known)
    gold = scores(GOLD, questions, texts, known) if known and not judge.is_gold else score
    return [
        [{"score": s, "gold": g if known else None} for s, g in zip(*row, strict=True)]
        for row in zip(score, gold, strict=True)
    ]


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

    def make(path: Path) -> None:
        drawn, scored = (by_prompt(read_table(artefact)) for artefact in (candidates, judged))
        rows = []
        for i, (draws, values) in enumerate(zip(drawn, scored, strict=True)):
            row = penalised_scores([d["text"] for d in draws], [v["score"] for v in values], settings.length_penalty)
            compared = compare(row, settings, (loop.seed(iteration, "pairs"), i))
            shared = {"prompt": i, "distinct": len({c.text for c in row})}
            shared["identical_share"] = identical_share(row, settings.opponent is not None)
            rows += [shared | _outcome(comparison, row, draws) for comparison in compared]
        _check_some_pair(rows)
        write_table(path, rows, pa.schema(PAIRS))

    return stage(loop.folder(iteration), "pairs", facts, make)


def _outcome(comparison: Comparison, row: Sequence[Scored], draws: Sequence[dict]) -> dict:
    """A comparison's columns; without a pair, `chosen` and `rejected` say what was compared, or nothing."""
    better, worse = comparison.better, comparison.worse
    sides = (worse, better) if comparison.flipped else (better, worse)
    columns = {"status": comparison.status, "flipped": comparison.flipped}
    for side, index in zip(("chosen", "rejected"), sides, strict=True):
        values = {} if index is None else row[index]._asdict() | {"tokens": draws[index]["tokens"]}
        columns |= {f"{side}_{name}": values.get(name) for name in SIDE}
    return columns


def _check_some_pair(rows: Sequence[dict]) -> None:
    counts = {status: sum(row["status"] == status for row in rows) for status in ("pair", "tie", "identical")}
    if not counts["pair"]:
        raise ValueError(
            f"no pair is left: of {len(rows)} comparisons {counts['tie']} tie in score and {counts['identical']} have "
            "identical texts. Draw more candidates or at a higher temperature, or use a judge that tells them apart"
        )


def calibration_stage(loop: Loop, iteration: int, prompts: Artefact, policy: Artefact) -> Artefact:
    """`pairs_per_prompt` responses to each prompt for VPO's bonus, drawn from pi_cal at temperature 1."""
    facts = {
        "prompts": prompts.content,
        "policy": policy.content,
        "draws": loop.settings.pairs_per_prompt,
        "max_new_tokens": loop.settings.max_new_tokens,
        "seed": loop.seed(iteration, "calibration"),
    } | loop.sampler_facts()
    options = {"label": f"iteration {iteration}, calibration", "seed": facts["seed"]}

    def make(path: Path) -> None:
        ids = [row["ids"] for row in read_table(prompts)]
        with kept(kept_draws(path)) as done:
            drawn = draw_responses(loop, policy, ids, done["policy"], temperatures=[1.0] * facts["draws"], **options)
            rows = [{"prompt": i, "tokens": tokens} for i, row in enumerate(drawn) for tokens in row]
            write_table(path, rows, pa.schema({"prompt": pa.int32(), "tokens": IDS}))

    return stage(loop.folder(iteration), "calibration", facts, make)
