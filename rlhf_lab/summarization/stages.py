"""The stages of the job: each leaves its artefact in the folder of results, and is read back if nothing changed."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from rlhf_lab.common.files import Clock, key_of, write_atomically
from rlhf_lab.data.docstrings import DocstringPair
from rlhf_lab.data.examples import Example
from rlhf_lab.engine.precision import bf16_speed
from rlhf_lab.summarization.candidates import Candidate, prompt_ids, prompt_text, sample_candidates
from rlhf_lab.summarization.evaluation import Evaluation, evaluate_policy
from rlhf_lab.summarization.pairs import PairCounts, make_pairs, pair_examples
from rlhf_lab.summarization.settings import SummarizeSettings
from rlhf_lab.training.fingerprints import data_fingerprint, model_fingerprint
from rlhf_lab.training.preference import train_preference
from rlhf_lab.training.settings import TrainingSettings


def draw_candidates(
    settings: SummarizeSettings, sft, tokenizer, documents: Sequence[DocstringPair], clock: Clock
) -> list[list[Candidate]]:
    """Stage 1, candidates.json: scored samples of the SFT model for each validation document."""
    key = key_of(model=model_fingerprint(sft), documents=_texts(documents), **settings.candidate_facts())

    def make() -> list:
        rows = sample_candidates(
            sft,
            tokenizer,
            documents,
            n=settings.candidates,
            temperature=settings.temperature,
            max_new_tokens=settings.max_new_tokens,
            seed=settings.seed,
            progress="candidates",
        )
        return [[asdict(candidate) for candidate in row] for row in rows]

    return _candidates(clock.stored("candidates", Path(settings.out) / "candidates.json", key, make))


def label_pairs(
    settings: SummarizeSettings, tokenizer, documents: Sequence[DocstringPair], candidates: list[list[Candidate]]
) -> tuple[list[Example], PairCounts]:
    """Stage 2, pairs.jsonl (prompt, chosen, rejected and their scores): labelled comparisons as training examples."""
    pairs, counts = make_pairs(
        candidates,
        labels=settings.labels,
        label_temperature=settings.label_temperature,
        pairs_per_prompt=settings.pairs_per_prompt,
        seed=settings.seed,
    )
    if not pairs:
        raise ValueError(f"no pair is left: in all {counts.ties} comparisons both candidates had the same reward")
    records = [
        {
            "prompt": prompt_text(documents[pair.document].description),
            "chosen": pair.chosen.text,
            "rejected": pair.rejected.text,
            "chosen_score": pair.chosen.reward,
            "rejected_score": pair.rejected.reward,
        }
        for pair in pairs
    ]
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_atomically(Path(settings.out) / "pairs.jsonl", lines)
    print(f"pairs: {counts.pairs} ({counts.ties} ties dropped, {counts.flipped} labels against the reward)")
    return pair_examples(pairs, [prompt_ids(tokenizer, d.description) for d in documents]), counts


def train_method(
    method: str, settings: SummarizeSettings, sft, sft_path: Path, tokenizer, examples: list[Example], clock: Clock
) -> Path:
    """Stage 3, models/METHOD: the SFT model trained on the pairs with one objective."""
    out = Path(settings.out)
    objective = settings.objective(method)
    training = TrainingSettings(
        output_dir=str(out / "models" / method),
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        bf16=bf16_speed(sft.device).startswith("native"),
        seed=settings.seed,
        save_steps=0,
        resume=False,
    )
    key = key_of(
        model=model_fingerprint(sft),
        pairs=data_fingerprint(examples),
        objective=asdict(objective),
        training=training.identity(),
    )

    def make() -> dict:
        model = AutoModelForCausalLM.from_pretrained(sft_path, dtype=torch.float32)
        result = train_preference(model, tokenizer, examples, objective, training, cache_dir=out / "reference")
        return {"steps": result.steps, "metrics": result.metrics}

    clock.stored(f"train {method}", out / "models" / method / "made-from.json", key, make)
    return out / "models" / method


def evaluate(
    name: str, settings: SummarizeSettings, policy, sft, tokenizer, documents: Sequence[DocstringPair], clock: Clock
) -> Evaluation:
    """Stage 4, evaluations/NAME.json: what the policy writes to held-out documents, and its log-ratios to SFT."""
    key = key_of(
        policy=model_fingerprint(policy),
        reference=model_fingerprint(sft),
        documents=_texts(documents),
        **settings.evaluation_facts(),
    )

    def make() -> dict:
        evaluation = evaluate_policy(
            policy,
            sft,
            tokenizer,
            documents,
            samples=settings.eval_samples,
            max_new_tokens=settings.max_new_tokens,
            seed=settings.seed,
            name=name,
            progress=True,
        )
        return asdict(evaluation)

    value = clock.stored(f"evaluate {name}", Path(settings.out) / "evaluations" / f"{name}.json", key, make)
    return Evaluation(_candidates(value["greedy"]), _candidates(value["sampled"]), value["log_ratios"])


def _candidates(rows: list[list[dict]]) -> list[list[Candidate]]:
    return [[Candidate(tuple(c["tokens"]), c["text"], c["reward"]) for c in row] for row in rows]


def _texts(documents) -> list[tuple[str, str]]:
    return [(document.description, document.summary) for document in documents]
