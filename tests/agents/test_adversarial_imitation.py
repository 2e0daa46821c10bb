"""Adversarial imitation against plain torch; the environment's reward is never read; experts that are known, exact continuation, runs together."""

import dataclasses

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.utils import _pytree as pytree

from agents import actions, replay
from agents.actor_critic import ActorCritic
from agents.adversarial_imitation import GAIL
from agents.config import ConfigError, build, compose
from agents.demonstrations import Demonstrations, Recording
from agents.environments import Environment
from agents.networks import MLP
from agents.optimizers import SGD
from agents.training import train
from rlloss import BinaryCrossEntropy, BinaryFocal
from tests.agents.test_demonstrations import CARTPOLE, leaning, recorded
from tests.events import scalars
from tests.stopping import goes_on_bitwise

SEEN, ENVIRONMENTS = spaces.Box(-9, 9, (5,), np.float32), 4
ACTIONS = {"discrete": spaces.Discrete(3, start=2), "multi_discrete": spaces.MultiDiscrete([2, 3], start=[1, 0]), "multi_binary": spaces.MultiBinary(2), "box": spaces.Box(-3, 3, (2,), np.float32)}
ZERO = torch.zeros(())


def test_networks_read_actions_as_environments_take_them():
    read = {kind: actions.encode(space, action) for kind, space, action in (
        ("discrete", ACTIONS["discrete"], torch.tensor([0, 2])),
        ("multi_discrete", ACTIONS["multi_discrete"], torch.tensor([[0, 2], [1, 0]])),
        ("multi_binary", ACTIONS["multi_binary"], torch.tensor([[0, 1], [1, 1]])),
        ("box", ACTIONS["box"], torch.tensor([[0.5, -2.0], [3.0, 0.0]])),
    )}  # fmt: skip
    assert read["discrete"].tolist() == [[1, 0, 0], [0, 0, 1]]
    assert read["multi_discrete"].tolist() == [[1, 0, 0, 0, 1], [0, 1, 1, 0, 0]]
    assert read["multi_binary"].tolist() == [[0, 1], [1, 1]]
    assert read["box"].tolist() == [[0.5, -1.0], [1.0, 0.0]]
    assert all(actions.width(ACTIONS[kind]) == found.shape[1] for kind, found in read.items())


def demonstrations(path, space, count=20):
    """Random pairs as demonstrations."""
    rng, told = np.random.default_rng(5), Recording("", SEEN, space)
    for _ in range(count):
        seen, following = rng.normal(size=(2, 5)).astype(np.float32)
        space.seed(int(rng.integers(100)))
        told(0, seen, np.asarray(space.sample()), 0.0, False, False, following)
    told.write(path)
    return Demonstrations(str(path))


@pytest.fixture
def made(tmp_path):
    """Makes an agent, a state with a whole rollout in memory, and the fields of the rollout [environments, time]."""

    def make(kind, noise=0, **choices):
        space = ACTIONS[kind]
        learner = ActorCritic(SEEN, space, 0.9, rollout=8, minibatches=2, network=MLP((8,)), regularizers={})
        agent = GAIL(SEEN, space, demonstrations(tmp_path / "file", space), learner, **{"network": MLP((8,), "tanh"), **choices})
        rng, shape = np.random.default_rng(0), (ENVIRONMENTS, 8)
        records = np.zeros(shape, agent.layout)
        records["observation"], records["next_observation"] = rng.normal(size=(2, *shape, 5))
        records["action"] = rng.normal(size=records["action"].shape) if kind == "box" else rng.integers(0, 2, records["action"].shape)
        records["terminated"] = rng.random(shape) < 0.2
        records["reward"] = np.random.default_rng(noise).normal(size=shape)
        memory = replay.memory(1, *shape, agent.layout)
        memory.numpy()[0] = records.view(np.int32).reshape(*shape, -1)
        state = agent.init(torch.Generator().manual_seed(0), records.size)
        return agent, state, memory[0], records

    return make


def uniforms(agent):
    plan = agent.plan(ENVIRONMENTS)
    generator = torch.Generator().manual_seed(3)
    return torch.rand(plan.refresh_uniforms, generator=generator), torch.rand(plan.update_uniforms, dtype=torch.float64, generator=generator)


def plain(discriminator):
    """The discriminator in torch's own modules."""
    inputs = discriminator["0.weight"].numel() // 8
    module = torch.nn.Sequential(torch.nn.Linear(inputs, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1), torch.nn.Flatten(0))
    with torch.no_grad():
        for parameter, name in zip(module.parameters(), ("0.weight", "0.bias", "head.weight", "head.bias"), strict=True):
            ours = discriminator[name]
            parameter.copy_(ours if ours.shape == parameter.shape else ours.T)
    return module


def row(space, observation, action):
    """Observation and action in one row, by NumPy."""
    parts = {
        spaces.Discrete: lambda: np.eye(3)[action],
        spaces.MultiDiscrete: lambda: np.concatenate([np.eye(2)[action[:, 0]], np.eye(3)[action[:, 1]]], 1),
        spaces.MultiBinary: lambda: action,
        spaces.Box: lambda: np.clip(action, -1, 1),
    }
    return torch.from_numpy(np.concatenate([observation, parts[type(space)]()], 1).astype(np.float32))


