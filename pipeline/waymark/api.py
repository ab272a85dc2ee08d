"""The commands as functions, for notebooks and scripts; the command line calls these."""

import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from waymark.comparison import view
from waymark.comparison.report import Comparison
from waymark.comparison.rerun_report import RerunReport
from waymark.comparison.runs import compare_runs
from waymark.config.compose import compose_config, from_config, parse_overrides
from waymark.config.schema import Config
from waymark.data import cache, splits
from waymark.data.images import showing
from waymark.data.sources import Loader
from waymark.data.summary import DataSummary, examples_by_class, summarise
from waymark.errors import BadInput
from waymark.errors import Failed as Failed
from waymark.evaluation import gate as gating
from waymark.evaluation import restore as evaluation
from waymark.evaluation.gate import GateResult
from waymark.evaluation.restore import Evaluation
from waymark.execution import execute, forking, mlflow_model, new_process, rerunning
from waymark.execution.execute import Result
from waymark.execution.plan import recorded
from waymark.exporting import export as exporting
from waymark.exporting.export import Target
from waymark.listing import ListedRun, list_runs
from waymark.plots.pictures import contact_sheet
from waymark.prediction import predicting
from waymark.prediction.predicting import Request
from waymark.prediction.results import Predictions
from waymark.processes.process_state import taken_back
from waymark.sweeps import multirun
from waymark.sweeps.sweep import SweepResult
from waymark.tasks.metrics import measured
from waymark.tracking import recovery
from waymark.tracking.opening import open_store
from waymark.tracking.registry import Registered
from waymark.tracking.remote_store import connect
from waymark.tracking.scoring_server import ScoringServer, answering, start_scoring
from waymark.tracking.server import Server, check_free
from waymark.tracking.ui import start_ui
from waymark.training.runtime import NeedsNewProcess

T = TypeVar("T")

_turn = threading.Lock()  # of the threads that want to do work: TensorFlow is the process's
_has_turn: ContextVar[bool] = ContextVar("_has_turn", default=False)


def _done(function: Callable[..., T], *arguments: Any) -> T:
    """Do work here, one at a time; in a new process where TensorFlow is not as the work needs it.

    Work that comes from within work, from a model of the user's own, does not wait for its end.
    """
    if not _has_turn.get():
        with _turn:
            token = _has_turn.set(True)
            try:
                return _done(function, *arguments)
            finally:
                _has_turn.reset(token)
    with taken_back():
        try:
            return function(*arguments)
        except NeedsNewProcess as needed:
            return new_process.call(str(needed), function, *arguments)


@dataclass(frozen=True)
class Synced:
    """What became of a run whose records were not all in MLflow."""

    sentence: str
    complete: bool  # nothing is left that could be delivered


def configure(*overrides: str) -> Config:
    """Return the typed configuration of Hydra's `overrides`; raise BadInput."""
    return compose_config(overrides).typed()


def describe_data(*overrides: str, pictures: str | Path | None = None) -> DataSummary:
    """Return what the configuration of `overrides` would read, and how it would be split.

    Some `pictures` of each class are drawn as this PNG file. Raises BadInput for data that cannot
    be read or split so, or drawn.
    """
    with taken_back():
        config = compose_config(overrides).config
        measured(config.task, config.metrics)
        with showing(config.progress):
            data = splits.load(config.data, config.task)
        if pictures is not None:
            path = Path(pictures).expanduser()
            classes = examples_by_class(data)
            try:
                contact_sheet(path, classes)
            except OSError as error:
                raise BadInput(f"{path} cannot be written: {error.strerror}.") from None
        folder = config.data.cache_folder() if isinstance(config.data, Loader) else None
        return summarise(data, folder)


def clear_cache(*overrides: str) -> tuple[Path, int]:
    """Remove what is kept of data: the folder that `overrides` name and the bytes it took.

    Without any, or for data that keep nothing, it is the folder in the user's cache. Raises
    BadInput for what cannot be removed.
    """
    with taken_back():
        given = parse_overrides(overrides) if overrides else {}
        if set(given) == {"data.cache"}:
            folder = cache.cache_folder(given["data.cache"])
        else:
            loader = compose_config(overrides).config.data
            own = loader.cache_folder() if isinstance(loader, Loader) else None
            folder = own or cache.cache_folder(None)
        return folder, cache.clear(folder)


