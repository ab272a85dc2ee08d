"""A Hydra sweeper that proposes trials by Optuna (Akiba et al., KDD 2019), whatever its version.

The study is kept in a database under the parent run's id, so the same command goes on with it.
"""

import math
import os
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Transformer
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.utils import instantiate
from hydra_plugins.waymark import TrialLauncher

PROCESS = "process"  # attribute of a trial: who does it


class OptunaSweeper(Sweeper):
    """Ask for `n_jobs` trials at a time, until the study has `n_trials`; see Optuna's ask and tell.

    `params` and the command line say what is varied. Trials that have failed or were interrupted
    come first when a study is continued.
    """

    def __init__(
        self, n_trials: int, n_jobs: int, sampler: Any, storage: str | None, params: dict[str, str]
    ) -> None:
        self._n_trials, self._n_jobs = n_trials, n_jobs
        self._sampler, self._storage, self._params = sampler, storage, params
        self.hydra_context: Any = None
        self.config: Any = None
        self._launcher: Any = None

    def setup(self, **given: Any) -> None:
        """Take what Hydra gives, and make the launcher that its configuration names."""
        self.hydra_context, self.config = given["hydra_context"], given["config"]
        self._launcher = Plugins.instance().instantiate_launcher(**given)

    def sweep(self, arguments: list[str]) -> None:
        """Do what is left of the study; raises ValueError for what Optuna cannot search."""
        from waymark.config.compose import as_written
        from waymark.tracking.liveness import this_process

        words = as_written([*(f"{k}={v}" for k, v in self._params.items()), *arguments])
        items = OverridesParser.create().parse_overrides(words)
        given = {item.key_or_group: item for item in items}
        space = {k: distribution(item) for k, item in given.items() if item.is_sweep_override()}
        fixed = [str(item.input_line) for item in given.values() if not item.is_sweep_override()]
        if not space:
            raise ValueError("hydra/sweeper=optuna: nothing is varied")
        TrialLauncher.sweep.planned = self._n_trials
        study, first = self._study(), 0
        left = self._n_trials - _take_up(study)
        while left > 0:
            trials = [study.ask(space) for _ in range(min(left, self._n_jobs))]
            params = [as_written(f"{k}={v}" for k, v in trial.params.items()) for trial in trials]
            jobs = [[*fixed, *words] for words in params]
            self.validate_batch_is_legal(jobs)
            for trial in trials:
                trial.set_user_attr(PROCESS, this_process())
            for trial, done in zip(trials, self._launcher.launch(jobs, first), strict=True):
                _tell(study, trial, done.return_value)
            left, first = left - len(trials), first + len(trials)

    def _study(self) -> Any:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sweep = TrialLauncher.sweep
        # Beside the runs, so that a store that is moved keeps its studies; relative, and braces
        # doubled, since Optuna takes a path for a pattern.
        beside = os.path.relpath(sweep.store.root / "optuna.db")
        beside = beside.replace("{", "{{").replace("}", "}}")
        study = optuna.create_study(
            storage=self._storage or f"sqlite:///{beside}",
            study_name=sweep.parent,
            direction="maximize" if sweep.mode == "max" else "minimize",
            load_if_exists=True,
        )
        sampler = dict(self._sampler)
        if sampler.get("seed") is not None:  # or a continued study would be proposed the same
            sampler["seed"] += len(study.trials)
        study.sampler = instantiate(sampler)
        sweep.already_finished |= sweep.finished_before()
        return study


def distribution(item: Override) -> Any:
    """Return Optuna's distribution for a sweep of Hydra's; raise ValueError if there is none."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = item.value()
    if item.is_interval_sweep():
        whole = isinstance(value.start, int) and isinstance(value.end, int)
        kind = IntDistribution if whole else FloatDistribution
        return kind(value.start, value.end, log="log" in value.tags)
    if item.is_range_sweep() and not value.shuffle:
        values: list[Any] = list(item.sweep_iterator())  # Hydra's stop is not part of a range
        kind = IntDistribution if isinstance(values[0], int) else FloatDistribution
        return kind(values[0], values[-1], step=value.step)
    return CategoricalDistribution(list(item.sweep_iterator(transformer=Transformer.encode)))


def _take_up(study: Any) -> int:
    """Propose again what has not come to an end; return how many trials have."""
    from optuna.trial import TrialState
    from waymark.tracking.liveness import is_alive, this_process

    over = [t for t in study.trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    known = [trial.params for trial in over]
    for trial in study.trials:
        if trial.state == TrialState.RUNNING:
            process = trial.user_attrs.get(PROCESS, {})
            if process != this_process() and is_alive(process, 0):
                continue
            study.tell(trial.number, state=TrialState.FAIL)
        if trial.state in (TrialState.RUNNING, TrialState.FAIL) and trial.params not in known:
            known.append(trial.params)
            study.enqueue_trial(trial.params)
    return len(over)


def _tell(study: Any, trial: Any, value: float) -> None:
    from optuna.trial import TrialState
    from waymark.sweeps.trial import PrunedObjective

    if isinstance(value, PrunedObjective):
        trial.report(value.value, value.step)
        study.tell(trial, state=TrialState.PRUNED)
    elif math.isnan(value):  # it failed, or did not record its objective
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, value)