@pytest.mark.parametrize("kind", ACTIONS)
def test_the_reward_is_how_much_an_action_is_taken_for_a_demonstrated_one(made, kind):
    agent, state, memory, seen = made(kind)
    shuffle, _ = uniforms(agent)
    rows = seen.reshape(-1)
    with torch.no_grad():
        demonstrated = plain(state.discriminator)(row(agent.action_space, rows["observation"], rows["action"])).sigmoid()
    rewarded = seen.copy()
    rewarded["reward"] = -torch.log(1 - demonstrated).numpy().reshape(seen.shape)
    other = torch.from_numpy(rewarded.view(np.int32).reshape(*seen.shape, -1).copy())
    found = agent.refresh(state, memory, shuffle, ZERO, ZERO)
    expected = agent.learner.refresh(state.learner, other, shuffle, ZERO, ZERO)
    torch.testing.assert_close(found.learner, expected, rtol=1e-4, atol=1e-5)
    assert found.discriminator is state.discriminator and expected.returns.abs().sum() > 0


LOSSES = {
    "cross entropy": (BinaryCrossEntropy(), torch.nn.functional.binary_cross_entropy_with_logits),
    "smoothed": (BinaryCrossEntropy(0.2), lambda x, y: torch.nn.functional.binary_cross_entropy_with_logits(x, 0.8 * y + 0.1)),
    "focal": (BinaryFocal(0.5, 2.0), lambda x, y: (0.5 * (1 - (x * (2 * y - 1)).sigmoid()) ** 2 * -torch.nn.functional.logsigmoid(x * (2 * y - 1))).mean()),
}


@pytest.mark.parametrize(("kind", "loss"), [*((kind, "cross entropy") for kind in ACTIONS), ("box", "smoothed"), ("discrete", "focal")])
def test_the_discriminators_steps_are_those_of_plain_torch(made, kind, loss):
    agent, state, memory, seen = made(kind, optimizer=SGD(0.3, momentum=0.9), classification=LOSSES[loss][0])
    shuffle, draws = uniforms(agent)
    state = agent.refresh(state, memory, shuffle, ZERO, ZERO)
    module, order = plain(state.discriminator), state.learner.order
    optimizer = torch.optim.SGD(module.parameters(), 0.3, momentum=0.9)
    learner = state.learner
    for number in range(3):
        mine = seen.reshape(-1)[order[number].numpy()]
        theirs = (draws * 20).long().numpy()
        pairs = torch.cat([row(agent.action_space, *each) for each in ((mine["observation"], mine["action"]), (agent.demonstrations.observation[theirs], agent.demonstrations.action[theirs]))])
        logits = module(pairs)
        expected = LOSSES[loss][1](logits, torch.arange(32).ge(16).float())
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        learner, told = agent.learner.update(learner, memory, draws[:0], ZERO, ZERO)
        state, metrics = agent.update(state, memory, draws, ZERO, ZERO)
        torch.testing.assert_close(metrics["loss/discriminator"], expected.detach())
        assert metrics["discriminator/accuracy"].item() == pytest.approx(((logits > 0) == (torch.arange(32) >= 16)).float().mean().item())
        torch.testing.assert_close(state.learner, learner)  # Beside it the actor-critic makes the step that it would make alone.
        assert all(metric.equal(metrics[name]) for name, metric in told.items())
    for name, parameter in plain(state.discriminator).named_parameters():
        torch.testing.assert_close(parameter, module.get_parameter(name), rtol=1e-4, atol=1e-5)


def test_the_environments_reward_is_never_read(made):
    ends = []
    for noise in (0, 1):
        agent, state, memory, _ = made("discrete", noise)
        shuffle, draws = uniforms(agent)
        state = agent.refresh(state, memory, shuffle, ZERO, ZERO)
        for _ in range(4):
            state, _ = agent.update(state, memory, draws, ZERO, ZERO)
        ends.append(pytree.tree_leaves(state))
    assert all(one.equal(other) for one, other in zip(*ends, strict=True))


WORDS = ["agent=gail", "network.hidden=[16]", "agent.network.hidden=[16]", "num_envs=4", "agent.learner.rollout=16", "log_every=20", "evaluation.every=0", "evaluation.episodes=2", "evaluation.max_steps=60"]


class Noisy(gymnasium.Wrapper):
    """Rewards that say nothing."""

    def step(self, action):
        observation, _, *rest = self.env.step(action)
        return observation, float(observation[0] % 0.1), *rest


@pytest.fixture
def run(tmp_path):
    """Makes runs that imitate one recording of CartPole."""
    recorded(tmp_path / "file", CARTPOLE, leaning)

    def make(*words, directory=None):
        return build(compose([*WORDS, f"agent.demonstrations.source={tmp_path / 'file'}", *words]), directory)

    return make


