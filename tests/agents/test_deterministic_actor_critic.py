"""TD3 and DDPG against plain torch; what is delayed; every value loss; a regulator whose best gain is known."""

import numpy as np
import pytest
import torch

from agents.command_help import groups
from agents.config import ConfigError, build, compose
from agents.deterministic_actor_critic import DeterministicActorCritic
from agents.networks import MLP
from agents.optimizers import Adam
from agents.replay import PrioritizedReplay, UniformReplay
from agents.target_networks import HardCopy, Polyak
from agents.training import train
from tests.agents.plain import BOX, REGULATED, START, TWO, assert_critics_equal, assert_equal, assert_regulated, batch, critic, filled, module, normal
from tests.stopping import same

DDPG = {"critics": 1, "policy_every": 1, "target_noise": 0.0}


def made(**choices):
    small = {"network": MLP((8,)), "optimizer": Adam(1e-2, eps=1e-8), "batch_size": 16, "replay": UniformReplay(24), "target_network": Polyak(0.3)}
    return DeterministicActorCritic(BOX, TWO, 0.9, **{**small, **choices})


def beside(observation, action):
    return torch.cat([observation, action], 1)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("choices", [{"target_noise": 0.5, "target_noise_clip": 0.4}, {"policy_every": 3}, DDPG], ids=["td3", "every third", "ddpg"])
