"""Behaviour cloning against plain torch, every loss at its seam, experts that are known, exact continuation, runs together."""


import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents import replay
from agents.behaviour_cloning import Cloning
from agents.command_help import groups
from agents.config import ConfigError, build, compose
from agents.environments import Environment
from agents.networks import MLP
from agents.optimizers import SGD
from agents.training import train
from rlloss import MSE, BinaryFocal, CrossEntropy, Focal, GaussianNLL, Huber
from tests.agents.test_demonstrations import CARTPOLE, leaning, recorded
from tests.events import scalars
from tests.stopping import goes_on_bitwise

SEEN = spaces.Box(-9, 9, (5,), np.float32)
ACTIONS = {"discrete": spaces.Discrete(3), "multi_discrete": spaces.MultiDiscrete([2, 3]), "multi_binary": spaces.MultiBinary(2), "box": spaces.Box(-1, 1, (2,), np.float32)}
PARTS = {"discrete": [3], "multi_discrete": [2, 3], "multi_binary": [2, 2]}
ONE = torch.ones((), dtype=torch.float64)


def filled(agent):
    """A memory [2 environments, 16, words] of random transitions, and their fields."""
    rng = np.random.default_rng(0)
    records = np.zeros((2, 16), agent.layout)
    records["observation"] = rng.normal(size=records["observation"].shape)
    kind = next(name for name, space in ACTIONS.items() if space == agent.action_space)
    if kind == "box":
        records["action"] = rng.uniform(-1, 1, records["action"].shape)
    else:
        records["action"] = rng.integers(0, np.array(PARTS[kind]).squeeze(), records["action"].shape)
    memory = replay.memory(1, 2, 16, agent.layout)
    memory.numpy()[0] = records.view(np.int32).reshape(2, 16, -1)
    return memory[0], records


def made(kind, **choices):
    return Cloning(SEEN, ACTIONS[kind], **{"batch_size": 8, "network": MLP((8,)), "max_gradient_norm": float("inf"), "replay": replay.UniformReplay(32), **choices})


def plain(state, outputs):
    """The same network in torch's own modules."""
    module = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, outputs))
    with torch.no_grad():
        for parameter, name in zip(module.parameters(), ("0.weight", "0.bias", "head.weight", "head.bias"), strict=True):
            ours = state.parameters[name]
            parameter.copy_(ours if ours.shape == parameter.shape else ours.T)
    return module


def focal(logits, label):
    probability = logits.softmax(-1).gather(-1, label[:, None]).squeeze(-1)
    return (-((1 - probability) ** 2) * probability.log()).mean()


def one_against_all(logits, label):
    probability, target = logits.sigmoid(), torch.nn.functional.one_hot(label, logits.shape[-1]).float()
    right = torch.where(target == 1, probability, 1 - probability)
    return (torch.where(target == 1, 0.3, 0.7) * -((1 - right) ** 1.5) * right.log()).sum(-1).mean()


LABELS = {"cross entropy": (CrossEntropy(), torch.nn.functional.cross_entropy), "focal": (Focal(), focal), "binary focal": (BinaryFocal(0.3, 1.5), one_against_all)}
NUMBERS = {"mse": (MSE(), torch.nn.functional.mse_loss, 1), "huber": (Huber(0.2), lambda x, y: torch.nn.functional.huber_loss(x, y, delta=0.2), 1)}
STEPS = [(kind, loss) for kind in PARTS for loss in LABELS] + [("box", loss) for loss in (*NUMBERS, "likelihood")]


def loss_in_torch(kind, loss, outputs, action):
    if kind != "box":
        pairs = zip(outputs.split(PARTS[kind], -1), action.reshape(len(action), -1).long().unbind(-1), strict=True)
        return sum(LABELS[loss][1](logits, column) for logits, column in pairs)
    if loss == "likelihood":
        mean, log_variance = outputs.unflatten(-1, (2, 2)).unbind(-1)
        distribution = torch.distributions.Normal(mean, (log_variance / 2).exp())
        return -(distribution.log_prob(action) + 0.5 * np.log(2 * np.pi)).sum(-1).mean()
    return 2 * NUMBERS[loss][1](outputs, action)


