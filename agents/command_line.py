"""The commands `rlloss-train` and `rlloss-evaluate`. A mistake ends in one clear line and exit code 2."""

import argparse
import contextlib
import dataclasses
import functools
import math
import os
import re
import shlex
import shutil
import signal
import sys
import uuid
import warnings
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from agents import run_directory
from agents.backends import backend
from agents.command_help import group_and_choice, groups, help_text
from agents.config import ConfigError, build, compose, config_directory, container, keys, nearest, no_key, refuse, refuse_deletions, refuse_untrusted
from agents.demonstrations import Recording
from agents.environments import UnrepeatableError
from agents.evaluation import Evaluation, summary
from agents.machine import NotEnoughMemory, Stopped
from agents.population import Population
from agents.run import Result, Run, RunFailed, refuse_oversized
from agents.run_directory import RunDirectoryError, shown
from agents.training import train

FAILED, MISTAKE = 1, 2


def train_main() -> None:
    """`rlloss-train`: train what the command line says."""
    words = sys.argv[1:]
    with one_line("rlloss-train"):
        if {"--help", "-h"} & set(words):
            print(help_text())
        elif "--version" in words:
            print(f"rlloss {metadata.version('rlloss')}")
        elif any(word.startswith("resume=") for word in words):
            _resume(words)
        else:
            _start(words)


def _start(words: Sequence[str]) -> None:
    """Check every job of the command line, then let Hydra run them."""
    OmegaConf.register_new_resolver("file_name", lambda name: re.sub(r"[^\w.-]+", "-", str(name)), replace=True)
    OmegaConf.register_new_resolver("unique", lambda: uuid.uuid4().hex[:6], use_cache=True, replace=True)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises its errors instead of printing them.
    parser = get_args_parser()
    parser.error = refuse
    sys.argv[1:] = sorted(words, key=lambda word: word not in ("-m", "--multirun"))  # Hydra doesn't find -m among other words.
    options = parser.parse_args(sys.argv[1:])
    multirun, started, failed = options.multirun, [], []

    def train_one(config: DictConfig) -> float:
        started.append(config)
        try:
            return _train_one(config)
        except (RunFailed, RunDirectoryError) as failure:
            if multirun:
                raise  # To the sweeper, which may be in another process.
            failed.append(failure)  # Hydra would print a line of its own, which says less.
            return math.nan

    task = hydra.main(config_path=str(config_directory()), config_name="train", version_base="1.3")(train_one)
    if options.cfg or options.info or options.hydra_help or options.shell_completion or options.resolve:
        try:
            task()
        except ValueError as error:  # Hydra raises it for flags that exclude each other.
            raise ConfigError(str(error)) from error
        return
    _check(options.overrides, options.multirun)
    try:
        task()
    except KeyboardInterrupt:
        if options.multirun and started:
            _say_not_started(options.overrides, len(started))
        raise
    if failed:
        raise failed[0]


def _check(overrides: Sequence[str], multirun: bool) -> None:
    """Find all mistakes of a single run before Hydra starts; those of a sweep's jobs are found by the sweeper."""
    for word in overrides:
        if not word.startswith("~") and not word.partition("=")[1]:
            raise ConfigError(f"{word} is not understood; write name=value, such as seed=3")
    if not multirun:
        refuse_deletions(overrides)
        refuse_oversized([build(compose(overrides))])
    _check_directories(overrides)


def _say_not_started(overrides: Sequence[str], started: int) -> None:
    """Name the jobs of a sweep that was stopped, where they are trained one after the other."""
    jobs = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(list(overrides)), max_batch_size=None)[0]
    if left := jobs[started:]:
        names = ["; ".join(word for word in job if any(word not in other for other in jobs)) for job in left]
        print(f"{len(left)} of {len(jobs)} jobs were not started: {', '.join(names)}")


def _check_directories(overrides: Sequence[str]) -> None:
    said = [word.partition("=") for word in overrides if word.startswith(("hydra.run.dir=", "hydra.sweep.dir="))]
    for setting, _, directory in said or [("hydra.run.dir", "=", "runs")]:
        run_directory.refuse_used(Path(directory), setting)


def _train_one(config: DictConfig) -> float:
    """Hydra's task: train the run of one composed config; returns the mean evaluation return, for sweepers."""
    values = container(config)
    directory = Path(HydraConfig.get().runtime.output_dir)
    run_directory.refuse_used(directory)
    return _train(build(values, directory))


def _train(run: Run, *, resume: bool = False) -> float:
    try:
        return _report(train([run], resume=resume)[0])
    except KeyboardInterrupt:
        if run_directory.read_result(run.directory):
            print(f"the run is complete; see it with {_tensorboard(run.directory)}")
        elif list(run.directory.glob("checkpoint-*")):
            print(f"stopped; continue with: {_command('rlloss-train')} resume={shown(run.directory)}")
        raise


