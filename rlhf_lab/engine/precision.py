"""Where a model runs and in which precision: the device, bf16 autocast, and float32 master weights."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from rlhf_lab.common.errors import cause


def pick_device(name: str = "auto") -> torch.device:
    """`name`, or for "auto" the GPU if there is one; raises ValueError for a device that is not there."""
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = cause(error)
        raise ValueError(f"device={name!r} cannot be used here ({reason}); try 'auto' or 'cpu'") from error
    return torch.device(name)


def autocast(device: torch.device, bf16: bool) -> AbstractContextManager:
    """Matrix products in bf16 with float32 weights; log-softmax and sums stay float32 in the log-prob engine."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if bf16 else nullcontext()


def check_master_weights(model: nn.Module) -> None:
    """Raises ValueError if a trainable parameter has fewer than 32 bits: small updates would round to nothing."""
    halves = {p.dtype for p in model.parameters() if p.requires_grad and p.dtype.itemsize < 4}
    if halves:
        raise ValueError(
            f"the model's trainable weights are {', '.join(map(str, halves))}; load it with dtype=torch.float32 "
            "(master weights); --bf16 (bf16=True) computes in bf16 all the same"
        )


def bf16_speed(device: torch.device) -> str:
    """What bf16 autocast brings on this device, in words: by matrix units, by vector units, emulated or no."""
    if device.type == "cuda":
        return "native" if torch.cuda.is_bf16_supported(including_emulation=False) else "emulated (slow)"
    if device.type != "cpu":
        return "supported"
    found = torch.cpu.get_capabilities()
    if found.get("amx_bf16"):
        return "native (AMX)"
    return "native (AVX512-BF16)" if found.get("avx512_bf16") else "emulated (slow): leave bf16 off"
