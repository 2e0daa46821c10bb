"""What a Hydra launcher is handed, as jobs: their configs, their directories, and what Hydra notes of each."""

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from agents.composition import Composed, compose_all, put
from agents.sweep import Job, flat, labels

SUBDIRECTORY = "hydra.sweep.subdir="


class HydraJob(NamedTuple):
    """A job, and what its whole config is made of."""

    job: Job
    composed: Composed
    noted: Mapping[str, Any]  # what Hydra's own part says of this job alone, by dotted key

    @property
    def whole(self) -> DictConfig:
        """The config with Hydra's own part, as other launchers hand it to callbacks."""
        return _whole(self.composed, self.noted)


def hydra_jobs(loader: ConfigLoader, master: DictConfig, jobs: Sequence[Sequence[str]], first: int) -> list[HydraJob]:
    """The jobs of these words, numbered from `first`, of a sweep whose own config is `master`."""
    without = [[word for word in words if not word.startswith(SUBDIRECTORY)] for words in jobs]
    composed = compose_all(without, lambda words: loader.load_sweep_config(master, words), lambda key: bool(loader.get_group_options(key)))
    notes = functools.cache(lambda place: OmegaConf.to_container(composed[place].whole.hydra, resolve=False, enum_to_str=True))
    first_of: dict[int, int] = {}
    for place, each in enumerate(composed):
        first_of.setdefault(id(each.whole), place)
    return [_job(each, words, master, first + place, notes(first_of[id(each.whole)])) for place, (each, words) in enumerate(zip(composed, jobs, strict=True))]


def named(jobs: Sequence[Sequence[str]], swept: Sequence[str]) -> list[list[str]]:
    """The words of jobs, and of each a directory named after what is swept."""
    return [[*words, f"{SUBDIRECTORY}'{label}'"] for words, label in zip(jobs, labels(jobs, swept), strict=True)]


def note_sweep(master: DictConfig) -> None:
    """Write a sweep's own config where Hydra's sweepers do."""
    directory = Path(str(master.hydra.sweep.dir))
    directory.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(master, directory / "multirun.yaml")


def _job(composed: Composed, words: Sequence[str], master: DictConfig, number: int, notes: Mapping[str, Any]) -> HydraJob:
    task = tuple(word for word in words if not word.lstrip("+~").startswith(("hydra.", "hydra/")))
    own = [word for word in words if word not in task]
    naming = composed.whole.hydra.job.config.override_dirname
    named = sorted(word for word in task if word.lstrip("+~").partition("=")[0] not in naming.exclude_keys)
    noted = {
        "job.id": str(number),
        "job.num": number,
        "job.override_dirname": naming.item_sep.join(named).replace("=", naming.kv_sep),
        "overrides.task": list(task),
        "overrides.hydra": [*OmegaConf.to_container(master.hydra.overrides.hydra), *own],
    }
    if said := [word for word in own if word.startswith(SUBDIRECTORY)]:
        noted["sweep.subdir"] = _parsed(said[-1])
    subdirectory = noted.get("sweep.subdir", notes["sweep"]["subdir"])
    if "${" in str(subdirectory):
        with _hydra_config(_whole(composed, noted)) as whole:
            subdirectory = whole.hydra.sweep.subdir
    directory = Path(os.path.abspath(Path(str(master.hydra.sweep.dir)) / str(subdirectory)))
    noted["runtime.output_dir"] = str(directory)
    values = composed.values
    if "${hydra:" in repr(values):  # Where the run is built, nobody could say what it refers to.
        with _hydra_config(_whole(composed, noted)) as whole:
            values = put(values, {key: OmegaConf.select(whole, key) for key, value in flat(values).items() if "${hydra:" in str(value)})
    return HydraJob(Job(task, directory, values, put(notes, noted)), composed, noted)


@functools.cache
def _parsed(word: str) -> Any:
    return OverridesParser.create().parse_override(word).value()


def _whole(composed: Composed, noted: Mapping[str, Any]) -> DictConfig:
    whole = composed.whole.copy()
    OmegaConf.copy_cache(composed.whole, whole)
    with read_write(whole), read_write(whole.hydra), open_dict(whole):
        for key, value in {**composed.changed, **{f"hydra.{key}": value for key, value in noted.items()}}.items():
            OmegaConf.update(whole, key, value)
    return whole


@contextlib.contextmanager
def _hydra_config(whole: DictConfig) -> Iterator[DictConfig]:
    """Within it references such as ${hydra:job.num} are those of this config."""
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(whole)
    try:
        yield whole
    finally:
        HydraConfig.instance().cfg = before