@pytest.mark.parametrize(("kind", "loss"), STEPS)
def test_steps_are_those_of_plain_torch(kind, loss):
    chosen = {"classification": LABELS[loss][0]} if kind != "box" else {"value_loss": GaussianNLL() if loss == "likelihood" else NUMBERS[loss][0]}
    agent = made(kind, optimizer=SGD(0.1, momentum=0.9), **chosen)
    memory, seen = filled(agent)
    state = agent.init(torch.Generator().manual_seed(0), 32)
    module = plain(state, sum(PARTS[kind]) if kind != "box" else 4 if loss == "likelihood" else 2)
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    for number in range(3):
        uniforms = torch.rand(8, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
        rows = seen.reshape(-1)[(uniforms * 32).long().numpy()]
        outputs = module(torch.from_numpy(rows["observation"].copy()))
        expected = loss_in_torch(kind, loss, outputs, torch.from_numpy(rows["action"].copy()))
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        state, metrics = agent.update(state, memory, uniforms, 16 * ONE, torch.zeros(()))
        torch.testing.assert_close(metrics["loss/total"], expected.detach())
        torch.testing.assert_close(metrics[f"loss/{'value' if kind == 'box' else 'classification'}"], expected.detach())
        if kind != "box":
            said = torch.stack([each.argmax(-1) for each in outputs.split(PARTS[kind], -1)], -1).numpy()
            assert metrics["imitation/accuracy"].item() == pytest.approx((said == rows["action"].reshape(8, -1)).all(-1).mean())
    for name, parameter in plain(state, module[2].out_features).named_parameters():
        torch.testing.assert_close(parameter, module.get_parameter(name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "choice"), [*(("discrete", each) for each in groups()["loss/classification"]), *(("box", each) for each in groups()["loss/value"])])
def test_every_choice_learns(kind, choice, tmp_path):
    group = "loss/value" if kind == "box" else "loss/classification"
    shown, policy = (Environment("tests.toys:Match-v0"), match("box")) if kind == "box" else (CARTPOLE, leaning)
    recorded(tmp_path / "file", shown, policy)
    words = [f"env.id={shown.id}", *(["loss.value.vmin=-1", "loss.value.vmax=1"] if choice in ("hl_gauss", "two_hot", "c51") else [])]
    run = build(compose(["agent=cloning", f"env.recording={tmp_path / 'file'}", f"{group}={choice}", "loss/regularizer=[l2]", "optimizer.learning_rate=1e-2", *words]))
    agent = Cloning(**{**vars(run.agent), "observation_space": SEEN, "action_space": ACTIONS[kind], "batch_size": 32})
    memory, _ = filled(agent)
    state, losses = agent.init(torch.Generator().manual_seed(0), 32), []
    for _ in range(40):
        state, metrics = agent.update(state, memory, torch.rand(32, dtype=torch.float64), 16 * ONE, torch.zeros(()))
        losses.append(metrics["loss/total"].item())
        assert all(metric.isfinite().all() for metric in metrics.values())
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def match(kind):
    """An expert for Match-v0, in an action's stored form."""
    return (lambda seen: 2 * seen - 1) if kind == "box" else (lambda seen: seen.astype(np.int64))


@pytest.mark.parametrize(("kind", "loss"), [("multi_discrete", "classification=focal"), ("multi_binary", "classification=cross_entropy"), ("box", "value=huber"), ("box", "value=gaussian_nll")])
def test_an_expert_is_reproduced_in_every_action_space(tmp_path, kind, loss):
    """Match-v0 costs nothing where the action says what is observed."""
    environment = Environment("tests.toys:Match-v0", {"kind": kind})
    assert recorded(tmp_path / "file", environment, match(kind), episodes=20) == [0.0] * 20
    words = ["agent=cloning", "env.id=tests.toys:Match-v0", f"+env.arguments.kind={kind}", f"env.recording={tmp_path / 'file'}", f"loss/{loss}", "network.hidden=[16]", "optimizer.learning_rate=1e-2"]
    (result,) = train([build(compose([*words, "total_steps=600", "agent.learning_starts=100", "agent.batch_size=32", "checkpoint_every=0", "evaluation.episodes=5", "compile=false"]))])
    assert np.mean(result.evaluation_returns) > -0.05


def test_categories_that_do_not_begin_at_0_are_cloned(tmp_path):
    environment = Environment("tests.toys:Identity-v0", {"start": 3})
    recorded(tmp_path / "file", environment, lambda seen: seen.astype(np.int64) - 3)
    words = ["agent=cloning", "env.id=tests.toys:Identity-v0", "+env.arguments.start=3", f"env.recording={tmp_path / 'file'}", "network.hidden=[16]", "optimizer.learning_rate=1e-2"]
    (result,) = train([build(compose([*words, "total_steps=400", "agent.learning_starts=50", "agent.batch_size=16", "compile=false"]))])
    assert result.evaluation_returns == [10.0] * 20


WORDS = ["agent=cloning", "network.hidden=[32]", "agent.batch_size=16", "agent.learning_starts=50", "num_envs=2", "log_every=20", "evaluation.episodes=2", "evaluation.every=100", "evaluation.max_steps=60", "checkpoint_every=70"]


@pytest.fixture
def run(tmp_path):
    """Makes runs on one recording of CartPole."""
    recorded(tmp_path / "file", CARTPOLE, leaning)

    def make(*words, directory=None):
        return build(compose([*WORDS, f"env.recording={tmp_path / 'file'}", *words]), directory)

    return make


@pytest.mark.parametrize("kept", ["uniform", "prioritized"])
def test_a_stopped_run_goes_on_bitwise(run, tmp_path, kept):
    words = ["total_steps=300", f"agent/replay={kept}", "agent.replay.capacity=100"]
    goes_on_bitwise(lambda directory: run(*words, directory=directory), tmp_path, 61)
    assert {"loss/classification", "loss/total", "imitation/accuracy", "gradient/norm"} <= {tag for _, tag, _ in scalars(tmp_path / "whole")}


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"])
def test_a_run_among_others_is_the_run_alone(run, compiled):
    def one(seed, gamma):
        return run("loss/classification=focal", f"loss.classification.gamma={gamma}", f"seed={seed}", "total_steps=200")

    settings = [(1, 0.0), (2, 2.0), (3, 5.0)]
    together, alone = train([one(*each) for each in settings], compile=compiled), train([one(*settings[1])], compile=compiled)[0]
    for name, parameter in alone.learner.parameters.items():
        torch.testing.assert_close(together[1].learner.parameters[name], parameter, **({"rtol": 0, "atol": 0} if compiled else {"rtol": 1e-4, "atol": 1e-6}))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["env.backend=gymnasium", "env.recording=''"], "Cloning learns from recorded actions: set env.backend=recorded"),
        (["loss/target=gae"], "loss.target is not read by agents.behaviour_cloning.Cloning"),
        (["loss/value/transform=popart"], "agent.value_loss.transform follows returns, but Cloning learns actions"),
        (["loss/regularizer=[cql]"], "regularizers.cql needs action_values, which Cloning doesn't have"),
        (["+loss.regularizer.classification._target_=rlloss.L2"], "regularizers.classification would take the place of loss/classification"),
        (["agent.replay.capacity=1"], "agent.replay.capacity 1 is too small: num_envs 2 transitions are needed"),
        (["agent.batch_size=0"], "agent.batch_size must be at least 1"),
        (["loss/value=huber"], "agent.value_loss Huber isn't read, since Discrete actions are learned by loss/classification; choose that one, and leave this one at MSE"),
    ],
)
def test_what_makes_no_sense_is_refused(run, words, message):
    with pytest.raises(ConfigError, match=message):
        run(*words)


def test_numbers_are_not_learned_by_a_loss_for_labels():
    with pytest.raises(ValueError, match="classification Focal isn't read, since Box actions are learned by loss/value"):
        Cloning(spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (1,)), classification=Focal())
