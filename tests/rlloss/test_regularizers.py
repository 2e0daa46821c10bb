"""Regularisers against rlax, torch, loops written from the papers, exact expectations and finite differences."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from rlloss import (
    CQL,
    DR3,
    L1,
    L2,
    ElasticNet,
    EntropyBonus,
    FeatureNorm,
    KLDivergence,
    Observed,
    Regularizer,
    ValueMagnitude,
    cql,
    dr3,
    elastic_net,
    entropy_bonus,
    feature_norm,
    kl_divergence,
    kl_k1,
    kl_k2,
    kl_k3,
    l1,
    l2,
    missing,
    value_magnitude,
)

EVERY = [
    EntropyBonus(0.3),
    KLDivergence(0.2),
    L1(0.1),
    L2(0.4),
    ElasticNet(0.5, l1_share=0.3),
    CQL(0.6, temperature=0.5),
    DR3(0.7),
    ValueMagnitude(0.8),
    FeatureNorm(0.9),
]
every = pytest.mark.parametrize("regularizer", EVERY, ids=repr)


def _normal(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _observed(dtype=torch.float64):
    parameters = {"0.weight": _normal(3, 2, dtype=dtype), "0.bias": 1e3 + _normal(3, dtype=dtype), "2.weight": _normal(1, 3, dtype=dtype, seed=1)}
    batch = {name: _normal(6, 4, dtype=dtype, seed=seed) for seed, name in enumerate(Observed._fields[1:]) if name not in ("action", "entropy", "mask")}
    return Observed(parameters, entropy=_normal(6, dtype=dtype), action=torch.tensor([0, 3, 1, 1, 2, 0]), mask=torch.ones(6, dtype=torch.bool), **batch)


def _loop(regularizer, observed):
    """λΩ from the formulas, with Python floats and NumPy sums over the batch."""
    rows = {name: getattr(observed, name).numpy() for name in Observed._fields[1:-1]}
    weights = np.concatenate([value.numpy().ravel() for name, value in observed.parameters.items() if "bias" not in name])

    def policy(name):
        return [np.exp(row) / np.exp(row).sum() for row in rows[name]]

    match regularizer:
        case EntropyBonus():
            return -regularizer.weight * np.mean(rows["entropy"])
        case KLDivergence():
            pairs = zip(policy("logits"), policy("reference_logits"), strict=True)
            return regularizer.weight * np.mean([sum(p * math.log(p / q) for p, q in zip(pi, rho, strict=True)) for pi, rho in pairs])
        case L1():
            return regularizer.weight * sum(abs(w) for w in weights)
        case L2():
            return regularizer.weight * sum(w * w for w in weights) / 2
        case ElasticNet(weight, share):
            return weight * sum(share * abs(w) + (1 - share) * w * w / 2 for w in weights)
        case CQL(weight, tau):
            pairs = zip(rows["action_values"], rows["action"], strict=True)
            return weight * np.mean([tau * math.log(sum(math.exp(q / tau) for q in row)) - row[a] for row, a in pairs])
        case DR3():
            pairs = zip(rows["features"], rows["next_features"], strict=True)
            return regularizer.weight * np.mean([sum(x * y for x, y in zip(*pair, strict=True)) for pair in pairs])
        case ValueMagnitude():
            return regularizer.weight * np.mean([q * q for row in rows["action_values"] for q in row])
        case FeatureNorm():
            return regularizer.weight * np.mean([sum(x * x for x in row) for row in rows["features"]])


@every
def test_every_regularizer_is_its_papers_formula(regularizer):
    found = regularizer(_observed())
    assert found.shape == ()
    assert found.item() == pytest.approx(_loop(regularizer, _observed()), rel=1e-12)


def test_entropy_and_its_gradient_equal_rlaxs():
    rlax, jax = pytest.importorskip("rlax"), pytest.importorskip("jax")
    logits = _normal(20, 5, dtype=torch.float32)
    theirs, gradient = jax.value_and_grad(lambda x: rlax.entropy_loss(x, np.ones(20, np.float32)))(logits.numpy())
    found, value = torch.func.grad_and_value(lambda x: entropy_bonus(x).mean())(logits)
    assert value.item() == pytest.approx(float(theirs), rel=1e-5)
    torch.testing.assert_close(found, torch.tensor(np.asarray(gradient)), rtol=1e-4, atol=1e-7)


def test_the_gradient_of_entropy_is_the_docstrings_and_vanishes_for_the_uniform_policy():
    logits = _normal(5)
    policy = logits.softmax(-1)
    entropy = -(policy * policy.log()).sum()
    torch.testing.assert_close(torch.func.grad(entropy_bonus)(logits), policy * (policy.log() + entropy))
    torch.testing.assert_close(torch.func.grad(entropy_bonus)(torch.full((5,), 3.0)), torch.zeros(5))


def test_the_exact_divergence_equals_torchs():
    logits, reference = _normal(20, 5), _normal(20, 5, seed=1)
    expected = torch.distributions.kl_divergence(torch.distributions.Categorical(logits=logits), torch.distributions.Categorical(logits=reference))
    torch.testing.assert_close(kl_divergence(logits, reference), expected)


def _policies(actions=6):
    return _normal(actions), _normal(actions, seed=1)


def test_k1_and_k3_are_unbiased_and_k2_is_not():
    """Exactly, as a sum over all actions, and with a large sample."""
    logits, reference = _policies()
    log_pi, log_rho = logits.log_softmax(-1), reference.log_softmax(-1)
    exact = torch.nn.functional.kl_div(log_rho, log_pi, reduction="sum", log_target=True)
    sample = torch.multinomial(log_pi.exp(), 200_000, replacement=True, generator=torch.Generator().manual_seed(0))
    for estimator in (kl_k1, kl_k3):
        torch.testing.assert_close((log_pi.exp() * estimator(log_pi, log_rho)).sum(), exact)
        torch.testing.assert_close(estimator(log_pi[sample], log_rho[sample]).mean(), exact, rtol=0.02, atol=0)
    assert (log_pi.exp() * kl_k2(log_pi, log_rho)).sum().item() != pytest.approx(exact.item(), rel=0.05)


def test_k3_is_the_steadier_estimator_of_near_policies_only():
    logits, far = _policies()
    log_pi = logits.log_softmax(-1)

    def deviation(estimator, reference):
        samples = estimator(log_pi, reference.log_softmax(-1))
        return (log_pi.exp() * (samples - (log_pi.exp() * samples).sum()).square()).sum().sqrt()

    near = logits + 0.1 * far
    assert deviation(kl_k3, near) < 0.2 * deviation(kl_k1, near)
    assert deviation(kl_k3, far) > deviation(kl_k1, far)


def test_the_gradients_of_the_estimators_are_on_average_what_the_docstrings_say():
    """The average over all actions with fixed probabilities, as sampling them would give, against torch's kl_div."""
    logits, reference = _policies()
    weights, log_rho = logits.softmax(-1), reference.log_softmax(-1)
    average = {
        estimator: torch.func.grad(lambda x, estimator=estimator: (weights * estimator(x.log_softmax(-1), log_rho)).sum())(logits)
        for estimator in (kl_k1, kl_k2, kl_k3)
    }
    forward = torch.func.grad(lambda x: torch.nn.functional.kl_div(log_rho, x.log_softmax(-1), reduction="sum", log_target=True))(logits)
    reversed_ = torch.func.grad(lambda x: torch.nn.functional.kl_div(x.log_softmax(-1), log_rho, reduction="sum", log_target=True))(logits)
    torch.testing.assert_close(average[kl_k1], torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-14)
    torch.testing.assert_close(average[kl_k2], forward)
    torch.testing.assert_close(average[kl_k3], reversed_)
    assert not torch.allclose(forward, reversed_, rtol=0.1)


