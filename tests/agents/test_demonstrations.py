"""Recorded episodes: what is in the file, what is shown of it in which order, learning offline from it, and mistakes."""

import contextlib
import sys
import types
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.numpy import load_file, save_file

from agents import command_line
from agents.actions import storing
from agents.backends import BACKENDS
from agents.config import ConfigError, build, compose
from agents.demonstrations import FIELDS, Demonstrations, Recording
from agents.environments import Environment, UnrepeatableError
from agents.evaluation import Evaluation, evaluate
from agents.recorded import order
from agents.replay import record
from agents.spaces import storage
from agents.streams import EpisodeSeeds
from agents.training import train
from tests.conftest import small_config
from tests.stopping import goes_on_bitwise

CARTPOLE = Environment("CartPole-v1")


def upright(observation):
    """An expert: push to the side to which the pole falls."""
    return (observation[..., 2] + observation[..., 3] > 0).astype(np.int64)


def leaning(observation):
    """Worse: it looks at the angle alone, and falls."""
    return (observation[..., 2] > 0).astype(np.int64)


def recorded(path, environment=CARTPOLE, policy=upright, episodes=5, max_steps=100, width=2):
    """Record episodes of a policy."""
    made = environment.make()
    shape, dtype = storage(made.observation_space)
    observation = np.zeros((1, width, *shape), str(dtype).removeprefix("torch."))
    told = Recording(environment.id, made.observation_space, made.action_space)
    returns = evaluate(lambda: policy(observation), [environment], observation, [7], 0, Evaluation(episodes=episodes, max_steps=max_steps), [told])[0]
    told.write(path)
    return returns


@pytest.fixture
def file(tmp_path):
    """Five recorded episodes of CartPole."""
    path = tmp_path / "demonstrations.safetensors"
    recorded(path, policy=leaning)
    return str(path)


