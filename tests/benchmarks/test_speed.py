"""How long returns and losses take on one core: ours eager, compiled and ahead of time, rlax and optax under jit, torchrl.

    taskset -c 1 python -m pytest tests/benchmarks -n 0 -m speed --benchmark-group-by=group --benchmark-columns=median,iqr

Each group of the table is one function at one shape. All results of a group are compared before they are timed.
Losses are timed without their gradient. `addition` is a + b: what calling a compiled function costs at least.
"""

import os
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy
import pytest
import torch

from agents.compilation import bind
from rlloss import actor_losses, classification, penalties, pointwise, policy_gradients
from rlloss.distributional import C51, HLGauss, QuantileHuber, TwoHot
from rlloss.off_policy_returns import retrace, v_trace
from rlloss.returns import gae, lambda_return, n_step_return

pytest.importorskip("pytest_benchmark")
pytestmark = pytest.mark.speed

SHAPES = [(128, 64), (2048, 8)]
DISCOUNT, LAMBDA, STEPS, BINS, LOW, HIGH = 0.99, 0.95, 5, 51, -10.0, 10.0
TWO_HOT, HISTOGRAM, CATEGORICAL, QUANTILES = TwoHot(BINS, LOW, HIGH), HLGauss(BINS, LOW, HIGH), C51(BINS, LOW, HIGH), QuantileHuber(BINS)


class Case(NamedTuple):
    """One function and the names of the tensors it is given, by position."""

    function: Callable[..., Any]
    inputs: str


RETURNS = {
    "gae": Case(lambda *x: gae(*x, LAMBDA), "reward discount truncated value next_value"),
    "lambda_return": Case(lambda *x: lambda_return(*x, LAMBDA), "reward discount truncated next_value"),
    "n_step_return": Case(lambda *x: n_step_return(*x, STEPS), "reward discount truncated next_value"),
    "v_trace": Case(lambda *x: tuple(v_trace(*x)), "reward discount truncated value next_value ratio"),
    "retrace": Case(lambda *x: retrace(*x, LAMBDA), "reward discount truncated value next_value ratio"),
}
HEADS = {
    "two_hot": Case(lambda x, y: TWO_HOT(x, y), "outputs value"),
    "hl_gauss": Case(lambda x, y: HISTOGRAM(x, y), "outputs value"),
    "c51": Case(lambda x, r, d, n: CATEGORICAL(x, CATEGORICAL.target(r, d, n)), "outputs reward discount next_outputs"),
    "quantile_huber": Case(lambda x, r, d, n: QUANTILES(x, QUANTILES.target(r, d, n)), "outputs reward discount next_outputs"),
}
LOSSES = {
    "squared_error": Case(pointwise.squared_error, "reward"),
    "absolute_error": Case(pointwise.absolute_error, "reward"),
    "huber": Case(lambda e: pointwise.huber(e, 1.0), "reward"),
    "smooth_l1": Case(lambda e: pointwise.smooth_l1(e, 0.5), "reward"),
    "pseudo_huber": Case(lambda e: pointwise.pseudo_huber(e, 1.0), "reward"),
    "log_cosh": Case(pointwise.log_cosh, "reward"),
    "quantile": Case(lambda e: pointwise.quantile(e, 0.3), "reward"),
    "expectile": Case(lambda e: pointwise.expectile(e, 0.3), "reward"),
    "gaussian_nll": Case(pointwise.gaussian_nll, "reward value"),
    "robust": Case(lambda e: pointwise.robust(e, 0.5, 1.0), "reward"),
    "binary_cross_entropy": Case(classification.binary_cross_entropy, "probability label"),
    "binary_cross_entropy_with_logits": Case(classification.binary_cross_entropy_with_logits, "value label"),
    "binary_focal": Case(lambda x, y: classification.binary_focal(x, y, 0.25, 2.0), "value label"),
    "cross_entropy": Case(classification.cross_entropy, "distribution distribution"),
    "cross_entropy_with_logits": Case(classification.cross_entropy_with_logits, "outputs distribution"),
    "cross_entropy_with_integer_labels": Case(classification.cross_entropy_with_integer_labels, "outputs class"),
    "focal": Case(lambda x, y: classification.focal(x, y, 1.0, 2.0), "outputs distribution"),
    "kl_divergence": Case(classification.kl_divergence, "outputs next_outputs"),
    "policy_gradient": Case(policy_gradients.policy_gradient, "log_probability reward"),
    "v_trace_policy_gradient": Case(policy_gradients.v_trace_policy_gradient, "log_probability behaviour_log_probability reward"),
    "ppo_clip": Case(lambda p, b, a: policy_gradients.ppo_clip(p, b, a).mean(), "log_probability behaviour_log_probability reward"),
    "ppo_kl": Case(policy_gradients.ppo_kl, "log_probability behaviour_log_probability reward"),
    "spo": Case(policy_gradients.spo, "log_probability behaviour_log_probability reward"),
    "advantage_weighted_regression": Case(lambda p, a: policy_gradients.advantage_weighted_regression(p, a, 1.0, 20.0), "log_probability reward"),
    "soft_actor": Case(lambda p, q: actor_losses.soft_actor(p, q, 0.2), "log_probability reward"),
    "discrete_soft_actor": Case(lambda x, q: actor_losses.discrete_soft_actor(x, q, 0.2), "outputs next_outputs"),
    "temperature_loss": Case(lambda s, p: actor_losses.temperature_loss(s, p, -1.0), "log_temperature log_probability"),
    "entropy_bonus": Case(penalties.entropy_bonus, "outputs"),
    "cql": Case(lambda q, a: penalties.cql(q.flatten(0, 1), a.flatten()), "outputs class"),
}
CASES = {"addition": Case(torch.add, "reward value"), **RETURNS, **HEADS, **LOSSES}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.compiler.reset()