def run(
    *overrides: str,
    config: Config | None = None,
    config_from: str | None = None,
    fork: str | None = None,
    summary: bool = False,
) -> Result:
    """Train, save, restore, evaluate and record a new run.

    Its configuration is `conf/` with Hydra's `overrides`, or the typed `config`, or that of the
    recorded run `config_from` with plain key=value `overrides` on top. With `fork` (RUN or
    RUN@STEP) it is that run's, and training goes on from its state at STEP, a number, `best` or
    `latest`, else from its newest whole checkpoint. With `summary` a table of the model's
    parameters is printed.
    Raises BadInput before anything is written, Interrupted after a signal, Failed otherwise.
    """
    if config is not None and (overrides or config_from is not None or fork is not None):
        raise BadInput("run: config= is a whole configuration, and goes with nothing else.")
    if fork is not None:
        if config_from is not None:
            raise BadInput("--fork, --config-from: give one; a fork has its run's configuration.")
        if {"-m", "--multirun"} & {*overrides}:
            raise BadInput("fork: begins one run; sweep(..., fork=...) begins a sweep of forks.")
        with taken_back():
            given = parse_overrides(overrides)
        return _done(forking.fork, fork, given, summary)
    if config_from is not None:
        with taken_back():
            resolved = recorded(config_from, parse_overrides(overrides))
    else:
        resolved = compose_config(overrides) if config is None else from_config(config)
    return _done(execute.run, resolved, summary)


def sweep(*arguments: str, fork: str | None = None) -> SweepResult:
    """Run a sweep, or complete the one that the same arguments began; see `waymark run -m`.

    `arguments` are overrides, some of them with several values, and Hydra's own flags. A trial
    that fails does not end the sweep: its result says so. With `fork` (RUN or RUN@STEP) each trial
    is a fork, as of `run`, with plain key=value overrides.
    Raises BadInput for a sweep none of whose trials can be done; Interrupted after a signal.
    """
    flag = [] if {"-m", "--multirun"} & set(arguments) else ["--multirun"]
    return _done(multirun.sweep, [*flag, *arguments], fork)


def resume(run: str, *overrides: str, allow_drift: bool = False) -> Result | None:
    """Continue an interrupted run in its own MLflow run; None if nothing was left to do.

    Raises BadInput for an unknown run, an override that would change the numbers, or (without
    `allow_drift`) another numerical environment; Failed if no published checkpoint is whole or the
    work fails (RerunDiverged, with the verdict, for a rerun whose loss is not finite any more);
    Interrupted after a signal.
    """
    return _done(execute.resume, run, parse_overrides(overrides), allow_drift)


def rerun(
    run: str,
    *overrides: str,
    threads: int | None = None,
    at_commit: bool = False,
    trust_code: bool = False,
) -> RerunReport:
    """Do a recorded run again, as a new run, and tell whether it came to the same bits.

    `overrides` may change where data, checkpoints and records go, not the numbers. `threads`
    replaces the recorded number of threads. `at_commit` runs the recorded commit with its
    recorded changes, which takes `trust_code`, since it executes what a record says.
    Raises BadInput for an unknown run or an override that could change the numbers, Failed if
    the work fails, Interrupted after a signal.
    """
    return _done(rerunning.rerun, run, overrides, threads, at_commit, trust_code)


def evaluate(
    run: str | None,
    *overrides: str,
    checkpoint: str | Path | None = None,
    step: str = "latest",
    from_meta: bool = False,
) -> Evaluation:
    """Restore a checkpoint and score it on the test set; write nothing.

    Either a run's checkpoint at `step` (a number, `best` or `latest`), or with run=None the files
    at `checkpoint`, with the model and data of `overrides`. With `from_meta` graph and weights
    come from the files alone.
    Raises BadInput for what is not there or does not fit, CorruptCheckpoint.
    """
    if (run is None) == (checkpoint is None):
        raise BadInput("evaluate: give a RUN, or --checkpoint PATH, one of the two.")
    if run is None:
        if step != "latest":
            raise BadInput(f"evaluate: step={step}: the files of a checkpoint are one step.")
        path = Path(str(checkpoint)).expanduser()
        return _done(evaluation.evaluate_files, compose_config(overrides), path, from_meta)
    return _done(evaluation.evaluate_run, run, step, from_meta, parse_overrides(overrides))


def export(
    run: str, folder: str | Path, *overrides: str, target: Target = "keras", step: str = "latest"
) -> Path:
    """Write a run's checkpoint at `step` (a number, `best` or `latest`) into a folder.

    It is written for programs that do not know Waymark, and takes raw features: `target` is
    `savedmodel` (a folder), `keras`, `onnx` or `tflite` (a file, `model.` and this). Returns what
    was written; raises BadInput for a model that the format cannot hold, a package that is not
    there, and a folder that cannot be written to, CorruptCheckpoint.
    """
    path = Path(folder).expanduser()
    return _done(exporting.export_run, run, target, path, step, parse_overrides(overrides))


def register(
    run: str, name: str, *overrides: str, alias: str | None = None, step: str = "latest"
) -> Registered:
    """Make a run's checkpoint at `step` (a number, `best` or `latest`) a version of a model.

    That is a registered model of MLflow's, of this `name`, made if there is none; `alias` is given
    to the version, and taken from the one that had it. A checkpoint that is registered already
    stays one version. Raises BadInput, CorruptCheckpoint.
    """
    given = parse_overrides(overrides)
    return _done(mlflow_model.register, run, name, alias, step, given)


