"""Categorical and quantile heads against rlax, loops written from the papers, and known distributions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlloss import C51, Affine, HLGauss, QuantileHuber, SignedHyperbolic, SignedLog, TwoHot, two_hot

TRANSFORMS = [SignedLog(), SignedHyperbolic()]


def c51_loop(reward, discount, probabilities, support):
    """Algorithm 1 of Bellemare et al., one sample at a time."""
    low, high, count = support[0], support[-1], len(support)
    projected = np.zeros_like(probabilities)
    for row, (r, d) in enumerate(zip(reward, discount, strict=True)):
        for j in range(count):
            b = (min(max(r + d * support[j], low), high) - low) / ((high - low) / (count - 1))
            lower, upper = math.floor(b), math.ceil(b)
            if lower == upper:
                projected[row, lower] += probabilities[row, j]
            else:
                projected[row, lower] += probabilities[row, j] * (upper - b)
                projected[row, upper] += probabilities[row, j] * (b - lower)
    return projected


def test_c51_is_the_papers_algorithm():
    generator = torch.Generator().manual_seed(0)
    loss = C51(21, -10.0, 5.0)
    outputs, reward = torch.randn(64, 21, generator=generator, dtype=torch.float64), 8 * torch.randn(64, generator=generator, dtype=torch.float64)
    discount = torch.where(torch.rand(64, generator=generator) > 0.3, 0.97, 0.0).double()
    expected = c51_loop(reward.numpy(), discount.numpy(), outputs.softmax(-1).numpy(), np.linspace(-10, 5, 21))
    target = loss.target(reward, discount, outputs)
    torch.testing.assert_close(target, torch.tensor(expected))
    torch.testing.assert_close(target.sum(-1), torch.ones(64, dtype=torch.float64))


def test_c51_and_quantile_huber_are_rlaxs():
    rlax, jax = pytest.importorskip("rlax"), pytest.importorskip("jax")
    generator = np.random.default_rng(0)
    q, q_next = (generator.normal(size=(16, 3, 11)).astype(np.float32) for _ in range(2))
    reward, action = generator.normal(size=16).astype(np.float32), generator.integers(0, 3, 16)
    discount = (0.9 * (generator.random(16) > 0.3)).astype(np.float32)
    atoms = np.linspace(-4, 4, 11).astype(np.float32)
    expected = jax.vmap(rlax.categorical_q_learning, in_axes=(None, 0, 0, 0, 0, None, 0))(atoms, q, action, reward, discount, atoms, q_next)
    loss, rows = C51(11, -4.0, 4.0), np.arange(16)
    best = loss.value(torch.tensor(q_next)).argmax(-1).numpy()
    arguments = torch.tensor(reward), torch.tensor(discount), torch.tensor(q_next[rows, best])
    found = loss(torch.tensor(q[rows, action]), loss.target(*arguments))
    torch.testing.assert_close(found, torch.tensor(np.array(expected)), rtol=1e-4, atol=1e-5)

    loss = QuantileHuber(11, 0.7)
    tau = ((np.arange(11) + 0.5) / 11).astype(np.float32)
    chosen = loss.value(torch.tensor(q_next)).argmax(-1).numpy()
    by_quantile = (np.swapaxes(x, 1, 2) for x in (q, q_next))
    quantile_q_learning = jax.vmap(rlax.quantile_q_learning, in_axes=(0, None, 0, 0, 0, 0, 0, None))
    first, following = by_quantile
    expected = quantile_q_learning(first, tau, action, reward, discount, following, following, 0.7)
    found = loss(torch.tensor(q[rows, action]), loss.target(torch.tensor(reward), torch.tensor(discount), torch.tensor(q_next[rows, chosen])))
    torch.testing.assert_close(found, torch.tensor(np.array(expected)) / 0.7, rtol=1e-4, atol=1e-5)  # rlax doesn't divide by κ.


def test_quantile_huber_is_a_loop_from_the_paper():
    outputs, target = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    expected = torch.zeros(3, dtype=torch.float64)
    for row in range(3):
        for i in range(4):
            for j in range(4):
                u = (target[row, j] - outputs[row, i]).item()
                huber = 0.5 * u * u if abs(u) <= 0.3 else 0.3 * (abs(u) - 0.15)
                expected[row] += abs((i + 0.5) / 4 - (u < 0)) * huber / 0.3 / 4
    torch.testing.assert_close(QuantileHuber(4, 0.3)(outputs, target), expected)


def test_quantiles_converge_to_those_of_the_targets():
    generator = torch.Generator().manual_seed(0)
    loss, outputs = QuantileHuber(5, 0.01), torch.zeros(5, dtype=torch.float64, requires_grad=True)
    sample = torch.randn(4000, generator=generator, dtype=torch.float64)
    optimizer = torch.optim.Adam([outputs], 0.02)
    for _ in range(400):
        optimizer.zero_grad()
        loss(outputs.expand(4000, 5), loss.of_return(sample)).mean().backward()
        optimizer.step()
    expected = torch.quantile(sample, torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64))
    torch.testing.assert_close(outputs.detach(), expected, rtol=0, atol=0.05)


@given(st.floats(-20, 20), st.integers(2, 60))
def test_two_hots_mean_is_its_target(value, bins):
    for transform in TRANSFORMS:
        loss = TwoHot(bins, -10.0, 12.0, transform=transform)
        weights = loss.probabilities(torch.tensor(value, dtype=torch.float64))
        assert (weights >= 0).all() and (weights > 0).sum() <= 2 and weights.sum().item() == pytest.approx(1)
        assert (weights * loss.support(weights)).sum().item() == pytest.approx(min(max(value, -10), 12), abs=1e-9)


def test_two_hot_at_the_ends_and_on_a_bin():
    support = torch.tensor([-1.0, 0.0, 2.0])
    found = two_hot(torch.tensor([-5.0, -1.0, 0.0, 1.5, 2.0, 9.0]), support)
    assert found.tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0.25, 0.75], [0, 0, 1], [0, 0, 1]]


@given(st.floats(-10, 12))
def test_hl_gauss_is_the_mass_of_a_truncated_normal(value):
    stats = pytest.importorskip("scipy.stats")
    loss = HLGauss(23, -10.0, 12.0, sigma_ratio=0.75)
    edges = np.linspace(-10.5, 12.5, 24)
    normal = stats.truncnorm((edges[0] - value) / 0.75, (edges[-1] - value) / 0.75, value, 0.75)
    found = loss.probabilities(torch.tensor(value, dtype=torch.float64))
    np.testing.assert_allclose(found.numpy(), np.diff(normal.cdf(edges)), atol=1e-9)


def test_hl_gauss_centre_is_its_target_but_near_the_ends():
    loss = HLGauss(101, -100.0, 100.0)
    targets = torch.linspace(-95, 95, 96)
    centres = (loss.probabilities(targets) * loss.support(targets)).sum(-1)
    torch.testing.assert_close(centres, targets, rtol=0, atol=1e-3)
    end = (loss.probabilities(torch.tensor(100.0)) * loss.support(targets)).sum()
    assert 100 - 0.5 * 0.75 * 2 <= end.item() < 100


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_hl_gauss_centre_is_its_target_under_a_transform_and_bootstrapping_keeps_it(transform):
    loss = HLGauss(101, -100.0, 100.0, transform=transform)
    targets = torch.tensor([-60.0, -5.0, 0.0, 3.0, 50.0], dtype=torch.float64)
    for _ in range(50):
        targets = loss.value(loss.probabilities(targets).log())
    torch.testing.assert_close(targets, torch.tensor([-60.0, -5.0, 0.0, 3.0, 50.0], dtype=torch.float64), rtol=2e-2, atol=1e-3)


def test_hl_gauss_is_finite_far_outside_its_support():
    loss = HLGauss(51, -10.0, 10.0)
    outputs = torch.randn(4, 51, requires_grad=True)
    losses = loss(outputs, torch.tensor([1e6, -1e30, 10.0, 0.0]))
    losses.sum().backward()
    assert losses.isfinite().all() and outputs.grad.isfinite().all()


@pytest.mark.parametrize("loss", [TwoHot(21, -5.0, 5.0), HLGauss(21, -5.0, 5.0), C51(21, -5.0, 5.0)])
def test_extreme_logits_are_finite(loss):
    outputs = (1e4 * torch.randn(4, 21)).requires_grad_()
    losses = loss(outputs, loss.of_return(torch.tensor([-9.0, 0.3, 1.0, 5.0])))
    losses.sum().backward()
    assert losses.isfinite().all() and outputs.grad.isfinite().all()


@pytest.mark.parametrize("loss", [TwoHot(), HLGauss(), C51(), QuantileHuber()])
def test_bfloat16_is_close_to_float32(loss):
    outputs = torch.randn(6, loss.outputs).bfloat16()
    target = loss.of_return(torch.linspace(-50, 50, 6))
    torch.testing.assert_close(loss(outputs, target.bfloat16()).float(), loss(outputs.float(), target), rtol=0.05, atol=0.1)
    assert loss(outputs, target.bfloat16()).dtype == loss.value(outputs).dtype == torch.bfloat16


def test_the_support_is_evenly_spaced_in_the_space_of_the_transform():
    for transform in TRANSFORMS:
        support = C51(11, -1000.0, 1000.0, transform=transform).support(torch.zeros((), dtype=torch.float64))
        steps = transform(support).diff()
        torch.testing.assert_close(steps, steps[:1].expand(10))
        assert support[0].item() == pytest.approx(-1000) and support[-1].item() == pytest.approx(1000)


@pytest.mark.parametrize("make", [TwoHot, C51])
def test_an_affine_transform_leaves_a_categorical_head_as_it_is(make):
    plain, moved = make(11, -5.0, 5.0), make(11, -5.0, 5.0, transform=Affine(scale=3.0, shift=2.0))
    outputs = torch.randn(4, 11, dtype=torch.float64)
    torch.testing.assert_close(moved.value(outputs), (outputs.softmax(-1) * torch.linspace(-5, 5, 11, dtype=torch.float64)).sum(-1))
    torch.testing.assert_close(moved.of_return(outputs[:, 0]), plain.of_return(outputs[:, 0]))


@pytest.mark.parametrize(("low", "high"), [(1e6, 1e6 + 1), (-3e38, 3e38), (0.0, 1e-40)])
def test_a_support_that_float32_cannot_hold_is_refused(low, high):
    with pytest.raises(ValueError, match="are not all different in float32"):
        TwoHot(101, low, high)


@pytest.mark.parametrize("loss", [TwoHot(5, -2.0, 2.0), C51(5, -2.0, 2.0)])
def test_a_class_that_is_ruled_out_costs_nothing(loss):
    """Against the same head's logits without that class."""
    outputs = torch.randn(3, 5, dtype=torch.float64)
    outputs[:, 4] = -math.inf
    target = loss.of_return(torch.tensor([-2.0, 0.25, 1.0], dtype=torch.float64))
    weights = torch.tensor([[1, 0, 0, 0], [0, 0, 0.75, 0.25], [0, 0, 0, 1]], dtype=torch.float64)
    gradient, found = torch.func.grad_and_value(lambda x: loss(x, target).sum())(outputs)
    assert found.item() == pytest.approx(torch.nn.functional.cross_entropy(outputs[:, :4], weights, reduction="sum").item())
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("value", "support", "error"),
    [
        (torch.zeros(3, dtype=torch.int64), torch.arange(3.0), TypeError),
        (torch.zeros(3), torch.arange(3), TypeError),
        (torch.zeros(3), torch.zeros(1), ValueError),
        (torch.zeros(3), torch.zeros(2, 2), ValueError),
    ],
)
def test_two_hot_refuses_what_is_no_support(value, support, error):
    with pytest.raises(error, match=r"support must be|must be floating point"):
        two_hot(value, support)


def test_two_hot_has_no_gradient():
    assert not two_hot(torch.zeros(3, requires_grad=True), torch.arange(3.0, requires_grad=True)).requires_grad