def problem(shape):
    """One uninterrupted trajectory a column, since rlax knows no cuts, and outputs of two heads."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    values = draw(shape[0] + 1, shape[1])
    probability = -draw(*shape).abs()
    return {
        "reward": draw(*shape),
        "discount": torch.full(shape, DISCOUNT),
        "truncated": torch.zeros(shape),
        "value": values[:-1].contiguous(),
        "next_value": values[1:].contiguous(),
        "values": values,
        "ratio": draw(*shape).exp(),
        "outputs": draw(*shape, BINS),
        "next_outputs": draw(*shape, BINS),
        "log_probability": probability,
        "behaviour_log_probability": probability + 0.3 * draw(*shape),
        "label": (draw(*shape) > 0).float(),
        "probability": draw(*shape).sigmoid(),
        "distribution": draw(*shape, BINS).softmax(-1),
        "class": torch.randint(BINS, shape, generator=generator),
        "log_temperature": draw(),
    }


def inputs(name, data):
    return [data[key] for key in CASES[name].inputs.split()]


def eager(name, data):
    arguments = inputs(name, data)
    return lambda: CASES[name].function(*arguments)


def compiled(name, data):
    function, arguments = torch.compile(CASES[name].function, fullgraph=True, dynamic=False), inputs(name, data)
    return lambda: function(*arguments)


def ahead_of_time(name, data):
    """As agents compile a whole update: without Python between call and result."""
    stacked = tuple(tensor[None] for tensor in inputs(name, data))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="compiling")  # Else it would go on eagerly.
        return bind(CASES[name].function, stacked, donate=False, compile=True, name=name, say=lambda line: None).run


def rlax_jit(name, data):
    """rlax's function, optax's where that has it, and the paper's formula where neither does (`hl_gauss`)."""
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    jax, rlax, optax = (pytest.importorskip(module) for module in ("jax", "rlax", "optax"))
    np = jax.numpy
    support, levels = np.linspace(LOW, HIGH, BINS), (np.arange(BINS) + 0.5) / BINS
    width = (HIGH - LOW) / (BINS - 1)
    edges = LOW + width * (np.arange(BINS + 1) - 0.5)

    def columns(function):
        return jax.vmap(function, in_axes=1, out_axes=1)

    def rows(function):
        return jax.vmap(jax.vmap(function))

    def off_policy(r, d, _, v, following, w):
        result = columns(rlax.vtrace_td_error_and_advantage)(v, following, r, d, w)
        return result.errors + v, result.pg_advantage

    def histogram(x, y):
        below = jax.scipy.special.erf((edges - y[..., None]) / (0.75 * width * 2**0.5))
        return optax.softmax_cross_entropy(x, np.diff(below) / (below[..., -1:] - below[..., :1]))

    functions = {
        "addition": np.add,
        "gae": columns(lambda r, d, v: rlax.truncated_generalized_advantage_estimation(r, d, LAMBDA, v)),
        "lambda_return": lambda r, d, _, n: columns(lambda r, d, n: rlax.lambda_returns(r, d, n, LAMBDA))(r, d, n),
        "n_step_return": lambda r, d, _, n: columns(lambda r, d, n: rlax.n_step_bootstrapped_returns(r, d, n, STEPS))(r, d, n),
        "v_trace": off_policy,
        "retrace": lambda r, d, _, q, n, w: columns(rlax.general_off_policy_returns_from_q_and_v)(q[1:], n, r, d, LAMBDA * np.minimum(1, w[1:])),
        "huber": lambda e: optax.huber_loss(e, delta=1.0),
        "squared_error": optax.losses.squared_error,
        "log_cosh": optax.losses.log_cosh,
        "binary_cross_entropy_with_logits": optax.losses.sigmoid_binary_cross_entropy,
        "cross_entropy_with_logits": optax.losses.softmax_cross_entropy,
        "cross_entropy_with_integer_labels": optax.losses.softmax_cross_entropy_with_integer_labels,
        "two_hot": lambda x, y: optax.losses.softmax_cross_entropy(x, rlax.transform_to_2hot(y, LOW, HIGH, BINS)),
        "hl_gauss": histogram,
        "c51": rows(lambda x, r, d, n: rlax.categorical_td_learning(support, x, r, d, support, n)),
        "quantile_huber": rows(lambda x, r, d, n: rlax.quantile_regression_loss(x, levels, r + d * n, 1.0)),
        "ppo_clip": lambda p, b, a: rlax.clipped_surrogate_pg_loss(np.exp(p - b).ravel(), a.ravel(), 0.2),
        "binary_focal": lambda x, y: optax.sigmoid_focal_loss(x, y, alpha=0.25, gamma=2.0),
    }
    if name not in functions:
        pytest.skip(f"neither rlax nor optax has {name}")
    given = [data[key] for key in ("reward", "discount", "values")] if name == "gae" else inputs(name, data)
    program, arrays = jax.jit(functions[name]), [np.asarray(tensor.numpy()) for tensor in given]
    return lambda: jax.block_until_ready(program(*arrays))