def played(environment, seeds, policy, max_steps):
    """What a plain loop over the environment sees."""
    rows, made = [], environment.make()
    for seed in seeds:
        observation, _ = made.reset(seed=seed)
        for step in range(max_steps):
            action = policy(observation)
            following, reward, terminated, truncated, _ = made.step(action)
            cut = truncated or (step == max_steps - 1 and not terminated)
            rows.append((observation, action, reward, terminated, cut, following))
            observation = following
            if terminated or cut:
                break
    return [np.array(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize(("policy", "max_steps", "end"), [(leaning, 500, "terminated"), (upright, 30, "truncated")])
def test_a_recording_is_what_a_plain_loop_sees(tmp_path, policy, max_steps, end):
    recorded(tmp_path / "file", policy=policy, max_steps=max_steps)
    stream = EpisodeSeeds(7, "evaluation", 0)
    expected = played(CARTPOLE, [stream[index] for index in range(5)], policy, max_steps)
    found, read = load_file(tmp_path / "file"), Demonstrations(str(tmp_path / "file"))
    for name, column in zip(FIELDS, expected, strict=True):
        assert np.array_equal(found[name], column.astype(found[name].dtype)) and np.array_equal(getattr(read, name), found[name])
    assert found[end].sum() == 5 and found[end][-1]


def test_a_runs_greedy_policy_is_recorded_from_the_command_line(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (result,) = train([build(small_config("total_steps=60"), tmp_path / "run")])

    def evaluated(*words):
        monkeypatch.setattr(sys, "argv", ["rlloss-evaluate", "run", "--episodes", "2", *words])
        with contextlib.suppress(SystemExit):
            command_line.evaluate_main()
        return capfd.readouterr()

    out, err = evaluated("--record", "new/file")
    found = Demonstrations("new/file")
    assert f"recorded {len(found):,} steps in new/file" in out and err == ""
    assert sum(result.evaluation_returns) == found.reward.sum()
    values = build(small_config()).agent.action_values.values(result.learner.parameters, (), torch.from_numpy(found.observation.copy()))
    assert np.array_equal(values.argmax(-1), found.action)
    assert evaluated("--record", "new/file").err == "rlloss-evaluate: new/file exists already; choose another --record\n"
    assert "can't write to new/file" in evaluated("--record", "new/file/more").err


def test_pools_and_stacked_frames_are_not_recorded(tmp_path, monkeypatch, capfd):
    run = build(small_config())
    for changed, message in ({"backend": "envpool"}, "environments that Gymnasium steps"), ({"frame_stack": 2}, "keeps whole observations"):
        other = types.SimpleNamespace(environment=Environment("CartPole-v1", **changed), agent=run.agent)
        with pytest.raises(ConfigError, match=message):
            command_line._refuse_recording(other, tmp_path / "file")


ACTIONS = {
    "discrete": (spaces.Discrete(3, start=-1), [[-1], [1]], [[0], [2]]),
    "box": (spaces.Box(np.float32([2, -1]), np.float32([6, 0])), [[2.0, 0.0], [4.0, -0.25]], [[-1.0, 1.0], [0.0, 0.5]]),
}


@pytest.mark.parametrize("kind", ACTIONS)
def test_actions_are_kept_as_agents_store_them(kind):
    space, taken, stored = ACTIONS[kind]
    told = Recording("", spaces.Box(0, 1, ()), space)
    for action in taken:
        told(0, np.zeros(()), np.array(action).reshape(space.shape), 0.0, False, False, np.zeros(()))
    assert told.arrays["action"].reshape(2, -1).tolist() == stored


def test_observations_of_several_parts_are_kept_packed(tmp_path):
    nested = Environment("tests.toys:Nested-v0")
    assert recorded(tmp_path / "file", nested, lambda seen: np.zeros(seen.shape[:2], np.int64), episodes=2) == [3.0, 3.0]
    read = Demonstrations(str(tmp_path / "file"))
    made = nested.make()
    first, _ = made.reset()
    assert np.array_equal(read.observation[3], first) and np.array_equal(read.next_observation[3], made.step(0)[0])
    read.check(made.observation_space, made.action_space)
    read.observation = read.observation.astype(np.float32)
    with pytest.raises(ValueError, match="keeps observations as another version of rlloss does; record it anew"):
        read.check(made.observation_space, made.action_space)


def episodes(sources, seeds, width=2):
    observation = np.zeros((len(seeds), width, 4), np.float32)
    made = [Environment("CartPole-v1", backend="recorded", recording=source) for source in sources]
    return BACKENDS["recorded"].episodes(made, seeds, observation, record((4,), torch.float32))


def shown(some, steps):
    """What is shown in some steps: records, and the episodes that ended."""
    records, ended = [], []
    for _ in range(steps):
        before = some.observation.copy()
        ended += some.step(None, None)
        assert np.array_equal(some.records["observation"], before)
        records.append(some.records.copy())
        some.advance()
    return np.array(records), ended


def test_each_pass_shows_every_episode_once_in_an_order_of_the_runs_own(file, tmp_path):
    returns = recorded(tmp_path / "again", policy=leaning)
    some = episodes([file, file], [3, 4])
    some.begin()
    records, ended = shown(some, 400)
    orders = {}
    for run, seed in enumerate((3, 4)):
        expected = [returns[index] for turn in range(9) for index in order(seed, turn, 5)]
        for place in range(2):
            of_place = [end.episode_return for end in ended if (end.run, end.place) == (run, place)]
            assert of_place == expected[place::2][: len(of_place)] and len(of_place) > 3
        orders[seed] = expected
    assert orders[3] != orders[4] and sorted(order(3, 0, 5)) == sorted(order(3, 1, 5)) == [0, 1, 2, 3, 4]
    demonstrated = {row.tobytes() for row in Demonstrations(file).observation}
    assert {row.tobytes() for row in records["observation"].reshape(-1, 4)} == demonstrated


def test_a_run_among_others_with_other_recordings_sees_what_it_sees_alone(file, tmp_path):
    recorded(tmp_path / "other", episodes=9)
    together, alone = episodes([str(tmp_path / "other"), file], [1, 2]), episodes([file], [2])
    for some in (together, alone):
        some.begin()
    (records, _), (mine, _) = shown(together, 200), shown(alone, 200)
    assert np.array_equal(records[:, 1], mine[:, 0]) and not np.array_equal(records[:, 0], mine[:, 0])
    resumed = episodes([file], [2])
    tensors, rest = together.saved(1)
    resumed.resume(0, tensors, rest, together.observation[1].copy())
    assert np.array_equal(shown(resumed, 100)[0], shown(alone, 100)[0])
    with pytest.raises(UnrepeatableError, match="holds other demonstrations"):
        episodes([str(tmp_path / "other")], [2]).resume(0, tensors, rest, together.observation[1])


OFFLINE = ["env.backend=recorded", "agent.learning_starts=50", "agent.batch_size=16", "network.hidden=[16]", "total_steps=300", "compile=false", "evaluation.episodes=2", "evaluation.every=100", "evaluation.max_steps=60"]


def test_dqn_learns_offline_and_goes_on_bitwise(file, tmp_path):
    """CQL pushes the values of actions that were never shown below those that were."""
    words = [*OFFLINE, f"env.recording={file}", "loss/regularizer=[cql]", "optimizer.learning_rate=1e-2", "checkpoint_every=70", "num_envs=2"]
    whole, read = goes_on_bitwise(lambda directory: build(compose(words), directory), tmp_path, 61), Demonstrations(file)
    values = build(compose(words)).agent.action_values.values(whole.learner.parameters, (), torch.from_numpy(read.observation.copy()))
    assert (values.argmax(-1).numpy() == read.action).mean() > 0.8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "env: env.backend=recorded needs env.recording, a file that rlloss-evaluate --record wrote"),
        (["env.recording=FILE", "env.backend=gymnasium"], "env.recording is shown by env.backend=recorded alone, this is env.backend=gymnasium"),
        (["env.recording=nowhere"], "there are no demonstrations at nowhere: No such file or directory; record some with rlloss-evaluate RUN_DIR --record nowhere"),
        (["env.recording=FILE", "env=acrobot"], "was recorded with observation space Box.* but this environment has"),
        (["env.recording=FILE", "env.frame_stack=2"], "frame_stack 2 is not for env.backend=recorded"),
        (["env.recording=garbage"], "garbage can't be read as demonstrations"),
        (["env.recording=other"], "other holds no demonstrations: it has no action"),
        (["env.recording=minari:CartPole/expert-v0"], r"needs the extra minari: pip install 'rlloss\[minari\]'"),
    ],
)
def test_mistakes_are_one_line(file, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "minari", None)
    (tmp_path / "garbage").write_text("garbage")
    save_file({"observation": np.zeros(3)}, tmp_path / "other")
    with pytest.raises(ConfigError, match=message) as caught:
        build(compose(["env.backend=recorded", *(word.replace("FILE", file) for word in words)]))
    assert "\n" not in str(caught.value)


