"""Returns against loops written from the papers, rlax (without cuts, which it can't express), and identities."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlloss.off_policy_returns import PengQLambda, Retrace, VTrace, WatkinsQLambda, peng_q_lambda, retrace, v_trace, watkins_q_lambda
from rlloss.returns import GAE, NStep, TDLambda, Trajectory, gae, lambda_return, linear_recurrence, n_step_return

TIME, BATCH = 23, 6


def trajectory(seed=0, cuts=True, time=TIME):
    """Random rewards and values in float64, with terminations and cuts in the middle; next values differ at cuts."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(time, BATCH, generator=generator, dtype=torch.float64)  # noqa: E731
    terminated = (torch.rand(time, BATCH, generator=generator) < 0.1).double() * cuts
    truncated = (torch.rand(time, BATCH, generator=generator) < 0.15).double() * (1 - terminated) * cuts
    value, last = draw(), draw()
    ended = (terminated + truncated) > 0
    next_value = torch.where(ended, last, torch.cat([value[1:], last[:1]]))
    return Trajectory(draw(), 0.9 * (1 - terminated), truncated, value, next_value, torch.exp(0.7 * draw()))


def backwards(step, truncated):
    """Runs a paper's recursion from the last row to the first, one column at a time."""
    result = np.zeros((TIME, BATCH))
    for column in range(BATCH):
        following = None
        for t in reversed(range(TIME)):
            cut = t == TIME - 1 or truncated[t, column]
            following = step(t, column, None if cut else following)
            result[t, column] = following
    return torch.tensor(result)


def arrays(data):
    return tuple(tensor.numpy() for tensor in data)


