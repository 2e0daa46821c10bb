"""The commands as a person types them: what they print, what they leave behind, and what they say of mistakes."""

import functools
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

from agents import command_help, command_line
from agents.backends import BACKENDS
from agents.config import compose
from tests.conftest import SMALL
from tests.events import scalars

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def train(rlloss_train):
    """The command of most of these tests."""
    return rlloss_train


MISTAKES = [
    (["agent.discont=0.9"], "there is no key agent.discont; did you mean agent.discount?"),
    (["+agent.discont=0.9"], "there is no key agent.discont; did you mean agent.discount?"),
    (["+network.hiden=[3]"], "there is no key network.hiden; did you mean network.hidden?"),
    (["totl_steps=10"], "there is no key totl_steps; did you mean total_steps?"),
    (["+totl_steps=10"], "there is no key totl_steps; did you mean total_steps?"),
    (["lss/value=huber"], "there is no key lss/value; did you mean loss/value?"),
    (["loss/value=hubr"], "pseudo_huber, quantile, quantile_huber, robust, smooth_l1, two_hot; did you mean huber?"),
    (["experiment=study/cartpol"], "experiment=study/cartpol is not a choice; choose one of a2c_acrobot"),
    (["experiment=study/cartpol"], "td3_pendulum; did you mean study/cartpole?"),
    (["env=cartpol"], "env=cartpol is not a choice; choose one of acrobot, atari_breakout"),
    (["loss.value=huber"], "loss.value must be a part with a _target_, got 'huber' (a choice is made with a slash: loss/value=huber)"),
    (["loss/value=mse", "loss.value.delta=2"], "there is no key loss.value.delta; loss.value has matched_curvature"),
    (["agent.discount=1.5"], "agent.discount must be at least 0 and at most 1, got 1.5"),
    (["agent.discount=high"], "agent.discount must be a number, got 'high'"),
    (["agent.batch_size=0"], "agent.batch_size must be at least 1, got 0"),
    (["agent.batch_size=2.5"], "agent.batch_size must be a whole number, got 2.5"),
    (["agent.replay.capacity=10"], "agent.replay.capacity 10 is smaller than batch_size"),
    (["agent.replay.capacity=100000000000000"], "GiB available; lower agent.replay.capacity"),
    (["num_envs=40000"], "agent.replay.capacity 50000 is too small: num_envs 40000 times 2 transitions are needed"),
    (["agent.steps=5", "agent.batch_size=1", "agent.replay.capacity=5"], "num_envs 1 times 6 transitions"),
    (["agent.exploration.epsilon.start=1.2"], "agent.exploration.epsilon.start must be at least 0 and at most 1, got 1.2"),
    (["loss/value=huber", "loss.value.delta=-1"], "loss.value.delta must be greater than 0, got -1"),
    (["optimizer.learning_rate=-1"], "optimizer.learning_rate must be at least 0, got -1"),
    (["network.activation=rlu"], "network.activation must be one of relu, tanh, silu, gelu, got rlu"),
    (["network.hidden=64"], "network.hidden must be a list such as [1, 2], got 64"),
    (["network=nature_cnn"], "observations of shape (4,) are no images, which have 2 to 4 dimensions; choose network=mlp"),
    (["network=nature_cnn", "network.kernels=[8,4]"], "network.filters must be as many as kernels and strides, got 3 filters, 2 kernels and 3 strides"),
    (["network=module"], "network._target_ must be given: the dotted name of a class, such as my_module.MyClass"),
    (["network._target_=torch.nn.Flatten"], "network.hidden is no argument of Flatten, it has start_dim, end_dim; say network=module"),
    (["network=module", "network._target_=torch.nn.Linear", "+network.in_features=3"], "network: Linear can't be made of {'in_features': 3}: missing a required argument: 'out_features'"),
    (["head=noisy", "head.sigma=-1"], "head.sigma must be at least 0, got -1"),
    (["total_steps=0"], "total_steps must be at least 1 and at most 9.0072e+15, got 0"),
    (["total_steps=1000000000000000000000"], "total_steps must be at least 1 and at most 9.0072e+15, got 1e+21"),
    (["seed=-1"], "seed must be at least 0, got -1"),
    (["seed=x"], "seed must be a whole number, got 'x'"),
    (["num_envs=0"], "num_envs must be at least 1, got 0"),
    (["compile=maybe"], "compile must be true or false, got 'maybe'"),
    (["env.id=Nonsense-v0"], "env: there is no environment Nonsense-v0"),
    pytest.param(
        ["env.id=ALE/Pong-v5"], "env: environment ALE/Pong-v5 needs the extra atari: pip install 'rlloss[atari]'",
        marks=pytest.mark.skipif(importlib.util.find_spec("ale_py") is not None, reason="the extra is there"),
    ),
    (["env.id=''"], "env.id is empty; name a Gymnasium environment"),
    (["+env.arguments.gravity=3"], "env.arguments.gravity: CartPole-v1 takes no gravity; it takes sutton_barto_reward, render_mode"),
    (["+env.arguments.render=human"], "did you mean render_mode?"),
    (["+env.arguments.render_mode=3"], "env: environment CartPole-v1 can't be made"),
    (["env=pendulum"], "DQN needs Discrete actions, but this environment has Box"),
    (["loss.value._target_=nothing.Here"], "loss.value._target_: there is no nothing.Here"),
    (["hydra.run.dir=/proc/nowhere/run"], "can't write to /proc/nowhere/run"),
    (["hydra.run.dir=file/run"], "can't write to file/run: Not a directory"),
    (["=3"], "=3"),
    (["garbage"], "garbage is not understood; write name=value"),
    (["lr=0.1"], "there is no key lr; did you mean optimizer.learning_rate?"),
    (["optimizer.lr=0.1"], "there is no key optimizer.lr; did you mean optimizer.learning_rate?"),
    (["+directory=here"], "there is no key directory"),
    (["+environment=here"], "there is no key environment"),
    (["+config=1"], "there is no key config"),
    (["~seed"], "the config has no seed"),
    (["~agent.discount"], "~agent.discount: it can't be deleted, agents.dqn.DQN would silently use a default of its own"),
    (["~agent/exploration"], "~agent/exploration: it can't be deleted"),
    (["~loss"], "~loss: there is no such choice to delete"),
    (["loss=huber"], "loss is no group of choices; did you mean loss/value=huber?"),
    (["loss=nothing"], "loss is no group of choices; there is loss/classification, loss/policy"),
    (["loss/policy=ppo_clip"], "loss.policy is not read by agents.dqn.DQN; leave it out"),
    (["loss/policy=ppo_clap"], "did you mean ppo_clip?"),
    (["loss/regularizer=[l2,l3]"], "loss/regularizer=l3 is not a choice; choose one of cql, dr3, elastic_net"),
    (["+env/wrapper=[time_limit,nope]"], "env/wrapper=nope is not a choice; choose one of action_mask, flatten"),
    (["seed=0,1"], "seed=0,1 has several values; train all of them with -m"),
    (["+loss/policy=spo"], "loss.policy is not read by agents.dqn.DQN; leave it out"),
    (["loss/target=gae"], "agent.steps must be at least 2 for GAE, which looks along sequences of that length, got 1"),
    (["loss/regularizer=[kl]"], "agent.regularizers.kl needs logits, reference_logits, which DQN doesn't have"),
    (["loss/regularizer=[l2]", "loss.regularizer.l2.weight=-1"], "loss.regularizer.l2.weight must be at least 0, got -1"),
    (["loss/regularizer=[l2]", "loss.regularizer.l2.wieght=3"], "there is no key loss.regularizer.l2.wieght; did you mean loss.regularizer.l2.weight?"),
    (["loss.value._target_=rlloss.ScalarHead"], "abstract method"),
    (["loss/value=c51", "loss.value.delta=3"], "there is no key loss.value.delta; loss.value has bins, vmin, vmax, transform"),
    (["loss/value=hl_gauss", "loss.value.vmin=200"], "loss.value.vmin must be less than vmax, got vmin 200 and vmax 100"),
    (["loss/value=absolute_error", "+loss.value.matched_curvature=true"], "loss.value.matched_curvature needs a curvature at zero"),
    (["env/wrapper=flatten"], "env/wrapper is not chosen by default; add it with +env/wrapper="),
    (["optimizer.learning_rate=inf"], "optimizer.learning_rate must be at least 0 and finite, got inf"),
    (["--resolve"], "--resolve"),
    (["-m", "seed=0,1", "--cfg", "job"], "Only one of"),
    (["resume="], "resume needs the directory of a run"),
    (["-m", "seed=0,1", "agent.discount=0.9,1.5"], "agent.discount must be at least 0 and at most 1, got 1.5 (in seed=0 agent.discount=1.5)"),
    (["-m", "experiment=ppo_cartpole", "agent=ppo,dqn"], "experiment=ppo_cartpole sets "),
    (["-m", "seed=0,x"], "seed must be a whole number, got 'x' (in seed=x)"),
    (["-m", "seed=0,1,1", "agent.discount=0.9"], "there are two runs of seed=1 agent.discount=0.9; say each value once"),
    (["-m", "seed=0,1", "hydra.launcher.sizes=3"], "there is no key hydra.launcher.sizes; did you mean hydra.launcher.size?"),
    (["-m", "hydra.sweeper.trails=3", "hydra/sweeper=optuna_search"], "there is no key hydra.sweeper.trails; did you mean hydra.sweeper.trials?"),
    (["-m", "seed=0,1", "hydra.launcher.backend=slurm"], "hydra.launcher.backend must be processes, ray or the dotted name of a class, got slurm"),
    (["-m", "seed=0,1", "hydra.sweep.dir=file/sweep"], "/file; choose another hydra.sweep.dir"),
    (["-m", "seed=range(3"], "seed=range(3 is not understood"),
    (["-m", "agent.discount=interval(0.5, 0.9)"], "interval(…) is for a search, hydra/sweeper=optuna_search"),
    (["resume=nowhere"], "nowhere is not a run directory"),
    (["resume=nowhere", "seed=3"], "nowhere is not a run directory"),
    (["--nonsense"], "--nonsense"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=lambda x: " ".join(x) if isinstance(x, list) else "")
def test_a_mistake_is_one_clear_line_and_leaves_nothing(train, tmp_path, words, message):
    (tmp_path / "file").touch()
    code, out, err = train(*words)
    assert code == 2 and out == ""
    assert len(err.strip().splitlines()) == 1 and err.startswith("rlloss-train: ") and message in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_run_from_start_to_evaluation(train, tmp_path):
    code, out, err = train(*SMALL, "agent.discount=0.98", "seed=3")
    assert code == 0 and err == ""
    (directory,) = tmp_path.glob("runs/CartPole-v1/dqn/*")
    record = json.loads((directory / "result.json").read_text())
    assert f"greedy evaluation: return {record['evaluation']['return_mean']:.1f}" in out
    assert f"run directory: {directory.relative_to(tmp_path)}" in out and f"tensorboard --logdir {directory.relative_to(tmp_path)}" in out
    assert "step 1 of 300" in out and "steps/s" in out

    code, evaluated, _ = train(str(directory), "--episodes", "2", main=command_line.evaluate_main)
    assert code == 0 and evaluated == next(line + "\n" for line in out.splitlines() if line.startswith("greedy evaluation"))
    assert "replay memory: 10.2 KiB" in out and "recent return –  loss –" in out
    code, again, _ = train(f"resume={directory}")
    assert code == 0 and "is complete already" in again
    code, _, err = train(f"resume={directory}", "seed=3")
    assert code == 2 and "leave out seed" in err


def test_version_is_our_own(train):
    assert train("--version")[:2] == (0, f"rlloss {metadata.version('rlloss')}\n")


def test_nobody_has_to_read_to_the_end(tmp_path):
    process = _start(tmp_path, "-m", "seed=range(9)", "hydra.launcher.dry_run=true")
    process.stdout.close()
    assert process.wait(60) == 128 + signal.SIGPIPE and process.stderr.read() == ""


def test_a_sweep_gives_every_job_a_directory(train, tmp_path):
    code, _, _ = train("-m", *SMALL, "seed=0,1", "loss/value=mse,huber", "total_steps=60")
    assert code == 0 and len(list(tmp_path.glob("runs/sweeps/*/*/result.json"))) == 4


def test_a_directory_is_never_used_twice(train, tmp_path):
    words = [*SMALL, "total_steps=60", "hydra.run.dir=here"]
    assert train(*words)[0] == 0
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    code, _, err = train(*words)
    assert code == 2 and "here already holds a run; continue it with resume=here" in err
    assert before == sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))


