"""Content hashes: is this the same model, the same data, the same reference?"""

import hashlib
import json
from array import array
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from rlhf_lab.data.examples import Example

# Parts of a config that say where a model came from, not what it computes.
_NOT_THE_FUNCTION = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}


def model_fingerprint(model: nn.Module) -> str:
    """Hex hash of every weight and buffer (name, dtype, shape, bytes) and of the config; 1 s per GB or so."""
    digest = hashlib.blake2b(digest_size=16)
    if hasattr(model, "config"):
        config = {k: v for k, v in model.config.to_dict().items() if k not in _NOT_THE_FUNCTION}
        digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    _update(digest, sorted(model.state_dict().items()))
    return digest.hexdigest()


def tensor_fingerprint(tensor: Tensor) -> str:
    """Hex hash of one tensor's dtype, shape and bytes."""
    digest = hashlib.blake2b(digest_size=16)
    _update(digest, [("", tensor)])
    return digest.hexdigest()


def data_fingerprint(examples: Sequence[Example]) -> str:
    """Hex hash of all token ids, in order, with the boundaries between prompts, responses and examples."""
    digest = hashlib.blake2b(digest_size=16)
    for example in examples:
        parts = (example.prompt, *example.responses)
        digest.update(array("q", (len(parts), *map(len, parts))).tobytes())
        for ids in parts:
            digest.update(array("q", ids).tobytes())
    return digest.hexdigest()


def _update(digest, tensors: Iterable[tuple[str, Tensor]]) -> None:
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # Viewed as bytes, because numpy knows no bfloat16.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
