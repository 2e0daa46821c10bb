"""The commands `rlloss-train` and `rlloss-evaluate`. A mistake ends in one clear line and exit code 2."""

import argparse
import contextlib
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from agents import run_directory
from agents.command_help import groups, help_text
from agents.config import ConfigError, build, compose, config_directory, container, keys, nearest, no_key, refuse_untrusted
from agents.environments import UnrepeatableError
from agents.evaluation import Evaluation, evaluate, summary
from agents.population import Population
from agents.run_directory import RunDirectoryError
from agents.training import Result, Run, train

MISTAKE, INTERRUPTED = 2, 130


def train_main() -> None:
    """`rlloss-train`: train what the command line says."""
    words = sys.argv[1:]
    with one_line("rlloss-train"):
        if {"--help", "-h"} & set(words):
            print(help_text())
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
    parser.error = _refuse
    options = parser.parse_args(list(words))
    task = hydra.main(config_path=str(config_directory()), config_name="train", version_base="1.3")(_train_one)
    if options.cfg or options.info or options.hydra_help or options.shell_completion or options.resolve:
        try:
            task()
        except ValueError as error:  # Hydra raises it for flags that exclude each other.
            raise ConfigError(str(error)) from error
    else:
        _check(options.overrides, options.multirun)
        task()


def _refuse(message: str) -> None:
    raise ConfigError(message)


def _check(overrides: Sequence[str], multirun: bool) -> None:
    """Build every job once, so that no mistake is found after the first has been trained."""
    jobs = [overrides]
    if multirun:
        jobs = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(list(overrides)), max_batch_size=None)[0]
    for job in jobs:
        build(compose([word for word in job if not word.startswith(("hydra/launcher", "hydra/sweeper"))]))
    directories = [word.partition("=")[2] for word in overrides if word.startswith(("hydra.run.dir=", "hydra.sweep.dir="))]
    for directory in directories or ["runs"]:
        run_directory.refuse_used(Path(directory))


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
        if list(run.directory.glob("checkpoint-*")):
            print(f"stopped; continue with: {_command('rlloss-train')} resume={_shown(run.directory)}")
        raise


def _resume(words: Sequence[str]) -> None:
    """Continue the run in a directory, with the config it was started with."""
    options = dict(word.partition("=")[::2] for word in words)
    if others := set(options) - {"resume", "trust"}:
        raise ConfigError(f"resume continues a run with its own config, so leave out {', '.join(sorted(others))}")
    if not options["resume"]:
        raise ConfigError("resume needs the directory of a run: resume=RUN_DIR")
    directory = Path(options["resume"])
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
    if not result.complete:
        print(f"step {result.steps:,}, everything is saved")
        raise KeyboardInterrupt
    numbers = summary(result.evaluation_returns)
    _print_evaluation(result.evaluation_returns)
    print(f"run directory: {_shown(directory)}")
    print(f"TensorBoard:   {_tensorboard(directory)}")
    return numbers["evaluation/return_mean"]


def _print_evaluation(returns: Sequence[float]) -> None:
    mean, std, low, high = summary(returns).values()
    print(f"greedy evaluation: return {mean:.1f} ± {std:.1f} over {len(returns)} episodes (from {low:.1f} to {high:.1f})")


def evaluate_main() -> None:
    """`rlloss-evaluate RUN_DIR`: evaluate the greedy policy of a run's newest checkpoint."""
    parser = argparse.ArgumentParser(prog="rlloss-evaluate", description="Evaluate the greedy policy of a run's newest checkpoint.")
    parser.add_argument("directory", type=Path, metavar="RUN_DIR", help="the run's directory, as rlloss-train printed it")
    parser.add_argument("--episodes", type=int, default=20, help="how many episodes (20)")
    parser.add_argument("--seed", type=int, default=None, help="another seed for the episodes than the run's own")
    parser.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help="run code of this package if the run's config names it")
    parser.error = _refuse
    with one_line("rlloss-evaluate"):
        options = parser.parse_args()
        if options.seed is not None and options.seed < 0:
            raise ConfigError(f"--seed must be at least 0, got {options.seed}")
        _print_evaluation(_evaluate(options.directory, options.episodes, options.seed, options.trust))


def _evaluate(directory: Path, episodes: int, seed: int | None, trusted: Sequence[str]) -> list[float]:
    run = _recorded_run(directory, trusted)
    step = run_directory.newest_checkpoint([directory])
    tensors, _ = run_directory.load_checkpoint(directory, step)
    population = Population([run.agent], [run.seed], run.num_envs, compile=False, say=print)
    try:
        population.load_learner(0, tensors)
        settings = Evaluation(episodes=episodes, max_steps=run.evaluation.max_steps)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    environments = [run.environment.make() for _ in range(run.num_envs)]
    try:
        seeds = [run.seed if seed is None else seed]
        return evaluate(lambda: population.act_greedily(1.0), environments, population.observation.numpy(), seeds, step, settings)[0]
    finally:
        for environment in environments:
            environment.close()


@contextlib.contextmanager
def one_line(command: str) -> Iterator[None]:
    """Turn mistakes into one line and exit code 2, and Ctrl-C into exit code 130, without traceback."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # A person's own losses and environments lie where they work.
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except (ConfigError, RunDirectoryError, UnrepeatableError) as error:
        message = str(error)
    except (HydraException, OmegaConfBaseException) as error:
        message = in_words(error)
    else:
        return
    print(f"{command}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(MISTAKE)


def _known_keys() -> list[str]:
    """The keys that there are with the choices made on the command line, or by default where those are the mistake."""
    with contextlib.suppress(HydraException, ConfigError):
        return keys(compose([word for word in sys.argv[1:] if word.partition("=")[0] in groups()]))
    return keys(compose())


def in_words(error: Exception) -> str:
    """What a person did wrong when Hydra or OmegaConf raised this."""
    message = str(error)
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        return f"{group}={choice} is not a choice; choose one of {', '.join(error.options)}{nearest(choice, error.options)}"
    if found := re.search(r"Could not override '([^']+)'", message):
        key = found[1].split("@")[0]
        if "is not in struct" in f"{message} {error.__cause__}" or "No match in the defaults list" in message:
            known = [*_known_keys(), *groups()]
            return f"{key} is not chosen by default; add it with +{key}=…" if key in known else no_key(key, known)
        return f"{key}: {error.__cause__ or message}".splitlines()[0]
    if found := re.search(r"Key '([^']+)' is not in struct", message):
        return no_key(found[1], _known_keys())
    if found := re.search(r"Ambiguous value for argument '([^']+)'", message):
        return f"{found[1]} has several values; train all of them with -m"
    return message.splitlines()[0]


def _command(name: str) -> str:
    """How this command is called here: by name where it's on the PATH, else by its file."""
    beside = Path(sys.executable).parent / name
    return name if shutil.which(name) or not beside.exists() else _shown(beside)


def _tensorboard(directory: Path) -> str:
    return f"{_command('tensorboard')} --logdir {_shown(directory)}"


def _shown(path: Path) -> str:
    """A path as short as it can be said from here."""
    path = Path(path)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)

