"""Policy losses against rlax, loops written from the papers, identities and finite differences."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from rlloss import (
    AWR,
    PPOKL,
    SPO,
    BehaviourCloning,
    PolicyGradient,
    PolicyLoss,
    PPOClip,
    VTracePolicyGradient,
    adapt_coefficient,
    advantage_weighted_regression,
    behaviour_cloning,
    policy_gradient,
    ppo_clip,
    ppo_kl,
    spo,
    v_trace_policy_gradient,
)

LOSSES = [
    PolicyGradient(),
    VTracePolicyGradient(clip_ratio=0.9),
    PPOClip(low=0.1, high=0.3),
    PPOClip(dual=1.7),
    PPOKL(coefficient=0.7),
    SPO(epsilon=0.15),
    AWR(temperature=0.5, max_weight=5.0),
    BehaviourCloning(),
]
with_numbers = pytest.mark.parametrize("loss", [loss for loss in LOSSES if dataclasses.fields(loss)], ids=repr)
every = pytest.mark.parametrize("loss", LOSSES, ids=repr)


def _problem(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(5)
    log_probability, noise, advantage = (torch.randn(*shape, generator=generator, dtype=dtype) for _ in range(3))
    log_probability = -log_probability.abs() - 0.1
    return log_probability, log_probability + 0.5 * noise, advantage


def _loop(loss, log_pi, log_mu, a):
    """The loss of one number, from the papers' formulas, in Python floats."""
    r = math.exp(log_pi - log_mu)
    match loss:
        case PolicyGradient():
            return -log_pi * a
        case VTracePolicyGradient(bound):
            return -min(bound, r) * log_pi * a
        case PPOClip(low, high, dual):
            objective = min(r * a, min(max(r, 1 - low), 1 + high) * a)
            return -(max(objective, dual * a) if a < 0 and dual < math.inf else objective)
        case PPOKL(beta):
            return -(r * a - beta * (r - 1 - math.log(r)))
        case SPO(epsilon):
            return -(r * a - abs(a) / (2 * epsilon) * (r - 1) ** 2)
        case AWR(beta, largest):
            return -log_pi * min(math.exp(a / beta), largest)
        case BehaviourCloning():
            return -log_pi


def _gradient(loss, log_probability, behaviour, advantage):
    return torch.func.grad(lambda x: loss(x, behaviour, advantage).sum())(log_probability)