def test_a_run_learns_the_same_where_rewards_are_noise(run):
    plain = run("total_steps=256", "compile=false")
    noisy = dataclasses.replace(plain, environment=dataclasses.replace(plain.environment, wrappers={"noisy": Noisy}))
    (one,), (other,) = train([plain]), train([noisy])
    assert one.evaluation_returns != other.evaluation_returns
    assert all(mine.equal(its) for mine, its in zip(pytree.tree_leaves(one.learner), pytree.tree_leaves(other.learner), strict=True))


# Where no action matters for later ones, and a few gradient steps on large minibatches do.
BANDIT = ["num_envs=8", "agent.learner.epochs=2", "agent.learner.minibatches=2", "loss.target.lambda_=0", "agent.learner.discount=0", "agent.optimizer.learning_rate=3e-2", "checkpoint_every=0", "compile=false"]


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "binary_focal"])
def test_an_expert_is_imitated_where_that_pays(tmp_path, loss):
    """Identity-v0 pays for the action that is observed; a random policy gets a third of 10."""
    recorded(tmp_path / "file", Environment("tests.toys:Identity-v0", {"numbers": 3}), lambda seen: seen.astype(np.int64), episodes=10)
    words = ["env.id=tests.toys:Identity-v0", "+env.arguments.numbers=3", f"agent.demonstrations.source={tmp_path / 'file'}", f"loss/classification={loss}", "optimizer.learning_rate=2e-2", "evaluation.episodes=10"]
    words += [*BANDIT, "total_steps=3000"]
    (result,) = train([build(compose([*WORDS, *words]))])
    assert np.mean(result.evaluation_returns) >= 9.5


@pytest.mark.slow
def test_an_expert_is_imitated_in_numbers(tmp_path):
    """Match-v0 costs nothing where the action says what is observed, about 2 a step at worst."""
    recorded(tmp_path / "file", Environment("tests.toys:Match-v0"), lambda seen: seen - 0.5, episodes=10)  # A little off, so as not to be at the bounds.
    words = ["env.id=tests.toys:Match-v0", f"agent.demonstrations.source={tmp_path / 'file'}", "optimizer.learning_rate=1e-2", "agent.learner.gaussian.deviation=0.5", "evaluation.episodes=10"]
    words += [*BANDIT, "num_envs=4", "agent.learner.epochs=4", "agent.learner.minibatches=4", "agent.optimizer.learning_rate=1e-2", "total_steps=8000"]
    (result,) = train([build(compose([*WORDS, *words]))])
    expert = -10 * 2 * 0.25**2
    assert abs(np.mean(result.evaluation_returns) - expert) < 0.6


def test_a_stopped_run_goes_on_bitwise(run, tmp_path):
    goes_on_bitwise(lambda directory: run("total_steps=256", "checkpoint_every=100", directory=directory), tmp_path, 41)
    assert {"loss/discriminator", "discriminator/accuracy", "discriminator/reward", "loss/policy", "rollout/episode_return"} <= {tag for _, tag, _ in scalars(tmp_path / "whole")}


def test_other_demonstrations_are_another_run(run, tmp_path):
    words = ["total_steps=128", "compile=false"]
    train([run(*words, directory=tmp_path / "run")])
    recorded(tmp_path / "file", CARTPOLE, leaning, episodes=6)
    with pytest.raises(ValueError, match=r"holds another run: it differs in agent\.demonstrations"):
        train([run(*words, directory=tmp_path / "run")], resume=True)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"])
def test_a_run_among_others_is_the_run_alone(run, compiled):
    def one(seed, smoothing):
        return run(f"loss.classification.smoothing={smoothing}", f"agent.optimizer.learning_rate={smoothing}", f"seed={seed}", "total_steps=192")

    settings = [(1, 0.0), (2, 0.01), (3, 0.1)]
    together, alone = train([one(*each) for each in settings], compile=compiled), train([one(*settings[1])], compile=compiled)[0]
    for mine, its in zip(pytree.tree_leaves(alone.learner), pytree.tree_leaves(together[1].learner), strict=True):
        torch.testing.assert_close(its, mine, **({"rtol": 0, "atol": 0} if compiled else {"rtol": 1e-3, "atol": 1e-4}))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["agent.demonstrations.source=''"], r"agent\.demonstrations: no demonstrations are named"),
        (["env=acrobot"], "agent: .* was recorded with observation space"),
        (["loss/classification=focal"], "agent.classification Focal is of several classes, but GAIL tells two apart"),
        (["agent.learner.discount=2"], r"agent\.learner\.discount must be at least 0 and at most 1"),
        (["agent.learner.minibatches=5"], "^agent.learner.minibatches 5 must divide the 64 transitions of a rollout, agent.learner.rollout 16 times num_envs 4"),
        (["loss/regularizer=[cql]"], "regularizers.cql needs action_values"),
    ],
)
def test_what_makes_no_sense_is_refused(run, words, message):
    with pytest.raises(ConfigError, match=message) as caught:
        run(*words)
    assert "\n" not in str(caught.value)