def test_updates_are_those_of_plain_torch(choices, weighted):
    agent = made(**choices)
    state = agent.init(torch.Generator().manual_seed(0), 24)
    actor, target_actor = (module(state.actor, 5, 2) for _ in range(2))
    critics, targets = ([critic(state.critics, index, 7, 1) for index in range(agent.critics)] for _ in range(2))
    of_critics, of_actor = torch.optim.Adam([p for made in critics for p in made.parameters()], 1e-2), torch.optim.Adam(actor.parameters(), 1e-2)
    for turn in range(10):
        seen, uniforms = batch(TWO, weighted=weighted, seed=turn), torch.rand(16, 2, dtype=torch.float64)
        state, metrics = agent.learn(state, seen, START, uniforms.flatten())
        weight = seen.weight if weighted else torch.ones(16)
        with torch.no_grad():
            noise = (agent.target_noise * normal(uniforms)).clip(-agent.target_noise_clip, agent.target_noise_clip)
            next_action = (target_actor(seen.next_observation).tanh() + noise).clip(-1, 1)
            lowest = torch.stack([made(beside(seen.next_observation, next_action)).squeeze(1) for made in targets]).min(0).values
            target = seen.reward + seen.discount * lowest
        value = sum((weight * (made(beside(seen.observation, seen.action)).squeeze(1) - target) ** 2).mean() for made in critics)
        of_critics.zero_grad()
        value.backward()
        of_critics.step()
        climbed = -(weight * critics[0](beside(seen.observation, actor(seen.observation).tanh())).squeeze(1)).mean()
        torch.testing.assert_close((metrics["loss/value"], metrics["loss/policy"]), (value.detach(), climbed.detach()), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(metrics["loss/total"], metrics["loss/value"] + metrics["loss/policy"])
        if (turn + 1) % agent.policy_every == 0:
            of_actor.zero_grad()
            climbed.backward()
            of_actor.step()
            with torch.no_grad():
                for old, new in zip([target_actor, *targets], [actor, *critics], strict=True):
                    for ours, theirs in zip(old.parameters(), new.parameters(), strict=True):
                        ours += 0.3 * (theirs - ours)
    assert_equal(state.actor, actor)
    assert_equal(state.target_actor, target_actor)
    assert_critics_equal(state.critics, critics)
    assert_critics_equal(state.target_critics, targets)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_actor_and_target_networks_move_only_when_they_are_due(every):
    agent, generator = made(policy_every=every), torch.Generator().manual_seed(0)
    state = agent.init(generator, 24)
    for turn in range(1, 7):
        before, (state, _) = state, agent.learn(state, batch(TWO, seed=turn), START, torch.rand(32, dtype=torch.float64))
        for name in ("actor", "target_actor", "target_critics", "critics"):
            same = all(getattr(state, name)[parameter].equal(old) for parameter, old in getattr(before, name).items())
            assert same == (name != "critics" and turn % every > 0), f"{name} at update {turn}"
        assert state.actor_optimizer.power1.item() == pytest.approx(0.9 ** (turn // every), rel=1e-5)
        assert state.critic_optimizer.power1.item() == pytest.approx(0.9**turn, rel=1e-5) and state.updates == turn


def test_target_networks_can_be_copied():
    agent = made(policy_every=1, target_network=HardCopy(7))
    first = agent.init(torch.Generator().manual_seed(0), 24)
    state, _ = agent.learn(first, batch(TWO), START, torch.rand(32, dtype=torch.float64))
    assert state.target_actor["0.weight"].equal(first.actor["0.weight"]) and state.target_critics["0.weight"].equal(first.critics["0.weight"])
    state = agent.refresh(state, *[torch.zeros(0)] * 4)
    assert state.target_actor["0.weight"].equal(state.actor["0.weight"]) and state.target_critics["0.weight"].equal(state.critics["0.weight"])
    assert not state.actor["0.weight"].equal(first.actor["0.weight"]) and agent.plan(1).refresh_every == 7


@pytest.mark.parametrize("steps", [1, 3])
def test_targets_look_as_far_as_a_plain_loop(steps):
    """Termination ends a return; truncation and the newest record cut it and bootstrap."""
    agent = made(steps=steps, **DDPG)
    memory, records, state = filled(agent)
    uniforms = torch.rand(agent.plan(2).update_uniforms, dtype=torch.float64)
    _, metrics = agent.update(state, memory, uniforms, torch.tensor(12.0, dtype=torch.float64), START)
    actor, q = module(state.actor, 5, 2), critic(state.critics, 0, 7, 1)

    def tensor(number):
        return torch.from_numpy(number.copy())[None]

    for row, place in enumerate((uniforms[:16] * 24).long().tolist()):
        environment, time = divmod(place, 12)
        total, factor, first = 0.0, 1.0, records[environment, time]
        for later in range(time, 12)[:steps]:
            seen = records[environment, later]
            total, factor = total + factor * seen["reward"], factor * 0.9 * (1 - seen["terminated"])
            if seen["terminated"] or seen["truncated"]:
                break
        following = tensor(seen["next_observation"])
        target = total + factor * q(beside(following, actor(following).tanh())).item()
        assert metrics["td_error"][row].item() == pytest.approx(abs(q(beside(tensor(first["observation"]), tensor(first["action"]))).item() - target), abs=1e-4)


def test_prioritized_replay_learns_from_errors():
    agent = made(replay=PrioritizedReplay(24))
    memory, _, state = filled(agent)
    uniforms, added = torch.rand(agent.plan(2).update_uniforms, dtype=torch.float64), torch.tensor(12.0, dtype=torch.float64)
    state, _ = agent.update(state, memory, uniforms, added, START)
    drawn = agent.replay.draw(state.replay, uniforms[:16], (2, 12), added, START)
    after, metrics = agent.update(state, memory, uniforms, added, START)
    assert drawn.weight.min() < 0.9
    torch.testing.assert_close(after.replay, agent.replay.learned(state.replay, drawn, 12, metrics["td_error"]))


def test_actions_are_anywhere_before_the_first_update_then_near_the_policy():
    agent = made(exploration_noise=0.2)
    state, observation = agent.init(torch.Generator().manual_seed(0), 24), torch.randn(1, 5).expand(4000, 5)
    explored, certain = agent.act(state, observation, torch.rand(8000), START, torch.tensor(1.0))
    assert (torch.histc(explored, 4, -1, 1) / 8000 - 0.25).abs().max() < 0.02 and (certain == 1).all()
    chosen = module(state.actor, 5, 2)(observation[:1]).tanh()[0].detach()
    noisy, _ = agent.act(state._replace(updates=state.updates + 1), observation, torch.rand(8000), START, torch.tensor(1.0))
    torch.testing.assert_close((noisy - chosen).std(0), torch.full((2,), 0.2), rtol=0.05, atol=0)
    torch.testing.assert_close(noisy.mean(0), chosen, atol=0.02, rtol=0)
    for updates in (0, 1):
        greedy, _ = agent.act(state._replace(updates=state.updates + updates), observation, torch.rand(8000), START, torch.tensor(0.0))
        torch.testing.assert_close(greedy[0], chosen)
    far, _ = made(exploration_noise=9.0).act(state._replace(updates=state.updates + 1), observation, torch.rand(8000), START, torch.tensor(1.0))
    assert far.abs().max() == 1


@pytest.mark.parametrize("agent", ["td3", "ddpg"])
@pytest.mark.parametrize("value", [*groups()["loss/value"], "hl_gauss loss/value/transform=popart loss.value.vmin=-5 loss.value.vmax=5", "huber loss/value/transform=popart"])
def test_every_value_loss_learns_a_fixed_batch(agent, value):
    words = [f"agent={agent}", "env=pendulum", *f"loss/value={value}".split(), "network.hidden=[16]", "optimizer.learning_rate=1e-2", "agent.batch_size=16"]
    agent = build(compose(words)).agent
    state, losses, seen = agent.init(torch.Generator().manual_seed(0), 16), [], batch(TWO)
    seen = seen._replace(observation=seen.observation[:, :3], next_observation=seen.next_observation[:, :3], action=seen.action[:, :1], reward=1 + seen.reward)
    for _ in range(30):
        state, metrics = agent.learn(state, seen, START, torch.rand(32, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
        losses.append(metrics["loss/value"].item())
        assert all(metric.isfinite().all() for metric in metrics.values())
    assert min(losses[-5:]) < losses[0] and all(p.isfinite().all() for tree in (state.actor, state.critics) for p in tree.values())


SMALL = [
    "agent=td3", "env=pendulum", "network.hidden=[16]", "agent.batch_size=16", "agent.learning_starts=20", "num_envs=2", "total_steps=100",
    "agent.replay.capacity=200", "evaluation.every=0", "evaluation.episodes=1", "checkpoint_every=0", "compile=false",
]  # fmt: skip


def members(count, *words):
    """Runs that differ in floats."""
    floats = {"optimizer.learning_rate": 1e-3, "agent.exploration_noise": 0.1, "agent.target_noise": 0.2}
    return [build(compose([*SMALL, *words, f"seed={seed}", *(f"{name}={number * seed}" for name, number in floats.items())])) for seed in range(count)]


def test_a_run_among_others_is_the_run_alone():
    together, alone = train(members(3)), train(members(2)[1:])[0]
    for part in ("actor", "critics", "target_actor", "target_critics"):
        for name, parameter in getattr(alone.learner, part).items():
            torch.testing.assert_close(getattr(together[1].learner, part)[name], parameter, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_compiled_run_among_others_is_bitwise_the_run_alone():
    sizes = "network.hidden=[64,64]", "agent.batch_size=64"  # So large that a compiler would share out sums.
    together, alone = train(members(9, *sizes), compile=True), train(members(2, *sizes)[1:], compile=True)[0]
    assert same(together[1].learner, alone.learner)


def test_a_regulator_learns_the_gain_of_riccati_s_equation():
    run = build(compose(["agent=td3", "agent.exploration_noise=0.3", "agent.target_noise=0.1", *REGULATED]))
    (result,) = train([run])
    x = torch.linspace(-0.8, 0.8, 9)[:, None]
    assert_regulated(x, run.agent.action(result.learner.actor, x))


@pytest.mark.parametrize(("choice", "options"), [("td3", {}), ("ddpg", DDPG)])
def test_the_agent_in_python_is_the_one_on_the_command_line(choice, options):
    agent = build(compose([f"agent={choice}", "env=pendulum"])).agent
    assert agent == DeterministicActorCritic(agent.observation_space, agent.action_space, **options)


def test_ddpg_keeps_its_choices_among_others():
    agent = build(compose(["agent=ddpg", "env=pendulum", "agent/replay=prioritized", "agent/target_network=hard_copy", "network=layer_norm_mlp", "optimizer=sgd"])).agent
    assert (agent.critics, agent.policy_every, agent.target_noise) == (1, 1, 0.0)
    assert isinstance(agent.replay, PrioritizedReplay) and isinstance(agent.target_network, HardCopy) and agent.network.layer_norm


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["env=cartpole"], r"DeterministicActorCritic needs Box actions, but this environment has Discrete\(2\); choose another environment or agent=sac"),
        (["agent.policy_every=0"], "agent.policy_every must be at least 1"),
        (["agent.target_noise=-1"], "agent.target_noise must be at least 0"),
        (["agent.steps=0"], "agent.steps must be at least 1"),
        (["loss/regularizer=[value_magnitude]"], "regularizers.value_magnitude needs action_values, which DeterministicActorCritic doesn't have"),
        (["network=minatar_cnn"], "network"),
        (["+loss/policy=ppo_clip"], "loss.policy is not read by agents.deterministic_actor_critic.DeterministicActorCritic"),
    ],
)
def test_what_makes_no_sense_is_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        build(compose(["agent=td3", "env=pendulum", *words]))


def test_actions_of_every_shape_are_kept_as_they_are():
    agent = DeterministicActorCritic(BOX, type(TWO)(-1, 1, (2, 3), np.float32), network=MLP((8,)), batch_size=4)
    state = agent.init(torch.Generator().manual_seed(0), 24)
    action, _ = agent.act(state, torch.randn(7, 5), torch.rand(agent.plan(7).acting_uniforms), START, torch.tensor(1.0))
    assert action.shape == (7, 2, 3) and agent.layout["action"].shape == (2, 3)