def _resume(words: Sequence[str]) -> None:
    """Continue the run in a directory, with the config it was started with."""
    options = dict(word.partition("=")[::2] for word in words)
    if not options["resume"]:
        raise ConfigError("resume needs the directory of a run: resume=RUN_DIR")
    directory = Path(options["resume"])
    run_directory.read_config(directory)
    if others := set(options) - {"resume", "trust"}:
        raise ConfigError(f"resume continues a run with its own config, so leave out {', '.join(sorted(others))}")
    if run_directory.read_result(directory):
        print(f"{directory} is complete already; see it with {_tensorboard(directory)}")
        return
    _train(_recorded_run(directory, options.get("trust", "").split(",")), resume=True)


def _recorded_run(directory: Path, trusted: Sequence[str]) -> Run:
    values = run_directory.read_config(directory)
    refuse_untrusted(values, filter(None, trusted))
    return build(values, directory)


def _report(result: Result) -> float:
    """Say what came of a run and where to look at it."""
    directory = result.directory
    if failure := result.failure:
        checkpoint = shown(failure.checkpoint) if failure.checkpoint else "none"
        print(f"FAILED: {failure.reason}; last good checkpoint: {checkpoint}; log: {shown(directory / run_directory.LOG)}")
        raise RunFailed(failure.reason)
    if not result.complete:
        print(f"step {result.steps:,}, everything is saved")
        raise Stopped(result.stopped_by)
    _print_evaluation(result.evaluation_returns)
    print(f"run directory: {shown(directory)}")
    print(f"TensorBoard:   {_tensorboard(directory)}")
    return summary(result.evaluation_returns)["mean"]


def _print_evaluation(returns: Sequence[float]) -> None:
    numbers = summary(returns)
    spread = f"(from {numbers['min']:.1f} to {numbers['max']:.1f})"
    print(f"greedy evaluation: return {numbers['mean']:.1f} ± {numbers['std']:.1f} over {len(returns)} episodes {spread}")


def evaluate_main() -> None:
    """`rlloss-evaluate RUN_DIR`: evaluate the greedy policy of a run's newest checkpoint."""
    parser = argparse.ArgumentParser(prog="rlloss-evaluate", description="Evaluate the greedy policy of a run's newest checkpoint.")
    parser.add_argument("directory", type=Path, metavar="RUN_DIR", help="the run's directory, as rlloss-train printed it")
    parser.add_argument("--episodes", type=int, default=20, help="how many episodes (20)")
    parser.add_argument("--seed", type=int, default=None, help="another seed for the episodes than the run's own")
    parser.add_argument("--record", type=Path, default=None, metavar="FILE", help="write the episodes to this file, for learning from demonstrations")
    parser.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help="run code of this package if the run's config names it")
    parser.error = refuse
    with one_line("rlloss-evaluate"):
        options = parser.parse_args()
        if options.seed is not None and options.seed < 0:
            raise ConfigError(f"--seed must be at least 0, got {options.seed}")
        _print_evaluation(_evaluate(options.directory, options.episodes, options.seed, options.record, options.trust))


def _evaluate(directory: Path, episodes: int, seed: int | None, record: Path | None, trusted: Sequence[str]) -> list[float]:
    run = _recorded_run(directory, trusted)
    if record:
        _refuse_recording(run, record)
    step = run_directory.newest_checkpoint([directory])
    tensors, _ = run_directory.load_checkpoint(directory, step)
    population = Population([run.agent], [run.seed], run.num_envs, compile=False, say=print)
    try:
        population.load_learner(0, tensors)
        settings = Evaluation(episodes=episodes, max_steps=run.evaluation.max_steps)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    seeds = [run.seed if seed is None else seed]
    act = functools.partial(population.act_greedily, 1.0)
    recording = Recording(run.environment.id, run.agent.observation_space, run.agent.action_space)
    told = {"started": population.started} | ({"tell": [recording]} if record else {})
    returns = backend(run.environment).evaluate(act, [run.environment], population.observation.numpy(), seeds, step, settings, **told)[0]
    if record:
        print(f"recorded {recording.write(record):,} steps in {shown(record)}")
    return returns


def _refuse_recording(run: Run, path: Path) -> None:
    """Raise ConfigError or RunDirectoryError where a run's episodes can't be recorded in this file."""
    if path.exists():
        raise ConfigError(f"{path} exists already; choose another --record")
    run_directory.refuse_unwritable(path.parent, "--record")
    if backend(run.environment).keeps_actions:
        raise ConfigError(f"--record needs environments that Gymnasium steps, but this run has env.backend={run.environment.backend}")
    if run.environment.frame_stack > 1:
        raise ConfigError("--record keeps whole observations, but this run has env.frame_stack above 1; stack by +env/wrapper=frame_stack when training")


