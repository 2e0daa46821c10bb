"""Recurrent policies: cells and whole updates against torch's own, what an episode's end leaves, and a cue that must be remembered."""


import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents import command_line, replay
from agents.actor_critic import ActorCritic
from agents.backends import BACKENDS
from agents.config import ConfigError, build, compose
from agents.optimizers import SGD
from agents.population import Population, unstack
from agents.recurrent import GRU, LSTM, Recurrent
from agents.training import train
from rlloss import GAE, EntropyBonus, PPOClip
from tests.stopping import goes_on_bitwise, same

BOX, THREE, ENVIRONMENTS, LENGTH = spaces.Box(-1, 1, (5,), np.float32), spaces.Discrete(3), 4, 8
NOTHING = torch.rand(0), torch.tensor(0.0), torch.tensor(0.0)
CELLS = {"gru": GRU(6), "lstm": LSTM(6)}
SMALL = ["num_envs=2", "agent.rollout=8", "agent.sequence=4", "agent.minibatches=2", "network.hidden=[8]", "network.cell.units=8", "evaluation.every=0", "evaluation.episodes=3", "compile=false"]


def to_torch(parameters, cell, inputs, prefix=""):
    """torch's own cell with the parameters of ours."""
    theirs = (torch.nn.GRUCell if isinstance(cell, GRU) else torch.nn.LSTMCell)(inputs, cell.units)
    for name, layer in (("ih", "input"), ("hh", "hidden")):
        weight = parameters[f"{prefix}{layer}.weight"]
        shape = getattr(theirs, f"weight_{name}").shape
        getattr(theirs, f"weight_{name}").data = (weight if weight.shape == shape else weight.T).clone()
        getattr(theirs, f"bias_{name}").data = parameters[f"{prefix}{layer}.bias"].clone()
    return theirs


def stepped(theirs, x, remembered):
    """Features and memory after one step of torch's cell."""
    if isinstance(theirs, torch.nn.GRUCell):
        h = theirs(x, remembered)
        return h, h
    m, h = remembered.chunk(2, -1)
    h, m = theirs(x, (h, m))
    return h, torch.cat([m, h], -1)


@pytest.mark.parametrize("inputs", [3, 20])
@pytest.mark.parametrize("cell", [GRU(6), LSTM(6), GRU(2), LSTM(1), GRU(40)], ids=str)
def test_cells_are_those_of_torch(cell, inputs):
    parameters = cell.init(torch.Generator().manual_seed(0), inputs)
    x, remembered = torch.randn(7, inputs), torch.randn(7, cell.remembers)
    found = cell(parameters, cell.read(parameters, x), remembered)
    torch.testing.assert_close(found, stepped(to_torch(parameters, cell, inputs), x, remembered))
    bound = cell.units**-0.5
    assert all(p.abs().max() <= bound for p in parameters.values())
    largest = max(p.abs().max().item() for p in parameters.values())
    assert largest > 0.7 * bound and {p.numel() for p in cell.init(torch.Generator(), inputs).values()} == {p.numel() for p in to_torch(parameters, cell, inputs).parameters()}


def made(cell="gru", **choices):
    network = Recurrent(CELLS[cell], (10,))
    return ActorCritic(BOX, THREE, 0.9, **{"rollout": LENGTH, "sequence": 4, "minibatches": 2, "network": network, "max_gradient_norm": float("inf"), "regularizers": {}, **choices})


def rollout(agent):
    """A state with a whole rollout in memory [environments, time, words], its episodes going on from step to step, and its fields [environments, time]."""
    rng, shape = np.random.default_rng(0), (ENVIRONMENTS, LENGTH)
    records, state = np.zeros(shape, agent.layout), agent.init(torch.Generator().manual_seed(0), ENVIRONMENTS * LENGTH)
    records["observation"], records["next_observation"] = rng.normal(size=(2, *shape, 5))
    records["action"], records["reward"] = rng.integers(0, 3, shape), rng.normal(size=shape)
    records["terminated"] = rng.random(shape) < 0.2
    records["truncated"] = (rng.random(shape) < 0.2) & (records["terminated"] == 0)
    records["terminated"][0, 1], records["truncated"][1, 1], records["truncated"][1, 5] = 1, 1, 1  # In the middle of sequences.
    records["terminated"][1, 1] = records["terminated"][1, 5] = 0
    remembered = torch.randn(ENVIRONMENTS, agent.remembers)
    for time in range(LENGTH):
        row = records[:, time]
        row["remembered"] = remembered
        _, _, remembered = agent.act(state, torch.from_numpy(row["observation"].copy()), torch.rand(ENVIRONMENTS * 3), NOTHING[1], torch.ones(()), remembered)
        remembered = remembered * torch.from_numpy((row["terminated"] + row["truncated"]) == 0)[:, None]
    memory = replay.memory(1, *shape, agent.layout)
    memory.numpy()[0] = records.view(np.int32).reshape(*shape, -1)
    return state, memory[0], records


