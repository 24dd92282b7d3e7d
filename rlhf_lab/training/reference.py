"""Log-probs of the reference, computed once, kept on disk, and read from there ever after.

The second model of preference training is gone from memory before the first step: what it has to say is N x K numbers.
"""

import hashlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from rlhf_lab.common.errors import cause
from rlhf_lab.common.files import obey_umask
from rlhf_lab.common.words import counted
from rlhf_lab.data.examples import Example
from rlhf_lab.engine.batches import collate, token_budget_batches
from rlhf_lab.engine.limits import check_examples
from rlhf_lab.engine.logps import response_logps
from rlhf_lab.engine.models import eval_mode
from rlhf_lab.engine.precision import autocast
from rlhf_lab.training.checkpoints import flush
from rlhf_lab.training.fingerprints import data_fingerprint, model_fingerprint

# Part of the cache's key: raise it when the log-prob engine gives other numbers than before.
ENGINE = "response_logps 1"
TOKENS_PER_BATCH = 8192


def reference_logps(
    model: PreTrainedModel,
    examples: Sequence[Example],
    *,
    cache_dir: str | Path | None,
    bf16: bool = False,
    temperature: float = 1.0,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    fingerprint: str | None = None,
    disable_tqdm: bool = False,
) -> Tensor:
    """log pi_ref(y | x) of every response, summed over its tokens: [N, K] on the CPU, without gradient.

    float32, or float64 for a float64 model.

    Read from cache_dir if this model has seen these tokens in this precision before; else computed in evaluation mode
    (no dropout) under a progress bar, and written there. cache_dir None: nothing is read or written. The batch size
    is no part of the cache's key: it moves a log-prob by rounding only. fingerprint: `model_fingerprint(model)`, if
    the caller has it already. temperature: > 0, of the policy softmax(logits / temperature); cached at 1 alone.
    Raises ValueError if a log-prob is not finite, or a cache is asked for at another temperature.
    """
    if cache_dir is not None and temperature != 1.0:
        raise ValueError(f"{temperature=}: log-probs at another temperature than 1 are not cached; give cache_dir=None")
    if not examples:
        return torch.zeros(0, 0)
    shape = (len(examples), len(examples[0].responses))
    path = None
    if cache_dir is not None:
        key = cache_key(model, examples, bf16=bf16, fingerprint=fingerprint)
        path = Path(cache_dir) / f"reference-{key}.safetensors"
        cached = _read(path, shape) if path.exists() else None
        if cached is not None:
            return cached
    check_examples(model, examples)
    logps = _compute(model, examples, shape, bf16, temperature, tokens_per_batch, disable_tqdm)
    if path is not None:
        _write(path, logps)
    return logps


def cache_key(
    model: PreTrainedModel, examples: Sequence[Example], *, bf16: bool, fingerprint: str | None = None
) -> str:
    """Hash of weights, config, token ids (which fix the mask), precision and engine: equal keys, equal log-probs."""
    parts = [fingerprint or model_fingerprint(model), data_fingerprint(examples), f"{model.dtype} bf16={bf16}", ENGINE]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()


@torch.no_grad()
def _compute(
    model: PreTrainedModel,
    examples: Sequence[Example],
    shape: tuple[int, int],
    bf16: bool,
    temperature: float,
    tokens_per_batch: int,
    disable_tqdm: bool,
) -> Tensor:
    device = next(model.parameters()).device
    budget = max(tokens_per_batch, *(example.num_tokens for example in examples))
    result = torch.full(shape, float("nan"), dtype=torch.promote_types(model.dtype, torch.float32))
    bar = tqdm(total=len(examples), desc="reference log-probs", unit="example", disable=disable_tqdm)
    with bar, eval_mode(model), autocast(device, bf16):
        for indices in token_budget_batches(examples, budget, seed=0, epoch=0):
            batch = collate([examples[i] for i in indices], device)
            result[indices] = response_logps(model, batch, temperature=temperature).logps.cpu()
            bar.update(len(indices))
    bad = [examples[i].row for i in (~result.isfinite().all(1)).nonzero().flatten().tolist()]
    if bad:
        found = counted(len(bad), "row")
        raise ValueError(f"the reference gives log-probs that are not finite for {found}, e.g. {bad[:10]}")
    return result


def _read(path: Path, shape: tuple[int, int]) -> Tensor | None:
    """The cached log-probs, or None with a warning if the file is broken or does not cover every response."""
    try:
        with safe_open(path, framework="pt") as file:
            logps = file.get_tensor("logps")
        if tuple(logps.shape) == shape and bool(logps.isfinite().all()):
            return logps
        problem = f"it holds {tuple(logps.shape)} values, {int(logps.isfinite().sum())} of them finite, not {shape}"
    except (SafetensorError, OSError) as error:
        problem = cause(error)
    warnings.warn(f"the reference cache {path} is unusable ({problem}); computing it again", stacklevel=3)
    return None


def _write(path: Path, logps: Tensor) -> None:
    """Whole or not at all: written beside its place, flushed, renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".unfinished-{os.getpid()}-{path.name}")
    save_file({"logps": logps}, unfinished)
    obey_umask(unfinished)
    flush(unfinished, recurse=False)
    unfinished.replace(path)
