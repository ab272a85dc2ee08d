"""What a run starts from, and what a run recorded."""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from waymark import names
from waymark.checkpoints import State
from waymark.checkpoints.external import read_parameters
from waymark.comparison.environment import (
    differences,
    environment,
    format_difference,
    numerical,
    read_environment,
)
from waymark.comparison.recorded_run import RecordedRun, load_recorded_run
from waymark.comparison.repository import git_commit
from waymark.config.compose import SEARCHPATH, switched
from waymark.config.settings import BadInput, Config, Resolved, read_record, with_overrides
from waymark.data.sources import Dataset
from waymark.evaluation import graph
from waymark.evaluation.restore import (
    log_parameters,
    parameter_shapes,
    refuse_foreign,
)
from waymark.package import __version__
from waymark.tracking import artifacts
from waymark.tracking.finder import find, find_single
from waymark.tracking.history import NAME as HISTORY
from waymark.tracking.opening import open_store
from waymark.tracking.runs import RunRecord
from waymark.tracking.store import RunStore
from waymark.training.hidden_state import HiddenState
from waymark.training.loop import Trainer
from waymark.training.runtime import start_tensorflow

# What decides the numbers or the files; a resume refuses to change it. (`data.path` may move:
# the digest of the data decides.)
RESUME_FIXED = (
    *("model", "data", "optimizer", "batch_size", "seed", "precision", "init_from", "runtime"),
    *("save._target_", "save.meta_graph"),
)


def own_modules(config: Config) -> list[str]:
    """Return the modules outside Waymark whose classes take part."""
    parts = (config.model, config.data, config.optimizer, config.save)
    modules = {type(part).__module__ for part in parts}
    return sorted(name for name in modules if not name.startswith("waymark."))


def prepared(config: Config, data: Dataset) -> Trainer | None:
    """Return a trainer of the user's own classes, with all its functions compiled.

    Raises HiddenState, so that it comes before a run is made; whatever else is wrong the run
    meets again, and records. None for that, and for Waymark's classes, which keep nothing.
    """
    parts = config.model, config.optimizer
    if all(type(part).__module__.startswith("waymark.") for part in parts):
        return None
    start_tensorflow(config.runtime.intra_op_threads)
    try:
        trainer = Trainer(config, data)
        if config.save.graph:
            graph.export(config, data.spec, trainer.shapes)
    except HiddenState:
        raise
    except Exception:
        return None
    return trainer


def recorded(text: str, overrides: Mapping[str, Any]) -> Resolved:
    """Return the configuration that a run was recorded with, with overrides put on top.

    Raises BadInput for an unknown run, a damaged record, or an override that does not fit.
    """
    given = {"tracking.uri": None, **overrides}
    trusted = given.pop("trusted_modules", [])
    tracking = open_store(given["tracking.uri"])
    return record_of(tracking, find_single(tracking, text), given, trusted)


def record_of(
    tracking: RunStore,
    record: RunRecord,
    overrides: Mapping[str, Any],
    trusted: list[str],
) -> Resolved:
    """Return the configuration of a run that was found; see `recorded`."""
    values, choices, masked = record_as_it_is(tracking, record)
    members = {key: str(overrides[key]) for key in choices if key in overrides}
    aside = (*members, SEARCHPATH)
    others = {key: value for key, value in overrides.items() if key not in aside}
    values, choices = switched(values, choices, members, overrides.get(SEARCHPATH, ()))
    origin = f"recorded by run {record.id}"
    return with_overrides(values, choices, masked, others, trusted, origin)


def record_as_it_is(
    tracking: RunStore, record: RunRecord
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Return what `read_record` does of a run, wherever its config.yaml is."""
    refuse_foreign(tracking, record)
    with tempfile.TemporaryDirectory() as scratch:
        folder = record.folder
        if not (folder / "config.yaml").exists() and record.remote:
            folder = Path(scratch) / "run"
            artifacts.fetch(tracking, record, "config.yaml", folder)
        return read_record(folder / "config.yaml")


def refuse_drift(record: RunRecord, config: Config) -> None:
    """Raise BadInput if the next steps would be computed by other means than the last ones."""
    old = read_environment(record.folder / "environment.json")
    drift = numerical(differences(old, environment(config.runtime.intra_op_threads)))
    if drift:
        raise BadInput(
            f"run {record.id}: was trained in another numerical environment, so that its bits "
            f"would not be repeatable ({'; '.join(map(format_difference, drift))}); "
            f"waymark resume --allow-drift goes on all the same."
        )


def original_of(tracking: RunStore, record: RunRecord) -> RecordedRun | None:
    """Return what an interrupted rerun is to be compared with, if that is still there."""
    if names.RERUN_OF not in record.tags:
        return None
    try:
        return load_recorded_run(tracking, find(tracking, record.tags[names.RERUN_OF]))
    except BadInput as error:
        print(f"waymark: no verdict: {error}", file=sys.stderr)
        return None


def initial_parameters(config: Config, data: Dataset) -> State | None:
    if config.init_from is None:
        return None
    start_tensorflow(**vars(config.runtime))
    shapes = parameter_shapes(config, data.spec)
    parameters = read_parameters(Path(config.init_from).expanduser(), shapes, "init_from")
    log_parameters(parameters)
    return parameters


def new_run_tags(resolved: Resolved, data: Dataset) -> dict[str, str]:
    tags = {
        names.VERSION: __version__,
        names.DATA_DIGEST: data.digest,
        names.SAVE_FORMAT: resolved.choices.get("save", ""),
        names.STEPS: str(resolved.config.steps),
    }
    commit = git_commit()
    return {**tags, names.GIT_COMMIT: commit} if commit else tags


def fetch(tracking: RunStore, record: RunRecord) -> None:
    """Bring what a resume needs and the run's remote home has; what is here and newer stays."""
    newer = artifacts.newer(tracking, record)
    if newer or not (record.folder / "config.yaml").exists():
        artifacts.fetch(tracking, record, "config.yaml", record.folder)
    there = artifacts.listed(tracking, record)
    for name in ("environment.json", HISTORY):  # there is none before the first words of a run
        if name in there and (newer or not (record.folder / name).exists()):
            artifacts.fetch(tracking, record, name, record.folder)
    for name in newer:
        if not (record.folder / name).exists():
            artifacts.fetch(tracking, record, name, record.folder)
