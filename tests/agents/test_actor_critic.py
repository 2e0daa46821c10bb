"""The actor-critic against plain loops and plain torch: advantages, gradients; every loss at every seam; a policy whose best is known."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.nn import functional

from agents import replay
from agents.actor_critic import ActorCritic
from agents.command_help import groups
from agents.config import ConfigError, build, compose
from agents.networks import MLP
from agents.optimizers import SGD, Adam
from agents.schedules import Linear
from agents.training import train
from rlloss import GAE, MSE, SPO, EntropyBonus, Huber, PopArt, PPOClip, QuantileHuber, settled
from tests.events import scalars

BOX, THREE, ENVIRONMENTS = spaces.Box(-1, 1, (5,), np.float32), spaces.Discrete(3), 4
NOTHING = torch.rand(0), torch.tensor(0.0), torch.tensor(0.0)


def made(**choices):
    return ActorCritic(BOX, THREE, 0.9, **{"rollout": 8, "minibatches": 2, "network": MLP((8,)), "max_gradient_norm": float("inf"), "regularizers": {}, **choices})


def rollout(agent, reward=None):
    """A state with a whole rollout in memory [environments, time, words], and its fields [environments, time]."""
    rng = np.random.default_rng(0)
    shape = ENVIRONMENTS, agent.plan(ENVIRONMENTS).length
    records = np.zeros(shape, agent.layout)
    records["observation"], records["next_observation"] = rng.normal(size=(2, *shape, 5))
    records["action"], records["reward"] = rng.integers(0, 3, shape), rng.normal(size=shape) if reward is None else reward
    records["terminated"] = rng.random(shape) < 0.2
    records["truncated"] = (rng.random(shape) < 0.2) & (records["terminated"] == 0)
    records["probability"] = rng.uniform(0.2, 0.6, shape)
    memory = replay.memory(1, *shape, agent.layout)
    memory.numpy()[0] = records.view(np.int32).reshape(*shape, -1)
    return agent.init(torch.Generator().manual_seed(0), records.size), memory[0], records


def refreshed(agent, state, memory):
    return agent.refresh(state, memory, torch.rand(agent.plan(ENVIRONMENTS).refresh_uniforms), *NOTHING[1:])


def plain(state, agent):
    """The networks of an actor and a critic in torch's own modules."""
    modules = {}
    for torso, head, outputs in (("actor.", "policy.", 3), ("critic.", "value.", agent.value_loss.outputs)):
        torso = "actor." if agent.shared else torso
        modules[head] = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, outputs))
        names = f"{torso}0.weight", f"{torso}0.bias", f"{head}weight", f"{head}bias"
        with torch.no_grad():
            for parameter, name in zip(modules[head].parameters(), names, strict=True):
                ours = state.parameters[name]
                parameter.copy_(ours if ours.shape == parameter.shape else ours.T)
    return modules["policy."], modules["value."]


def test_returns_and_advantages_are_those_of_a_plain_loop():
    agent = made(target=GAE(0.7))
    state, memory, seen = rollout(agent)
    _, critic = plain(state, agent)
    found = refreshed(agent, state, memory)
    value, following = (critic(torch.from_numpy(seen[name].copy())).squeeze(-1).detach().numpy() for name in ("observation", "next_observation"))
    for environment in range(ENVIRONMENTS):
        advantage = 0.0
        for time in reversed(range(8)):
            row = seen[environment, time]
            ended = row["terminated"] or row["truncated"]
            error = row["reward"] + 0.9 * (1 - row["terminated"]) * following[environment, time] - value[environment, time]
            advantage = error + (0.0 if ended else 0.9 * 0.7 * advantage)
            place = environment * 8 + time
            assert found.advantages[place].item() == pytest.approx(advantage, abs=1e-5)
            assert found.returns[place].item() == pytest.approx(advantage + value[environment, time], abs=1e-5)