def refreshed(agent, state, memory):
    return agent.refresh(state, memory, torch.rand(agent.plan(ENVIRONMENTS).refresh_uniforms), *NOTHING[1:])


class Plain(torch.nn.Module):
    """An actor or a critic in torch's own modules, run step by step."""

    def __init__(self, parameters, cell, torso, head):
        super().__init__()
        self.layer, outputs = torch.nn.Linear(5, 10), parameters[f"{head}bias"].numel()
        self.cell, self.head = to_torch(parameters, cell, 10, f"{torso}cell."), torch.nn.Linear(cell.units, outputs)
        for linear, name in ((self.layer, f"{torso}0."), (self.head, head)):
            weight = parameters[f"{name}weight"]
            linear.weight.data = (weight if weight.shape == linear.weight.shape else weight.T).clone()
            linear.bias.data = parameters[f"{name}bias"].clone()

    def forward(self, observation, remembered):
        h, remembered = stepped(self.cell, self.layer(observation).tanh(), remembered)
        return self.head(h), remembered


def memory_of(rows, agent, which):
    """What actor (0) or critic (1) remembers, as torch tensors [rows, …] from the field of all."""
    remembered = torch.from_numpy(rows["remembered"].copy())
    return remembered if agent.shared else remembered.chunk(2, -1)[which]


def plain(agent, state):
    critic = "actor." if agent.shared else "critic."
    return Plain(state.parameters, agent.network.cell, "actor.", "policy."), Plain(state.parameters, agent.network.cell, critic, "value.")


