"""Normalised observations: the mean and variance of everything seen, which an agent keeps in its state."""

from typing import NamedTuple

import torch
from torch import Tensor

from rlloss.numbers import once

# What keeps a feature that never changes from being divided by 0, and how far a normalised one lies from 0 at most.
EPSILON, LIMIT = 1e-8, 10.0


class Moments(NamedTuple):
    """How many observations were seen, 0-dim, and the mean and variance of their features, [*features] each.

    In float64: a mean in float32 stands still once a rollout moves it by less than it can tell.
    """

    count: Tensor
    mean: Tensor
    variance: Tensor


def unseen(features: tuple[int, ...]) -> Moments:
    """The moments before anything was seen, with which observations stay what they are."""
    return Moments(torch.zeros((), dtype=torch.float64), torch.zeros(features, dtype=torch.float64), torch.ones(features, dtype=torch.float64))


def seen(moments: Moments, batch: Tensor) -> Moments:
    """The moments after a batch [batch, *features] more, as if everything had been seen at once.

        w = n′/(n + n′),  δ = x̄′ − x̄;  x̄ ← x̄ + wδ,  σ² ← (1 − w)σ² + wσ′² + w(1 − w)δ²

    Source: Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing sample variances (1979).
    """
    batch = once(batch.double())
    mean = once(batch.mean(0))
    variance = (batch - mean).square().mean(0)
    count = moments.count + len(batch)
    weight, difference = len(batch) / count, mean - moments.mean
    spread = (1 - weight) * moments.variance + weight * variance + weight * (1 - weight) * difference.square()
    return Moments(count, moments.mean + weight * difference, spread)


def normalized(moments: Moments, x: Tensor) -> Tensor:
    """Features [batch, *features] with mean 0 and deviation 1 over everything seen.

        clip((x − x̄)/√(σ² + 10⁻⁸), ±10)
    """
    mean, scale = once(moments.mean.to(x.dtype)), once((moments.variance + EPSILON).rsqrt().to(x.dtype))
    return once(((x - mean) * scale).clamp(-LIMIT, LIMIT))