@given(st.floats(-50, 0), st.floats(-50, 0))
def test_k2_and_k3_are_never_negative(log_probability, reference):
    pair = torch.tensor(log_probability), torch.tensor(reference)
    assert kl_k2(*pair) >= 0 and kl_k3(*pair) >= 0


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=6), st.floats(1e-3, 1e3))
def test_cql_lies_between_the_gap_to_the_best_action_and_that_plus_the_entropy_of_chance(values, temperature):
    """max Q − Q(a) ≤ Ω ≤ max Q − Q(a) + τ·log(actions), so it is never negative."""
    q = torch.tensor(values, dtype=torch.float64)
    for action in range(len(values)):
        gap = (q.max() - q[action]).item()
        found = cql(q[None], torch.tensor([action]), temperature).item()
        slack = 1e-9 * (1 + gap)
        assert max(0.0, gap - slack) <= found <= gap + temperature * math.log(len(values)) + slack


def test_cql_is_the_cross_entropy_of_torch_and_pushes_the_data_up():
    q, action = _normal(8, 4), torch.tensor([0, 3, 1, 1, 2, 0, 3, 3])
    gradient, value = torch.func.grad_and_value(lambda x: cql(x, action).sum())(q)
    torch.testing.assert_close(value, torch.nn.functional.cross_entropy(q, action, reduction="sum"))
    torch.testing.assert_close(gradient, q.softmax(-1) - torch.nn.functional.one_hot(action, 4))