def _start(directory, *words):
    command = [sys.executable, str(REPOSITORY / "scripts" / "train.py"), *SMALL, *words]
    # Whoever runs the tests in the background may have made it ignore Ctrl-C.
    listen = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listen)


def _wait_for(pattern, directory):
    limit = time.time() + 60
    while not list(directory.glob(pattern)):
        assert time.time() < limit
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_everything_and_the_run_goes_on(train, tmp_path, number):
    process = _start(tmp_path, "total_steps=1500", "hydra.run.dir=run")
    _wait_for("run/checkpoint-*00", tmp_path)
    time.sleep(0.3)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "Traceback" not in err and "continue with:" in out
    stopped = scalars(tmp_path / "run")
    assert stopped and not (tmp_path / "run" / "result.json").exists()
    code, out, _ = train("resume=run")
    assert code == 0 and "greedy evaluation" in out
    train(*SMALL, "total_steps=1500", "hydra.run.dir=straight")
    assert scalars(tmp_path / "run") == scalars(tmp_path / "straight")
    assert scalars(tmp_path / "run")[: len(stopped)] == stopped


def test_ctrl_c_in_a_sweep_says_what_was_not_started(tmp_path):
    process = _start(tmp_path, "-m", "seed=0,1,2", "total_steps=100000", "hydra.sweep.dir=sweep", "hydra/launcher=basic")
    _wait_for("sweep/seed=0/checkpoint-*00", tmp_path)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err and "2 of 3 jobs were not started: seed=1, seed=2" in out


