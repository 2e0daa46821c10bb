"""All value losses, each with hyperparameters that aren't its defaults."""

import math

from rlloss import (
    C51,
    MSE,
    AbsoluteError,
    Affine,
    Expectile,
    GaussianNLL,
    HLGauss,
    Huber,
    LogCosh,
    PseudoHuber,
    Quantile,
    QuantileHuber,
    Robust,
    SignedHyperbolic,
    SignedLog,
    SmoothL1,
    TwoHot,
)

VALUE_LOSSES = [
    MSE(),
    MSE(matched_curvature=True),
    MSE(transform=SignedLog()),
    AbsoluteError(),
    Huber(0.3),
    Huber(2.0, transform=Affine(scale=3.0, shift=1.0)),
    SmoothL1(0.5, matched_curvature=True),
    PseudoHuber(0.7),
    LogCosh(),
    Quantile(0.3),
    Expectile(0.7),
    Robust(0.5, 2.0, matched_curvature=True),
    *(Robust(alpha) for alpha in (2.0, 1.9999, 0.0, -math.inf)),
    GaussianNLL(),
    TwoHot(21, -10.0, 12.0),
    TwoHot(21, -10.0, 12.0, transform=SignedLog()),
    HLGauss(41, -10.0, 12.0),
    HLGauss(41, -10.0, 12.0, transform=SignedHyperbolic()),
    C51(21, -10.0, 12.0),
    C51(21, -10.0, 12.0, transform=SignedHyperbolic()),
    QuantileHuber(8),
    QuantileHuber(5, 0.2, transform=SignedLog()),
]


def name(value) -> str:
    """A short name for a test."""
    return repr(value).replace("matched_curvature=", "").replace("transform=Identity()", "").replace(" ", "")
