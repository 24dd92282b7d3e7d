"""`rlhf-lab summarize`: from the docstrings on this machine to preference-tuned summarisers, in one go.

    harvest -> candidates from the small SFT model -> labelled pairs -> each method from the same pairs -> evaluation

Everything lands in one folder: results.json, report.md, figure.png, models/NAME, and the stages in between, which are
read back when the command runs again with the same settings.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_lab.common.arguments import add_fields, build, read_values
from rlhf_lab.common.assets import small_model_path
from rlhf_lab.common.files import Clock, check_writable
from rlhf_lab.data.docstrings import DocstringPair, docstring_pairs
from rlhf_lab.engine.precision import pick_device
from rlhf_lab.summarization.candidates import choose_documents, prompt_ids
from rlhf_lab.summarization.report import screen
from rlhf_lab.summarization.results import collect, write_results
from rlhf_lab.summarization.settings import SummarizeSettings
from rlhf_lab.summarization.stages import draw_candidates, evaluate, label_pairs, train_method


def summarize(settings: SummarizeSettings, *, corpus: list[DocstringPair] | None = None) -> dict:
    """Run the whole job, print the tables, and return what results.json holds.

    corpus: (description, summary) pairs with splits, if not this machine's docstrings. Raises ValueError, before
    anything is computed, for a folder that cannot be written, a model that is no summariser, or too few documents.
    """
    clock, out = Clock(), Path(settings.out)
    check_writable(out)
    sft, tokenizer, sft_path = load_model(settings.model)
    with clock.stage("harvest"):
        corpus = docstring_pairs() if corpus is None else corpus
    fits = sft.config.max_position_embeddings - settings.max_new_tokens
    # Not the training split: of documents whose human summary the SFT model has learned, it would sample copies of it.
    documents = choose_documents(corpus, "validation", settings.prompts, settings.seed, tokenizer, fits)
    held_out = choose_documents(corpus, "test", settings.eval_documents, settings.seed, tokenizer, fits)

    candidates = draw_candidates(settings, sft, tokenizer, documents, clock)
    examples, counts = label_pairs(settings, tokenizer, documents, candidates)
    evaluations = {"sft": evaluate("sft", settings, sft, sft, tokenizer, held_out, clock)}
    for method in settings.methods:
        path = train_method(method, settings, sft, sft_path, tokenizer, examples, clock)
        policy = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).to(sft.device)
        evaluations[method] = evaluate(method, settings, policy, sft, tokenizer, held_out, clock)

    results = collect(settings, counts, evaluations, held_out, clock, sft.device)
    write_results(results, out)
    print(f"\n{screen(results)}\n\nIn {out}: report.md, figure.png, results.json, models. {results['seconds']:.0f} s.")
    return results


def load_model(folder: str | None):
    """The SFT model in float32 on the device that is used, its tokenizer and its folder; None: the shipped `small`."""
    path = Path(folder).expanduser() if folder else small_model_path("small")
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} holds no model (no config.json): give a folder written by save_pretrained")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    prompt_ids(tokenizer, "A test of the prompt's format.")
    return model.to(pick_device()).eval(), tokenizer, path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `rlhf-lab summarize`: one per field of SummarizeSettings."""
    add_fields(parser, SummarizeSettings)


def main(arguments: argparse.Namespace) -> None:
    """Settings from flags and YAML, then the job; raises ValueError that names what is wrong."""
    summarize(build(SummarizeSettings, read_values(arguments, SummarizeSettings)))
