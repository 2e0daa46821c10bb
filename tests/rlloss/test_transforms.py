"""Value transforms: inverses, slopes, and that a moving scale keeps a head's values."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlloss import C51, MSE, Affine, GaussianNLL, HLGauss, Huber, Identity, PopArt, QuantileHuber, SignedHyperbolic, SignedLog, TwoHot, settled

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


def test_popart_counts_only_what_a_mask_leaves():
    popart, returns = PopArt(step_size=0.1), torch.tensor([[3.0, torch.nan], [5.0, 1e9]])
    masked = popart.update(popart.init(), returns, torch.tensor([[True, False], [True, False]]))
    assert masked == popart.update(popart.init(), returns[:, 0])
    nothing = popart.update(masked, returns, torch.zeros(2, 2, dtype=torch.bool))
    assert nothing == masked


@pytest.mark.parametrize("make", [MSE, Huber, GaussianNLL, QuantileHuber])
def test_values_are_kept_when_the_scale_moves(make):
    value_loss, popart = make(transform=PopArt(step_size=0.1)), PopArt(step_size=0.1)
    before = popart.update(popart.init(), torch.randn(32) * 3 + 10)
    after = popart.update(before, torch.randn(32) * 100 - 40)
    old, new = (settled(value_loss, moments) for moments in (before, after))
    outputs = torch.randn(8, value_loss.outputs, dtype=torch.float64)
    scale, shift = value_loss.moved(*popart.kept(before, after))
    moved = scale * outputs + shift
    torch.testing.assert_close(new.value(moved), old.value(outputs), rtol=1e-5, atol=1e-5)
    assert scale.shape == shift.shape == (value_loss.outputs,)
    assert not torch.allclose(moved, outputs)


def test_the_first_returns_set_the_scale_and_leave_random_outputs_alone():
    popart = PopArt()
    scale, shift = popart.kept(popart.init(), popart.update(popart.init(), 1e-3 * torch.randn(32)))
    assert (scale, shift) == (1, 0)


@pytest.mark.parametrize("make", [HLGauss, TwoHot, C51])
def test_the_support_of_a_categorical_head_moves_with_the_scale(make):
    popart = PopArt(step_size=0.1)
    value_loss, fixed = make(21, -4.0, 4.0, transform=popart), make(21, 38.0, 62.0)
    moments = popart.update(popart.init(), torch.tensor([47.0, 53.0]))
    still, outputs = settled(value_loss, moments), torch.randn(5, 21)
    torch.testing.assert_close(still.support(outputs), torch.linspace(38, 62, 21))
    torch.testing.assert_close(still.value(outputs), fixed.value(outputs))
    for returns in torch.tensor([[41.0, 47.3, 50.0, 53.0, 70.0]]):
        torch.testing.assert_close(still(outputs, still.of_return(returns)), fixed(outputs, fixed.of_return(returns)), rtol=1e-4, atol=1e-5)
    scale, shift = value_loss.moved(*popart.kept(moments, popart.update(moments, torch.tensor([0.0, 9.0]))))
    assert scale.tolist() == [1] * 21 and shift.tolist() == [0] * 21


@pytest.mark.parametrize("make", [HLGauss, TwoHot, C51])
def test_a_support_off_the_middle_of_a_running_scale_is_refused(make):
    with pytest.raises(ValueError, match="vmin must be −vmax with a running scale"):
        make(21, -3.0, 8.0, transform=PopArt())


def test_a_support_around_constant_returns_is_one_still():
    popart = PopArt()
    moments, outputs = popart.update(popart.init(), torch.full((32,), 1000.0)), torch.randn(4, 51)
    loss = settled(TwoHot(51, -5.0, 5.0, transform=popart), moments)
    assert loss(outputs, torch.full((4,), 1000.0)).isfinite().all() and len(loss.support(outputs).unique()) == 51


def test_a_running_transform_is_settled_and_any_other_left_alone():
    loss = Huber(0.5, transform=SignedLog())
    assert settled(loss, ()) is loss
    with pytest.raises(TypeError, match="PopArt has a state"):
        MSE(transform=PopArt()).value(torch.zeros(1, 1))


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
