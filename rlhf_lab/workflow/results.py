"""All numbers of a run in one dictionary, and the files that show them."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import combinations
from pathlib import Path

import torch

from rlhf_lab.common.files import write_atomically
from rlhf_lab.data.docstrings import SHIPPED_CORPUS, DocstringPair, corpus_fingerprint
from rlhf_lab.engine.precision import pick_device
from rlhf_lab.judges.report import best_of_n
from rlhf_lab.objective import PRESETS, Objective
from rlhf_lab.workflow.artefacts import Artefact, read_rows
from rlhf_lab.workflow.baselines import (
    Points,
    against_tempered,
    by_temperature,
    sft_against_itself,
    tempered_measures,
    unlearned_measures,
)
from rlhf_lab.workflow.evaluation import Written, of_decoding
from rlhf_lab.workflow.figure import write_figure
from rlhf_lab.workflow.measures import paired_difference, policy_measures
from rlhf_lab.workflow.page import markdown
from rlhf_lab.workflow.pairs import pair_counts
from rlhf_lab.workflow.prompts import Row, unpacked
from rlhf_lab.workflow.run import Loop
from rlhf_lab.workflow.scores import references_of
from rlhf_lab.workflow.settings import WorkflowSettings

Stages = dict[str, Artefact]  # an iteration's finished stages by name; of iteration 0 prompts, pi_0 and its measures
SAMPLES_SHOWN = 3
PACKAGES = ("rlhf_lab", "torch", "transformers", "pyarrow", "rouge-score")


def collect_results(
    loops: Mapping[str, Loop],
    histories: Mapping[str, Sequence[Stages]],
    corpus: Sequence[DocstringPair] | None = None,
) -> dict:
    """All numbers of the run so far, as results.json holds them; histories: by objective, those that have begun.

    corpus: what the prompts were taken from, if they are docstrings.
    """
    loop, first = next(iter(loops.values())), next(iter(histories.values()))
    asked = unpacked(read_rows(first[0]["prompts"]))
    known = not loop.gold.needs_references or references_of(asked) is not None
    judges = ("gold",) if loop.judged_by_gold else ("score", "gold") if known else ("score",)
    rows = [policy_row(loop, "sft", first[:1], judges)]
    for name, history in histories.items():
        rows += [policy_row(loops[name], name, history[: i + 1], judges) for i in range(1, len(history))]
    made = _artefacts(loop, histories)
    results = {
        "policies": rows,
        "judges": judges,
        **baseline_numbers(loop, first[0], asked, judges),
        "contrasts": contrasts(histories, judges[-1], loop.training.seed),
        "samples": _samples(asked, histories),
        "corpus": None if corpus is None else corpus_facts(corpus),
        "settings": asdict(loop.settings) | resolved(loop.settings),
        "objectives": {name: asdict(each.objective) for name, each in loops.items()},
        "training": asdict(loop.training)
        | {"learning_rate": {n: each.training.learning_rate for n, each in loops.items()}},
        "artefacts": {name: artefact.content for name, artefact in made.items()},
        "read_back": [name for name, artefact in made.items() if artefact.read_back],
        "seconds": sum(artefact.notes.get("seconds", 0.0) for artefact in made.values()),
        "versions": run_versions(loop.training.device),
    }
    return json.loads(json.dumps(results))  # as it will be read: lists for tuples


def baseline_numbers(loop: Loop, start: Stages, asked: Sequence[Row], judges: Sequence[str]) -> dict:
    """What nobody has to learn for: tempered and best_of_n of pi_0, unlearned texts; empty where there is none."""
    sft, seed, gold = read_rows(start["evaluation"]), loop.training.seed, "gold" in judges
    points = by_temperature(read_rows(start["tempered"]), sft) if "tempered" in start else {}
    chosen = {name: [[r[name] for r in row] for row in of_decoding(sft, "sampled")] for name in judges}
    return {
        "tempered": tempered_measures(points, judges, seed=seed),
        # A relative judge gives 1/2 to each of pi_0's own: it has not said which of them is the best.
        "best_of_n": [] if loop.judge.relative else best_of_n(chosen[judges[0]], chosen[judges[-1]], seed=seed)[1:],
        "unlearned": unlearned_measures(asked, loop.gold, seed=seed) if gold else {},
    }


def contrasts(histories: Mapping[str, Sequence[Stages]], judge: str, seed: int) -> list[dict]:
    """Every two objectives' last policies: reward of a minus that of b, paired by prompt, sampled and greedy."""
    written = {name: read_rows(history[-1]["evaluation"]) for name, history in histories.items()}
    found = []
    for a, b in combinations(written, 2):
        row = {"a": a, "b": b}
        for decoding in ("sampled", "greedy"):
            ours, theirs = ([[r[judge] for r in rows] for rows in of_decoding(written[x], decoding)] for x in (a, b))
            row[decoding] = paired_difference(ours, theirs, seed=seed)
        found.append(row)
    return found


def resolved(settings: WorkflowSettings) -> dict:
    """The settings whose defaults depend on others."""
    return {"eval_prompts": settings.held_out, "judge": settings.judge_name, "gold": settings.gold_name}


