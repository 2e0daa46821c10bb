"""Action masks: forbidden actions are never chosen, nor valued; policies are those among what is allowed; toys with a known best."""

import dataclasses
from collections import OrderedDict

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy import stats

from agents import action_masks
from agents.action_masks import ActionMask
from agents.actor_critic import ActorCritic
from agents.batches import Batch
from agents.config import ConfigError, build, compose
from agents.exploration import EpsilonGreedy, Greedy, Softmax
from agents.policies import Categories
from agents.schedules import Linear
from agents.spaces import encode, features, packing
from agents.training import train
from rlloss.numbers import only
from tests.conftest import small_config

ZERO, ONE = torch.zeros(()), torch.ones(())
MASKED = ["+env/wrapper=action_mask", "evaluation.every=0", "checkpoint_every=0", "compile=false", "network.hidden=[16]"]
ARMS = ["env.id=tests.toys:Arms-v0", *MASKED]


def stored(space, observations):
    """Observations [batch, words] as they lie in memory."""
    return torch.from_numpy(np.stack([packing(space)(observation) for observation in observations]))


def test_the_mask_is_observed_as_the_environment_says_it():
    environment = ActionMask(gymnasium.make("Taxi-v4"))
    observation, info = environment.reset(seed=0)
    for action in (0, 1, 5):
        assert environment.observation_space.contains(observation) and np.array_equal(observation["action_mask"], info["action_mask"])
        assert observation["observation"] == environment.unwrapped.s
        observation, *_, info = environment.step(action)
    environment = ActionMask(gymnasium.make("tests.toys:Arms-v0", counts=(2, 3)))
    observation, info = environment.reset(seed=0)
    assert observation["action_mask"].tolist() == [*info["action_mask"][0], *info["action_mask"][1]]


@pytest.mark.parametrize("first", [True, False])
def test_what_is_left_of_an_observation_is_what_it_is_without_a_mask(first):
    """Also where the mask stands in the middle, and where one thing is left, with a shape and categories of its own."""
    inner, mask = spaces.Dict({"a": spaces.Discrete(3), "z": spaces.Box(-1, 1, (2, 2), np.float32)}), spaces.MultiBinary(4)
    space = spaces.Dict({"action_mask": mask, **inner.spaces}) if first else spaces.Dict(OrderedDict(z=inner["z"], action_mask=mask, a=inner["a"]))
    samples = [space.sample() for _ in range(5)]
    whole, left = stored(space, samples), action_masks.without(space)
    assert torch.equal(action_masks.observed(space, whole), stored(left, [{key: sample[key] for key in left} for sample in samples]))
    expected = np.stack([sample["action_mask"] if sample["action_mask"].any() else np.ones(4) for sample in samples])
    assert torch.equal(action_masks.allowed(space, spaces.Discrete(4), whole), torch.from_numpy(expected > 0))
    for alone in (spaces.Box(0, 255, (3, 3, 2), np.uint8), spaces.Discrete(7, start=1)):
        space = spaces.Dict({"action_mask": mask, "observation": alone})
        sample = space.sample()
        encoded = encode(action_masks.without(space), action_masks.observed(space, stored(space, [sample])))
        assert encoded.shape == (1, *features(alone)) and torch.equal(encoded, encode(alone, torch.as_tensor(sample["observation"])[None]))


