"""What tests of classification losses share: all of them, random logits and labels, comparisons."""

import pytest
import torch
from hypothesis import strategies as st

from rlloss.classification import (
    BinaryCrossEntropy,
    BinaryFocal,
    CrossEntropy,
    Focal,
    binary_cross_entropy_with_logits,
    binary_focal,
    cross_entropy_with_logits,
    focal,
)

GAMMAS = [0.0, 1e-6, 0.3, 1.0, 2.0, 5.0]
BINARY = {"bce": binary_cross_entropy_with_logits} | {f"focal {g:g}": (lambda x, y, g=g: binary_focal(x, y, 0.3, g)) for g in GAMMAS}
CATEGORICAL = {"ce": cross_entropy_with_logits} | {f"focal {g:g}": (lambda x, y, g=g: focal(x, y, 0.3, g)) for g in GAMMAS}
OBJECTS = [BinaryCrossEntropy(0.2), CrossEntropy(0.2), BinaryFocal(0.3, 1.5), Focal(0.3, 1.5)]
every_binary = pytest.mark.parametrize("loss", BINARY.values(), ids=BINARY)
every_categorical = pytest.mark.parametrize("loss", CATEGORICAL.values(), ids=CATEGORICAL)
every_object = pytest.mark.parametrize("loss", OBJECTS, ids=repr)

shares = st.floats(0, 1, allow_subnormal=False)
logit_rows = st.lists(st.floats(-30, 30), min_size=2, max_size=6)


def tensor(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(found, expected, tolerance=1e-12):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), rtol=tolerance, atol=tolerance)