def test_a_constant_reward_has_the_geometric_advantage():
    """V = 0 and λ = 1: the advantage is the discounted number of steps to the end, or to the cut."""
    agent = made(target=GAE(1.0))
    state, memory, seen = rollout(agent, reward=1.0)
    state = state._replace(parameters=state.parameters | {name: 0 * p for name, p in state.parameters.items() if name.startswith("value.")})
    found = refreshed(agent, state, memory).advantages.reshape(ENVIRONMENTS, 8)
    ended = (seen["terminated"] + seen["truncated"]) > 0
    for environment in range(ENVIRONMENTS):
        for time in range(8):
            steps = next((later for later in range(time, 8) if ended[environment, later]), 7) - time + 1
            assert found[environment, time].item() == pytest.approx((1 - 0.9**steps) / 0.1, rel=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_updates_are_those_of_plain_torch(shared):
    agent = made(optimizer=SGD(0.1), policy_loss=PPOClip(0.1, 0.3), regularizers={"entropy": EntropyBonus(0.02)}, shared=shared)
    state, memory, seen = rollout(agent)
    state, rows = refreshed(agent, state, memory), seen.reshape(-1)
    policy, _ = plain(state, agent)
    acted = torch.distributions.Categorical(logits=policy(torch.from_numpy(rows["observation"].copy())))
    torch.testing.assert_close(state.behaviour, acted.log_prob(torch.from_numpy(rows["action"].copy()).long()))
    behaviour = torch.from_numpy(np.random.default_rng(1).uniform(0.2, 0.6, len(rows))).float().log()  # Another policy's, so that ratios are cut.
    state = state._replace(behaviour=behaviour)
    for number in range(4):
        actor, critic = plain(state, agent)
        chosen = state.order[number].numpy()
        observation, action = torch.from_numpy(rows["observation"][chosen]), torch.from_numpy(rows["action"][chosen]).long()
        distribution = torch.distributions.Categorical(logits=actor(observation))
        advantage = state.advantages[chosen]
        advantage = (advantage - advantage.mean()) / advantage.std(correction=0)
        ratio = distribution.log_prob(action).exp() / behaviour[chosen].exp()
        policy = -torch.minimum(ratio * advantage, ratio.clamp(0.9, 1.3) * advantage).mean()
        value = 0.5 * (critic(observation).squeeze(-1) - state.returns[chosen]).square().mean()
        loss = policy + value - 0.02 * distribution.entropy().mean()
        loss.backward()
        before = state.parameters
        state, metrics = agent.update(state, memory, *NOTHING)
        torch.testing.assert_close((metrics["loss/policy"], metrics["loss/value"], metrics["loss/total"]), (policy.detach(), value.detach(), loss.detach()), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(metrics["policy/entropy"], distribution.entropy().mean().detach())
        gradient = {name: (before[name] - state.parameters[name]) / 0.1 for name in before}
        torso = actor[0].weight.grad + critic[0].weight.grad if shared else actor[0].weight.grad
        torch.testing.assert_close(gradient["actor.0.weight"], torso.T, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(gradient["policy.weight"], actor[2].weight.grad.reshape(gradient["policy.weight"].shape), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(gradient["value.bias"], critic[2].bias.grad, rtol=1e-3, atol=1e-5)


SEAMS = [*({"loss/value": choice} for choice in groups()["loss/value"]), *({"loss/policy": choice} for choice in groups()["loss/policy"])]
SEAMS += [{"loss/target": choice} for choice in ("gae", "td_lambda", "n_step", "v_trace")] + [{"loss/value/transform": "popart", "loss/value": choice} for choice in ("mse", "hl_gauss")]


@pytest.mark.parametrize("choices", SEAMS, ids=lambda choices: "-".join(choices.values()))
def test_every_choice_learns_a_rollout(choices):
    words = [f"{group}={choice}" for group, choice in choices.items()]
    agent = build(compose(["agent=ppo", "num_envs=4", "agent.rollout=8", "agent.epochs=30", "agent.minibatches=1", "agent.value_weight=1", "optimizer.learning_rate=1e-2", *words])).agent
    agent = ActorCritic(**{**vars(agent), "observation_space": BOX, "action_space": THREE})
    state, memory, _ = rollout(agent)
    state, losses = refreshed(agent, state, memory), []
    for _ in range(30):
        state, metrics = agent.update(state, memory, *NOTHING)
        losses.append(metrics["loss/value"].item())
        assert all(metric.isfinite().all() for metric in metrics.values())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("value_loss", [MSE(transform=PopArt(0.1)), QuantileHuber(5, transform=PopArt(0.1))], ids=["mse", "quantile"])
def test_the_critic_keeps_its_values_when_the_scale_moves(value_loss):
    agent = made(value_loss=value_loss)
    state, memory, seen = rollout(agent, reward=50.0)

    def values(state):
        read = agent.networks.features(state.parameters, torch.from_numpy(seen["observation"].reshape(-1, 5).copy()))[1]
        return settled(value_loss, state.transform).value(agent.networks.outputs(state.parameters, read))

    first = refreshed(agent, state, memory)
    second = refreshed(agent, first, memory)
    torch.testing.assert_close(values(second), values(first), rtol=1e-4, atol=1e-3)
    assert second.transform != first.transform


@pytest.mark.parametrize("agent", ["ppo", "a2c"])
def test_the_best_policy_is_found_where_it_is_known(agent):
    """Identity-v0 pays for the action that is observed."""
    words = [f"agent={agent}", "env.id=tests.toys:Identity-v0", "network.hidden=[16]", "optimizer.learning_rate=1e-2", "total_steps=6000", "evaluation.every=0", "compile=false"]
    (result,) = train([build(compose([*words, "checkpoint_every=0", "loss.target.lambda_=0"]))])
    assert np.mean(result.evaluation_returns) == 10


@pytest.mark.parametrize(
    ("kind", "words", "least"),
    [("multi_discrete", [], 0), ("multi_binary", [], 0), ("box", [], -0.3), ("box", ["agent.gaussian.squashed=true", "agent.gaussian.state_dependent=true"], -0.3)],
)
def test_the_best_policy_is_found_for_every_kind_of_action(kind, words, least):
    """Match-v0 costs nothing where the action says what is observed; most of what numbers can cost is 2 a step."""
    made = ["agent=ppo", "env.id=tests.toys:Match-v0", f"+env.arguments.kind={kind}", "network.hidden=[16]", "optimizer.learning_rate=1e-2", "total_steps=16000"]
    made += ["evaluation.every=0", "compile=false", "checkpoint_every=0", "loss.target.lambda_=0", "agent.gaussian.deviation=0.5", *words]
    (result,) = train([build(compose(made))])
    assert np.mean(result.evaluation_returns) >= least


@pytest.mark.parametrize("env", ["env=cartpole", "env=pendulum"])
def test_a_run_among_others_is_the_run_alone(env):
    def run(seed, rate, target, clip):
        words = ["agent=ppo", env, "agent.rollout=16", "num_envs=2", f"optimizer.learning_rate={rate}", f"seed={seed}", "total_steps=160", "evaluation.episodes=2", "compile=false"]
        return build(compose([*words, "network.hidden=[32]", "optimizer.schedule.end=1", f"agent.target_kl={target}", f"agent.clip_schedule.end={clip}", "agent.clip_values=true", f"agent.value_clip={100 * rate}"]))

    settings = [(1, 1e-3, "inf", 1), (2, 1e-2, 0.002, 0), (3, 1e-4, 1, 0.5)]
    together, alone = train([run(*each) for each in settings]), train([run(*settings[1])])[0]
    assert [bool(result.learner.stopped) for result in together] == [False, True, False]
    for name, parameter in alone.learner.parameters.items():
        torch.testing.assert_close(together[1].learner.parameters[name], parameter, rtol=1e-4, atol=1e-6)


def learned(agent, updates=16):
    """States and metrics of the updates on one rollout; the first state is that before them."""
    torch.manual_seed(0)  # The order of the minibatches.
    state, memory, _ = rollout(agent)
    states, told = [refreshed(agent, state, memory)], []
    for _ in range(updates):
        state, metrics = agent.update(states[-1], memory, *NOTHING)
        states, told = [*states, state], [*told, metrics]
    return states, told


def test_a_rollout_is_learned_until_the_policy_has_moved_too_far():
    """What is learned then is what plain updates have learned before the first minibatch that diverges by 1.5 times the target."""
    choices = {"epochs": 8, "minibatches": 2, "optimizer": Adam(1e-2)}
    free, told = learned(made(**choices))
    assert not any("policy/stopped" in metrics for metrics in told)
    divergences = [metrics["policy/kl"].item() for metrics in told]
    target = sorted(divergences)[8]
    last = next(number for number, divergence in enumerate(divergences) if divergence > 1.5 * target)
    assert 2 < last < 15
    states, told = learned(made(**choices, target_kl=target))
    assert [metrics["policy/stopped"].item() for metrics in told] == [0] * last + [1] * (16 - last)
    for state in states[last:]:
        for name in ("parameters", "optimizer"):
            torch.testing.assert_close(getattr(state, name), getattr(free[last], name), rtol=0, atol=0)
    agent, memory = made(**choices, target_kl=target), rollout(made(**choices))[1]
    again = refreshed(agent, states[-1], memory)
    assert states[-1].stopped and not again.stopped
    assert not torch.equal(agent.update(again, memory, *NOTHING)[0].parameters["actor.0.bias"], again.parameters["actor.0.bias"])


@pytest.mark.parametrize(("loss", "narrower"), [(PPOClip(0.2, 0.4), PPOClip(0.05, 0.1)), (SPO(0.2), SPO(0.05))], ids=["ppo_clip", "spo"])
def test_the_clip_range_follows_its_schedule(loss, narrower):
    scheduled, fixed = made(policy_loss=loss, clip_schedule=Linear(1.0, 0.0)), made(policy_loss=narrower)
    state, memory, seen = rollout(fixed)
    state = refreshed(fixed, state, memory)._replace(behaviour=torch.from_numpy(seen["probability"].ravel().copy()).log())  # Another policy's, so that ratios are cut.
    found, expected = (agent.update(state, memory, NOTHING[0], NOTHING[1], torch.tensor(0.75))[0].parameters for agent in (scheduled, fixed))
    torch.testing.assert_close(found, expected)
    assert scheduled.schedules(torch.tensor(0.75))["schedule/clip"] == 0.25


@pytest.mark.parametrize("value_loss", [MSE(), Huber(0.5), MSE(transform=PopArt(0.1))], ids=["mse", "huber", "popart"])
def test_a_clipped_critic_has_the_gradient_of_plain_torch(value_loss):
    agent = made(value_loss=value_loss, clip_values=True, value_clip=0.05, optimizer=SGD(0.2), minibatches=1, value_weight=1.0)
    state, memory, seen = rollout(agent)
    state = refreshed(agent, state, memory)
    observation = torch.from_numpy(seen["observation"].reshape(-1, 5).copy())[state.order[0]]
    first = plain(state, agent)[1](observation).squeeze(-1).detach()
    shares = []
    for _ in range(4):
        _, critic = plain(state, agent)
        output = critic(observation).squeeze(-1)
        kept, target = torch.minimum(torch.maximum(output, first - 0.05), first + 0.05), state.returns[state.order[0]]
        if isinstance(value_loss.transform, PopArt):
            target = (target - state.transform.mean) / state.transform.variance.sqrt()
        loss = functional.huber_loss if isinstance(value_loss, Huber) else functional.mse_loss
        both = [loss(each, target, reduction="none", **({"delta": 0.5} if isinstance(value_loss, Huber) else {})) for each in (output, kept)]
        shares.append(float((both[1] > both[0]).float().mean()))
        torch.maximum(*both).mean().backward()
        before = state.parameters["value.bias"]
        state = agent.update(state._replace(next=torch.tensor(0)), memory, *NOTHING)[0]
        torch.testing.assert_close((before - state.parameters["value.bias"]) / 0.2, critic[2].bias.grad, rtol=1e-3, atol=1e-5)
    assert shares[0] == 0 and shares[-1] > 0.2  # At first nothing is clipped.


def test_linear_to_nothing_is_one_word(tmp_path):
    words = ["agent=ppo", "agent.clip_schedule.end=0", "agent.rollout=8", "num_envs=2", "total_steps=64", "log_every=16", "evaluation.every=0", "evaluation.episodes=1", "compile=false"]
    train([build(compose([*words, "network.hidden=[8]"]), tmp_path / "run")])
    for tag, start in (("schedule/clip", 1.0), ("schedule/learning_rate", 5e-4)):
        found = {step: value for step, name, value in scalars(tmp_path / "run") if name == tag}
        assert found == pytest.approx({step: start * (1 - (step - 2) / 64) for step in (16, 32, 48, 64)}, rel=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["agent.minibatches=5"], "agent.minibatches 5 must divide the 1024 transitions of a rollout, agent.rollout 128 times num_envs 8"),
        (["loss/target=q_learning"], "target QLearning looks at single steps, but ActorCritic learns from rollouts"),
        (["agent.gaussian.deviation=0"], "agent.gaussian.deviation must be greater than 0"),
        (["loss/regularizer=[cql]"], "regularizers.cql needs action_values, which ActorCritic doesn't have"),
        (["+loss.regularizer.policy._target_=rlloss.L2"], "regularizers.policy would take the place of loss/policy"),
        (["agent.target_kl=0"], "agent.target_kl must be greater than 0"),
        (["agent.clip_schedule.end=0", "loss/policy=policy_gradient"], "agent.clip_schedule has nothing to narrow: policy_loss PolicyGradient has no range"),
        (["agent.clip_values=true", "loss/value=gaussian_nll"], "agent.clip_values needs a value loss with one output, such as mse or huber, but GaussianNLL is none"),
        (["agent.clip_schedule.end=2"], "agent.clip_schedule.end must be at least 0 and at most 1"),
        (["agent.value_weight=-1"], "agent.value_weight must be at least 0"),
    ],
)
def test_what_makes_no_sense_is_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        build(compose(["agent=ppo", *words]))
