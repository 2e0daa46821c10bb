"""Soft actor-critic against plain torch and plain loops; every value loss; a regulator and a bandit whose best policies are known."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Normal, TanhTransform, TransformedDistribution

from agents.command_help import groups
from agents.config import ConfigError, build, compose
from agents.networks import MLP
from agents.optimizers import Adam
from agents.replay import PrioritizedReplay, UniformReplay
from agents.soft_actor_critic import SoftActorCritic
from agents.target_networks import HardCopy, Polyak
from agents.temperatures import FixedTemperature, LearnedTemperature
from agents.training import train
from tests.agents.plain import (
    BOX,
    REGULATED,
    START,
    THREE,
    TWO,
    assert_critics_equal,
    assert_equal,
    assert_regulated,
    batch,
    critic,
    filled,
    module,
    normal,
)
from tests.stopping import goes_on_bitwise, same
from tests.toys import Bandit


def made(space, **choices):
    small = {"network": MLP((8,)), "optimizer": Adam(1e-2, eps=1e-8), "batch_size": 16, "replay": UniformReplay(24), "target_network": Polyak(0.3)}
    return SoftActorCritic(BOX, space, 0.9, **{**small, **choices})


def policy(actor, observation):
    """torch's distribution of squashed actions."""
    mean, log_deviation = actor(observation).chunk(2, -1)
    return mean, log_deviation, TransformedDistribution(Normal(mean, log_deviation.clamp(-20, 2).exp()), [TanhTransform(cache_size=1)])


def drawn(actor, observation, noise):
    """A squashed action from its noise, and its log-probability."""
    mean, log_deviation, distribution = policy(actor, observation)
    action = distribution.transforms[0](mean + log_deviation.exp() * noise)
    return action, distribution.log_prob(action).sum(-1)


