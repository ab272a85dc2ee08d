"""Waymark's plugins for Hydra, which looks for plugins in this package only.

`TrialLauncher` stands before the launcher that the user chose, `GridSweeper` is Hydra's own
sweeper, and `OptunaSweeper` proposes trials by Optuna (Akiba et al., KDD 2019).
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class TrialLauncher(Launcher):
    """Hand over to the user's launcher what is not finished yet, and again what was lost."""

    sweep: ClassVar[Any] = None  # the waymark.sweeps.sweep.Sweep that this process carries out

    def __init__(self, **settings: Any) -> None:
        self._launcher: Launcher = Plugins.instance().class_name_to_class[self.sweep.plan.launcher](
            **settings
        )

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Set the user's launcher up; Hydra calls it before the first launch."""
        from waymark.config.compose import Composer

        self._compose = Composer(hydra_context.config_loader, config)
        self._launcher.setup(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def jobs_to_validate(self, jobs: Sequence[Sequence[str]]) -> list[Sequence[str]]:
        """Return the jobs, each a trial's overrides, of which no configuration could be made."""
        return [job for job in jobs if not self.sweep.identity_of(self._compose, tuple(job))]

    def check(self, jobs: Sequence[Sequence[str]]) -> None:
        """Raise BadInput if none of all the sweep's jobs can be done; take note how many are."""
        self.sweep.check(self._compose, jobs)
        self.sweep.planned = len(jobs)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Return what came of each job; see Sweep.launch."""
        from waymark.config.compose import as_written

        job_overrides = [as_written(job) for job in job_overrides]  # a sweeper makes numbers
        done: list[JobReturn] = self.sweep.launch(
            self._launcher.launch, self._compose, job_overrides, initial_job_idx
        )
        return done


class GridSweeper(BasicSweeper):
    """Hydra's grid sweeper, which validates only the jobs that could not be composed.

    Validating composes a job by Hydra itself, slowly: it is done for the text of Hydra's error.
    """

    def sweep(self, arguments: list[str]) -> Any:
        """Sweep as Hydra does, with masked secrets in the file that Hydra writes."""
        from waymark.config.masking import mask_secrets

        # The file multirun.yaml gets the masked one; the launcher has the true one.
        self.config = OmegaConf.create(mask_secrets(OmegaConf.to_container(self.config)))
        return super().sweep(arguments)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Raise Hydra's error for an illegal job, and BadInput if no job can be done."""
        super().validate_batch_is_legal(self.launcher.jobs_to_validate(batch))
        if self.batch_index == 1:  # the first one
            self.launcher.check([job for each in self.overrides for job in each])