@given(st.integers(1, 70) | st.integers(500, 600), st.integers(0, 1000))
def test_the_recurrence_is_the_loop(time, seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(time, 3, 2, generator=generator, dtype=torch.float64), 3 * torch.rand(time, 3, 2, generator=generator, dtype=torch.float64) - 1
    b = torch.where(torch.rand(time, 3, 2, generator=generator) < 0.2, 0.0, b)
    last = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    for behind, x in [((), torch.zeros(3, 2, dtype=torch.float64)), ((last,), last)]:
        rows = []
        for t in reversed(range(time)):
            x = a[t] + b[t] * x
            rows.append(x)
        torch.testing.assert_close(linear_recurrence(a, b, *behind), torch.stack(rows[::-1]), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(linear_recurrence(a[:, 0, 0], b[:, 0, 0], last[0, 0]), torch.stack(rows[::-1])[:, 0, 0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("largest", [1.5, 4.0, 1e6])
def test_the_recurrence_is_the_loop_where_products_overflow(largest):
    """Factors that grow over hundreds of rows of zeros, then a number and a cut, as NumPy multiplies them one after another."""
    a, b = np.zeros((1536, 3), np.float32), np.random.default_rng(0).uniform(1, largest, (1536, 3)).astype(np.float32)
    a[0, 0], b[0, 0] = 1, 0
    a[200::200, 1], b[199::200, 1] = 1, 0
    x, rows = np.zeros(3, np.float32), []
    for a_t, b_t in zip(a[::-1], b[::-1], strict=True):
        x = a_t + b_t * x
        rows.append(x)
    assert np.isfinite(rows).all()
    assert torch.equal(linear_recurrence(torch.tensor(a), torch.tensor(b)), torch.tensor(np.stack(rows[::-1])))
    data = [torch.zeros(1536, 2), torch.full((1536, 2), 0.99), *[torch.zeros(1536, 2)] * 3, torch.full((1536, 2), largest)]
    for leak in (0.0, 0.5):
        assert torch.equal(torch.stack(v_trace(*data, clip_trace=largest, leak=leak)), torch.zeros(2, 1536, 2))


def test_the_recurrence_takes_few_operations_and_has_gradients():
    a, b = (torch.rand(2048, 8, requires_grad=True) for _ in range(2))
    graph = torch.fx.experimental.proxy_tensor.make_fx(lambda a, b: linear_recurrence(a, b))(a.detach(), b.detach())
    assert len(graph.graph.nodes) < 256  # Not 2,048 or more.
    small = [torch.rand(*shape, dtype=torch.float64, requires_grad=True) for shape in [(9, 2), (9, 2), (2,)]]
    assert torch.autograd.gradcheck(linear_recurrence, small)


@pytest.mark.parametrize("lambda_", [0.0, 0.6, 1.0])
def test_lambda_return_is_a_loop(lambda_):
    data = trajectory()
    r, d, cut, _, v, _ = arrays(data)

    def step(t, i, following):
        return r[t, i] + d[t, i] * (v[t, i] if following is None else (1 - lambda_) * v[t, i] + lambda_ * following)

    torch.testing.assert_close(lambda_return(data.reward, data.discount, data.truncated, data.next_value, lambda_), backwards(step, cut))


@pytest.mark.parametrize("n", [1, 2, 5, 100])
def test_n_step_return_is_a_loop(n):
    data = trajectory()
    r, d, cut, _, v, _ = arrays(data)
    expected = np.zeros((TIME, BATCH))
    for i in range(BATCH):
        for start in range(TIME):
            total, product = 0.0, 1.0
            for t in range(start, min(start + n, TIME)):
                total, product = total + product * r[t, i], product * d[t, i]
                if cut[t, i]:
                    break
            expected[start, i] = total + product * v[t, i]
    torch.testing.assert_close(n_step_return(data.reward, data.discount, data.truncated, data.next_value, n), torch.tensor(expected))


@pytest.mark.parametrize("lambda_", [0.0, 0.6, 1.0])
def test_gae_is_a_loop(lambda_):
    data = trajectory()
    r, d, cut, v, following_v, _ = arrays(data)

    def step(t, i, following):
        return r[t, i] + d[t, i] * following_v[t, i] - v[t, i] + d[t, i] * lambda_ * (following or 0.0)

    torch.testing.assert_close(gae(*data[:5], lambda_), backwards(step, cut))


@pytest.mark.parametrize("leak", [0.0, 0.3])
def test_v_trace_is_a_loop(leak):
    data = trajectory()
    r, d, cut, v, following_v, w = arrays(data)
    clip = lambda x, limit: (1 - leak) * min(x, limit) + leak * x  # noqa: E731
    targets, advantages = np.zeros((TIME, BATCH)), np.zeros((TIME, BATCH))
    for i in range(BATCH):
        for t in reversed(range(TIME)):
            last = t == TIME - 1 or cut[t, i]
            delta = clip(w[t, i], 1.2) * (r[t, i] + d[t, i] * following_v[t, i] - v[t, i])
            behind = 0.0 if last else targets[t + 1, i] - v[t + 1, i]
            targets[t, i] = v[t, i] + delta + d[t, i] * 0.9 * clip(w[t, i], 0.8) * behind
            bootstrap = following_v[t, i] if last else targets[t + 1, i]
            advantages[t, i] = clip(w[t, i], 1.1) * (r[t, i] + d[t, i] * bootstrap - v[t, i])
    found = v_trace(*data, 0.9, 1.2, 0.8, 1.1, leak)
    torch.testing.assert_close(found.value_target, torch.tensor(targets))
    torch.testing.assert_close(found.advantage, torch.tensor(advantages))


def test_retrace_and_watkins_are_loops():
    data = trajectory()
    r, d, cut, q, v, w = arrays(data)

    def step(t, i, following):
        correction = 0.0 if following is None else 0.8 * min(1, w[t + 1, i]) * (following - q[t + 1, i])
        return r[t, i] + d[t, i] * (v[t, i] + correction)

    torch.testing.assert_close(retrace(*data, 0.8), backwards(step, cut))

    greedy = w > 1

    def step(t, i, following):
        on = 0.8 * (following is not None and greedy[t + 1, i])
        return r[t, i] + d[t, i] * ((1 - on) * v[t, i] + on * (following or 0.0))

    found = watkins_q_lambda(data.reward, data.discount, data.truncated, data.next_value, torch.tensor(greedy), 0.8)
    torch.testing.assert_close(found, backwards(step, cut))

    def step(t, i, following):
        return r[t, i] + d[t, i] * (v[t, i] if following is None else 0.2 * v[t, i] + 0.8 * following)

    torch.testing.assert_close(peng_q_lambda(*data[:3], data.next_value, 0.8), backwards(step, cut))


def test_gae_is_the_golden_row():
    value = torch.tensor([1.0, 4.0, -3.0, -2.0, -1.0, -1.0])[:, None]
    reward, discount = torch.tensor([0.0, 0.0, 1.0, 0.0, -0.5])[:, None], torch.full((5, 1), 0.99)
    found = gae(reward, discount, torch.zeros(5, 1), value[:-1], value[1:], 0.7)
    torch.testing.assert_close(found[:, 0], torch.tensor([-0.676979, -5.248167, 2.4846, 0.6704, -0.49]), rtol=0, atol=5e-5)


def test_rlax_agrees():
    rlax, jax = pytest.importorskip("rlax"), pytest.importorskip("jax")
    data = Trajectory(*(tensor.float() for tensor in trajectory(cuts=False)))
    r, d, _, v, following, w = arrays(data)
    column = lambda f, *more: jax.vmap(f, in_axes=1, out_axes=1)(*more)  # noqa: E731
    check = lambda found, expected: torch.testing.assert_close(found, torch.tensor(np.array(expected)), rtol=1e-4, atol=1e-4)  # noqa: E731
    whole = np.concatenate([v, following[-1:]])
    check(gae(*data[:5], 0.8), column(lambda r, d, v: rlax.truncated_generalized_advantage_estimation(r, d, 0.8, v), r, d, whole))
    check(lambda_return(*data[:3], data.next_value, 0.8), column(lambda r, d, v: rlax.lambda_returns(r, d, v, 0.8), r, d, following))
    check(n_step_return(*data[:3], data.next_value, 3), column(lambda r, d, v: rlax.n_step_bootstrapped_returns(r, d, v, 3), r, d, following))
    expected = column(lambda v, f, r, d, w: rlax.vtrace_td_error_and_advantage(v, f, r, d, w, 0.9, 1.0, 1.0), v, following, r, d, w)
    found = v_trace(*data, 0.9)
    check(found.value_target - data.value, expected.errors)
    leaky = column(lambda v, f, r, d, w: rlax.leaky_vtrace(v, f, r, d, w, 0.6, 0.9), v, following, r, d, w)
    check(v_trace(*data, 0.9, leak=0.4).value_target - data.value, leaky)
    retraced = column(lambda q, v, r, d, c: rlax.general_off_policy_returns_from_q_and_v(q, v, r, d, c), v[1:], following, r, d, 0.9 * np.minimum(1, w[1:]))
    check(retrace(*data, 0.9), retraced)


@given(st.integers(0, 10_000))
def test_identities(seed):
    data = trajectory(seed)
    arguments = data.reward, data.discount, data.truncated
    whole = lambda_return(*arguments, data.next_value, 1.0)
    torch.testing.assert_close(gae(*data[:5], 1.0), whole - data.value)
    torch.testing.assert_close(lambda_return(*arguments, data.next_value, 0.0), data.reward + data.discount * data.next_value)
    torch.testing.assert_close(n_step_return(*arguments, data.next_value, 1), data.reward + data.discount * data.next_value)
    torch.testing.assert_close(n_step_return(*arguments, data.next_value, TIME), whole)
    torch.testing.assert_close(gae(*data[:5], 0.7) + data.value, lambda_return(*arguments, data.next_value, 0.7))


@given(st.integers(0, 10_000))
def test_v_trace_on_policy_is_the_lambda_return(seed):
    data = trajectory(seed, cuts=False)._replace(ratio=torch.ones(TIME, BATCH, dtype=torch.float64))
    found = v_trace(*data, 0.8).value_target
    torch.testing.assert_close(found, lambda_return(*data[:3], data.next_value, 0.8))


ESTIMATES = {
    "gae": lambda data: gae(*data[:5], 0.9),
    "lambda": lambda data: lambda_return(*data[:3], data.next_value, 0.9),
    "n_step": lambda data: n_step_return(*data[:3], data.next_value, 4),
    "v_trace": lambda data: torch.stack(v_trace(*data)),
    "retrace": lambda data: retrace(*data, 0.9),
    "watkins": lambda data: watkins_q_lambda(*data[:3], data.next_value, data.ratio > 1, 0.9),
}
every = pytest.mark.parametrize("estimate", ESTIMATES.values(), ids=ESTIMATES)


@every
def test_a_trajectory_cut_in_two_is_two_trajectories(estimate):
    data = trajectory()
    data.truncated[9] = 1
    parts = [Trajectory(*(tensor[rows] for tensor in data)) for rows in (slice(0, 10), slice(10, None))]
    torch.testing.assert_close(estimate(data), torch.cat([estimate(part) for part in parts], dim=-2))


@every
def test_what_lies_behind_a_cut_or_an_end_changes_nothing(estimate):
    data, other = trajectory(), trajectory(seed=1)
    data.truncated[9], data.discount[14] = 1, 0
    for row in (10, 15):
        changed = Trajectory(*(torch.cat([mine[:row], its[row:]]) for mine, its in zip(data, other, strict=True)))
        torch.testing.assert_close(estimate(changed)[..., :row, :], estimate(data)[..., :row, :])


@every
def test_the_next_value_at_an_end_may_be_anything(estimate):
    data = trajectory()
    data.discount[14] = 0
    clean = estimate(data)
    data.next_value[14] = float("nan")
    assert torch.equal(estimate(data), clean)


@every
def test_a_termination_does_not_bootstrap_and_a_truncation_does(estimate):
    data = trajectory()
    data.truncated[9], data.discount[9] = 1, 0.9
    data.discount[14] = 0
    bootstrap = data.next_value.clone()
    bootstrap[9] += 1
    bootstrap[14] += 1
    difference = estimate(data._replace(next_value=bootstrap)) - estimate(data)
    assert (difference[..., 14, :] == 0).all() and (difference[..., 9, :] > 0.1).all()


@every
def test_returns_carry_no_gradient(estimate):
    data = trajectory()
    data = data._replace(**{name: getattr(data, name).requires_grad_() for name in ("reward", "value", "next_value", "ratio")})
    assert not estimate(data).requires_grad


@every
def test_bool_cuts_mean_the_same(estimate):
    data = trajectory()
    assert torch.equal(estimate(data), estimate(data._replace(truncated=data.truncated > 0)))


def test_every_run_of_a_population_may_have_its_own_lambda():
    data, lambdas = trajectory(), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    together = torch.func.vmap(lambda x: GAE(x)(data).advantage)(lambdas)
    torch.testing.assert_close(together, torch.stack([gae(*data[:5], x.item()) for x in lambdas]))


def test_estimators_at_the_seam():
    data = trajectory()
    for estimator, target in [
        (GAE(0.9), lambda_return(*data[:3], data.next_value, 0.9)),
        (TDLambda(0.9), lambda_return(*data[:3], data.next_value, 0.9)),
        (NStep(4), n_step_return(*data[:3], data.next_value, 4)),
        (VTrace(), v_trace(*data).value_target),
        (Retrace(0.9), retrace(*data, 0.9)),
        (PengQLambda(0.9), lambda_return(*data[:3], data.next_value, 0.9)),
        (WatkinsQLambda(0.9), watkins_q_lambda(*data[:3], data.next_value, data.ratio > 0, 0.9)),
    ]:
        torch.testing.assert_close(estimator(data).value_target, target)
    torch.testing.assert_close(GAE(0.9)(data).advantage, TDLambda(0.9)(data).advantage)
    with pytest.raises(ValueError, match="VTrace needs the ratios"):
        VTrace()(data._replace(ratio=None))


def test_an_infinite_ratio_is_clipped():
    data = trajectory()
    data.ratio[3] = float("inf")
    found, clipped = v_trace(*data), v_trace(*data._replace(ratio=data.ratio.clamp(max=5)))
    assert torch.equal(found.value_target, clipped.value_target) and torch.equal(found.advantage, clipped.advantage)


@every
def test_integers_are_refused(estimate):
    data = trajectory()
    with pytest.raises(TypeError, match="reward must be floating point"):
        estimate(data._replace(reward=data.reward.long()))


def test_mistakes_are_refused():
    data = trajectory()
    with pytest.raises(ValueError, match="a hyperparameter must be one number"):
        lambda_return(*data[:3], data.next_value, torch.rand(BATCH))
    with pytest.raises(ValueError, match="never broadcast"):
        gae(data.reward, data.discount[:, :1], *data[2:5], 0.9)
    for call in (lambda: gae(*data[:5], 2.0), lambda: lambda_return(*data[:3], data.next_value, -0.1), lambda: retrace(*data, 1.1), lambda: v_trace(*data, 2.0)):
        with pytest.raises(ValueError, match="lambda_ must be at least 0 and at most 1"):
            call()
    with pytest.raises(ValueError, match="clip_trace must be greater than 0"):
        v_trace(*data, clip_trace=0.0)
    with pytest.raises(ValueError, match="n must be at least 1"):
        n_step_return(*data[:3], data.next_value, 0)
    for make, message in [(lambda: GAE(1.5), "lambda_ must be"), (lambda: VTrace(clip_error=0.0), "clip_error must be"), (lambda: NStep(0), "n must be"), (lambda: NStep(2.5), "n must be a whole number, got 2.5")]:
        with pytest.raises(ValueError, match=message):
            make()


