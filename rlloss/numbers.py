"""Hyperparameters as tensors, and the precision that sums over many classes need."""

import torch
from torch import Tensor


def like(tensor: Tensor, number: float | Tensor) -> Tensor:
    """A hyperparameter with the dtype and device of a tensor."""
    return torch.as_tensor(number, dtype=tensor.dtype, device=tensor.device)


def wide(tensor: Tensor) -> Tensor:
    """At least float32: supports, sums of logarithms and powers lose too much in a bfloat16."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