def test_elastic_net_ends_in_l1_and_l2():
    parameters = _observed().parameters
    torch.testing.assert_close(elastic_net(parameters, 1.0), l1(parameters))
    torch.testing.assert_close(elastic_net(parameters, 0.0), l2(parameters))


def test_biases_are_left_out_of_weight_penalties_and_zero_weights_have_no_gradient():
    parameters = {"weight": torch.tensor([3.0, -4.0, 0.0]), "bias": torch.tensor([7.0]), "unbiased.scale": torch.tensor([1.0])}
    for penalty, value, gradient in ((l1, 8.0, [1.0, -1.0, 0.0]), (l2, 13.0, [3.0, -4.0, 0.0])):
        assert penalty(parameters).item() == value
        found = torch.func.grad(penalty)(parameters)
        assert found["weight"].tolist() == gradient and found["bias"].tolist() == [0.0]
    with pytest.raises(ValueError, match="no weights"):
        l2({"bias": torch.ones(2)})


def test_l2_equals_optaxs():
    optax = pytest.importorskip("optax")
    weight = _normal(5, 3, dtype=torch.float32)
    assert l2({"w": weight}).item() == pytest.approx(float(optax.l2_loss(weight.numpy()).sum()), rel=1e-6)


def test_gradients_agree_with_finite_differences():
    first, second = _normal(4, 3).requires_grad_(), _normal(4, 3, seed=1).requires_grad_()
    reference, action = _normal(4, 3, seed=2), torch.tensor([0, 2, 1, 1])
    for function in (
        entropy_bonus,
        value_magnitude,
        feature_norm,
        lambda x: kl_divergence(x, reference),
        lambda x: cql(x, action, 0.5),
        lambda x: elastic_net({"w": x}, 0.3),
        *(lambda x, estimator=estimator: estimator(x, reference) for estimator in (kl_k1, kl_k2, kl_k3)),
    ):
        assert torch.autograd.gradcheck(function, first)
    assert torch.autograd.gradcheck(dr3, (first, second))


@pytest.mark.parametrize("function", [lambda p, q: KLDivergence()(Observed({}, logits=p, reference_logits=q)), kl_k1, kl_k2, kl_k3])
def test_no_gradient_reaches_a_reference(function):
    policy, reference = _normal(5, 3).requires_grad_(), _normal(5, 3, seed=1).requires_grad_()
    function(policy, reference).sum().backward()
    assert reference.grad is None and policy.grad.abs().sum() > 0


def test_extreme_logits_and_values_give_the_true_number_and_a_finite_gradient():
    logits = torch.tensor([[1e4, -1e4, 0.0]])
    action = torch.tensor([1])
    cases = [
        (entropy_bonus, logits, 0.0, [0.0, 0.0, 0.0]),
        (lambda x: kl_divergence(x, -logits), logits, 2e4, [0.0, 0.0, 0.0]),
        (lambda x: cql(x, action, 0.1), logits, 2e4, [1.0, -1.0, 0.0]),
        (lambda x: cql(x, action, 0.1), 1e26 * logits, 2e30, [1.0, -1.0, 0.0]),
    ]
    for function, at, value, expected in cases:
        gradient, found = torch.func.grad_and_value(lambda x, function=function: function(x).sum())(at)
        assert found.item() == pytest.approx(value, rel=1e-6)
        torch.testing.assert_close(gradient, torch.tensor([expected]), rtol=1e-6, atol=1e-6)
    slope, k3 = torch.func.grad_and_value(kl_k3)(torch.tensor(0.0), torch.tensor(-1e3))
    assert (k3.item(), slope.item()) == (999.0, 1.0)


