"""Records of 32-bit words: NumPy sees them by their fields, torch sees words and reinterprets their bits."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

WORD = 4


def layout(fields: Mapping[str, np.dtype]) -> np.dtype:
    """The record with these fields, each of which starts on a word."""
    sizes = [-(-field.itemsize // WORD) * WORD for field in fields.values()]
    offsets = [sum(sizes[:index]) for index in range(len(sizes))]
    return np.dtype({"names": list(fields), "formats": list(fields.values()), "offsets": offsets, "itemsize": sum(sizes)})


def decode_field(words: Tensor, layout: np.dtype, name: str) -> Tensor:
    """One field of records [..., words]."""
    field, offset = layout.fields[name][:2]
    part = words[..., offset // WORD : offset // WORD + -(-field.itemsize // WORD)].view(getattr(torch, field.base.name))
    return part[..., : field.itemsize // field.base.itemsize].reshape(*words.shape[:-1], *field.shape)
