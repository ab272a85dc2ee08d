"""Waymark's plugins for Hydra, which looks for plugins in this package only.

`TrialLauncher` stands before the launcher that the user chose, `GridSweeper` is Hydra's own
sweeper, and `OptunaSweeper` proposes trials by Optuna (Akiba et al., KDD 2019).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf


class TrialLauncher(Launcher):
    """Hand over to the user's launcher what is not finished yet, and again what was lost."""

    sweep: ClassVar[Any] = None  # the waymark.sweeps.sweep.Sweep that this process carries out

    def __init__(self, **settings: Any) -> None:
        kind = Plugins.instance().class_name_to_class[self.sweep.launcher]
        self._launcher: Launcher = kind(**settings)

    def setup(self, **given: Any) -> None:
        """Set the user's launcher up with what Hydra gives it before the first launch."""
        from waymark.config.composer import Composer
        from waymark.execution import forking

        if begun := self.sweep.fork:
            self.sweep.compose_by(partial(forking.trial, begun))
        else:
            self.sweep.compose_by(Composer(given["hydra_context"].config_loader, given["config"]))
        self._launcher.setup(**given)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Return what came of each job; see Sweep.launch."""
        from waymark.config.compose import as_written

        jobs = [as_written(job) for job in job_overrides]  # a sweeper makes numbers
        return self.sweep.launch(self._launcher.launch, jobs, initial_job_idx)


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
        sweep = self.launcher.sweep
        failed = [job for job in batch if not sweep.identity_of(job)]
        super().validate_batch_is_legal(failed)
        if self.batch_index == 1:  # the first one
            jobs = [job for each in self.overrides for job in each]
            sweep.check(jobs)
            sweep.planned = len(jobs)
