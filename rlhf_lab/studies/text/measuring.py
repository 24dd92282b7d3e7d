"""What a policy is worth in a world; and the SFT model at lower temperatures and by best of n, which learns nothing.

A measure is a mean over held-out documents. Its name is that of sampled summaries (temperature 1), and of greedy ones
with "greedy" before it: gold is the reward of sampled summaries, greedy that of greedy ones.
"""

from collections.abc import Sequence

import numpy as np

from rlhf_lab.data.docstrings import DocstringPair
from rlhf_lab.data.examples import Example
from rlhf_lab.judges.report import best_of_n
from rlhf_lab.judges.rouge import rouge_l
from rlhf_lab.judges.style import StyleParts, document_of, style_parts
from rlhf_lab.studies.text.summaries import World, draw_greedy, draw_summaries, has_bf16
from rlhf_lab.training.reference import reference_logps
from rlhf_lab.workflow.candidates import Candidate
from rlhf_lab.workflow.evaluation import response_log_ratios
from rlhf_lab.workflow.prompts import prompt_text

# Below 1, at which every policy is measured; the end of the curve is greedy.
TEMPERATURES = (0.85, 0.7, 0.5, 0.3)
# The arms of a study that are no method: their paths stand beside the methods'.
TEMPERED, BEST_OF_N = "tempered", "best of n"
UNLEARNED = (TEMPERED, BEST_OF_N)
PARTS = ("content", "style", *StyleParts._fields)
Written = Sequence[Sequence[Candidate]]


def measure(world: World, model, samples: int = 4) -> dict[str, float]:
    """What a policy is worth on the held-out documents: see `worth`, sampled and greedy; kl (nats a response).

    All policies draw by the same random numbers, so that in a difference of two policies much of the noise cancels.
    """
    sampled = draw_summaries(world, model, world.held_out, samples, stream=999)
    greedy = worth(world, draw_greedy(world, model, world.held_out))
    ratios = response_log_ratios(model, world.model, examples_of(world, sampled), bf16=has_bf16(world))
    return worth(world, sampled) | greedy_names(greedy) | {"kl": float(np.mean(ratios))}


def worth(world: World, drawn: Written) -> dict[str, float]:
    """Means of summaries of the held-out documents: gold reward, length (tokens), content and the rules of style."""
    parts = []
    for document, row in zip(world.held_out, drawn, strict=True):
        parts += [parts_of(world, document, candidate.text) for candidate in row]
    return {
        "gold": float(np.mean([c.reward for row in drawn for c in row])),
        "length": float(np.mean([len(c.tokens) for row in drawn for c in row])),
        **{name: float(np.mean([part[name] for part in parts])) for name in PARTS},
    }


def parts_of(world: World, document: DocstringPair, text: str) -> dict[str, float]:
    """What the house judge's reward is made of: content (ROUGE-L F1), and style with each of its rules."""
    rules = style_parts(document_of(prompt_text(document.description)), text, world.gold.verbs)
    return {"content": rouge_l(text, document.summary), "style": rules.score} | rules._asdict()


def greedy_names(measures: dict[str, float]) -> dict[str, float]:
    """The measures of greedy summaries under the names that they have beside sampled ones."""
    return {"greedy" if name == "gold" else f"greedy {name}": value for name, value in measures.items()}


def examples_of(world: World, drawn: Written) -> list[Example]:
    """The held-out documents with summaries of them."""
    rows = zip(world.ids(world.held_out), drawn, strict=True)
    return [Example(tuple(ids), tuple(candidate.tokens for candidate in row)) for ids, row in rows]


def sft_curve(world: World, start: dict[str, float], samples: int = 4) -> list[dict[str, float]]:
    """The measures of the SFT model from temperature 1 (`start`, its own measure) down to greedy, with the exact KL.

    KL of a temperature: E [ log pi_T(y | x) - log pi_0(y | x) ] over y ~ pi_T, in nats a response. The greedy policy
    gives its response probability 1, so that its KL is - log pi_0(y | x).
    """
    same = {name: value for name, value in start.items() if name.startswith("greedy")}
    points = [start | {"temperature": 1.0}]
    options = {"cache_dir": None, "disable_tqdm": True}
    for heat in TEMPERATURES:
        drawn = draw_summaries(world, world.model, world.held_out, samples, stream=998, temperatures=(heat,))
        examples = examples_of(world, drawn)
        own, of_sft = (reference_logps(world.model, examples, temperature=t, **options) for t in (heat, 1.0))
        points.append(worth(world, drawn) | same | {"kl": float((own - of_sft).mean()), "temperature": heat})
    greedy = draw_greedy(world, world.model, world.held_out)
    kl = -float(reference_logps(world.model, examples_of(world, greedy), **options).mean())
    return [*points, worth(world, greedy) | same | {"kl": kl, "temperature": 0.0}]


def best_of(world: World, most: int = 16) -> list[dict[str, float]]:
    """gold and kl of the best of n = 1, 2, 4, .. of the SFT model's own summaries, chosen by the gold judge itself.

    It asks at every document what training asks once and for all: n draws, and a judge that knows the answer.
    """
    drawn = draw_summaries(world, world.model, world.held_out, most, stream=997)
    rewards = np.array([[candidate.reward for candidate in row] for row in drawn])  # [documents, most]
    rows = best_of_n(rewards, rewards)
    return [{"n": row["n"], "kl": row["kl"], "gold": row["gold"]["mean"]} for row in rows]


def loop_measures(row: dict) -> dict[str, float]:
    """The measures of an iteration of the workflow's loop, by the names of this file, of a row of its results.

    The loop's greedy summaries have no length.
    """
    found = {"gold": row["gold"]["reward"]["mean"], "greedy": row["gold"]["greedy"]["reward"]["mean"]}
    for name in ("kl", "length", "characters", "entropy"):
        found[name] = row[name]["mean"]
    for prefix, parts in (("", row["parts"]["sampled"]), ("greedy ", row["parts"]["greedy"])):
        rules = {name: parts[name] for name in StyleParts._fields}
        known = {"content": parts["rougeL"], "style": StyleParts(**rules).score} | rules
        found |= {f"{prefix}{name}": value for name, value in known.items()}
    return found
