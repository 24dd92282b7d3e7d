"""How the small models are made, from this machine's docstrings to `small_models/NAME`, in one resumable command.

    rlhf-lab pretrain small --output_dir runs/small

    corpus -> tokenizer -> read short rows (constant rate) -> read long rows (rate falls to 0) -> learn to summarise

Every stage is the training loop of `rlhf_lab.training`, so each one resumes from its last checkpoint.
Left out: dropout, evaluation during reading, any search over these settings.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf_lab.data.docstrings import DocstringPair, clean_pairs
from rlhf_lab.data.examples import Example
from rlhf_lab.engine.batches import Batch
from rlhf_lab.engine.precision import bf16_speed, pick_device
from rlhf_lab.pretraining.code import harvest_sources
from rlhf_lab.pretraining.mixture import LATE_SHARES, SHARES, Task, tasks
from rlhf_lab.pretraining.packing import Rows, encode, pack
from rlhf_lab.pretraining.tokenizer import for_transformers, train_tokenizer
from rlhf_lab.training.fingerprints import model_fingerprint
from rlhf_lab.training.loop import Losses, LossFunction, TrainingResult, train
from rlhf_lab.training.settings import TrainingSettings
from rlhf_lab.training.sft import train_sft

CONTEXT = 512
TARGET_WEIGHT = 4.0


@dataclass(frozen=True)
class Recipe:
    """One dial, the size, and what goes with it; rows are `short_length` + 1 or CONTEXT + 1 ids."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    short_steps: int
    long_steps: int
    short_length: int = 256
    tokens_per_step: int = 8192
    learning_rate: float = 3e-3
    sft_learning_rate: float = 3e-4
    sft_epochs: float = 1.0
    seed: int = 0


RECIPES = {
    "tiny": Recipe(2048, 96, 3, 256, 4, short_steps=300, long_steps=60),
    "small": Recipe(4096, 256, 6, 704, 4, short_steps=4000, long_steps=900),
}


@dataclass(frozen=True)
class Data:
    """What a recipe reads: the tokenizer, encoded tasks by kind, and the (description, summary) pairs."""

    tokenizer: PreTrainedTokenizerFast
    encoded: dict[str, list[tuple[np.ndarray, int]]]
    pairs: list[DocstringPair]


def prepare(recipe: Recipe, *, progress: bool = True) -> Data:
    """Harvest this machine's docstrings, train the tokenizer on the training part, encode every task."""
    sources = harvest_sources(progress=progress)
    pairs = clean_pairs(sources.docstrings)
    found = tasks(sources.docstrings, pairs, sources.documented)
    tokenizer = train_tokenizer(tokenizer_texts(found), recipe.vocab_size)
    encoded = {kind: encode(tokenizer, task_list) for kind, task_list in found.items()}
    return Data(for_transformers(tokenizer, CONTEXT), encoded, pairs)


def tokenizer_texts(found: dict[str, list[Task]]) -> list[str]:
    """Every other docstring (more change no merge that matters) and all training pairs."""
    return [task.document for task in found["text"][::2]] + [f"{t.document} {t.target}" for t in found["clean"]]


def build_model(recipe: Recipe) -> LlamaForCausalLM:
    """A Llama with tied embeddings at the recipe's size, weights drawn from its seed."""
    config = LlamaConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.num_hidden_layers,
        intermediate_size=recipe.intermediate_size,
        num_attention_heads=recipe.num_attention_heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(config)


