"""One-step targets against rlax, loops written from the papers, and known limits, for every kind of head."""

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch

from rlloss import (
    C51,
    MSE,
    SARSA,
    AdvantageLearning,
    ClippedDoubleQLearning,
    DoubleQLearning,
    ExpectedSARSA,
    HLGauss,
    MunchausenQLearning,
    PersistentAdvantageLearning,
    QLearning,
    QuantileHuber,
    SignedLog,
    SoftQLearning,
    Step,
    lowest_outputs,
)

TARGETS = [
    QLearning(),
    DoubleQLearning(),
    ClippedDoubleQLearning(),
    SARSA(),
    ExpectedSARSA(0.3),
    SoftQLearning(0.5),
    MunchausenQLearning(0.5, 0.9, -1.0),
    AdvantageLearning(0.4),
    PersistentAdvantageLearning(0.4),
]
HEADS = [MSE(), MSE(transform=SignedLog()), HLGauss(), C51(201, -50.0, 50.0), QuantileHuber(7)]
every_target = pytest.mark.parametrize("target", TARGETS, ids=repr)
every_head = pytest.mark.parametrize("head", HEADS, ids=lambda head: type(head).__name__)


def problem(head=None, batch=32, actions=5, seed=3):
    """A batch of transitions with three networks' outputs."""
    head, generator = head or MSE(), torch.Generator().manual_seed(seed)
    target, online, current = (torch.randn(batch, actions, head.outputs, generator=generator) for _ in range(3))
    discount = 0.9 * (torch.rand(batch, generator=generator) > 0.3).float()
    action, next_action = (torch.randint(actions, (batch,), generator=generator) for _ in range(2))
    return Step(torch.randn(batch, generator=generator), discount, action, lambda: target, lambda: online, lambda: current, next_action)


def loop(target, step, head):
    """Each paper's formula on expected values, one transition at a time."""
    q_target, q_online, q_current = (head.value(network()).double().tolist() for network in (step.target, step.online, step.current))
    found = []
    rows = zip(step.reward.tolist(), step.discount.tolist(), step.action.tolist(), step.next_action.tolist(), strict=True)
    for row, (r, d, a, next_a) in enumerate(rows):
        following, online, current = q_target[row], q_online[row], q_current[row]
        best, chosen = int(np.argmax(following)), int(np.argmax(online))
        gap = max(current) - current[a]
        match target:
            case QLearning():
                y = r + d * max(following)
            case DoubleQLearning():
                y = r + d * following[chosen]
            case ClippedDoubleQLearning():
                y = r + d * min(following[chosen], online[chosen])
            case SARSA():
                y = r + d * following[next_a]
            case ExpectedSARSA(epsilon=epsilon):
                y = r + d * ((1 - epsilon) * following[best] + epsilon * sum(following) / len(following))
            case SoftQLearning(temperature=t):
                y = r + d * t * math.log(sum(math.exp(q / t) for q in following))
            case MunchausenQLearning(temperature=t, alpha=alpha, lowest=lowest):
                log_policy = current[a] / t - math.log(sum(math.exp(q / t) for q in current))
                y = r + alpha * min(max(t * log_policy, lowest), 0) + d * t * math.log(sum(math.exp(q / t) for q in following))
            case AdvantageLearning(alpha=alpha):
                y = r - alpha * gap + d * max(following)
            case PersistentAdvantageLearning(alpha=alpha):
                y = max(r - alpha * gap + d * max(following), r + d * following[a])
        found.append(y)
    return torch.tensor(found)


@every_target
@every_head
def test_the_expected_target_is_the_papers(target, head):
    step = problem(head)
    torch.testing.assert_close(head.expected(target(head, step)), loop(target, step, head), rtol=1e-3, atol=1e-3)


@every_target
@every_head
def test_what_is_not_allowed_is_as_if_it_did_not_exist(target, head):
    """Each row's target is that of a problem from which the forbidden actions are left out, the action taken first."""
    step, generator = problem(head), torch.Generator().manual_seed(1)
    allowed, next_allowed = (torch.rand(32, 5, generator=generator) < 0.5 for _ in range(2))
    allowed.scatter_(1, step.action[:, None], True)
    next_allowed.scatter_(1, step.next_action[:, None], True)
    found = target(head, step._replace(allowed=allowed, next_allowed=next_allowed))
    for row, (a, next_a) in enumerate(zip(step.action.tolist(), step.next_action.tolist(), strict=True)):
        here, there = ([a] * bool(mask[row, a]) + [b for b in range(5) if mask[row, b] and b != a] for mask in (allowed, next_allowed))
        kept = {"target": there, "online": there, "current": here}
        networks = {name: functools.partial(torch.index_select, getattr(step, name)()[row, None], 1, torch.tensor(actions)) for name, actions in kept.items()}
        one = Step(*(tensor[row, None] for tensor in step[:2]), torch.tensor([0]), **networks, next_action=torch.tensor([there.index(next_a)]))
        # An action that can't be repeated leaves advantage learning.
        fitting = AdvantageLearning(target.alpha) if isinstance(target, PersistentAdvantageLearning) and not next_allowed[row, a] else target
        torch.testing.assert_close(found[row, None], fitting(head, one), rtol=1e-4, atol=1e-5)


@every_target
def test_targets_differ(target):
    found = [other(MSE(), problem()) for other in TARGETS]
    assert sum(torch.allclose(target(MSE(), problem()), other) for other in found) == 1