def torchrl(name, data):
    """Its vectorized functions, in their own layout [batch, time, 1]; there is none for the other names."""
    functional = pytest.importorskip("torchrl.objectives.value.functional")
    x = {key: data[key].T[..., None].contiguous() for key in ("reward", "value", "next_value", "ratio")}
    reward, value, following, ratio = x.values()
    done = torch.zeros_like(reward, dtype=torch.bool)
    policy, behaviour = ratio.log(), torch.zeros_like(ratio)
    functions = {
        "gae": lambda: functional.vec_generalized_advantage_estimate(DISCOUNT, LAMBDA, value, following, reward, done, done)[0],
        "lambda_return": lambda: functional.vec_td_lambda_return_estimate(DISCOUNT, LAMBDA, following, reward, done, done),
        "v_trace": lambda: functional.vtrace_advantage_estimate(DISCOUNT, policy, behaviour, value, following, reward, done, done)[::-1],
    }
    if name not in functions:
        pytest.skip(f"torchrl has no function for {name}")
    return functions[name]


def tensors(results, like):
    """Anybody's results as tensors of our shapes."""
    results = results if isinstance(results, (tuple, list)) else [results]
    found = [torch.tensor(numpy.asarray(result)) for result in results]
    return [tensor[..., 0].T if tensor.dim() == 3 and tensor.shape[-1] == 1 else tensor.reshape(ours.shape) for tensor, ours in zip(found, like, strict=True)]


@pytest.mark.parametrize("make", [eager, compiled, ahead_of_time, rlax_jit, torchrl], ids=lambda make: make.__name__)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
@pytest.mark.parametrize("name", CASES)
def test_speed(benchmark, name, shape, make):
    benchmark.group = f"{name} {shape[0]}x{shape[1]}"
    data = problem(shape)
    function = make(name, data)
    ours = eager(name, data)()
    ours = list(ours) if isinstance(ours, tuple) else [ours]
    torch.testing.assert_close(tensors(function(), ours), ours, rtol=1e-3, atol=1e-3)
    benchmark(function)
