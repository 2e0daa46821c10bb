"""Ranges of hyperparameters as float32 sees them, against NumPy's rounding."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlloss.checks import _float32, in_range


@given(st.floats() | st.floats(-2.0, 2.0) | st.floats(1e38, 1e39))
def test_numbers_are_rounded_as_numpy_rounds_them(number):
    with np.errstate(over="ignore"):
        expected = float(np.float32(number))
    if 0 < abs(expected) < 2.0**-126:
        assert _float32(number) == pytest.approx(expected, abs=2.0**-149)  # Subnormal numbers keep more digits.
    else:
        assert _float32(number) == expected or math.isnan(number)


def test_messages_say_what_is_wrong():
    for number, message in [
        (math.inf, "x must be greater than 0 and finite, got inf"),
        (1e-50, r"x must be greater than 0, got 1e-50 \(0 in float32\)"),
        (-1.0, "x must be greater than 0, got -1$"),
        (math.nan, "x must be greater than 0, got nan"),
    ]:
        with pytest.raises(ValueError, match=message):
            in_range("x", number, 0, above=True)
    with pytest.raises(ValueError, match="x must be at least 0 and less than 1, got 1"):
        in_range("x", 1 - 1e-9, 0, 1, below=True)
    with pytest.raises(ValueError, match="x must be a whole number"):
        in_range("x", 2.5, 1, whole=True)
