"""`hydra/sweeper=grid`: all combinations, each checked before the first runs, in directories named after what is swept."""

import contextlib
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

NUMBERED = "${hydra:job.num}"  # Hydra's own name for a job's directory, in which another job would be next time


@dataclass
class GridSweeperConf:
    """It has no settings."""

    _target_: str = "hydra_plugins.rlloss.grid_sweeper.GridSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="grid", node=GridSweeperConf, provider="rlloss")


class GridSweeper(Sweeper):
    """Hands all combinations of what is swept to the launcher at once."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra has; it calls this before `sweep`."""
        self.loader, self.config = hydra_context.config_loader, config
        self.launcher = Plugins.instance().instantiate_launcher(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        """Run all jobs; raises what the first failed one raised."""
        from agents.hydra_jobs import named, note_sweep
        from agents.launch import check

        overrides = OverridesParser.create(config_loader=self.loader).parse_overrides(arguments)
        jobs = BasicSweeper.split_arguments(overrides, max_batch_size=None)[0]
        if OmegaConf.to_container(self.config.hydra.sweep, resolve=False)["subdir"] == NUMBERED:
            jobs = named(jobs, [override.get_key_element() for override in overrides if override.is_sweep_override()])
        check(self.loader, self.config, jobs)
        if not hasattr(self.launcher, "notes_sweep"):
            note_sweep(self.config)
        returned = self.launcher.launch(jobs, initial_job_idx=0)
        failed = [each for each in returned if each.status is JobStatus.FAILED]
        if failed and not hasattr(self.launcher, "says_failures"):
            said = " ".join(str(failed[0]._return_value).split())
            own = [word for word in failed[0].overrides if any(word not in other.overrides for other in returned)]
            print(f"{len(failed)} of {len(returned)} runs failed; the first, {' '.join(own)}: {said}", file=sys.stderr)
        for each in returned:
            with contextlib.redirect_stderr(io.StringIO()):  # The launcher has said more of it than Hydra would.
                each.return_value  # noqa: B018  # It raises what went wrong.
        return returned