class RowExamples(Sequence[Example]):
    """Packed rows as the loop's examples, made when asked for: the first id is the prompt, the rest the response."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows.ids)

    def __getitem__(self, index: int) -> Example:
        first, *rest = self.rows.ids[index].tolist()
        return Example((first,), (tuple(rest),), row=index)


def row_loss_fn(rows: Rows, *, compiled: bool) -> LossFunction:
    """- sum_t w_t log pi(y_t | y_<t) over a row, divided by sum_t w_t over the step; targets of tasks weigh more.

    compiled: torch.compile, which needs a C++ compiler and makes a step about 1.7 times as fast on a CPU.
    """
    token_losses = torch.compile(_token_losses) if compiled else _token_losses

    def loss_fn(model: LlamaForCausalLM, batch: Batch, indices: Tensor) -> Losses:
        chosen = indices.cpu().numpy()
        ids = torch.from_numpy(rows.ids[chosen].astype(np.int64)).to(indices.device)
        weights = torch.from_numpy(rows.weights[chosen, 1:].astype(np.float32)).to(indices.device)
        nll = token_losses(model, ids)
        targets = weights > 1
        per_target = (nll.detach() * targets).sum(1) / targets.sum(1).clamp(min=1)
        return Losses((nll * weights).sum(1), weights.sum(1), {"target_loss": per_target})

    return loss_fn


def _token_losses(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits.float()
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(ids.shape[0], -1)


def read_labels(
    model: LlamaForCausalLM, data: Data, recipe: Recipe, out: Path, *, stage: str, compiled: bool
) -> TrainingResult:
    """Stage "short": constant rate after a warm-up. Stage "long": rows of the full context, the rate falls to 0."""
    short = stage == "short"
    length, steps = (recipe.short_length, recipe.short_steps) if short else (CONTEXT, recipe.long_steps)
    batch_size = recipe.tokens_per_step // length // 2
    rows = pack(
        data.encoded,
        shares=SHARES if short else LATE_SHARES,
        num_rows=steps * batch_size * 2,
        length=length,
        target_weight=TARGET_WEIGHT,
        seed=recipe.seed + (not short),
    )
    settings = TrainingSettings(
        output_dir=str(out / stage),
        learning_rate=recipe.learning_rate,
        num_train_epochs=1.0,
        lr_scheduler_type="constant" if short else "linear",
        warmup_ratio=min(0.5, 100 / steps) if short else 0.02,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=2,
        optimizer="muon",
        weight_decay=0.1,
        adam_beta2=0.95,
        bf16=bf16_speed(pick_device()).startswith("native"),
        seed=recipe.seed,
        logging_steps=50,
        save_steps=200,
    )
    identity = {
        "task": f"read {stage}",
        "model": model_fingerprint(model),
        "rows": f"{rows.ids.shape} {rows.ids.sum(dtype=np.int64)}",
    }
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")  # on rows this short, compiled matrix products beat the CPU's fused kernel
    try:
        loss_fn = row_loss_fn(rows, compiled=compiled)
        return train(model, RowExamples(rows), loss_fn, settings, tokenizer=data.tokenizer, identity=identity)
    finally:
        model.set_attn_implementation(before)


def summary_examples(data: Data, split: str) -> list[Example]:
    """description <tldr> -> summary <eos> of a split's pairs, as ids."""
    tokenizer = data.tokenizer.backend_tokenizer
    pairs = [pair for pair in data.pairs if pair.split == split]
    encoded = encode(tokenizer, [Task(pair.description, pair.summary) for pair in pairs])
    return [Example(tuple(ids[:n].tolist()), (tuple(ids[n:].tolist()),), row=i) for i, (ids, n) in enumerate(encoded)]


def fine_tune(model: LlamaForCausalLM, data: Data, recipe: Recipe, out: Path) -> TrainingResult:
    """The last stage: loss on the summary alone."""
    settings = TrainingSettings(
        output_dir=str(out / "sft"),
        learning_rate=recipe.sft_learning_rate,
        num_train_epochs=recipe.sft_epochs,
        per_device_train_batch_size=32,
        warmup_ratio=0.05,
        lr_scheduler_type="linear",
        weight_decay=0.1,
        adam_beta2=0.95,
        bf16=bf16_speed(pick_device()).startswith("native"),
        seed=recipe.seed,
        save_steps=100,
        eval_steps=100,
    )
    return train_sft(
        model,
        data.tokenizer,
        summary_examples(data, "train"),
        settings,
        eval_examples=summary_examples(data, "validation"),
    )


def pretrain(recipe: Recipe, out: str | Path, *, compiled: bool = True) -> tuple[LlamaForCausalLM, Data, dict]:
    """All stages; returns the model, the data and the facts for the card (tokens, minutes of each stage, losses)."""
    out = Path(out)
    data = prepare(recipe)
    model = build_model(recipe)
    facts: dict = {"recipe": asdict(recipe), "initial_weights": model_fingerprint(model), "stages": {}}
    stages: list[tuple[str, Callable[[], TrainingResult]]] = [
        ("short", lambda: read_labels(model, data, recipe, out, stage="short", compiled=compiled)),
        ("long", lambda: read_labels(model, data, recipe, out, stage="long", compiled=compiled)),
        ("sft", lambda: fine_tune(model, data, recipe, out)),
    ]
    for name, run in stages:
        result = run()
        facts["stages"][name] = {"steps": result.steps, "minutes": result.seconds / 60, **result.metrics}
    return model, data, facts


def scaled(recipe: Recipe, share: float) -> Recipe:
    """The recipe with its reading cut to a share of the steps, for a quick look."""
    steps = {name: max(2, int(getattr(recipe, name) * share)) for name in ("short_steps", "long_steps")}
    return replace(recipe, **steps)