@every
def test_every_loss_is_its_papers_formula(loss):
    problem = _problem(6, 50)
    expected = [_loop(loss, *numbers) for numbers in zip(*(x.flatten().tolist() for x in problem), strict=True)]
    torch.testing.assert_close(loss(*problem).flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("epsilon", [0.1, 0.4])
def test_ppo_clip_and_its_gradient_equal_rlaxs(epsilon):
    rlax, jax = pytest.importorskip("rlax"), pytest.importorskip("jax")
    log_pi, log_mu, a = (x.numpy().astype(np.float32) for x in _problem(200))
    theirs, gradient = jax.value_and_grad(lambda x: rlax.clipped_surrogate_pg_loss(jax.numpy.exp(x - log_mu), a, epsilon))(log_pi)
    log_pi, log_mu, a = (torch.from_numpy(x) for x in (log_pi, log_mu, a))
    loss = PPOClip(epsilon, epsilon)
    torch.testing.assert_close(loss(log_pi, log_mu, a).mean().item(), float(theirs), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(_gradient(loss, log_pi, log_mu, a) / 200, torch.tensor(np.asarray(gradient)), rtol=1e-4, atol=1e-7)


def test_policy_gradient_and_its_gradient_in_the_logits_equal_rlaxs():
    rlax, jax = pytest.importorskip("rlax"), pytest.importorskip("jax")
    rng = np.random.default_rng(0)
    logits, action, a = rng.normal(size=(40, 5)).astype(np.float32), rng.integers(0, 5, 40), rng.normal(size=40).astype(np.float32)
    theirs, gradient = jax.value_and_grad(lambda x: rlax.policy_gradient_loss(x, action, a, np.ones(40, np.float32)))(logits)

    def ours(x):
        taken = x.log_softmax(-1).gather(1, torch.from_numpy(action)[:, None]).squeeze(1)
        return policy_gradient(taken, torch.from_numpy(a)).mean()

    found, value = torch.func.grad_and_value(ours)(torch.from_numpy(logits))
    assert value.item() == pytest.approx(float(theirs), rel=1e-5)
    torch.testing.assert_close(found, torch.tensor(np.asarray(gradient)), rtol=1e-4, atol=1e-6)


def test_v_traces_weighted_advantages_equal_rlaxs():
    rlax = pytest.importorskip("rlax")
    log_pi, log_mu, reward = (x.float() for x in _problem(30))
    # Without discount and values the advantage is the reward, so what rlax returns is min(ρ̄, ρ)·r.
    zeros, ratio = np.zeros(30, np.float32), (log_pi - log_mu).exp().numpy()
    theirs = rlax.vtrace_td_error_and_advantage(zeros, zeros, reward.numpy(), zeros, ratio, clip_pg_rho_threshold=0.8).pg_advantage
    gradient = _gradient(VTracePolicyGradient(0.8), log_pi, log_mu, reward)
    torch.testing.assert_close(-gradient, torch.tensor(np.asarray(theirs)), rtol=1e-5, atol=1e-6)


def test_v_traces_gradient_is_the_truncated_weight_times_the_advantage():
    """The weight itself isn't differentiated, on either side of ρ̄; a formula in NumPy."""
    log_pi, log_mu, advantage = _problem(60)
    ratio = np.exp((log_pi - log_mu).numpy())
    assert ratio.min() < 0.8 < ratio.max()
    expected = -np.minimum(0.8, ratio) * advantage.numpy()
    torch.testing.assert_close(_gradient(VTracePolicyGradient(0.8), log_pi, log_mu, advantage), torch.from_numpy(expected))


@every
def test_gradients_agree_with_finite_differences(loss):
    log_probability, behaviour, advantage = _problem(40)
    if isinstance(loss, VTracePolicyGradient):  # whose weight is detached on purpose; the test above has its gradient
        behaviour = log_probability - 3
    assert torch.autograd.gradcheck(lambda x: loss(x, behaviour, advantage), log_probability.requires_grad_())


@every
def test_only_the_policy_gets_a_gradient(loss):
    problem = [x.requires_grad_() for x in _problem(8)]
    loss(*problem).sum().backward()
    assert problem[0].grad.abs().sum() > 0
    assert problem[1].grad is None and problem[2].grad is None


@every
def test_gradients_at_the_first_epoch(loss):
    """At r = 1 every loss of a ratio has the policy gradient, also with bounds that touch 1."""
    log_probability, _, advantage = _problem(64)
    gradient = _gradient(loss, log_probability, log_probability, advantage)
    expected = {
        AWR: -(advantage / 0.5).exp().clamp(max=5.0),
        BehaviourCloning: -torch.ones_like(advantage),
        VTracePolicyGradient: -0.9 * advantage,
    }.get(type(loss), -advantage)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("low, high", [(0.2, 0.2), (0.0, 0.0), (1.0, 0.5)])
def test_ppo_clip_passes_the_full_gradient_at_ratio_one_and_on_its_bounds(low, high):
    advantage = torch.tensor([2.0, -3.0, 0.0])
    zero = torch.zeros(3)
    torch.testing.assert_close(_gradient(PPOClip(low, high), zero, zero, advantage), -advantage, rtol=0, atol=0)


def test_ppo_clips_gradient_stops_only_where_the_ratio_went_far_enough():
    log_ratio = torch.tensor([1.3, 0.7, 1.3, 0.7, 2.5, 3.5]).log()
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0, -1.0])
    gradient = _gradient(PPOClip(0.2, 0.2, dual=3.0), log_ratio, torch.zeros(6), advantage)
    torch.testing.assert_close(gradient, torch.tensor([0.0, -0.7, 1.3, 0.0, 2.5, 0.0]))