@every
def test_what_a_regularizer_needs_is_all_that_it_reads(regularizer):
    observed = _observed()
    needed = {name: value for name, value in observed._asdict().items() if name in ("parameters", *regularizer.needs)}
    assert torch.equal(regularizer(Observed(**needed)), regularizer(observed))
    assert isinstance(regularizer, Regularizer)
    assert missing(regularizer, Observed._fields) == ()
    assert missing(regularizer, []) == regularizer.needs != ()


@pytest.mark.parametrize("regularizer", [one for one in EVERY if one.needs != ("parameters",)], ids=repr)
def test_a_missing_need_is_said_in_one_line(regularizer):
    with pytest.raises(ValueError) as error:
        regularizer(Observed({"w": torch.ones(2)}))
    assert str(error.value).startswith(f"{type(regularizer).__name__} needs {', '.join(regularizer.needs)}") and "\n" not in str(error.value)


def test_missing_names_only_what_is_missing():
    assert missing(KLDivergence(), ["parameters", "logits"]) == ("reference_logits",)


@every
def test_every_run_of_a_population_may_have_its_own_weight(regularizer):
    observed = _observed()
    weights = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)
    names = [name for name in type(regularizer).__dataclass_fields__ if name not in ("weight", "needs")]
    rest = {name: getattr(regularizer, name) for name in names}

    def one(weight):
        return type(regularizer)(weight=weight, **rest)(observed)

    alone = torch.stack([one(weight) for weight in weights.tolist()])
    torch.testing.assert_close(torch.func.vmap(one)(weights), alone, rtol=1e-14, atol=0)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_dtype_stays(regularizer, dtype):
    assert regularizer(_observed(dtype)).dtype == dtype


@every
def test_a_traced_program_is_the_same(regularizer):
    observed = _observed()
    other = pytree.tree_map(lambda x: x.flip(0), observed)
    torch.testing.assert_close(make_fx(regularizer)(observed)(other), regularizer(other), rtol=0, atol=0)


def test_compiled_whole_they_are_the_same():
    def penalties(observed):
        return [regularizer(observed) for regularizer in EVERY]

    torch.testing.assert_close(torch.compile(penalties, fullgraph=True, backend="aot_eager")(_observed()), penalties(_observed()), rtol=1e-13, atol=0)


def test_unequal_shapes_and_integers_are_refused():
    for function in (kl_divergence, kl_k1, kl_k2, kl_k3, dr3):
        with pytest.raises(ValueError, match="shapes differ"):
            function(torch.zeros(4, 2), torch.zeros(4))
        with pytest.raises(TypeError, match="must be floating point"):
            function(torch.zeros(4), torch.zeros(4).long())
    with pytest.raises(ValueError, match="shapes differ"):
        cql(torch.zeros(4, 2), torch.zeros(4, 1).long())
    for function in (entropy_bonus, value_magnitude, feature_norm, lambda x: l1({"w": x})):
        with pytest.raises(TypeError, match="must be floating point"):
            function(torch.zeros(4).long())


@every
def test_negative_weights_are_refused(regularizer):
    for weight in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"^weight must be"):
            type(regularizer)(weight=weight)


def test_other_meaningless_numbers_are_refused():
    for make, field in ((lambda x: CQL(temperature=x), "temperature"), (lambda x: ElasticNet(l1_share=x), "l1_share")):
        for number in (-0.1, math.nan):
            with pytest.raises(ValueError, match=f"^{field} must be"):
                make(number)


@pytest.mark.parametrize("regularizer", [CQL(0.6), DR3(0.7), ValueMagnitude(0.8), FeatureNorm(0.9), L2(0.1)])
def test_what_a_mask_leaves_out_does_not_count(regularizer):
    values, action, here, there = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1]), torch.randn(5, 4), torch.randn(5, 4)
    mask = torch.tensor([True, False, True, True, False])
    weights = {"weight": torch.randn(2, 2)}
    masked = regularizer(Observed(weights, values, action, here, there, mask=mask))
    torch.testing.assert_close(masked, regularizer(Observed(weights, values[mask], action[mask], here[mask], there[mask])))