def test_ctrl_c_in_the_last_evaluation_of_a_complete_run(train, monkeypatch):
    def interrupted(*arguments, **more):
        os.kill(os.getpid(), signal.SIGINT)
        return [[1.0, 1.0]]

    monkeypatch.setitem(BACKENDS, "gymnasium", BACKENDS["gymnasium"]._replace(evaluate=interrupted))
    code, out, err = train(*SMALL, "total_steps=60", "hydra.run.dir=run")
    assert (code, err) == (130, "") and "the run is complete" in out and "continue with" not in out


def test_an_argument_may_be_deleted_with_its_class(train, tmp_path):
    (tmp_path / "my_schedules.py").write_text("from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Half:\n    def __call__(self, progress):\n        return 0.5 + 0 * progress\n")
    schedule = ["optimizer.schedule._target_=my_schedules.Half", *(f"~optimizer.schedule.{name}" for name in ("start", "end", "until"))]
    words = [word for word in SMALL if not word.startswith("optimizer.schedule")]
    code, _, err = train(*words, "total_steps=60", *schedule)
    assert code == 0, err


@pytest.mark.parametrize(
    ("variable", "value", "line"),
    [
        ("RLLOSS_CACHE", "/proc/nowhere", "compiled programs can't be kept in /proc/nowhere (No such file or directory): set RLLOSS_CACHE"),
        ("CXX", "no-such-compiler", "no C++ compiler found (no-such-compiler); install one"),
    ],
)
def test_training_without_a_compiler_is_said_in_one_line(tmp_path, variable, value, line):
    environment = {**os.environ, "RLLOSS_CACHE": str(tmp_path / "cache"), variable: value}
    command = [sys.executable, str(REPOSITORY / "scripts" / "train.py"), *(word for word in SMALL if word != "compile=false"), "total_steps=60"]
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.returncode == 0 and "greedy evaluation" in found.stdout
    assert found.stderr.count("\n") == 1 and found.stderr.startswith("rlloss-train: ") and line in found.stderr