def test_an_infinite_dual_bound_is_plain_and_a_finite_one_bounds_the_loss():
    log_pi, log_mu, advantage = _problem(500)
    log_mu = log_mu - 1
    plain, dual = ppo_clip(log_pi, log_mu, advantage), ppo_clip(log_pi, log_mu, advantage, dual=2.0)
    assert torch.equal(plain, ppo_clip(log_pi, log_mu, advantage, dual=math.inf))
    bad = advantage < 0
    assert torch.equal(plain[~bad], dual[~bad])
    assert (dual[bad] <= -2.0 * advantage[bad] + 1e-12).all() and (plain[bad] > -2.0 * advantage[bad]).any()


@given(st.floats(0.05, 0.9), st.floats(-5, 5).filter(lambda a: abs(a) > 1e-3))
def test_spo_is_least_at_one_plus_or_minus_epsilon(epsilon, advantage):
    ratio = torch.linspace(0.02, 2.5, 2481, dtype=torch.float64)
    losses = spo(ratio.log(), torch.zeros_like(ratio), torch.full_like(ratio, advantage), epsilon)
    assert ratio[losses.argmin()].item() == pytest.approx(1 + math.copysign(epsilon, advantage), abs=1.1e-3)


def test_ppo_kls_penalty_is_the_divergence_from_the_behaviour():
    """Expectation over all actions, not a sample; the divergence is torch.distributions'."""
    generator = torch.Generator().manual_seed(0)
    log_pi, log_mu = (torch.randn(6, generator=generator, dtype=torch.float64).log_softmax(0) for _ in range(2))
    penalty = (log_mu.exp() * ppo_kl(log_pi, log_mu, torch.zeros(6, dtype=torch.float64), 2.0)).sum()
    exact = torch.distributions.kl_divergence(torch.distributions.Categorical(logits=log_mu), torch.distributions.Categorical(logits=log_pi))
    torch.testing.assert_close(penalty, 2 * exact)


@pytest.mark.parametrize("kl, expected", [(0.016, 2.0), (0.0149, 1.0), (0.01, 1.0), (0.0067, 1.0), (0.0066, 0.5), (0.0, 0.5)])
def test_the_adaptive_coefficient_follows_the_papers_rule(kl, expected):
    assert adapt_coefficient(1.0, torch.tensor(kl), 0.01).item() == expected


def test_awr_is_behaviour_cloning_at_a_high_temperature_and_bounded_at_a_low_one():
    log_pi, _, advantage = _problem(30)
    torch.testing.assert_close(advantage_weighted_regression(log_pi, advantage, 1e12), behaviour_cloning(log_pi))
    good = advantage > 0.1
    torch.testing.assert_close(advantage_weighted_regression(log_pi, advantage, 1e-30)[good], -20 * log_pi[good])


# Gradients in log π at log r = ±1000, for A = 1, −1 and 0; float32 holds e^88.
EXTREMES = [
    (PolicyGradient(), 1e3, [-1, 1, 0]),
    (PolicyGradient(), -1e3, [-1, 1, 0]),
    (VTracePolicyGradient(2.0), 1e3, [-2, 2, 0]),
    (VTracePolicyGradient(2.0), -1e3, [0, 0, 0]),
    (PPOClip(), 1e3, [0, math.inf, 0]),
    (PPOClip(), -1e3, [0, 0, 0]),
    (PPOClip(dual=3.0), 1e3, [0, 0, 0]),
    (PPOKL(2.0), 1e3, [math.inf, math.inf, math.inf]),
    (PPOKL(1.0), 1e3, [-1, math.inf, math.inf]),
    (PPOKL(0.5), 1e3, [-math.inf, math.inf, math.inf]),
    (PPOKL(0.0), 1e3, [-math.inf, math.inf, 0]),
    (PPOKL(2.0), -1e3, [-2, -2, -2]),
    (SPO(), 1e3, [math.inf, math.inf, 0]),
    (SPO(), -1e3, [0, 0, 0]),
    (AWR(), 1e3, [-math.e, -1 / math.e, -1]),
    (BehaviourCloning(), 1e3, [-1, -1, -1]),
]