def policy_row(loop: Loop, name: str, history: Sequence[Stages], judges: Sequence[str]) -> dict:
    """The numbers of the last policy of a history: measures, and for an iterate its pairs and its training."""
    stages, iteration = history[-1], len(history) - 1
    own, *before = (read_rows(each["evaluation"]) for each in (stages, history[0], history[max(0, iteration - 1)]))
    row = {"policy": name, "iteration": iteration, "changed": changed(name, loop.objective) if iteration else {}}
    row |= policy_measures(own, *(before if iteration else ()), judges=judges, seed=loop.training.seed)
    if "tempered" in history[0]:
        points = by_temperature(read_rows(history[0]["tempered"]), before[0])
        for judge in judges:
            _add_baselines(row[judge], loop, judge, own if iteration else None, points)
    row["stages"] = {stage: _place(loop, artefact) for stage, artefact in stages.items()}
    row["seconds"] = {stage: a.notes["seconds"] for stage, a in stages.items() if "seconds" in a.notes}
    if iteration:
        row |= {"pairs": pair_counts(stages["pairs"]), "training": stages["policy"].notes["metrics"]}
        row["learning_rate"] = loop.training.learning_rate
    return row


def _add_baselines(rewards: dict, loop: Loop, judge: str, own: Written | None, points: Points) -> None:
    """Write vs_tempered and vs_same_length into a policy's rewards by one judge; own: None for pi_0.

    A relative judge's scores of equal length say nothing: those of pi_0 are 1/2, and a greedy one has another opponent.
    """
    seed = loop.training.seed
    found = sft_against_itself(points, judge, seed=seed) if own is None else None
    sampled, greedy = found or against_tempered(own, points, judge, seed=seed)
    if judge == "score" and loop.judge.relative:
        sampled.pop("vs_same_length")
        greedy.pop("vs_same_length")
    rewards |= sampled
    rewards["greedy"] |= greedy


def changed(name: str, objective: Objective) -> dict:
    """Fields that differ from the preset that the objective is named after, but for beta: DPO with alpha .1 is none."""
    usual = asdict(PRESETS[name])
    return {field: value for field, value in asdict(objective).items() if field != "beta" and value != usual[field]}


def corpus_facts(corpus: Sequence[DocstringPair]) -> dict:
    """The corpus' fingerprint and size, and whether it is the one that the shipped numbers were made with."""
    fingerprint = corpus_fingerprint(corpus)
    return {"fingerprint": fingerprint, "pairs": len(corpus), "shipped": fingerprint == SHIPPED_CORPUS}


def run_versions(device: str) -> dict[str, str]:
    """What the numbers were made with."""
    packages = {name: version(name) for name in PACKAGES}
    place = f"{pick_device(device).type}, {torch.get_num_threads()} threads"
    return {"python": platform.python_version(), **packages, "device": place}


def write_results(results: dict, histories: Mapping[str, Sequence[Stages]], out: Path) -> None:
    """results.json, pairs.jsonl, figure.png and report.md, each whole or not at all."""
    write_atomically(out / "results.json", json.dumps(results, indent=1, ensure_ascii=False))
    records = pair_records(histories)
    write_atomically(out / "pairs.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    alt = write_figure(results, out / "figure.png")
    write_atomically(out / "report.md", markdown(results, "figure.png", alt))


def pair_records(histories: Mapping[str, Sequence[Stages]]) -> list[dict]:
    """All kept pairs as records that `rlhf-lab train preference` reads, with the scores that chose them."""
    records, seen = [], set()
    for history in histories.values():
        for stages in history[1:]:
            if stages["pairs"].path not in seen:
                seen.add(stages["pairs"].path)
                records += _records(stages)
    return records


def _records(stages: Stages) -> list[dict]:
    asked, records = unpacked(read_rows(stages["prompts"])), []
    for pair in read_rows(stages["pairs"]):
        # A response that is its end alone was trained on here; as a record it has no text to carry.
        if pair["status"] != "pair" or not (pair["chosen_text"] and pair["rejected_text"]):
            continue
        prompt = asked[pair["prompt"]]["prompt"]
        record: dict = {"prompt": prompt}
        for side in ("chosen", "rejected"):
            text = pair[f"{side}_text"]
            record[side] = text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        # Not `chosen_score`: a drawn label may go against the score, which a reader of records refuses.
        record |= {"judge_chosen": pair["chosen_penalised"], "judge_rejected": pair["rejected_penalised"]}
        records.append(record)
    return records


def _artefacts(loop: Loop, histories: Mapping[str, Sequence[Stages]]) -> dict[str, Artefact]:
    """{place: artefact} of everything that was made; what objectives share counts as it was met first."""
    made: dict[str, Artefact] = {}
    for history in histories.values():
        for stages in history:
            for artefact in stages.values():
                made.setdefault(_place(loop, artefact), artefact)
    return made


def _place(loop: Loop, artefact: Artefact) -> str:
    """The artefact's folder inside output_dir; pi_0, which lies elsewhere, by the name that the settings give it."""
    out = Path(loop.training.output_dir)
    inside = artefact.path.is_relative_to(out)
    return artefact.path.relative_to(out).as_posix() if inside else loop.settings.model_name_or_path


def _samples(asked: Sequence[dict], histories: Mapping[str, Sequence[Stages]]) -> list[dict]:
    """The first held-out prompts with what pi_0 and each objective's last policy wrote: by the seed, not chosen."""
    first = next(iter(histories.values()))
    last = {"sft": first[0], **{name: history[-1] for name, history in histories.items()}}
    written = {name: read_rows(stages["evaluation"]) for name, stages in last.items()}
    shown = []
    for i, row in enumerate(asked[:SAMPLES_SHOWN]):
        texts = {name: _first_texts(rows, i) for name, rows in written.items()}
        shown.append({"prompt": row["prompt"], "reference": row["reference"], "policies": texts})
    return shown


def _first_texts(rows: Written, prompt: int) -> dict[str, str]:
    """The greedy and the first sampled response to a prompt."""
    return {decoding: of_decoding(rows, decoding)[prompt][0]["text"] for decoding in ("greedy", "sampled")}