@pytest.mark.skipif(not Path("/proc").exists(), reason="watches the process in /proc")
def test_ctrl_c_while_starting_shows_no_traceback(tmp_path):
    process = _start(tmp_path)
    maps = Path(f"/proc/{process.pid}/maps")
    limit = time.time() + 60
    while "_multiarray_umath" not in maps.read_text():  # Python is importing.
        assert time.time() < limit
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (-signal.SIGINT, "", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [[], ["run", "--episodes", "many"], ["run", "--epochs", "3"]])
def test_evaluating_wrongly_is_one_line(train, words):
    code, _, err = train(*words, main=command_line.evaluate_main)
    assert code == 2 and err.startswith("rlloss-evaluate: ") and err.count("\n") == 1


def test_two_processes_can_not_train_one_run(train, tmp_path):
    process = _start(tmp_path, "total_steps=100000", "hydra.run.dir=run")
    _wait_for("run/checkpoint-*00", tmp_path)
    code, _, err = train("resume=run")
    process.kill()
    process.communicate()
    assert code == 2 and "another process is training in run" in err


def test_help_names_every_choice_and_setting(train):
    code, out, _ = train("--help")
    assert code == 0
    for group, choices in command_help.groups().items():
        for choice in choices:
            line = next(line for line in out.splitlines() if line.strip().startswith(f"{choice} "))
            assert len(line.split()) > 2, f"{group}={choice} is not explained"
    default = [line.split()[0] for line in out.splitlines() if "(default)" in line]
    assert {"dqn", "mse", "double_q_learning", "identity", "uniform"} <= set(default) and "q_learning" not in default
    assert "  +env/wrapper\n" in out and "  loss/regularizer=[…], a list, empty by default\n" in out
    for key in compose():
        assert key in out