@pytest.mark.parametrize("loss, log_ratio, expected", EXTREMES, ids=repr)
def test_extreme_ratios_give_the_true_gradient(loss, log_ratio, expected):
    policy, behaviour = (-1e3, 0.0) if log_ratio < 0 else (0.0, -1e3)
    problem = torch.full((3,), policy), torch.full((3,), behaviour), torch.tensor([1.0, -1.0, 0.0])
    torch.testing.assert_close(_gradient(loss, *problem), torch.tensor([float(x) for x in expected]))
    assert not loss(*problem).isnan().any()


@every
def test_huge_advantages_stay_finite(loss):
    log_pi, log_mu, advantage = _problem(64, dtype=torch.float32)
    huge = 1e30 * advantage.sign()
    assert loss(log_pi, log_mu, huge).isfinite().all()
    assert _gradient(loss, log_pi, log_mu, huge).isfinite().all()


@with_numbers
def test_every_run_of_a_population_may_have_its_own_numbers(loss):
    names = [field.name for field in dataclasses.fields(loss)]
    runs = [type(loss)(**{name: getattr(loss, name) * factor for name in names}) for factor in (1.0, 1.1, 1.2)]
    stacked = pytree.tree_map(lambda *numbers: torch.tensor(numbers, dtype=torch.float64), *runs)
    problem = _problem(3, 20)
    together = torch.func.vmap(lambda one, *rest: one(*rest))(stacked, *problem)
    alone = torch.stack([run(*(x[i] for x in problem)) for i, run in enumerate(runs)])
    torch.testing.assert_close(together, alone, rtol=1e-14, atol=1e-14)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_dtype_and_the_shape_stay(loss, dtype):
    found = loss(*_problem(4, 3, dtype=dtype))
    assert found.dtype == dtype and found.shape == (4, 3)
    assert isinstance(loss, PolicyLoss)


@every
def test_a_traced_program_with_its_gradient_is_the_same(loss):
    problem = _problem(16)
    program = make_fx(lambda *x: _gradient(loss, *x))(*problem)
    other = tuple(x.flip(0) * 0.9 for x in problem)
    torch.testing.assert_close(program(*other), _gradient(loss, *other), rtol=0, atol=0)


def test_compiled_whole_they_are_the_same():
    def losses(*problem):
        return [_gradient(loss, *problem) for loss in LOSSES]

    problem = _problem(16)
    torch.testing.assert_close(torch.compile(losses, fullgraph=True, backend="aot_eager")(*problem), losses(*problem), rtol=1e-13, atol=0)


@pytest.mark.parametrize("function", [v_trace_policy_gradient, ppo_clip, ppo_kl, spo])
def test_unequal_shapes_and_integers_are_refused(function):
    column, row = torch.zeros(4, 1), torch.zeros(4)
    with pytest.raises(ValueError, match="shapes differ"):
        function(column, row, row)
    with pytest.raises(ValueError, match="shapes differ"):
        function(row, row, column)
    with pytest.raises(TypeError, match="advantage must be floating point"):
        function(row, row, row.long())


@pytest.mark.parametrize("function", [policy_gradient, advantage_weighted_regression])
def test_unequal_shapes_and_integers_are_refused_without_a_behaviour(function):
    with pytest.raises(ValueError, match="shapes differ"):
        function(torch.zeros(4, 1), torch.zeros(4))
    with pytest.raises(TypeError, match="log_probability must be floating point"):
        function(torch.zeros(4).long(), torch.zeros(4))