@pytest.mark.parametrize("weighted", [False, True])
def test_updates_are_those_of_plain_torch(weighted):
    agent = made(TWO, temperature=LearnedTemperature(0.5))
    state = agent.init(torch.Generator().manual_seed(0), 24)
    network = {name: p for name, p in state.actor.items() if not name.startswith("temperature.")}
    actor, log_temperature = module(network, 5, 4), torch.tensor(math.log(0.5), requires_grad=True)
    critics, targets = ([critic(state.critics, index, 7, 1) for index in range(2)] for _ in range(2))
    of_critics = torch.optim.Adam([p for made in critics for p in made.parameters()], 1e-2)
    of_actor, of_temperature = torch.optim.Adam(actor.parameters(), 1e-2), torch.optim.Adam([log_temperature], 1e-2)
    for turn in range(10):
        seen, uniforms = batch(TWO, weighted=weighted, seed=turn), torch.rand(2, 16, 2, dtype=torch.float64)
        state, metrics = agent.learn(state, seen, START, uniforms.flatten())
        weight, temperature = seen.weight if weighted else torch.ones(16), log_temperature.exp().detach()
        with torch.no_grad():
            next_action, next_log = drawn(actor, seen.next_observation, normal(uniforms[0]))
            lowest = torch.minimum(*(made(torch.cat([seen.next_observation, next_action], 1)).squeeze(1) for made in targets))
            target = seen.reward + seen.discount * (lowest - temperature * next_log)
        value = sum((weight * (made(torch.cat([seen.observation, seen.action], 1)).squeeze(1) - target) ** 2).mean() for made in critics)
        of_critics.zero_grad()
        value.backward()
        of_critics.step()
        action, log_probability = drawn(actor, seen.observation, normal(uniforms[1]))
        lowest = torch.minimum(*(made(torch.cat([seen.observation, action], 1)).squeeze(1) for made in critics))
        climbed, raised = (weight * (temperature * log_probability - lowest)).mean(), -(weight * log_temperature.exp() * (log_probability.detach() - 2)).mean()
        for optimizer, loss in ((of_actor, climbed), (of_temperature, raised)):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            for old, new in zip([p for made in targets for p in made.parameters()], [p for made in critics for p in made.parameters()], strict=True):
                old += 0.3 * (new - old)
        told = metrics["loss/value"], metrics["loss/policy"], metrics["loss/temperature"], metrics["policy/entropy"], metrics["policy/temperature"]
        torch.testing.assert_close(told, tuple(x.detach() for x in (value, climbed, raised, -log_probability.mean(), temperature)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(metrics["loss/total"], sum(told[:3]))
    assert_equal({name: state.actor[name] for name in network}, actor)
    torch.testing.assert_close(state.actor["temperature.log"], log_temperature.detach())
    assert_critics_equal(state.critics, critics)
    assert_critics_equal(state.target_critics, targets)


def test_discrete_updates_are_those_of_plain_torch():
    agent = made(THREE, temperature=LearnedTemperature(0.5, entropy_share=0.7))
    state = agent.init(torch.Generator().manual_seed(0), 24)
    network = {name: p for name, p in state.actor.items() if not name.startswith("temperature.")}
    actor, log_temperature = module(network, 5, 3), torch.tensor(math.log(0.5), requires_grad=True)
    critics, targets = ([critic(state.critics, index, 5, 3) for index in range(2)] for _ in range(2))
    of_critics = torch.optim.Adam([p for made in critics for p in made.parameters()], 1e-2)
    of_actor = torch.optim.Adam([*actor.parameters(), log_temperature], 1e-2)
    for turn in range(10):
        seen = batch(THREE, seed=turn)
        state, metrics = agent.learn(state, seen, START, torch.rand(0, dtype=torch.float64))
        temperature = log_temperature.exp().detach()
        with torch.no_grad():
            following = Categorical(logits=actor(seen.next_observation))
            lowest = torch.minimum(*(made(seen.next_observation) for made in targets))
            target = seen.reward + seen.discount * ((following.probs * lowest).sum(1) + temperature * following.entropy())
        value = sum((made(seen.observation)[torch.arange(16), seen.action] - target).square().mean() for made in critics)
        of_critics.zero_grad()
        value.backward()
        of_critics.step()
        here = Categorical(logits=actor(seen.observation))
        lowest = torch.minimum(*(made(seen.observation) for made in critics)).detach()
        climbed = -((here.probs * lowest).sum(1) + temperature * here.entropy()).mean()
        raised = log_temperature.exp() * (here.entropy().detach().mean() - 0.7 * math.log(3))
        of_actor.zero_grad()
        (climbed + raised).backward()
        of_actor.step()
        with torch.no_grad():
            for old, new in zip([p for made in targets for p in made.parameters()], [p for made in critics for p in made.parameters()], strict=True):
                old += 0.3 * (new - old)
        told = metrics["loss/value"], metrics["loss/policy"], metrics["loss/temperature"], metrics["policy/entropy"]
        torch.testing.assert_close(told, tuple(x.detach() for x in (value, climbed, raised, here.entropy().mean())), rtol=1e-4, atol=1e-5)
    assert_equal({name: state.actor[name] for name in network}, actor)
    torch.testing.assert_close(state.actor["temperature.log"], log_temperature.detach())
    assert_critics_equal(state.critics, critics)
    assert_critics_equal(state.target_critics, targets)


@pytest.mark.parametrize("steps", [1, 3])
def test_targets_look_as_far_as_a_plain_loop(steps):
    """Termination ends a return, truncation and the newest record cut it and bootstrap; entropy counts at the last state alone."""
    agent = made(TWO, steps=steps, temperature=FixedTemperature(0.4), critics=1)
    memory, records, state = filled(agent)
    uniforms = torch.rand(agent.plan(2).update_uniforms, dtype=torch.float64)
    _, metrics = agent.update(state, memory, uniforms, torch.tensor(12.0, dtype=torch.float64), START)
    actor, q = module(state.actor, 5, 4), critic(state.critics, 0, 7, 1)
    noise = normal(uniforms[16:48].reshape(16, 2))
    for row, place in enumerate((uniforms[:16] * 24).long().tolist()):
        environment, time = divmod(place, 12)
        total, factor, first = 0.0, 1.0, time
        while True:
            seen = records[environment, time]
            total, factor = total + factor * seen["reward"], factor * 0.9 * (1 - seen["terminated"])
            if seen["terminated"] or seen["truncated"] or time + 1 == 12 or time + 1 - first == steps:
                break
            time += 1
        following = torch.from_numpy(seen["next_observation"].copy())[None]
        action, log_probability = drawn(actor, following, noise[row : row + 1])
        target = total + factor * (q(torch.cat([following, action], 1)) - 0.4 * log_probability).item()
        observation, taken = (torch.from_numpy(records[environment, first][name].copy())[None] for name in ("observation", "action"))
        assert metrics["td_error"][row].item() == pytest.approx(abs(q(torch.cat([observation, taken], 1)).item() - target), abs=1e-4)


class Unweighted:
    """β = 0: all weights are 1."""

    def __call__(self, progress):
        return 0 * progress


def test_prioritized_replay_weights_what_it_draws_and_learns_from_errors():
    agent = made(THREE, replay=PrioritizedReplay(24))
    memory, _, state = filled(agent)
    uniforms, added = torch.rand(agent.plan(2).update_uniforms, dtype=torch.float64), torch.tensor(12.0, dtype=torch.float64)
    state, metrics = agent.update(state, memory, uniforms, added, START)
    drawn = agent.replay.draw(state.replay, uniforms, (2, 12), added, START)
    assert drawn.weight.min() < 0.9 and drawn.weight.max() == 1
    after, metrics = agent.update(state, memory, uniforms, added, START)
    plain = agent.replay.learned(state.replay, drawn, 12, metrics["td_error"])
    torch.testing.assert_close(after.replay, plain)
    unweighted = made(THREE, replay=PrioritizedReplay(24, beta=Unweighted()))
    other, _ = unweighted.update(state, memory, uniforms, added, START)
    assert not torch.allclose(other.critics["0.weight"], after.critics["0.weight"]) and not torch.allclose(other.actor["0.weight"], after.actor["0.weight"])


@pytest.mark.parametrize("env", ["pendulum", "cartpole"])
@pytest.mark.parametrize("value", [*groups()["loss/value"], "hl_gauss loss/value/transform=popart loss.value.vmin=-5 loss.value.vmax=5", "huber loss/value/transform=popart"])
def test_every_value_loss_learns_a_fixed_batch(env, value):
    words = ["agent=sac", f"env={env}", *f"loss/value={value}".split(), "network.hidden=[16]", "optimizer.learning_rate=1e-2", "agent.batch_size=16"]
    agent = build(compose(words)).agent
    state, losses, generator = agent.init(torch.Generator().manual_seed(0), 16), [], torch.Generator().manual_seed(1)
    seen = batch(TWO if env == "pendulum" else THREE)
    width = agent.observation_space.shape[0]
    seen = seen._replace(observation=seen.observation[:, :width], next_observation=seen.next_observation[:, :width], reward=1 + seen.reward)
    seen = seen._replace(action=seen.action[:, :1] if env == "pendulum" else seen.action % 2)
    for _ in range(30):
        uniforms = torch.rand(agent.plan(1).update_uniforms - 16, dtype=torch.float64, generator=generator)
        state, metrics = agent.learn(state, seen, START, uniforms)
        losses.append(metrics["loss/value"].item())
        assert all(metric.isfinite().all() for metric in metrics.values())
    assert min(losses[-5:]) < losses[0] and all(p.isfinite().all() for p in (state.actor | state.critics).values())


def test_target_critics_follow_at_every_update_or_are_copied():
    following, copied = (made(THREE, target_network=rule) for rule in (Polyak(0.3), HardCopy(7)))
    state = following.init(torch.Generator().manual_seed(0), 24)
    nothing = torch.rand(0, dtype=torch.float64)
    first, second = (agent.learn(state, batch(THREE), START, nothing)[0] for agent in (following, copied))
    torch.testing.assert_close(first.target_critics["0.weight"], 0.7 * state.critics["0.weight"] + 0.3 * first.critics["0.weight"])
    assert second.target_critics["0.weight"].equal(state.critics["0.weight"]) and copied.plan(1).refresh_every == 7
    assert copied.refresh(second, *[nothing] * 4).target_critics["0.weight"].equal(second.critics["0.weight"])


def test_actions_are_wide_at_first_and_certain_when_greedy():
    agent = made(TWO)
    state, observation = agent.init(torch.Generator().manual_seed(0), 24), torch.randn(1, 5).expand(4000, 5)
    action, density = agent.act(state, observation, torch.rand(8000), START, torch.tensor(1.0))
    assert (torch.histc(action, 4, -1, 1) / 8000 - 0.25).abs().max() < 0.1 and (density > 0).all()
    greedy, _ = agent.act(state, observation, torch.rand(8000), START, torch.tensor(0.0))
    torch.testing.assert_close(greedy[0], torch.tanh(policy(module({n: p for n, p in state.actor.items() if "temperature" not in n}, 5, 4), observation[:1])[0][0]).detach())


@pytest.mark.parametrize("env", ["env=cartpole", "env=pendulum"])
def test_a_run_among_others_is_the_run_alone(env):
    def run(seed, rate, share):
        words = [f"optimizer.learning_rate={rate}", f"agent.temperature.entropy_share={share}", f"agent.temperature.entropy_per_number={-share}", f"seed={seed}"]
        return build(compose(["agent=sac", env, *SMALL, *words]))

    settings = [(1, 1e-3, 0.5), (2, 3e-3, 0.9), (3, 1e-4, 0.98)]
    together, alone = train([run(*each) for each in settings]), train([run(*settings[1])])[0]
    for part in ("actor", "critics", "target_critics"):
        for name, parameter in getattr(alone.learner, part).items():
            torch.testing.assert_close(getattr(together[1].learner, part)[name], parameter, rtol=1e-3, atol=1e-5)


SMALL = [
    "network.hidden=[16]", "agent.batch_size=16", "agent.learning_starts=20", "num_envs=2", "total_steps=100", "agent.replay.capacity=200",
    "evaluation.every=0", "evaluation.episodes=1", "checkpoint_every=0", "compile=false",
]  # fmt: skip


@pytest.mark.parametrize("words", [["agent=sac", "env=cartpole"], ["agent=sac", "env=pendulum", "agent/temperature=fixed"], ["agent=td3", "env=pendulum"]], ids=" ".join)
def test_a_stopped_run_goes_on_bitwise(tmp_path, words):
    words = [*words, *SMALL, "checkpoint_every=30"]
    goes_on_bitwise(lambda directory: build(compose(words), directory), tmp_path, 20)


@pytest.mark.slow
@pytest.mark.parametrize("words", [["env=pendulum"], ["env=cartpole", "agent/replay=prioritized", "loss/value=hl_gauss"]], ids=["numbers", "categories"])
def test_a_compiled_run_among_others_is_bitwise_the_run_alone(words):
    sizes = ["network.hidden=[64,64]", "agent.batch_size=64"]  # So large that a compiler would share out sums.
    runs = [build(compose(["agent=sac", *SMALL, *sizes, f"optimizer.learning_rate={1e-3 / (1 + seed)}", f"seed={seed}", *words])) for seed in range(9)]
    together, alone = train(runs, compile=True), train(runs[1:2], compile=True)[0]
    assert same(together[1].learner, alone.learner)


def test_a_regulator_learns_the_gain_of_riccati_s_equation():
    run = build(compose(["agent=sac", "agent/temperature=fixed", "agent.temperature.temperature=0.01", *REGULATED]))
    (result,) = train([run])
    x = torch.linspace(-0.8, 0.8, 9)[:, None]
    action, _ = run.agent.act(result.learner, x, torch.zeros(run.agent.plan(9).acting_uniforms), START, torch.tensor(0.0))
    assert_regulated(x, action)


def test_a_bandit_is_played_by_the_softmax_of_what_it_pays():
    words = ["agent=sac", "agent/temperature=fixed", "agent.temperature.temperature=0.5", "env.id=tests.toys:Bandit-v0", "network.hidden=[16]", "num_envs=4"]
    words += ["total_steps=2400", "agent.batch_size=32", "agent.learning_starts=100", "agent.update_every=4", "optimizer.learning_rate=1e-2"]
    run = build(compose([*words, "evaluation.every=0", "evaluation.episodes=1", "checkpoint_every=0", "compile=false"]))
    (result,) = train([run])
    found = run.agent.said(result.learner.actor, torch.ones(1, 1)).softmax(-1)[0]
    torch.testing.assert_close(found, (torch.tensor(Bandit.pays) / 0.5).softmax(-1), atol=0.02, rtol=0)


def test_the_learned_temperature_brings_the_entropy_to_its_target():
    words = ["agent=sac", "agent.temperature.entropy_share=0.6", "env.id=tests.toys:Bandit-v0", "network.hidden=[16]", "num_envs=4", "total_steps=2400"]
    words += ["agent.batch_size=32", "agent.learning_starts=100", "agent.update_every=4", "optimizer.learning_rate=1e-2", "evaluation.episodes=1"]
    run = build(compose([*words, "evaluation.every=0", "checkpoint_every=0", "compile=false"]))
    (result,) = train([run])
    entropy = Categorical(logits=run.agent.said(result.learner.actor, torch.ones(1, 1))).entropy().item()
    assert entropy == pytest.approx(0.6 * math.log(3), abs=0.05)


def test_the_agent_in_python_is_the_one_on_the_command_line():
    agent = build(compose(["agent=sac", "env=pendulum"])).agent
    assert agent == SoftActorCritic(agent.observation_space, agent.action_space)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["env.id=tests.toys:Match-v0", "+env.arguments.kind=multi_binary"], r"SoftActorCritic needs Box or Discrete actions, but this environment has MultiBinary\(2\)"),
        (["loss/target=retrace", "agent.steps=3"], "loss.target is not read by agents.soft_actor_critic.SoftActorCritic"),
        (["env=pendulum", "loss/regularizer=[cql]"], "regularizers.cql needs action_values, which SoftActorCritic doesn't have"),
        (["loss/regularizer=[entropy]"], "regularizers.entropy needs entropy, which SoftActorCritic doesn't have"),
        (["agent.temperature.initial=0"], "agent.temperature.initial must be greater than 0"),
        (["agent.temperature.entropy_per_number=1"], "agent.temperature.entropy_per_number must be at most 0.693147"),
        (["agent.critics=0"], "agent.critics must be at least 1"),
        (["agent.replay.capacity=100"], "agent.replay.capacity 100 is smaller than batch_size 256"),
        (["agent.replay.capacity=300", "agent.steps=40", "num_envs=8"], "agent.replay.capacity 300 is too small: num_envs 8 times 41 transitions are needed"),
    ],
)
def test_what_makes_no_sense_is_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        build(compose(["agent=sac", *words]))


def test_numbers_need_bounds():
    unbounded = type(TWO)(np.float32([-1, -np.inf]), np.float32([1, np.inf]))
    with pytest.raises(ValueError, match="SoftActorCritic chooses numbers between bounds, which Box"):
        SoftActorCritic(BOX, unbounded)