@contextlib.contextmanager
def one_line(command: str) -> Iterator[None]:
    """Turn mistakes into one line and exit code 2, warnings into one line, a failed run into exit code 1, and Ctrl-C into 130 (SIGTERM: 143), without traceback."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # A person's own losses and environments lie where they work.
    try:
        with warnings.catch_warnings():
            said = set()
            warnings.showwarning = lambda message, *_, **__: str(message) in said or said.add(str(message)) or _say(command, str(message))
            yield
    except KeyboardInterrupt as error:
        sys.exit(128 + getattr(error, "number", signal.SIGINT))
    except RunFailed:
        sys.exit(FAILED)
    except BrokenPipeError:  # Nobody reads any more, as behind `| head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Else Python would complain when it flushes.
        sys.exit(128 + signal.SIGPIPE)
    except (ConfigError, RunDirectoryError, UnrepeatableError, NotEnoughMemory) as error:
        message = str(error)
    except (HydraException, OmegaConfBaseException) as error:
        message = in_words(error)
    else:
        return
    _say(command, message)
    sys.exit(MISTAKE)


def _say(command: str, message: str) -> None:
    print(f"{command}: {' '.join(message.split())}", file=sys.stderr)


def _known_keys(lacking: str) -> list[str]:
    """The keys that there are with the choices made on the command line, of several the first without this key, or by default where those are the mistake."""
    choices = [word for word in sys.argv[1:] if word.partition("=")[0] in groups()]
    with contextlib.suppress(HydraException, ConfigError):
        jobs = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(choices), max_batch_size=None)[0]
        return next((known for known in (keys(compose(job)) for job in jobs) if lacking not in known), keys(compose(jobs[0])))
    return keys(compose())


def in_words(error: Exception) -> str:
    """What a person did wrong when Hydra or OmegaConf raised this."""
    message = str(error)
    if isinstance(error, MissingConfigException):
        group, choice = group_and_choice(error.missing_cfg_file or "")
        if choices := groups().get(group) or error.options:  # Hydra doesn't say them for a choice within a list, nor recipes in folders.
            return f"{group}={choice} is not a choice; choose one of {', '.join(choices)}{nearest(choice, choices)}"
    if found := re.search(r"Could not override '([^']+)'", message):
        key = found[1].split("@")[0]
        if "is not in struct" in f"{message} {error.__cause__}" or "No match in the defaults list" in message:
            known = [*_known_keys(key), *groups()]
            return _not_chosen(key) if key in known else no_key(key, known)
        if isinstance(error.__cause__, OmegaConfBaseException) and dataclasses.is_dataclass(of := error.__cause__.object_type):  # Of Hydra, a launcher or a sweeper.
            return no_key(key, [f"{key.rpartition('.')[0]}.{field.name}" for field in dataclasses.fields(of)])
        return f"{key}: {error.__cause__ or message}".splitlines()[0]
    if found := re.search(r"Could not delete '([^']+)'", message):
        return f"~{found[1]}: there is no such choice to delete"
    if found := re.search(r"Key '([^']+)' is not in struct", message):
        return no_key(found[1], _known_keys(found[1]))
    if isinstance(error, OverrideParseException):
        return f"{error.override} is not understood: {message.splitlines()[0]}"
    if "does not support sweep type : INTERVAL" in message:
        return "interval(…) is for a search, hydra/sweeper=optuna_search; a grid needs values, such as optimizer.learning_rate=1e-4,1e-3"
    if found := re.search(r"Ambiguous value for argument '([^']+)'", message):
        return f"{found[1]} has several values; train all of them with -m"
    return message.splitlines()[0]


def _not_chosen(key: str) -> str:
    """What to say of a choice in a group that has none by default, or in what is no group."""
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    choice = next(word.partition("=")[2] for word in words if word.partition("=")[0] == key)
    if within := [group for group, choices in groups().items() if group.startswith(f"{key}/") and choice in choices]:
        return f"{key} is no group of choices; did you mean {within[0]}={choice}?"
    if key not in groups():
        return f"{key} is no group of choices; there is {', '.join(group for group in groups() if group.startswith(f'{key}/'))}"
    try:  # What is wrong with it even then, such as an agent that doesn't read it.
        build(compose([f"+{word}" if word.partition("=")[0] == key else word for word in words]))
    except (ConfigError, MissingConfigException) as error:
        return in_words(error) if isinstance(error, MissingConfigException) else str(error)
    except HydraException:
        pass  # Several values, of which one alone could be tried.
    return f"{key} is not chosen by default; add it with +{key}={choice}"


def _command(name: str) -> str:
    """How this command is called here: by name where it's on the PATH, else by its file."""
    beside = Path(sys.executable).parent / name
    return name if shutil.which(name) or not beside.exists() else shown(beside)


def again(name: str, directory: Path) -> str:
    """The command that was given, so that it goes on with the sweep in this directory."""
    words = [word for word in sys.argv[1:] if not word.startswith("hydra.sweep.dir=")]
    return f"{_command(name)} {shlex.join([*words, f'hydra.sweep.dir={shown(directory.absolute())}'])}"


def _tensorboard(directory: Path) -> str:
    return f"{_command('tensorboard')} --logdir {shown(directory)}"