def test_a_dataset_of_minaris(monkeypatch):
    """A module of the same interface: two episodes, the second without an end."""
    box, actions = spaces.Box(-9, 9, (2,), np.float64), spaces.Box(np.float32([0.0]), np.float32([4.0]))
    lengths = {0: 3, 1: 2}

    def episode(number):
        steps = lengths[number]
        terminations = np.arange(steps) == (steps - 1 if number == 0 else -1)
        return types.SimpleNamespace(
            observations=np.arange(2 * (steps + 1)).reshape(-1, 2) + 0.5, actions=np.full((steps, 1), 3.0), rewards=np.arange(steps) * 1.0,
            terminations=terminations, truncations=np.zeros(steps, bool),
        )  # fmt: skip

    dataset = types.SimpleNamespace(observation_space=box, action_space=actions, iterate_episodes=lambda: map(episode, lengths))
    asked = []
    monkeypatch.setitem(sys.modules, "minari", types.SimpleNamespace(load_dataset=lambda name, download: asked.append((name, download)) or dataset))
    read = Demonstrations("minari:toy/test-v0")
    assert asked == [("toy/test-v0", True)] and len(read) == 5
    assert read.observation[:, 0].tolist() == [0.5, 2.5, 4.5, 0.5, 2.5] and read.next_observation[:, 0].tolist() == [2.5, 4.5, 6.5, 2.5, 4.5]
    assert read.observation.dtype == np.float32 and read.action.tolist() == [[0.5]] * 5
    assert read.terminated.tolist() == [False, False, True, False, False] and read.truncated.tolist() == [False] * 4 + [True]
    read.check(box, actions)
    with pytest.raises(ValueError, match="was recorded with action space"):
        read.check(box, spaces.Discrete(2))


def push(observation):
    """Pendulum, pushed towards the top."""
    return np.clip(-5 * observation[1:2] - observation[2:], -2, 2)


@pytest.mark.parametrize(
    ("made", "policy"),
    [(CARTPOLE, leaning), (Environment("Pendulum-v1", {"max_episode_steps": 30}), push), (Environment("tests.toys:Nested-v0"), lambda observation: 1)],
    ids=["cartpole", "pendulum", "nested"],
)
def test_minaris_own_datasets_are_what_a_plain_loop_sees_and_are_imitated(made, policy, tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    collector = minari.DataCollector(gymnasium.make(made.id, **made.arguments))
    for seed in range(4):
        observation, over = collector.reset(seed=seed)[0], False
        while not over:
            observation, _, terminated, truncated, _ = collector.step(policy(observation))
            over = terminated or truncated
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It would like to know more about the dataset.
        name = f"toys/{tmp_path.name.partition('_')[0]}{made.id.rpartition(':')[2].lower()}"
        collector.create_dataset(name)
    read, environment = Demonstrations(f"minari:{name}"), made.make()
    read.check(environment.observation_space, environment.action_space)
    for field, column in zip(FIELDS, played(made, range(4), policy, 500), strict=True):
        column = storing(environment.action_space)(column) if field == "action" else column
        assert np.array_equal(getattr(read, field), column.astype(getattr(read, field).dtype)), field
    words = [f"env.id={made.id}", *(f"+env.arguments.{key}={each}" for key, each in made.arguments.items()), "evaluation.episodes=1", "compile=false"]
    cloning = ["agent=cloning", "env.backend=recorded", f"env.recording=minari:{name}", "agent.learning_starts=10", "agent.batch_size=8", "total_steps=40"]
    gail = ["agent=gail", f"agent.demonstrations.source=minari:{name}", "num_envs=2", "agent.learner.rollout=16", "total_steps=32"]
    for agent, updates in ((cloning, 30), (gail, 16)):
        (result,) = train([build(compose([*words, *agent]))])
        assert result.updates == updates
