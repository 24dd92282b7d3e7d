"""From a trained small model to the files that are shipped: measure, round to bf16, write the card."""

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from rlhf_lab.common.files import write_atomically
from rlhf_lab.common.intervals import number
from rlhf_lab.common.markdown import markdown_table
from rlhf_lab.data.docstrings import DocstringPair
from rlhf_lab.engine.loading import load_model, load_tokenizer
from rlhf_lab.engine.saving import save_model
from rlhf_lab.pretraining.mixture import LATE_SHARES, SHARES
from rlhf_lab.pretraining.recipe import Data, summary_examples
from rlhf_lab.training.reference import reference_logps
from rlhf_lab.workflow.candidates import sample_candidates
from rlhf_lab.workflow.measures import lead_words, summary_measures
from rlhf_lab.workflow.prompts import document_rows

SAMPLES = 4


@dataclass(frozen=True)
class Quality:
    """What a small model was measured to do on a split; every interval is a 95% bootstrap over documents."""

    split: str
    documents: int
    loss: float
    greedy: dict
    sampled: dict
    lead_words: dict
    examples: list[dict]


def measure_quality(
    model, tokenizer, data_pairs: Sequence[DocstringPair], loss_examples, split: str = "test"
) -> Quality:
    """Held-out loss (nats per summary token), ROUGE of greedy and sampled summaries, and the lead-words baseline."""
    documents = [pair for pair in data_pairs if pair.split == split]
    logps = reference_logps(model, loss_examples, cache_dir=None)
    loss = -float(logps.sum()) / sum(len(e.responses[0]) for e in loss_examples)
    greedy = sample_candidates(model, tokenizer, documents, n=1, greedy=True, progress="greedy")
    sampled = sample_candidates(model, tokenizer, documents, n=SAMPLES, progress="sampled")
    shown = [
        {"description": d.description, "human": d.summary, "greedy": g[0].text, "sampled": s[0].text}
        for d, g, s in zip(documents[:8], greedy, sampled, strict=False)
    ]
    statistics = summary_measures(greedy, documents), summary_measures(sampled, documents)
    return Quality(split, len(documents), loss, *statistics, lead_words(document_rows(tokenizer, documents)), shown)


def export(model, data: Data, facts: dict, name: str, folder: Path) -> Quality:
    """Write `folder` (bf16 safetensors, tokenizer, results.json, README.md) and measure what was written."""
    save_model(model.to(torch.bfloat16), data.tokenizer, folder)
    shipped, tokenizer = load_model(folder), load_tokenizer(folder)
    quality = measure_quality(shipped, tokenizer, data.pairs, summary_examples(data, "test"))
    parameters = sum(p.numel() for p in shipped.parameters())
    results = {"name": name, "parameters": parameters, **facts, "quality": vars(quality), "versions": _versions()}
    write_atomically(folder / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    write_atomically(folder / "README.md", card(results))
    return quality


def card(results: dict) -> str:
    """The model card, every number from `results`."""
    quality, recipe, stages = results["quality"], results["recipe"], results["stages"]
    read = stages["short"]["num_tokens"] + stages["long"]["num_tokens"]
    minutes = sum(stage["minutes"] for stage in stages.values())
    rows = [
        ("greedy", quality["greedy"]),
        (f"sampled, temperature 1, {SAMPLES} a document", quality["sampled"]),
        (f"first {quality['lead_words']['words']} words of the document", quality["lead_words"]),
    ]
    table = markdown_table([("summaries", "ROUGE-L", "ROUGE-1", "ROUGE-2", "tokens"), *(_row(*row) for row in rows)])
    samples = "\n\n".join(
        f"    document  {e['description']}\n    human     {e['human']}\n"
        f"    greedy    {e['greedy']}\n    sampled   {e['sampled']}"
        for e in quality["examples"]
    )
    shares = f"{_shares(SHARES)}; then {_shares(LATE_SHARES)}"
    return f"""---
library_name: transformers
license: mit
pipeline_tag: text-generation
---

# rlhf_lab `{results["name"]}`

A Llama-architecture language model of {results["parameters"] / 1e6:.2f}M parameters ({recipe["num_hidden_layers"]} \
layers, width {recipe["hidden_size"]}, vocabulary {recipe["vocab_size"]}, context 512) that summarises Python \
documentation: `description <tldr> summary <eos>`. Made to be preference-tuned in minutes on a laptop, not to be used.

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("small_models/{results["name"]}")
    tokenizer = AutoTokenizer.from_pretrained("small_models/{results["name"]}")

## Quality

{quality["documents"]} {quality["split"]} documents; ROUGE F1 against the author's summary line, stemmed; 95% bootstrap
intervals over documents; measured on the shipped bf16 weights. Held-out loss {quality["loss"]:.3f} nats per summary
token.

{table}

The first documents of the test split, not chosen:

{samples}
{human_labels(results)}
## Data

Docstrings of the Python standard library and of the packages that `rlhf_lab` depends on, and the functions and classes
that they document, read with `ast`, split by a hash of the description. Nothing that shares a run of twelve words with
a validation or test description was read. Mixture asked for, by tokens: {shares} (see
`rlhf_lab/pretraining/mixture.py`; plain text also fills what tasks leave over at the ends of rows). The texts are
their authors', under the licences of those packages.

## Recipe

    {results["command"]}

Seed {recipe["seed"]}. {read / 1e6:.1f}M tokens read ({stages["short"]["num_tokens"] / 1e6:.1f}M in rows of
{recipe["short_length"]}, {stages["long"]["num_tokens"] / 1e6:.1f}M in rows of 512), then {recipe["sft_epochs"]:g} \
epoch{"s" * (recipe["sft_epochs"] != 1)} of (description, summary) pairs. {minutes:.0f} minutes: {results["machine"]}.
All settings and versions: `results.json` beside this file.
"""


def _shares(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items())


def _row(label: str, statistics: dict) -> tuple[str, ...]:
    rouge = statistics["rouge"]
    length = f"{statistics['length']:.1f}" if "length" in statistics else "-"
    return label, number(statistics["reward"], ".3f"), f"{rouge['rouge1']:.3f}", f"{rouge['rouge2']:.3f}", length


def human_labels(results: dict) -> str:
    """The card's section on human comparisons, with the baseline beside the judge; empty if nothing was measured."""
    found = results.get("human_labels")
    if found is None:
        return ""
    rows = [
        ("judge", "agrees"),
        ("this model", number(found["accuracy"], ".3f")),
        ("takes the longer response", number(found["always_longer"], ".3f")),
        ("gain over that", number(found["gain_over_longer"], ".3f")),
        ("coin", "0.500"),
    ]
    seeds = found["accuracy_by_seed"]
    return f"""
## As a judge of human preferences

Made a {found["kind"]} judge and trained on {found["dataset"]}: {found["comparisons"]:,} comparisons, \
{found["folds"]} folds by prompt, {len(seeds)} seed{"s" * (len(seeds) != 1)}. Share of held-out
comparisons in which it agrees with the human, 95% intervals over {found["prompts"]} prompts:

{markdown_table(rows)}

By seed: {", ".join(f"{value:.3f}" for value in seeds.values())}.

    {found["command"]}
"""


def _versions() -> dict[str, str]:
    packages = ("torch", "transformers", "tokenizers")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}, "platform": sys.platform}
