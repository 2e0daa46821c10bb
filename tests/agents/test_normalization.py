"""Normalised observations against NumPy's mean and variance over everything seen; whose moments are read when; runs that go on exactly."""

import signal

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.utils import _pytree as pytree

from agents import normalization
from agents.config import ConfigError, build, compose
from agents.display import Display
from agents.training import train
from tests.agents.test_actor_critic import NOTHING, made, plain, rollout
from tests.events import scalars
from tests.stopping import same

SMALL = ["agent=ppo", "agent.normalize_observations=true", "loss/value/transform=popart", "network.hidden=[8]", "agent.rollout=16", "num_envs=2"]
SMALL += ["total_steps=160", "log_every=32", "checkpoint_every=0", "evaluation.every=64", "evaluation.episodes=2", "compile=false"]


@pytest.mark.parametrize(("offset", "deviation"), [(0, 1), (1e6, 1), (-1e6, 100), (1e-3, 1e-6), (5, 0)])
def test_moments_are_those_of_everything_seen(offset, deviation):
    rng, batches, moments = np.random.default_rng(0), [], normalization.unseen((3,))
    for size in (1, 7, 64, 1, 1000, *[256] * 40):
        batches.append((offset + len(batches) * deviation / 10 + deviation * rng.normal(size=(size, 3))).astype(np.float32))
        moments = normalization.seen(moments, torch.from_numpy(batches[-1]))
        everything = np.concatenate(batches).astype(float)
        assert moments.count.item() == len(everything)
        np.testing.assert_allclose(moments.mean, everything.mean(0), rtol=1e-12)
        np.testing.assert_allclose(moments.variance, everything.var(0), rtol=1e-9, atol=1e-20)
    normalized = normalization.normalized(moments, torch.from_numpy(everything).float())
    expected = (everything - everything.mean(0)) / np.sqrt(everything.var(0) + 1e-8)
    np.testing.assert_allclose(normalized, expected, atol=0.05 if abs(offset) == 1e6 else 1e-3)  # At a million float32 counts in sixteenths.


def test_what_lies_far_off_is_cut_and_before_anything_was_seen_nothing_else_happens():
    x = torch.tensor([[-3.0, 0.5], [40.0, -11.0]])
    torch.testing.assert_close(normalization.normalized(normalization.unseen((2,)), x), torch.tensor([[-3.0, 0.5], [10.0, -10.0]]))


def test_the_policy_is_that_which_acted_and_values_are_those_of_all_that_was_seen():
    agent = made(normalize_observations=True)
    state, memory, seen = rollout(agent)
    earlier = torch.randn(50, 5) * 3 + 2
    state = state._replace(moments=normalization.seen(state.moments, earlier))
    found = agent.refresh(state, memory, torch.rand(agent.plan(4).refresh_uniforms), *NOTHING[1:])

    observation, following = (torch.from_numpy(seen[name].reshape(-1, 5).copy()) for name in ("observation", "next_observation"))
    before, everything = earlier.double(), torch.cat([earlier, observation]).double()
    old, new = (lambda x, of=of: ((x - of.mean(0)) / (of.var(0, correction=0) + 1e-8).sqrt()).float() for of in (before, everything))
    actor, critic = plain(state, agent)
    acted = torch.distributions.Categorical(logits=actor(old(observation))).log_prob(torch.from_numpy(seen["action"].ravel().copy()))
    torch.testing.assert_close(found.behaviour, acted.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.returns - found.advantages, critic(new(observation)).squeeze(-1).detach(), rtol=1e-4, atol=1e-4)
    last = np.flatnonzero(seen["truncated"].ravel())  # Cut at once: the return is one reward and the value of the true last observation.
    expected = seen["reward"].ravel()[last] + 0.9 * critic(new(following)).squeeze(-1).detach().numpy()[last]
    np.testing.assert_allclose(found.returns[last], expected, rtol=1e-4, atol=1e-4)
    _, metrics = agent.update(found, memory, *NOTHING)
    torch.testing.assert_close(metrics["value"], critic(new(observation)).squeeze(-1).detach()[found.order[0]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("agent", ["ppo", "a2c"])
def test_faint_observations_and_large_returns_are_learned(agent):
    words = ["env.id=tests.toys:Faint-v0", "network.hidden=[16]", "optimizer.learning_rate=1e-2", "total_steps=12000", "evaluation.every=0", "checkpoint_every=0", "compile=false"]
    words += ["agent.normalize_observations=true", "loss/value/transform=popart", "loss.target.lambda_=0", "loss.value.transform.step_size=0.1"]
    (result,) = train([build(compose([f"agent={agent}", *words]))])
    assert np.mean(result.evaluation_returns) == 0
    assert torch.allclose(result.learner.moments.mean, torch.tensor(1000.05).double(), atol=0.01) and result.learner.transform.variance > 1000


def test_every_observation_is_seen_once_and_none_of_an_evaluation():
    often, never = (train([build(compose([*SMALL, f"evaluation.every={every}"]))])[0] for every in (16, 0))
    assert often.learner.moments.count == 160 and same(often.learner, never.learner)


class Stopping(Display):
    """Presses Ctrl-C when the fourth episode has ended."""

    def episode(self, episode_return):
        super().episode(episode_return)
        if len(self.recent) == 4:
            signal.raise_signal(signal.SIGINT)


def test_a_stopped_run_goes_on_bitwise_as_if_it_had_not_stopped(tmp_path):
    stopped = train([build(compose(SMALL), tmp_path / "stopped")], display=Stopping(Console()))[0]
    assert not stopped.complete and 32 < stopped.steps < 160 and stopped.learner.moments.count == stopped.steps // 32 * 32
    assert stopped.learner.transform.seen > 0
    resumed = train([build(compose(SMALL), tmp_path / "stopped")], resume=True)[0]
    straight = train([build(compose(SMALL), tmp_path / "straight")])[0]
    assert resumed.complete and same(resumed.learner, straight.learner) and resumed.evaluation_returns == straight.evaluation_returns
    assert scalars(tmp_path / "stopped") == scalars(tmp_path / "straight")


def test_a_run_among_others_has_moments_of_its_own():
    def run(seed):
        return build(compose([*SMALL, f"seed={seed}", f"optimizer.learning_rate={seed}e-3"]))

    together, alone = train([run(seed) for seed in (1, 2, 3)]), train([run(2)])[0]
    assert len({result.learner.moments.mean[0].item() for result in together}) == 3
    for one, other in zip(pytree.tree_leaves(together[1].learner.moments), pytree.tree_leaves(alone.learner.moments), strict=True):
        torch.testing.assert_close(one, other)
    for name, parameter in alone.learner.parameters.items():
        torch.testing.assert_close(together[1].learner.parameters[name], parameter, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("env", ["Picture-v0", "Nested-v0", "Identity-v0"])
def test_images_bits_and_categories_are_refused(env):
    with pytest.raises(ConfigError, match=r"agent\.normalize_observations is for numbers, not for images, bits or categories, but observations are"):
        build(compose(["agent=ppo", f"env.id=tests.toys:{env}", "agent.normalize_observations=true"]))


def test_nothing_is_kept_where_nothing_is_normalised():
    assert made().init(torch.Generator(), 32).moments == ()