USERS = '''
from dataclasses import dataclass
import gymnasium as gym
from rlloss.value_losses import ScalarHead

@dataclass(frozen=True)
class Cubic(ScalarHead):
    strength: float = 1.0

    def pointwise(self, error):
        return self.strength * error.abs() ** 3

class Mine(gym.envs.classic_control.CartPoleEnv):
    pass

gym.register("Mine-v0", entry_point=Mine, max_episode_steps=20)
'''


def test_a_persons_own_loss_and_environment_from_their_own_file(train, tmp_path, monkeypatch):
    (tmp_path / "my_module.py").write_text(USERS)
    own = ["loss/value=mse", "loss.value._target_=my_module.Cubic", "+loss.value.strength=0.5", "env.id=my_module:Mine-v0"]
    code, _, err = train(*SMALL, *own, "hydra.run.dir=run")
    assert code == 0, err
    assert max(value for _, tag, value in scalars(tmp_path / "run") if tag == "rollout/episode_length") == 20
    code, _, err = train("run", main=command_line.evaluate_main)
    assert code == 2 and "--trust my_module" in err
    assert train("run", "--trust", "my_module", main=command_line.evaluate_main)[0] == 0


def test_a_run_directory_can_not_smuggle_code_in(train, tmp_path):
    assert train(*SMALL, "total_steps=60", "hydra.run.dir=run")[0] == 0
    config = (tmp_path / "run" / "config.yaml").read_text()
    for target in ("os.system", "subprocess.Popen", "agents.command_line.os.system", "agents.command_line.shutil.rmtree"):
        (tmp_path / "run" / "config.yaml").write_text(config.replace("agents.networks.MLP", target))
        code, _, err = train("run", main=command_line.evaluate_main)
        assert code == 2 and "network._target_: " in err and target in err
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    (tmp_path / "run" / "config.yaml").write_text(config.replace("resume: null", "resume: evil:Evil-v0").replace("id: CartPole-v1", "id: ${resume}"))
    code, _, err = train("run", main=command_line.evaluate_main)
    assert code == 2 and "--trust evil" in err


