"""Responses drawn from a policy, here or by a server: candidates to compare, and what VPO's bonus is calibrated on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from rlhf_lab.common.journal import Journal, kept
from rlhf_lab.data.docstrings import DocstringPair
from rlhf_lab.engine.generate import sample
from rlhf_lab.judges.gold import Judge, content_judge
from rlhf_lab.training.checkpoints import TEMPORARY
from rlhf_lab.workflow.artefacts import Artefact, read_rows, stage, write_rows
from rlhf_lab.workflow.prompts import prompt_ids, prompt_text
from rlhf_lab.workflow.run import IDS, Loop
from rlhf_lab.workflow.served import served_draws

DRAWS = {"prompt": pa.int32(), "policy": pa.string(), "temperature": pa.float64(), "tokens": IDS, "text": pa.string()}
WORK = ".drawn-"


@dataclass(frozen=True)
class Candidate:
    """A response: token ids (EOS last, unless it was cut), its text, and its reward, of any judge."""

    tokens: tuple[int, ...]
    text: str
    reward: float


def response_text(tokenizer, tokens: Sequence[int]) -> str:
    """The response as text, without special tokens and without space around it."""
    return tokenizer.decode(list(tokens), skip_special_tokens=True).strip()


def scored_candidates(
    tokenizer, documents: Sequence[DocstringPair], responses: Sequence[Sequence[Sequence[int]]], judge: Judge
) -> list[list[Candidate]]:
    """n responses to each document, as token ids, with their texts and the judge's rewards."""
    texts = [[response_text(tokenizer, tokens) for tokens in row] for row in responses]
    prompts = [prompt_text(document.description) for document in documents]
    rewards = judge(prompts, texts, [document.summary for document in documents])
    scored = []
    for rows in zip(responses, texts, rewards, strict=True):
        scored.append([Candidate(tuple(tokens), text, reward) for tokens, text, reward in zip(*rows, strict=True)])
    return scored


def sample_candidates(
    model,
    tokenizer,
    documents: Sequence[DocstringPair],
    *,
    n: int,
    temperature: float = 1.0,
    max_new_tokens: int = 48,
    seed: int = 0,
    greedy: bool = False,
    progress: str | None = None,
    judge: Judge | None = None,
) -> list[list[Candidate]]:
    """n scored summaries of each document, drawn from the model (or its greedy one): see `engine.generate.complete`.

    judge: whose scores are the rewards; default: content, ROUGE-L F1 against the author's summary.
    """
    responses = sample(
        model,
        [prompt_ids(tokenizer, document.description) for document in documents],
        n=n,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        seed=seed,
        greedy=greedy,
        progress=progress,
    )
    return scored_candidates(tokenizer, documents, responses, judge or content_judge())


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
        ids = [row["ids"] for row in read_rows(prompts)]
        with kept(kept_draws(path)) as done:
            drawn = {name: _draw(loop, iteration, name, policy, ids, done[name]) for name, policy in policies.items()}
            rows = []
            for i in range(len(ids)):
                for name in policies:
                    rows += [row | {"prompt": i} for row in drawn[name][i]]
            write_rows(path, rows, pa.schema(DRAWS))

    return stage(loop.folder(iteration), "candidates", facts, make)


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
        ids = [row["ids"] for row in read_rows(prompts)]
        with kept(kept_draws(path)) as done:
            drawn = draw_responses(loop, policy, ids, done["policy"], temperatures=[1.0] * facts["draws"], **options)
            rows = []
            for i, row in enumerate(drawn):
                rows += [{"prompt": i, "tokens": tokens} for tokens in row]
            write_rows(path, rows, pa.schema({"prompt": pa.int32(), "tokens": IDS}))

    return stage(loop.folder(iteration), "calibration", facts, make)


def draw_responses(
    loop: Loop,
    policy: Artefact,
    prompts: Sequence[Sequence[int]],
    done: Journal,
    *,
    label: str,
    temperatures: Sequence[float],
    seed: int,
) -> list[list[list[int]]]:
    """One response of the policy at each of `temperatures` to each prompt, as ids: drawn here, or by the server.

    done: what an earlier call had drawn before it failed or was killed; it receives what this one draws.
    """
    draws, options = {"temperatures": temperatures, "seed": seed}, loop.sampling(label)
    if loop.settings.sampler == "local":
        return sample(loop.load(policy), prompts, n=len(temperatures), done=done, **draws, **options)
    draws["progress"] = options["progress"]
    return served_draws(loop.settings, policy, loop.tokenizer, prompts, done, **draws)


def kept_draws(path: Path) -> Path:
    """Where the draws of an unfinished stage outlive it; the stage's key is in the name."""
    return path.with_name(f"{WORK}{path.name.removeprefix(TEMPORARY)}.jsonl")


def _draw(
    loop: Loop, iteration: int, name: str, policy: Artefact, prompts: Sequence[Sequence[int]], done: Journal
) -> list[list[dict]]:
    """The candidates of one policy: as many at each temperature, {"policy", "temperature", "tokens", "text"} each."""
    each = loop.settings.draws // len(loop.settings.temperatures)
    temperatures = [temperature for temperature in loop.settings.temperatures for _ in range(each)]
    label, seed = f"iteration {iteration}, candidates, {name} policy", loop.seed(iteration, f"candidates/{name}")
    drawn = draw_responses(loop, policy, prompts, done, label=label, temperatures=temperatures, seed=seed)
    rows = []
    for row in drawn:
        texts = [response_text(loop.tokenizer, tokens) for tokens in row]
        columns = zip(temperatures, row, texts, strict=True)
        rows.append([{"policy": name, "temperature": t, "tokens": ids, "text": text} for t, ids, text in columns])
    return rows
