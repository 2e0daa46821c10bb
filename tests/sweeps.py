"""Writes the directories of runs that were never trained, so that a report's numbers are known beforehand."""

from agents import run_directory
from agents.config import compose
from agents.event_log import EventLog
from agents.run import Failure

STEPS = tuple(range(1000, 11_000, 1000))


def write_run(directory, returns, *words, seed=0, final=None, failed=False, complete=True, scalars=(), config=None):
    """A run of a composed config, or of `config`, whose evaluations at `STEPS` gave `returns`, as many as there are."""
    config = (compose([*words, "total_steps=10000"]) if config is None else config) | {"seed": seed}
    run_directory.claim(directory, config)
    log = EventLog(directory)
    log.config(config)
    for step, value in zip(STEPS, returns, strict=False):
        log.scalars(step, {"evaluation/return_mean": value, "evaluation/return_std": 0.0})
    for step, values in scalars:
        log.scalars(step, values)
    log.flush()
    if failed:
        run_directory.write_failure(directory, Failure("the loss is nan", "loss/value", STEPS[len(returns) - 1], None))
    elif complete:
        log.end()
        log.flush()
        mean = returns[-1] if final is None else final
        run_directory.write_result(directory, {"seed": seed, "wall_seconds": 60.0, "evaluation": {"returns": [mean], "return_mean": mean}})


def write_sweep(directory, returns_by_words, seeds=range(8)):
    """Runs of several words, each with `returns(seed)` for every seed."""
    for words, returns in returns_by_words.items():
        config = compose([*words.split(), "total_steps=10000"])
        for seed in seeds:
            write_run(directory / f"{len(list(directory.glob('*')))}", returns(seed), seed=seed, config=config)