def test_wrappers_and_constructor_arguments(train, tmp_path):
    words = ["+env/wrapper=[time_aware,time_limit]", "env.wrappers.time_limit.max_episode_steps=7", "+env.arguments.sutton_barto_reward=true"]
    assert train(*SMALL, *words, "hydra.run.dir=run")[0] == 0
    values = scalars(tmp_path / "run")
    assert max(value for _, tag, value in values if tag == "rollout/episode_length") == 7
    assert max(value for _, tag, value in values if tag == "rollout/episode_return") == 0


def test_the_wheel_works_from_anywhere_and_takes_no_common_names(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(REPOSITORY)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "installed"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)], check=True)
    names = {path.name for path in target.iterdir() if not path.name.endswith(".dist-info")} - {"bin", "__pycache__"}
    assert names == {"rlloss", "agents", "hydra_plugins"}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = [sys.executable, str(target / "bin" / "rlloss-train"), *SMALL, "total_steps=60", "env=acrobot"]
    environment = {**os.environ, "PYTHONPATH": str(target)}
    found = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert list(elsewhere.glob("runs/Acrobot-v1/dqn/*/result.json"))
    where = subprocess.run([sys.executable, "-c", "import agents; print(agents.__file__)"], cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert where.stdout.startswith(str(target))


def test_a_loss_that_fails_does_so_before_training_starts(train, tmp_path):
    (tmp_path / "my_losses.py").write_text("from rlloss.value_losses import ScalarHead\nfrom dataclasses import dataclass\n@dataclass(frozen=True)\nclass Boom(ScalarHead):\n    def pointwise(self, error):\n        return error.no_such()\n")
    code, _, err = train(*SMALL, "loss.value._target_=my_losses.Boom", "~loss.value.delta", "hydra.run.dir=run")
    assert code == 2 and err.count("\n") == 1 and "its first update fails: AttributeError" in err and "my_losses.py, line 6" in err
    assert not (tmp_path / "run").exists()


def test_a_run_that_will_learn_nothing_is_told_so(train):
    code, out, _ = train(*SMALL, "agent.learning_starts=300")
    assert code == 0 and "nothing will be learned: the first update would come at step 301, but total_steps is 300" in out


def test_a_run_that_diverges_is_one_line_and_exit_code_1(train, tmp_path):
    code, out, err = train(*SMALL, "optimizer.learning_rate=1e12", "loss/value=mse", "optimizer=sgd", "hydra.run.dir=run")
    lines = [line for line in out.splitlines() if "FAILED" in line]
    assert code == 1 and err == "" and "Traceback" not in out and out.endswith(lines[0] + "\n") and len(lines) == 1
    found = re.fullmatch(r"FAILED: (loss/value became (?:nan|inf) at step \d+); last good checkpoint: run/checkpoint-0{12}; log: run/run.log", lines[0])
    assert found and found[1] in (tmp_path / "run" / "run.log").read_text()
    code, again, err = train("resume=run")
    assert code == 1 and err == "" and again.endswith(lines[0] + "\n")


def test_an_environment_that_raises_is_one_line_and_fails_no_other_job(train, tmp_path):
    words = [word for word in SMALL if not word.startswith("checkpoint_every")]
    code, out, err = train("-m", *words, "checkpoint_every=10", "env.id=tests.toys:Failing-v0", "+env.arguments.last=1000,25", "hydra.sweep.dir=sweep", "total_steps=60", "hydra/launcher=basic")
    assert code == 1 and "Traceback" not in out
    assert err == "1 of 2 runs failed; the first, +env.arguments.last=25: the environment raised RuntimeError: the step went wrong at step 25\n"
    assert out.count("FAILED: the environment raised RuntimeError: the step went wrong at step 25; last good checkpoint: sweep/last=25/checkpoint-000000000020; log: sweep/last=25/run.log") == 1
    assert (tmp_path / "sweep" / "last=1000" / "result.json").exists() and not (tmp_path / "sweep" / "last=25" / "result.json").exists()


def test_a_key_that_one_of_several_choices_lacks_is_said_with_that_choices_own(rlloss_train):
    code, out, err = rlloss_train("-m", "loss/value=huber,c51", "loss.value.delta=1")
    assert (code, out) == (2, "") and "loss.value has bins, vmin, vmax" in err