@every_target
@every_head
def test_targets_have_no_gradient(target, head):
    step = problem(head)
    networks = [network().requires_grad_() for network in (step.target, step.online, step.current)]
    step = step._replace(**{name: lambda x=x: x * 1 for name, x in zip(("target", "online", "current"), networks, strict=True)})
    assert not target(head, step).requires_grad


@every_target
def test_a_terminated_transition_ignores_the_next_state(target):
    step = problem()._replace(discount=torch.zeros(32))
    other = step._replace(target=problem(seed=8).target, online=problem(seed=9).online)
    torch.testing.assert_close(target(MSE(), step), target(MSE(), other))


def test_networks_are_asked_only_where_needed():
    def forbidden():
        raise AssertionError

    QLearning()(MSE(), problem()._replace(online=forbidden, current=forbidden))
    DoubleQLearning()(MSE(), problem()._replace(current=forbidden))
    SoftQLearning()(MSE(), problem()._replace(online=forbidden, current=forbidden))


def test_limits():
    step, head = problem(), MSE()
    torch.testing.assert_close(ExpectedSARSA(0.0)(head, step), QLearning()(head, step))
    torch.testing.assert_close(SoftQLearning(1e-4)(head, step), QLearning()(head, step), rtol=0, atol=1e-3)
    torch.testing.assert_close(MunchausenQLearning(0.5, 0.0)(head, step), SoftQLearning(0.5)(head, step))
    torch.testing.assert_close(AdvantageLearning(0.0)(head, step), QLearning()(head, step))
    same = step._replace(online=step.target)
    assert torch.equal(DoubleQLearning()(head, same), QLearning()(head, same))
    assert torch.equal(ClippedDoubleQLearning()(head, same), QLearning()(head, same))
    assert (ClippedDoubleQLearning()(head, step) <= DoubleQLearning()(head, step)).all()


def test_rlax_agrees():
    rlax, jax = pytest.importorskip("rlax"), pytest.importorskip("jax")
    step = problem()
    q, online, current = (network()[..., 0].numpy() for network in (step.target, step.online, step.current))
    a, next_a, r, d = (tensor.numpy() for tensor in (step.action, step.next_action, step.reward, step.discount))

    def errors(target):
        return target(MSE(), step) - torch.tensor(current)[torch.arange(32), step.action]

    for target, expected in [
        (QLearning(), jax.vmap(rlax.q_learning)(current, a, r, d, q)),
        (DoubleQLearning(), jax.vmap(rlax.double_q_learning)(current, a, r, d, q, online)),
        (SARSA(), jax.vmap(rlax.sarsa)(current, a, r, d, q, next_a)),
        (ExpectedSARSA(0.2), jax.vmap(rlax.expected_sarsa)(current, a, r, d, q, np.array(0.8 * np.eye(5)[q.argmax(-1)] + 0.04, np.float32))),
    ]:
        torch.testing.assert_close(errors(target), torch.tensor(np.array(expected)), rtol=1e-5, atol=1e-5)


def test_a_mixture_of_distributions_is_a_distribution():
    head = C51(51, -10.0, 10.0)
    found = SoftQLearning(1.0)(head, problem(head))
    assert found.shape == (32, 51) and (found >= 0).all()
    torch.testing.assert_close(found.sum(-1), torch.ones(32))


def test_the_lowest_critic_is_chosen_row_by_row():
    critics = torch.tensor([[[1.0, 3.0], [9.0, 9.0]], [[4.0, 4.0], [0.0, 2.0]]])
    assert lowest_outputs(QuantileHuber(2), critics).tolist() == [[1.0, 3.0], [0.0, 2.0]]


def test_sarsa_needs_next_actions():
    with pytest.raises(ValueError, match="SARSA needs the next action"):
        SARSA()(MSE(), problem()._replace(next_action=None))


@every_target
def test_every_run_of_a_population_may_have_its_own_numbers(target):
    names = [field.name for field in dataclasses.fields(target)]
    runs = [dataclasses.replace(target, **{name: getattr(target, name) * factor for name in names}) for factor in (1.0, 0.9)]
    stacked = dataclasses.replace(target, **{name: torch.tensor([getattr(run, name) for run in runs]) for name in names})
    step = problem()
    expected = torch.stack([run(MSE(), step) for run in runs])
    torch.testing.assert_close(torch.func.vmap(lambda target, _: target(MSE(), step))(stacked, torch.zeros(2)), expected)
    assert not names or not torch.equal(expected[0], expected[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExpectedSARSA(1.5), "epsilon must be at least 0 and at most 1"),
        (lambda: SoftQLearning(0.0), "temperature must be greater than 0"),
        (lambda: MunchausenQLearning(alpha=-0.1), "alpha must be"),
        (lambda: MunchausenQLearning(lowest=1.0), "lowest must be"),
        (lambda: AdvantageLearning(1.0), "alpha must be"),
    ],
)
def test_ranges(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@every_target
@every_head
def test_networks_at_an_end_may_say_anything(target, head):
    step = problem(head)
    ended = step.discount == 0
    broken = lambda network: lambda: torch.where(ended[:, None, None], math.nan, network())  # noqa: E731
    found = target(head, step._replace(target=broken(step.target), online=broken(step.online)))
    assert ended.any() and found.isfinite().all()
    torch.testing.assert_close(found, target(head, step), rtol=1e-4, atol=1e-5)
