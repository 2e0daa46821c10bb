"""How long returns take on one core: ours eager and compiled, rlax under jit, torchrl.

    taskset -c 0 python -m pytest -m benchmark tests/benchmarks/test_returns_speed.py --benchmark-sort=name --benchmark-columns=median

Compare medians within a group. Compiling takes up to half a minute a function.
"""

from importlib import import_module, util

import pytest
import torch

from rlloss.off_policy_returns import retrace, v_trace
from rlloss.returns import gae, lambda_return, n_step_return

pytest.importorskip("pytest_benchmark")
pytestmark = pytest.mark.benchmark

SHAPES = [(128, 64), (2048, 8)]
DISCOUNT, LAMBDA, STEPS = 0.99, 0.95, 5
OURS = {
    "gae": lambda x: gae(x["reward"], x["discount"], x["truncated"], x["value"], x["next_value"], LAMBDA),
    "lambda_return": lambda x: lambda_return(x["reward"], x["discount"], x["truncated"], x["next_value"], LAMBDA),
    "n_step_return": lambda x: n_step_return(x["reward"], x["discount"], x["truncated"], x["next_value"], STEPS),
    "v_trace": lambda x: v_trace(x["reward"], x["discount"], x["truncated"], x["value"], x["next_value"], x["ratio"]),
    "retrace": lambda x: retrace(x["reward"], x["discount"], x["truncated"], x["value"], x["next_value"], x["ratio"], LAMBDA),
}


@pytest.fixture(autouse=True)
def _one_thread_and_only_on_request(request):
    if "benchmark" not in request.config.option.markexpr:
        pytest.skip("runs with -m benchmark")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def problem(shape):
    """One uninterrupted trajectory a column, which rlax can express too."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(shape[0] + 1, shape[1], generator=generator)
    return {
        "reward": torch.randn(shape, generator=generator),
        "discount": torch.full(shape, DISCOUNT),
        "truncated": torch.zeros(shape),
        "value": values[:-1].contiguous(),
        "next_value": values[1:].contiguous(),
        "ratio": torch.randn(shape, generator=generator).exp(),
    }


def eager(name, data):
    return lambda: OURS[name](data)


def compiled(name, data):
    torch.compiler.reset()
    function = torch.compile(OURS[name], fullgraph=True, dynamic=False)
    return lambda: function(data)


def rlax_jit(name, data):
    """The same over columns; V-trace with its advantages."""
    rlax, jax = pytest.importorskip("rlax"), pytest.importorskip("jax")
    x = {key: jax.numpy.asarray(tensor.numpy()) for key, tensor in data.items()}
    reward, discount, value, following, ratio = (x[key] for key in ("reward", "discount", "value", "next_value", "ratio"))
    last = jax.numpy.concatenate([value, following[-1:]])
    least = jax.numpy.minimum
    function, arrays = {
        "gae": (lambda r, d, v: rlax.truncated_generalized_advantage_estimation(r, d, LAMBDA, v), (reward, discount, last)),
        "lambda_return": (lambda r, d, v: rlax.lambda_returns(r, d, v, LAMBDA), (reward, discount, following)),
        "n_step_return": (lambda r, d, v: rlax.n_step_bootstrapped_returns(r, d, v, STEPS), (reward, discount, following)),
        "v_trace": (rlax.vtrace_td_error_and_advantage, (value, following, reward, discount, ratio)),
        "retrace": (
            lambda q, v, r, d, w: rlax.general_off_policy_returns_from_q_and_v(q[1:], v, r, d, LAMBDA * least(1, w[1:])),
            (value, following, reward, discount, ratio),
        ),
    }[name]
    program = jax.jit(jax.vmap(function, in_axes=1, out_axes=1))
    return lambda: jax.block_until_ready(program(*arrays))


def torchrl(name, data):
    """Its vectorized functions, which want [batch, time, 1]; it has no n-step return and no Retrace as functions."""
    if util.find_spec("torchrl") is None:
        pytest.skip("torchrl isn't installed")
    functional = import_module("torchrl.objectives.value.functional")
    x = {key: tensor.T[..., None].contiguous() for key, tensor in data.items()}
    done = torch.zeros_like(x["reward"], dtype=torch.bool)
    value, following, reward = x["value"], x["next_value"], x["reward"]
    log_ratio = x["ratio"].log()
    zero = torch.zeros_like(log_ratio)
    functions = {
        "gae": lambda: functional.vec_generalized_advantage_estimate(DISCOUNT, LAMBDA, value, following, reward, done, done)[0],
        "lambda_return": lambda: functional.vec_td_lambda_return_estimate(DISCOUNT, LAMBDA, following, reward, done, done),
        "v_trace": lambda: functional.vtrace_advantage_estimate(DISCOUNT, log_ratio, zero, value, following, reward, done, done),
    }
    if name not in functions:
        pytest.skip(f"torchrl has no function for {name}")
    return functions[name]


@pytest.mark.parametrize("make", [eager, compiled, rlax_jit, torchrl], ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def test_speed(benchmark, shape, name, make):
    benchmark.group = f"{name} {shape[0]}x{shape[1]}"
    function = make(name, problem(shape))
    function()  # Compiles.
    benchmark(function)
