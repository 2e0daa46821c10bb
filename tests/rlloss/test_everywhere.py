"""Every loss of the library under vmap, grad, make_fx, torch.compile and in every precision, against itself in eager."""

import dataclasses
import inspect
import re

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

import rlloss
from tests.rlloss.every import VALUE_LOSSES, name
from tests.rlloss.test_returns import ESTIMATES, trajectory
from tests.rlloss.test_targets import TARGETS, problem

X, Y = (torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
LABEL, WEIGHTS = Y.softmax(-1), {"0.weight": X, "0.bias": X[0]}
OBSERVED = rlloss.Observed(WEIGHTS, X, torch.tensor([0, 1, 2, 3]), X, Y, X, X[:, 0], Y, torch.tensor([True, True, False, True]))


def _value(loss):
    target = loss.of_return(Y[:, 0])
    slope = torch.linspace(0.5, 1, loss.outputs, dtype=torch.float64)
    return lambda loss, x: loss(x[:, :1].expand(4, loss.outputs) * _beside(x, slope), _beside(x, target))


def _beside(x, tensor):
    """A tensor where x is, and of its dtype unless it holds integers."""
    return tensor.to(x.device, x.dtype if tensor.is_floating_point() else tensor.dtype)


def _of_class(cls):
    """A call of a dataclass with a tensor that it differentiates, or None for what isn't a loss of one."""
    if issubclass(cls, rlloss.Penalty):
        beside = lambda x: pytree.tree_map(lambda tensor: _beside(x, tensor), OBSERVED)  # noqa: E731
        return lambda loss, x: loss(beside(x)._replace(parameters={"weight": x}, action_values=x, features=x, logits=x))
    if cls in (rlloss.BinaryCrossEntropy, rlloss.BinaryFocal, rlloss.CrossEntropy, rlloss.Focal):
        return lambda loss, x: loss(x, _beside(x, LABEL))
    if "advantage" in inspect.signature(cls.__call__).parameters:
        return lambda loss, x: loss(x, _beside(x, X + 0.1 * Y), _beside(x, Y))
    return None


CLASSES = [value for value in vars(rlloss).values() if inspect.isclass(value) and dataclasses.is_dataclass(value)]
CALLS = [(loss, _value(loss)) for loss in VALUE_LOSSES]
CALLS += [(cls(), call) for cls in CLASSES if cls is not rlloss.Penalty and (call := _of_class(cls))]
every = pytest.mark.parametrize(("loss", "call"), CALLS, ids=[name(loss) for loss, _ in CALLS])


def test_no_loss_is_forgotten():
    """Every dataclass of the library is called somewhere: here, or as a target, an estimator or a transform in its own test."""
    called = {type(loss) for loss, _ in CALLS} | {type(target) for target in TARGETS}
    elsewhere = {"GAE", "TDLambda", "NStep", "VTrace", "Retrace", "PengQLambda", "WatkinsQLambda", "Identity", "SignedLog", "SignedHyperbolic", "Affine", "PopArt"}
    bases = {"ScalarHead", "Categorical", "Penalty"}
    assert {cls.__name__ for cls in CLASSES} - {cls.__name__ for cls in called} == elsewhere | bases


@every
def test_one_vmap_serves_runs_with_their_own_hyperparameters(loss, call):
    leaves, structure = pytree.tree_flatten(loss)
    runs = [[leaf * factor if abs(leaf) < 1e30 else leaf for leaf in leaves] for factor in (1.0, 0.9, 0.8)]
    stacked = pytree.tree_unflatten([torch.tensor(column) for column in zip(*runs, strict=True)], structure) if leaves else loss
    x = torch.stack([X, X + 0.1, X - 0.1])
    together = torch.func.vmap(call, in_dims=(0 if leaves else None, 0))(stacked, x)
    alone = torch.stack([call(pytree.tree_unflatten(run, structure), row) for run, row in zip(runs, x, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    assert torch.func.vmap(call, in_dims=(0 if leaves else None, 0))(stacked, x.bfloat16()).dtype == torch.bfloat16


@every
def test_a_traced_gradient_is_the_eager_one(loss, call):
    gradient = torch.func.grad(lambda x: call(loss, x).sum())
    torch.testing.assert_close(make_fx(gradient)(X.clone())(X + 0.1), gradient(X + 0.1), rtol=1e-6, atol=1e-7)


@every
def test_no_graph_break(loss, call):
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: call(loss, x), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), call(loss, X), rtol=1e-6, atol=1e-7)


@every
def test_precisions(loss, call):
    exact = call(loss, X.double())
    assert exact.dtype == torch.float64
    torch.testing.assert_close(call(loss, X), exact.float(), rtol=1e-4, atol=1e-5)
    rough = call(loss, X.bfloat16())
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.double(), exact, rtol=0.1, atol=0.1)


@every
def test_any_device(loss, call):
    """The meta device refuses to mix with the CPU, as a GPU does: every constant must be made where the input is."""
    found = call(loss, X.to("meta"))
    assert found.device.type == "meta" and found.shape == call(loss, X).shape


@pytest.mark.parametrize("estimate", ESTIMATES.values(), ids=ESTIMATES)
def test_returns_have_no_graph_break_and_keep_precision(estimate):
    torch._dynamo.reset()
    data = trajectory()
    compiled = torch.compile(estimate, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(data), estimate(data))
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.3)):
        rough = estimate(rlloss.Trajectory(*(tensor.to(dtype) for tensor in data)))
        assert rough.dtype == dtype
        torch.testing.assert_close(rough.double(), estimate(data), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("target", TARGETS, ids=repr)
def test_targets_have_no_graph_break(target):
    torch._dynamo.reset()
    for head in (rlloss.MSE(), rlloss.C51(11, -5.0, 5.0)):
        step = problem(head)
        networks = step.target(), step.online(), step.current()

        def with_networks(target_outputs, online, current, step=step, head=head):
            step = step._replace(target=lambda: target_outputs, online=lambda: online, current=lambda: current)
            return target(head, step)

        compiled = torch.compile(with_networks, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(*networks), with_networks(*networks))


def test_the_real_compiler_agrees_with_eager():
    """One program of many losses, since the compiler takes seconds for each; of runs that share their hyperparameters."""
    torch._dynamo.reset()
    kinds = [rlloss.HLGauss(21, -9.0, 9.0), rlloss.C51(21, -9.0, 9.0), rlloss.QuantileHuber(6), rlloss.Robust(0.5), rlloss.LogCosh(), rlloss.PseudoHuber(), rlloss.Focal(), rlloss.PPOClip()]
    calls = [(loss, call) for loss, call in CALLS if any(type(loss) is type(kind) for kind in kinds)]
    gradients = torch.func.vmap(torch.func.grad(lambda x: sum(call(loss, x).sum() for loss, call in calls)))
    runs = torch.stack([X, -X, 2 * X])
    torch.testing.assert_close(torch.compile(gradients, fullgraph=True)(runs), gradients(runs), rtol=1e-4, atol=1e-5)


PUBLIC = [getattr(rlloss, each) for each in rlloss.__all__]
PROTOCOLS = {"ClassificationLoss", "RunningTransform", "ValueLoss", "Target", "Transform", "ReturnEstimator", "PolicyLoss", "Regularizer"}
RECORDS = {"Step", "Trajectory", "Estimate", "Observed", "Objective", "Moments", "ScalarTarget", "frozen", "register"}


@pytest.mark.parametrize("value", PUBLIC, ids=lambda value: value.__name__)
def test_every_public_name_is_documented(value):
    text = inspect.getdoc(value)
    assert text and text.splitlines()[0].rstrip().endswith((".", ":"))
    if value.__name__ in PROTOCOLS | RECORDS:
        return
    assert re.search(r"\n\n    \S", text), "no formula"
    assert re.search(r"^For: .+", text, re.M) and re.search(r"^Source: .+", text, re.M)
    if inspect.isfunction(value):
        # Small helpers say shapes in their sentence.
        assert "[" in text or "0-dim" in text or "Args:" in text
        for parameter in inspect.signature(value).parameters if "Args:" in text else ():
            assert re.search(rf"^    {parameter}: ", text, re.M), f"{parameter} is not explained"
        if re.search(r"same_shape\(|floats_of_one_shape\(", inspect.getsource(value)):
            assert "Raises:" in text, "the error of unequal shapes is not named"
    for member_name, member in vars(value).items() if inspect.isclass(value) else ():
        if inspect.isfunction(member) and not member_name.startswith("_"):
            assert inspect.getdoc(member), f"{member_name} has no docstring"