@pytest.mark.parametrize(
    "make, field",
    [
        (lambda x: VTracePolicyGradient(clip_ratio=x), "clip_ratio"),
        (lambda x: PPOClip(low=x), "low"),
        (lambda x: PPOClip(high=x), "high"),
        (lambda x: PPOClip(dual=x), "dual"),
        (lambda x: PPOKL(coefficient=x), "coefficient"),
        (lambda x: SPO(epsilon=x), "epsilon"),
        (lambda x: AWR(temperature=x), "temperature"),
        (lambda x: AWR(max_weight=x), "max_weight"),
    ],
)
def test_meaningless_numbers_are_refused(make, field):
    for number in (-0.5, math.nan):
        with pytest.raises(ValueError, match=f"^{field} must be"):
            make(number)


@pytest.mark.parametrize(
    "make, field",
    [
        (lambda: VTracePolicyGradient(clip_ratio=0.0), "clip_ratio"),
        (lambda: PPOClip(low=1.1), "low"),
        (lambda: SPO(epsilon=0.0), "epsilon"),
        (lambda: AWR(temperature=0.0), "temperature"),
        (lambda: AWR(max_weight=0.0), "max_weight"),
    ],
)
def test_the_ends_of_ranges_are_refused_where_the_formula_has_no_meaning(make, field):
    with pytest.raises(ValueError, match=f"^{field} must be"):
        make()


def test_a_dual_bound_must_be_above_one():
    with pytest.raises(ValueError, match=r"^dual must be greater than 1"):
        PPOClip(dual=1.0)


def test_no_clip_makes_no_nan_of_weights_that_overflow():
    """In exact arithmetic π/μ = e²⁰⁰, so that only a factor of 0 keeps the loss finite."""
    log_pi, log_mu, a = torch.tensor([-1.0, 0.0, 0.0]), torch.full((3,), -200.0), torch.tensor([0.0, 0.0, 1.0])
    loss = VTracePolicyGradient(math.inf)
    assert loss(log_pi, log_mu, a).tolist() == [0, 0, 0]
    assert not _gradient(loss, log_pi, log_mu, a).isnan().any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: advantage_weighted_regression(x, x, max_weight=0.0), "max_weight must be greater than 0"),
        (lambda x: advantage_weighted_regression(x, x, -1.0), "temperature must be greater than 0"),
        (lambda x: ppo_clip(x, x, x, low=2.0), "low must be at least 0 and at most 1"),
        (lambda x: ppo_kl(x, x, x, -1.0), "coefficient must be at least 0"),
        (lambda x: spo(x, x, x, 0.0), "epsilon must be greater than 0"),
        (lambda x: v_trace_policy_gradient(x, x, x, math.nan), "clip_ratio must be greater than 0"),
        (lambda x: adapt_coefficient(1.0, x[0], 0.0), "target must be greater than 0"),
    ],
)
def test_functions_refuse_numbers_out_of_range(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(3))


@pytest.mark.parametrize(
    ("loss", "narrower"), [(PPOClip(0.2, 0.4, dual=3.0), PPOClip(0.05, 0.1, dual=3.0)), (SPO(0.2), SPO(0.05))], ids=["ppo_clip", "spo"]
)
def test_a_narrowed_loss_is_that_of_the_narrower_range(loss, narrower):
    problem = _problem(64)
    torch.testing.assert_close(loss.narrowed(torch.tensor(0.25, dtype=torch.float64))(*problem), narrower(*problem))
    log_probability = problem[0].requires_grad_()
    (gradient,) = torch.autograd.grad(loss.narrowed(torch.tensor(0.0))(log_probability, log_probability.detach(), problem[2]).sum(), log_probability)
    torch.testing.assert_close(gradient, -problem[2])  # At a ratio of 1 even the narrowest range leaves the policy gradient.