@pytest.mark.parametrize("cell", CELLS)
def test_returns_are_those_of_a_plain_loop(cell):
    """A cut step's next observation is valued with the memory of the episode that was cut."""
    agent = made(cell, target=GAE(0.7))
    state, memory, seen = rollout(agent)
    found, (_, critic) = refreshed(agent, state, memory), plain(agent, state)
    for environment in range(ENVIRONMENTS):
        remembered, advantage, values = memory_of(seen[environment, :1], agent, 1), 0.0, []
        for row in seen[environment]:
            with torch.no_grad():
                value, remembered = critic(torch.from_numpy(row["observation"].copy())[None], remembered)
                values.append((value.item(), critic(torch.from_numpy(row["next_observation"].copy())[None], remembered)[0].item()))
            remembered = 0 * remembered if row["terminated"] or row["truncated"] else remembered
        for time in reversed(range(LENGTH)):
            row, (value, following) = seen[environment, time], values[time]
            error = row["reward"] + 0.9 * (1 - row["terminated"]) * following - value
            advantage = error + (0.0 if row["terminated"] or row["truncated"] else 0.9 * 0.7 * advantage)
            place = environment * LENGTH + time
            assert found.advantages[place].item() == pytest.approx(advantage, abs=1e-5)
            assert found.returns[place].item() == pytest.approx(advantage + value, abs=1e-5)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_updates_are_those_of_plain_torch(cell, shared):
    agent = made(cell, optimizer=SGD(0.1), policy_loss=PPOClip(0.1, 0.3), regularizers={"entropy": EntropyBonus(0.02)}, shared=shared)
    state, memory, seen = rollout(agent)
    state, sequences = refreshed(agent, state, memory), seen.reshape(-1, 4)
    assert sorted(state.order[:2].flatten().tolist()) == list(range(ENVIRONMENTS * LENGTH))
    for number in range(4):
        actor, critic = plain(agent, state)
        chosen = state.order[number].reshape(-1, 4)
        assert (chosen[:, 0] % 4 == 0).all() and (chosen.diff(dim=1) == 1).all()
        log_probability, entropy, values = [], [], []
        for rows in sequences[chosen[:, 0] // 4]:
            kept = [memory_of(rows[:1], agent, which) for which in (0, 1)]
            for row in rows:
                observation = torch.from_numpy(row["observation"].copy())[None]
                (logits, kept[0]), (value, kept[1]) = actor(observation, kept[0]), critic(observation, kept[1])
                distribution = torch.distributions.Categorical(logits=logits)
                log_probability.append(distribution.log_prob(torch.tensor([int(row["action"])])))
                entropy.append(distribution.entropy())
                values.append(value.squeeze(-1))
                if row["terminated"] or row["truncated"]:
                    kept = [torch.zeros_like(each) for each in kept]
        chosen = chosen.flatten()
        advantage = state.advantages[chosen]
        advantage = (advantage - advantage.mean()) / advantage.std(correction=0)
        ratio = (torch.cat(log_probability) - state.behaviour[chosen]).exp()
        policy = -torch.minimum(ratio * advantage, ratio.clamp(0.9, 1.3) * advantage).mean()
        value = 0.5 * (torch.cat(values) - state.returns[chosen]).square().mean()
        (policy + value - 0.02 * torch.cat(entropy).mean()).backward()
        before = state.parameters
        state, metrics = agent.update(state, memory, *NOTHING)
        torch.testing.assert_close((metrics["loss/policy"], metrics["loss/value"]), (policy.detach(), value.detach()), rtol=1e-4, atol=1e-6)
        gradient = {name: (before[name] - state.parameters[name]) / 0.1 for name in before}
        theirs = {"actor.": [actor, critic] if shared else [actor], **({} if shared else {"critic.": [critic]})}
        for torso, modules in theirs.items():
            for name, get in (("cell.hidden.bias", lambda m: m.cell.bias_hh), ("cell.input.bias", lambda m: m.cell.bias_ih), ("cell.hidden.weight", lambda m: m.cell.weight_hh)):
                expected, found = sum(get(module).grad for module in modules), gradient[torso + name]
                torch.testing.assert_close(found if found.shape == expected.shape else found.T, expected, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(gradient[f"{torso}0.weight"].T, sum(module.layer.weight.grad for module in modules), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(gradient["policy.bias"], actor.head.bias.grad, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(gradient["value.bias"], critic.head.bias.grad, rtol=1e-3, atol=1e-5)


def test_the_behaviour_is_the_policy_that_acted():
    """Acted step by step, a rollout's probabilities are those that are found in one pass over its stored memories."""
    run = build(compose(["agent=ppo", "network=lstm", "env.id=tests.toys:Cue-v0", *SMALL]))
    population = acted([run], 8)
    seen = replay.decode(population.memory[0].flatten(0, 1), population.layout)
    population.refresh(0, 8, 0.0)
    torch.testing.assert_close(population.learner.behaviour[0].exp(), seen.probability)


def acted(runs, steps, length=3):
    """A population that has acted so long on observations of its own, in episodes of `length` steps in one environment and one more in the other."""
    population = Population([run.agent for run in runs], [run.seed for run in runs], 2, compile=False, say=print)
    rng = np.random.default_rng(0)
    records = np.zeros((len(runs), 2), population.layout)
    for time in range(steps):
        population.observation[...] = torch.from_numpy(rng.normal(size=population.observation.shape))
        records["observation"] = population.observation.numpy()
        records["action"], records["probability"] = population.act(time, 0.0)
        records["truncated"] = [(time + 1) % length == 0, False]
        records["terminated"] = [False, (time + 1) % (length + 1) == 0]
        population.store(time, records.view(np.int32).reshape(len(runs), 2, -1))
    return population


@pytest.mark.parametrize("network", ["gru", "lstm"])
def test_what_is_stored_is_what_replaying_the_episode_gives(network):
    agents = build(compose(["agent=ppo", f"network={network}", "env.id=tests.toys:Cue-v0", *SMALL]))
    population = acted([agents], 8)
    agent, state = agents.agent, unstack(population.learner, 0)
    seen = replay.decode(population.memory[0], population.layout)
    for environment in range(2):
        remembered, nonzero = torch.zeros(1, agent.remembers), 0
        for time in range(8):
            assert torch.equal(seen.remembered[environment, time] == 0, remembered[0] == 0)
            torch.testing.assert_close(seen.remembered[environment, time], remembered[0])
            nonzero += bool(remembered.any())
            remembered = agent.act(state, seen.observation[environment, time][None], torch.rand(2), NOTHING[1], torch.ones(()), remembered)[2]
            if seen.terminated[environment, time] or seen.truncated[environment, time]:
                remembered = torch.zeros_like(remembered)
        assert nonzero == (5 if environment == 0 else 6)
        torch.testing.assert_close(population.remembered[0, environment], remembered[0])


@pytest.mark.parametrize("ends", ["terminated", "truncated"])
@pytest.mark.parametrize("cell", CELLS)
def test_an_end_inside_a_sequence_leaves_no_trace(cell, ends):
    """Whatever came before it, infinite memory included, the gradient and the outputs of the steps behind it are bitwise the same."""
    network, generator = Recurrent(CELLS[cell], (10,)), torch.Generator().manual_seed(0)
    parameters = network.init(generator, (5,))
    ended = torch.tensor([False, True, False, False] * 3)

    def behind(observation, remembered):
        def total(parameters):
            features, last = network(parameters, observation, remembered, ended)
            features = features.unflatten(0, (3, 4))[:, 2:]
            return features.square().sum() + last.sum(), (features, last)

        return torch.func.grad_and_value(total, has_aux=True)(parameters)

    observation, other = torch.randn(2, 12, 5)
    before = torch.arange(12) % 4 < 2
    other = torch.where(before[:, None], other, observation)
    gradient, (value, outputs) = behind(observation, torch.zeros(3, network.remembers))
    for remembered in (torch.randn(3, network.remembers), torch.full((3, network.remembers), 1e30)):
        changed, (its, those) = behind(other, remembered)
        assert its.equal(value) and all(one.equal(each) for one, each in zip(outputs, those, strict=True))
        assert all(gradient[name].equal(changed[name]) for name in gradient)
    free = network(parameters, observation, torch.zeros(3, network.remembers), torch.zeros(12, dtype=torch.bool))[0].unflatten(0, (3, 4))[:, 2:]
    assert not torch.equal(free, outputs[0])  # Without the end it would show.


def cue(network, *words):
    settings = ["env.id=tests.toys:Cue-v0", "num_envs=8", "network.hidden=[16]", "optimizer.learning_rate=1e-2", "total_steps=5000", "evaluation.every=0", "evaluation.episodes=64", "checkpoint_every=0", "compile=false"]
    (result,) = train([build(compose([*settings, f"network={network}", *words]))])
    return np.mean(result.evaluation_returns)


@pytest.mark.parametrize("network", ["gru", "lstm"])
def test_a_cue_is_remembered(network):
    assert cue(network, "agent=ppo", "network.cell.units=16", "agent.rollout=32", "agent.sequence=8") == 1


def test_a_cue_is_remembered_by_one_network_that_learns_once_a_rollout():
    assert cue("gru", "agent=a2c", "network.cell.units=16", "agent.rollout=8", "agent.sequence=4", "agent.shared=true", "total_steps=12000") == 1


def test_a_cue_is_lost_on_a_policy_without_memory():
    assert cue("mlp", "agent=ppo", "agent.rollout=32") < 0.7


@pytest.mark.parametrize("network", ["gru", "lstm"])
def test_a_stopped_run_goes_on_bitwise_as_if_it_had_not_stopped(tmp_path, network):
    """In the middle of episodes, since episodes of 7 steps end with none of the rollouts."""
    words = ["agent=ppo", f"network={network}", "env.id=tests.toys:Cue-v0", "+env.arguments.length=7", "total_steps=160", "log_every=16", *SMALL]
    goes_on_bitwise(lambda directory: build(compose(words), directory), tmp_path, 37)


def test_training_is_not_disturbed_by_evaluations():
    words = ["agent=ppo", "network=lstm", "env.id=tests.toys:Cue-v0", "total_steps=160", *SMALL]
    often, never = (train([build(compose([*words, f"evaluation.every={every}"]))])[0] for every in (10, 0))
    assert same(often.learner, never.learner) and often.evaluation_returns == never.evaluation_returns


@pytest.mark.parametrize("backend", ["gymnasium", "envpool"])
def test_every_greedy_episode_begins_without_memory(backend):
    """Each action is that of the policy which has seen this episode alone, and what is remembered is what it remembers."""
    if backend == "envpool":
        pytest.importorskip("envpool")
    run = build(compose(["agent=ppo", "network=gru", "env=cartpole", f"env.backend={backend}", *SMALL]))
    population, told = acted([run], 3), []
    training = population.observation.clone(), population.remembered.clone()
    assert training[1].any()
    state = unstack(population.learner, 0)
    memory = torch.zeros(2, run.agent.remembers)

    def act():
        nonlocal memory
        memory[torch.from_numpy(population.started[0])] = 0
        told.append(population.started[0].copy())
        found = population.act_greedily(0.0)
        expected, _, memory = run.agent.act(state, population.observation[0], torch.rand(4), NOTHING[1], torch.zeros(()), memory)
        assert np.array_equal(found[0], expected.numpy()) and memory.equal(population.remembered[0])
        return found

    with population.undisturbed():
        BACKENDS[backend].evaluate(act, [run.environment], population.observation.numpy(), [0], 0, run.evaluation, started=population.started)
        assert not torch.equal(population.remembered, training[1])
    assert population.observation.equal(training[0]) and population.remembered.equal(training[1])
    assert told[0].all() and 3 <= np.sum(told) <= 4


def test_a_run_directory_is_evaluated_as_training_did(tmp_path, monkeypatch, capsys):
    words = ["agent=ppo", "network=lstm", "env.id=CartPole-v1", "total_steps=64", *SMALL]
    (result,) = train([build(compose(words), tmp_path / "run")])
    monkeypatch.setattr("sys.argv", ["rlloss-evaluate", str(tmp_path / "run"), "--episodes", "3"])
    command_line.evaluate_main()
    assert f"{np.mean(result.evaluation_returns):.1f}" in capsys.readouterr().out


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"])
@pytest.mark.parametrize("network", ["gru", "lstm"])
def test_a_run_among_others_is_the_run_alone(network, compiled):
    """Compiled bitwise; eagerly but for rounding, which a policy that learns for long makes as large as it likes."""

    def run(seed, rate):
        words = ["agent=ppo", f"network={network}", "env=cartpole", f"seed={seed}", f"optimizer.learning_rate={rate}", f"total_steps={160 if compiled else 32}"]
        return build(compose([*words, *SMALL]))

    settings = [(1, 1e-3), (2, 1e-2), (3, 1e-4)]
    together, alone = train([run(*each) for each in settings], compile=compiled), train([run(*settings[1])], compile=compiled)[0]
    if compiled:
        assert same(together[1].learner, alone.learner) and together[1].evaluation_returns == alone.evaluation_returns
    for name, parameter in alone.learner.parameters.items():
        torch.testing.assert_close(together[1].learner.parameters[name], parameter, rtol=1e-4, atol=1e-5)


def test_networks_without_memory_keep_nothing():
    run = build(compose(["agent=ppo", "num_envs=2", "agent.sequence=7"]))  # Which doesn't divide 128.
    population = Population([run.agent], [0], 2, compile=False, say=print)
    assert population.remembered.numel() == 0 and "remembered" not in population.layout.names and "remembered" not in population.learner_tensors(0)


def test_imitation_learns_with_memory(tmp_path):
    words = ["network=gru", "env.id=CartPole-v1", "total_steps=64", "num_envs=2", "network.hidden=[8]", "evaluation.every=0", "evaluation.episodes=2", "compile=false"]
    train([build(compose(["agent=ppo", *words]), tmp_path / "expert")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["rlloss-evaluate", str(tmp_path / "expert"), "--episodes", "2", "--record", str(tmp_path / "shown.npz")])
        command_line.evaluate_main()
    imitating = ["agent=gail", f"agent.demonstrations.source={tmp_path / 'shown.npz'}", "agent.learner.rollout=16", "agent.learner.minibatches=2", *words]
    (result,) = train([build(compose(imitating))])
    assert all(parameter.isfinite().all() for parameter in result.learner.learner.parameters.values())
    with pytest.raises(ConfigError, match="network Recurrent is recurrent, but GAIL's discriminator keeps no memory"):
        build(compose([*imitating, "agent.network=${network}"]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["agent=sac"], "network Recurrent is recurrent, but SoftActorCritic keeps no memory"),
        (["agent=td3", "env=pendulum"], "network Recurrent is recurrent, but DeterministicActorCritic keeps no memory"),
        (["agent=dqn"], "network Recurrent is recurrent, but DQN keeps no memory from step to step; choose network=mlp, or agent=ppo or a2c"),
        (["agent=pqn"], "network Recurrent is recurrent, but PQN keeps no memory"),
        (["agent=ppo", "agent.sequence=0"], "agent.sequence must be at least 1"),
        (["agent=ppo", "agent.sequence=48"], "agent.sequence 48 must divide agent.rollout 128"),
        (["agent=ppo", "agent.minibatches=5"], "agent.minibatches 5 must divide the 64 sequences of a rollout, agent.rollout 128 times num_envs 8 through agent.sequence 16"),
        (["agent=ppo", "network.cell.units=0"], "network.cell.units must be at least 1"),
        (["agent=ppo", "network.hidden=[0]"], "network.hidden must be widths of at least 1"),
        (["agent=ppo", "network.activation=rlu"], "network.activation must be one of relu, tanh, silu, gelu"),
    ],
)
def test_what_makes_no_sense_is_refused(words, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build(compose(["network=gru", *words]))
    assert "\n" not in str(caught.value)