def test_a_masked_policy_is_the_policy_among_what_is_allowed():
    policy, rng = Categories((4, 3), (2,)), np.random.default_rng(0)
    space, action_space = spaces.Dict({"action_mask": spaces.MultiBinary(7)}), spaces.MultiDiscrete([4, 3])
    logits, mask = torch.from_numpy(rng.normal(size=7)).float().expand(20_000, 7), {"action_mask": np.array([1, 0, 1, 0, 0, 1, 1])}
    allowed = action_masks.allowed(space, action_space, stored(space, [mask]).expand(20_000, -1))
    outputs = only(logits, allowed)
    action = policy.draw(outputs, torch.rand(20_000, 7), ONE)
    parts = [torch.distributions.Categorical(logits=logits[0, kept]) for kept in ([0, 2], [5, 6])]
    for column, (kept, part) in enumerate(zip(([0, 2], [1, 2]), parts, strict=True)):
        assert stats.chisquare(torch.bincount(action[:, column])[kept], 20_000 * part.logits.double().softmax(-1)).pvalue > 0.001
        assert set(action[:, column].tolist()) == set(kept)
    expected = parts[0].log_prob(action[:, 0] // 2) + parts[1].log_prob(action[:, 1] - 1)
    torch.testing.assert_close(policy.log_probability(outputs, action), expected)
    torch.testing.assert_close(policy.entropy(outputs)[0], sum(part.entropy() for part in parts))
    assert (policy.draw(outputs, torch.rand(20_000, 7), ZERO) == policy.draw(outputs, torch.rand(20_000, 7), ZERO)[0]).all()


@pytest.mark.parametrize("mask", [[1, 1, 1, 1], [1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]], ids=str)
def test_gradients_are_those_of_the_allowed_logits_alone(mask):
    space, policy = spaces.Dict({"action_mask": spaces.MultiBinary(4)}), Categories((4,))
    kept = [arm for arm in range(4) if mask[arm]] or [0, 1, 2, 3]
    logits = torch.tensor([[0.3, -2.0, 90.0, 0.1]], requires_grad=True)
    outputs = only(logits, action_masks.allowed(space, spaces.Discrete(4), stored(space, [{"action_mask": np.array(mask)}])))
    (policy.log_probability(outputs, torch.tensor([kept[0]])) + 0.7 * policy.entropy(outputs)).sum().backward()
    bare = logits[:, kept].detach().requires_grad_()
    distribution = torch.distributions.Categorical(logits=bare)
    (distribution.log_prob(torch.tensor([0])) + 0.7 * distribution.entropy()).sum().backward()
    torch.testing.assert_close(logits.grad[:, kept], bare.grad)
    assert logits.grad.sum() == pytest.approx(bare.grad.sum().item(), abs=1e-6)


@pytest.mark.parametrize("rule", [EpsilonGreedy(Linear(0.6, 0.6)), Softmax(0.5), Greedy()], ids=lambda rule: type(rule).__name__)
def test_exploration_draws_among_what_is_allowed(rule):
    allowed = torch.tensor([0, 1, 1, 0, 1, 0]) > 0
    values = torch.tensor([9.0, 0.1, 0.5, -1.0, 0.2, 3.0])
    count, kept = 30_000, [1, 2, 4]
    masked, mask = only(values, allowed).expand(count, 6), allowed.expand(count, 6)
    action, probability = rule(masked, torch.rand(count, rule.numbers(6)), ZERO, ONE, mask)
    wanted = {EpsilonGreedy: [0.2, 0.6, 0.2], Softmax: (values[kept] / 0.5).softmax(0).tolist(), Greedy: [0.0, 1.0, 0.0]}[type(rule)]
    places = torch.tensor([-1, 0, 1, -1, 2, -1])[action]
    assert (places >= 0).all()
    torch.testing.assert_close(probability, torch.tensor(wanted)[places])
    if not isinstance(rule, Greedy):
        assert stats.chisquare(torch.bincount(places), count * np.array(wanted) / sum(wanted)).pvalue > 0.001
    greedy, _ = rule(masked, torch.rand(count, rule.numbers(6)), ZERO, ZERO, mask)
    assert (greedy == 2).all()


@pytest.mark.parametrize(
    "words",
    [
        ["agent=ppo", "total_steps=8000", "loss.target.lambda_=0"],
        ["agent=a2c", "total_steps=8000", "loss.target.lambda_=0"],
        ["agent=ppo", "total_steps=8000", "loss.target.lambda_=0", "+env.arguments.counts=[2,3]"],
        ["agent=pqn", "total_steps=16000", "agent.exploration.epsilon.until=0.5"],
        ["total_steps=700", "agent.exploration.epsilon.until=0.5", "agent.learning_starts=100", "agent.batch_size=32"],
    ],
    ids=["ppo", "a2c", "ppo-multi", "pqn", "dqn"],
)
def test_the_best_allowed_arm_is_learned(words):
    """Arms-v0 asserts that no forbidden arm is ever pulled."""
    (result,) = train([build(compose([*ARMS, "agent.discount=0", "optimizer.learning_rate=1e-2", *words]))])
    assert np.mean(result.evaluation_returns) == 0


@pytest.mark.parametrize("words", [["agent=ppo", "agent.rollout=64"], ["agent=munchausen_dqn", "agent.learning_starts=50"], ["agent=dqn", "loss/target=retrace", "agent.steps=3", "agent.learning_starts=50"]], ids=lambda words: words[0])
def test_taxi_learns_with_its_own_mask(words):
    (result,) = train([build(compose([*MASKED, "env=taxi", *words, "num_envs=1", "total_steps=128", "evaluation.episodes=1", "evaluation.max_steps=20"]))])
    assert any(parameter.shape == (16, 500) for parameter in result.learner.parameters.values())  # 500 places, and no mask among them.
    assert all(parameter.isfinite().all() for parameter in result.learner.parameters.values())


def test_a_forbidden_action_is_not_valued_behind_a_step():
    """The network values arm 3 most; where it is forbidden in the next state, or in the present one, the next best counts."""
    agent = build(small_config(*ARMS, "loss/value=mse", "loss/target=q_learning")).agent
    state = agent.init(torch.Generator().manual_seed(0), 24)
    biases = {"head.bias": torch.tensor([1.0, 2.0, 3.0, 9.0])}
    state = state._replace(target_parameters={name: 0 * p for name, p in state.target_parameters.items()} | biases)
    masks = [[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]
    observation = stored(agent.observation_space, [{"action_mask": np.array(mask), "observation": np.zeros(1)} for mask in masks])
    values = agent.action_values.values(state.target_parameters, (), observation)
    assert values.max(-1).values.tolist() == [3, 1, 9, 9]
    batch = Batch(observation, torch.zeros(4).long(), torch.zeros(4), torch.ones(4), observation)
    target = agent._step_target(state, batch, (None,) * 4, agent.value_loss)
    assert target.tolist() == [3, 1, 9, 9]


def test_a_run_among_others_is_the_run_alone():
    def run(seed, rate):
        return build(compose([*ARMS, "agent=ppo", "agent.rollout=16", f"seed={seed}", f"optimizer.learning_rate={rate}", "total_steps=256", "evaluation.episodes=2"]))

    settings = [(1, 1e-3), (2, 1e-2)]
    together, alone = train([run(*each) for each in settings]), train([run(*settings[1])])[0]
    for name, parameter in alone.learner.parameters.items():
        torch.testing.assert_close(together[1].learner.parameters[name], parameter, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["env=cartpole"], "env: environment CartPole-v1 can't be reset: ValueError: info has no action_mask, only nothing; leave out the wrapper action_mask"),
        (["env=pendulum"], "env: wrapper action_mask can't be put around Pendulum-v1: an action_mask is for Discrete or MultiDiscrete actions, got Box"),
        (["env=frozen_lake"], "info has no action_mask, only prob"),
        (["env=taxi", "agent=ppo", "agent.normalize_observations=true"], r"normalize_observations is for numbers, .* observations are Discrete\(500\)"),
    ],
)
def test_what_makes_no_sense_is_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        build(compose(["+env/wrapper=action_mask", *words]))


def test_a_mask_of_another_size_is_refused():
    space = spaces.Dict({"action_mask": spaces.MultiBinary(3), "observation": spaces.Box(-1, 1, (2,), np.float32)})
    with pytest.raises(ValueError, match="the observation's action_mask has 3 entries, but there are 4 actions"):
        ActorCritic(space, spaces.Discrete(4))
    agent = build(small_config()).agent
    with pytest.raises(ValueError, match="the observation's action_mask has 3 entries, but there are 4 actions"):
        dataclasses.replace(agent, observation_space=space, action_space=spaces.Discrete(4))


@pytest.mark.parametrize("agent", ["sac", "cloning"])
def test_agents_that_obey_no_mask_refuse_it(agent):
    with pytest.raises(ConfigError, match=r"observations carry an action_mask, which \w+ doesn't obey"):
        build(compose([f"agent={agent}", "env=taxi", "+env/wrapper=action_mask", "env.backend=gymnasium"]))