def serve(
    run: str, *overrides: str, host: str = "127.0.0.1", port: int = 5001, step: str = "latest"
) -> ScoringServer:
    """Start MLflow's scoring server on a run's checkpoint, or on models:/NAME@ALIAS.

    Returns it when it answers; its `close` ends it. Raises BadInput, also for an address at which
    nothing can listen, CorruptCheckpoint, and Failed for a server that does not start.
    """
    given = parse_overrides(overrides)
    with ExitStack() as files, taken_back():
        check_free(host, port)
        folder = Path(files.enter_context(tempfile.TemporaryDirectory(prefix="waymark-")))
        model = _done(mlflow_model.to_serve, run, step, given, folder)
        store = connect(given.get("tracking.uri"), reading=True)
        server = start_scoring(store, model, host, port, files)
    return answering(server)


def predict(
    run: str,
    inputs: str | Path | Sequence[str | Path],
    *overrides: str,
    step: str = "latest",
    output: str | Path | None = None,
    top: int | None = None,
    resize: bool = False,
    invert: bool = False,
    errors: str | Path | None = None,
) -> Predictions:
    """Ask a run's checkpoint at `step` (a number, `best` or `latest`) about new examples.

    `inputs` are of the kind that the run's data were: an npz, a folder of npy files, a CSV or
    Parquet file, pictures or folders of them. With `resize` pictures may have another size, with
    `invert` they are dark on light. What is predicted is kept in what is returned, or written to
    `output`, a CSV, Parquet or npz file; of a table's classes the best `top` have columns, else
    all. `errors` is a PNG file for the most confident mistakes. Pictures that cannot be read are
    left out, and named in `wrong`. Raises BadInput for what else cannot be read or does not fit,
    CorruptCheckpoint.
    """
    paths = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    asked = Request(output, top, resize, invert, errors)
    return _done(predicting.predict_run, run, paths, step, parse_overrides(overrides), asked)


def gate(
    run: str,
    *overrides: str,
    against: str,
    max_drop: Mapping[str, float] | None = None,
    significant: bool = False,
    step: str = "latest",
) -> GateResult:
    """Tell whether a run's checkpoint is worse than another run's on the same test set.

    `max_drop` says of each metric that decides how much worse it may be; without, that is 0 of the
    metric by which the run is judged. With `significant` a metric fails only if all of the 95 %
    interval of the difference is worse by more. `step` (a number, `best` or `latest`), of what is
    no model's address, and `overrides` are of both. Raises BadInput for a metric, test set or task
    that they do not share, and as `evaluate`.
    """
    allowed, given = gating.allowed_drops(max_drop or {}), parse_overrides(overrides)
    how = step, given, tuple(allowed), significant
    one, other = (_done(gating.score_run, text, *how) for text in (run, against))
    return gating.judge(one, other, allowed, significant)


def compare(
    *runs: str,
    experiment: str | None = None,
    sweep: str | None = None,
    where: str | None = None,
    tracking_uri: str | None = None,
) -> Comparison:
    """Compare runs: what differs in configuration, results, data, code and environment.

    The runs are those named, and those for which all conditions hold: of an `experiment`, children
    of the run `sweep` (or of its parent, if it is a trial), fit for MLflow's filter `where`.
    Raises BadInput for what does not exist and for fewer than two runs.
    """
    return compare_runs(runs, tracking_uri, experiment, sweep, where)


def runs(limit: int = 20, tracking_uri: str | None = None) -> list[ListedRun]:
    """Return at most `limit` runs, the last one first; raise BadInput if there is no store."""
    return list_runs(tracking_uri, limit)


def sync(tracking_uri: str | None = None) -> list[Synced]:
    """Deliver to MLflow what could not be delivered; rebuild lost runs from their folders.

    Returns what became of each run that was not whole; raises BadInput for a store that cannot
    be opened.
    """
    with taken_back():
        found: list[Synced] = []

        def delivered(run_id: str, refused: str) -> None:  # by opening the store
            found.append(Synced(recovery.delivered(run_id, refused), True))

        store = open_store(tracking_uri, create=True, recovered=delivered)
        return found + [Synced(*each) for each in recovery.sync(store)]


def ui(
    host: str = "127.0.0.1",
    port: int = 5000,
    tracking_uri: str | None = None,
    run: str | None = None,
) -> Server:
    """Start MLflow's UI on the runs of this folder, or on a `run` or sweep; its `close` ends it.

    A store on a server has its UI there: nothing is started. Raises BadInput for an address at
    which nothing can listen, a run that is not there, and a store that cannot be opened.
    """
    with taken_back():
        store = open_store(tracking_uri, create=run is None)
        if store.database:
            check_free(host, port)
        return start_ui(store, host, port, view.page(store, run))
