"""What the tests of Bradley-Terry share: float64, and a tournament in which all meet."""

import torch

F64 = torch.float64
close = torch.testing.assert_close


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


def round_robin(items: int, times: float) -> torch.Tensor:
    """Every pair meets `times` times."""
    return times * (1 - torch.eye(items, dtype=F64))
