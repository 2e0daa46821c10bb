"""Value transforms: inverses, slopes, and that a moving scale keeps a head's values."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlloss import MSE, Affine, Identity, PopArt, SignedHyperbolic, SignedLog

TRANSFORMS = [Identity(), SignedLog(), SignedHyperbolic(), SignedHyperbolic(epsilon=0.1), Affine(scale=20.0, shift=-3.0)]


@pytest.mark.parametrize("transform", TRANSFORMS)
@given(st.floats(-1e8, 1e8))
def test_the_inverse_inverts(transform, value):
    value = torch.tensor(value, dtype=torch.float64)
    assert transform.inverse(transform(value)).item() == pytest.approx(value.item(), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_increase_and_keep_small_values_in_float32(transform):
    values = torch.tensor([-1e6, -100.0, -1.0, -1e-5, 0.0, 1e-5, 1.0, 100.0, 1e6])
    assert (transform(values).diff() > 0).all()
    torch.testing.assert_close(transform.inverse(transform(values)), values, rtol=2e-5, atol=1e-6)
    slope = torch.func.grad(transform)(torch.tensor(1e-6, dtype=torch.float64))
    assert slope.isfinite() and slope > 0


def test_signed_hyperbolic_is_the_papers():
    for value in (-250.0, -1.0, 0.3, 1e4):
        expected = math.copysign(math.sqrt(abs(value) + 1) - 1, value) + 1e-3 * value
        assert SignedHyperbolic()(torch.tensor(value, dtype=torch.float64)).item() == pytest.approx(expected)


def test_popart_follows_mean_and_deviation_from_the_first_batch_on():
    popart, generator = PopArt(step_size=0.01), torch.Generator().manual_seed(0)
    moments = popart.init()
    assert popart.transform(moments)(torch.tensor(7.0)) == 7
    first = popart.update(moments, torch.tensor([10.0, 14.0]))
    assert popart.transform(first).shift.item() == pytest.approx(12) and popart.transform(first).scale.item() == pytest.approx(2, rel=1e-3)
    for _ in range(2000):
        moments = popart.update(moments, 50 + 5 * torch.randn(64, generator=generator))
    transform = popart.transform(moments)
    assert transform.shift.item() == pytest.approx(50, abs=0.5) and transform.scale.item() == pytest.approx(5, rel=0.05)


@pytest.mark.parametrize(("mean", "deviation"), [(100.0, 1.0), (1000.0, 1.0), (-1e5, 10.0)])
def test_popart_sees_a_small_deviation_around_a_large_mean_in_float32(mean, deviation):
    popart, generator = PopArt(), torch.Generator().manual_seed(0)
    moments = popart.init()
    for _ in range(3000):
        moments = popart.update(moments, mean + deviation * torch.randn(256, generator=generator))
    assert popart.transform(moments).scale.item() == pytest.approx(deviation, rel=0.05)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_slopes_at_zero(transform):
    zero = torch.zeros((), dtype=torch.float64)
    there, back = torch.func.grad(transform)(zero), torch.func.grad(transform.inverse)(transform(zero))
    assert there > 0 and (there * back).item() == pytest.approx(1)


def test_popart_preserves_values_when_the_scale_moves():
    popart = PopArt(step_size=0.1)
    before = popart.update(popart.init(), torch.randn(32) * 3 + 10)
    after = popart.update(before, torch.randn(32) * 100 - 40)
    old, new = popart.transform(before), popart.transform(after)
    features, weight, bias = torch.randn(8, 16), torch.randn(1, 16), torch.randn(1)
    new_weight, new_bias = popart.preserve(weight, bias, old, new)
    values = MSE(transform=old).value(features @ weight.T + bias)
    torch.testing.assert_close(MSE(transform=new).value(features @ new_weight.T + new_bias), values, rtol=1e-5, atol=1e-3)
    assert not torch.allclose(new_weight, weight)


def test_popart_passes_through_vmap_with_a_step_size_per_run():
    returns, step_sizes = torch.randn(3, 20), torch.tensor([0.1, 0.2, 0.3])

    def scale(step_size, returns):
        popart = PopArt(step_size)
        return popart.transform(popart.update(popart.init(), returns))(returns)

    together = torch.func.vmap(scale)(step_sizes, returns)
    torch.testing.assert_close(together, torch.stack([scale(s.item(), r) for s, r in zip(step_sizes, returns, strict=True)]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SignedHyperbolic(0.0), "epsilon must be greater than 0"),
        (lambda: Affine(scale=-1.0), "scale must be greater than 0"),
        (lambda: Affine(shift=math.nan), "shift must be"),
        (lambda: PopArt(step_size=2.0), "step_size must be"),
    ],
)
def test_ranges(make, message):
    with pytest.raises(ValueError, match=message):
        make()
