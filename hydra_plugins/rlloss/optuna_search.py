"""`hydra/sweeper=optuna_search`: a search in place of a grid, any launcher trains its batches."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class OptunaSearchConf:
    """What can be set on the command line as hydra.sweeper.…"""

    _target_: str = "hydra_plugins.rlloss.optuna_search.OptunaSearch"
    _recursive_: bool = False
    trials: int = 64  # how many settings are tried; each with every seed
    batch: int = 16  # trials that are asked for and trained at once
    sampler: dict[str, Any] = field(default_factory=lambda: {"_target_": "optuna.samplers.TPESampler"})
    seed: int = 0  # of the sampler
    storage: str | None = "sqlite:///${hydra.sweep.dir}/study.db"  # any of Optuna's, null for memory alone
    study: str = "rlloss"  # its name in the storage
    params: dict[str, Any] = field(default_factory=dict)  # words such as optimizer.learning_rate: interval(1e-4, 1e-2), for recipes


ConfigStore.instance().store(group="hydra/sweeper", name="optuna_search", node=OptunaSearchConf, provider="rlloss")


class OptunaSearch(Sweeper):
    """Asks Optuna for batches of trials, hands each to the launcher as one sweep, and tells Optuna what came of it."""

    def __init__(self, trials: int, batch: int, params: DictConfig, **study: Any) -> None:
        self.trials, self.batch, self.params, self.study = trials, batch, params, study

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra has; it calls this before `sweep`."""
        self.config, self.loader = config, hydra_context.config_loader
        self.launcher = Plugins.instance().instantiate_launcher(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> None:
        """Search over the words of the command line."""
        from agents.config import ConfigError
        from agents.hydra_jobs import note_sweep
        from agents.launch import check
        from agents.sweep import counted

        try:
            from agents.search import in_words, open_study, search
            from agents.search_space import search_space
        except ModuleNotFoundError as error:
            raise ConfigError(f"hydra/sweeper=optuna_search needs {error.name}; install it with pip install 'rlloss[optuna]'") from error
        if self.trials < 1 or self.batch < 1:
            raise ConfigError(f"hydra.sweeper.trials and hydra.sweeper.batch must be at least 1, got {self.trials} and {self.batch}")
        words = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        self.space = search_space(OverridesParser.create(config_loader=self.loader).parse_overrides(words))
        check(self.loader, self.config, self._named(self.space.corners()))
        if self.config.hydra.launcher.get("dry_run"):
            print(f"{counted(self.trials, 'trial')} of {counted(len(self.space.seeds), 'run')} each, {self.batch} at a time; Optuna chooses what is in them")
            return
        directory = Path(self.config.hydra.sweep.dir)
        directory.mkdir(parents=True, exist_ok=True)
        study = open_study(self.space, name=self.study.pop("study"), **self.study)
        if not hasattr(self.launcher, "notes_sweep"):
            note_sweep(self.config)
        print(in_words(study, self.trials))
        search(study, self.space, self.trials, self.batch, self._train, print)
        print(f"all runs: {directory}; the study: {self.study['storage']}")

    def _named(self, runs: list[list[str]]) -> list[list[str]]:
        """The words of runs, and a directory for each."""
        from agents.hydra_jobs import named

        seeds = ["seed"] if len(self.space.seeds) > 1 else []
        return named(runs, [*self.space.searched, *seeds])

    def _train(self, runs: list[list[str]], number: int) -> Sequence[Any]:
        """Launch runs; raises what they raised if all of them failed, since nothing can be learned from that."""
        returns = self.launcher.launch(self._named(runs), initial_job_idx=number)
        if all(each.status is JobStatus.FAILED for each in returns):
            returns[0].return_value  # noqa: B018  # It raises.
        return [_trained(each) for each in returns]


def _trained(returned: JobReturn) -> Any:
    from agents.search import Trained

    if returned.status is JobStatus.FAILED:
        return Trained(None)
    return Trained(float(returned.return_value), getattr(returned.return_value, "step", None))
