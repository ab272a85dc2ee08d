"""One run from configuration to recorded result, and going on with one that was interrupted."""

import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline import names
from pipeline.checkpoints import State
from pipeline.checkpoints.external import read_parameters
from pipeline.checkpoints.store import CheckpointStore, replace_file
from pipeline.compose import SEARCHPATH, switched
from pipeline.config import BadInput, Config, Resolved, from_record, read_record, with_overrides
from pipeline.data import Dataset
from pipeline.digest import digest
from pipeline.environment import differences, environment, git_commit, numerical, read_environment
from pipeline.evaluation import (
    load_data,
    log_parameters,
    parameter_shapes,
    refuse_foreign,
    refuse_other_data,
)
from pipeline.output import unfailing_output
from pipeline.package import __version__
from pipeline.pruning import Pruner
from pipeline.runtime import start_if_imported, start_tensorflow
from pipeline.signals import GracefulShutdown
from pipeline.tracking import artifacts
from pipeline.tracking.active_run import create_run, reopen_run
from pipeline.tracking.finder import find, find_single
from pipeline.tracking.history import NAME as HISTORY
from pipeline.tracking.opening import open_store
from pipeline.tracking.recovery import settle
from pipeline.tracking.runs import RunRecord
from pipeline.tracking.store import RunStore
from pipeline.verdict import Evidence, evidence, told
from pipeline.work import Failed, Result, Work, prepared

# What decides the numbers or the files; a resume refuses to change it. (`data.path` may move:
# the digest of the data decides.)
FROZEN = (
    *("model", "data", "optimizer", "batch_size", "seed", "precision", "init_from", "runtime"),
    *("save._target_", "save.meta_graph"),
)


@unfailing_output()
def run(
    resolved: Resolved,
    original: Evidence | None = None,
    tags: Mapping[str, str] | None = None,
    pruner: Pruner | None = None,
    began: Callable[[], None] | None = None,
) -> Result:
    """Train, save, restore, evaluate and record a new run; compare it with its original, if any.

    `began` is called when the run is recorded, before it trains: a trial's, for which others
    wait, so that it is not compiled before.

    Raises BadInput before anything is written, Interrupted after a signal, Pruned if the `pruner`
    of a sweep finds it hopeless, Failed otherwise.
    """
    config = resolved.config
    with GracefulShutdown() as stop:
        start_if_imported(**vars(config.runtime))
        data = load_data(config)
        start_if_imported(**vars(config.runtime))  # by the user's own classes
        parameters = _initial_parameters(config, data)
        trainer = None if began else prepared(config, data)
        tracking = open_store(config.tracking.uri, create=True)
        tags = {**_tags(resolved, data), **(tags or {})}
        if parameters:
            tags[names.INIT_DIGEST] = digest(parameters)
        if original:
            tags[names.RERUN_OF] = original.record.id
        tracked = create_run(tracking, resolved, tags, data)
        replace_file(tracked.info.folder / "config.yaml", resolved.record())
        if began:
            began()
        given = resolved, data, tracking, tracked, parameters, None, stop
        return Work(*given, original, pruner, trainer).run()


@unfailing_output()
def resume(
    text: str,
    overrides: Mapping[str, Any],
    allow_drift: bool = False,
    pruner: Pruner | None = None,
    began: Callable[[], None] | None = None,
) -> Result | None:
    """Go on with a run in its own MLflow run; None if nothing was left to do.

    Raises BadInput for an unknown run, an override that would change the numbers, or (without
    `allow_drift`) a numerical environment that would; Failed if no published checkpoint is whole.
    """
    with GracefulShutdown() as stop:
        return _resume(text, dict(overrides), stop, allow_drift, pruner, began)


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


def _resume(
    text: str,
    overrides: dict[str, Any],
    stop: GracefulShutdown,
    allow_drift: bool,
    pruner: Pruner | None,
    began: Callable[[], None] | None,
) -> Result | None:
    tracking = open_store(overrides.pop("tracking.uri", None))
    record = find_single(tracking, text)
    refuse_foreign(tracking, record)
    if record.remote and not record.offline:
        _fetch(tracking, record)
    trusted = overrides.pop("trusted_modules", [])
    resolved = from_record(record.folder / "config.yaml", overrides, trusted, FROZEN, record.id)
    config = resolved.config
    store = CheckpointStore(record.folder / "checkpoints", config.save)
    start_if_imported(**vars(config.runtime))
    data = load_data(config)
    refuse_other_data(record, data)
    start_tensorflow(**vars(config.runtime))
    found, damage = store.latest_valid()
    for line in damage:
        print(f"waymark: {line}", file=sys.stderr)
    if found is None and (store.steps() or record.status == "FINISHED"):
        state = "published checkpoints, but none is whole" if store.steps() else "lost them all"
        raise Failed(
            f"run {record.id} has {state}; to start afresh: waymark run --config-from {record.id}"
        )
    reached = found[0].step if found else 0
    if config.steps < reached:
        raise BadInput(f"steps={config.steps}: run {record.id} has already reached {reached}.")
    if record.status == "FINISHED" and reached == config.steps:
        settle(tracking, record)
        return None
    if not allow_drift:
        _refuse_drift(record, config)
    parameters = None if found else _initial_parameters(config, data)
    if parameters and digest(parameters) != record.recorded_tag(names.INIT_DIGEST):
        raise BadInput(f"init_from={config.init_from!r}: is not what the run started from.")
    original = _original(tracking, record)
    trainer = None if began else prepared(config, data)
    tracked = reopen_run(tracking, record, config, reached)
    replace_file(record.folder / "config.yaml", resolved.record())
    pruned = {names.PRUNED: ""} if names.PRUNED in record.tags else {}
    tracked.tag({names.STEPS: str(config.steps), names.REASON: "", names.RESUME: "", **pruned})
    if began:
        began()
    given = resolved, data, tracking, tracked, parameters, found, stop
    return Work(*given, original, pruner, trainer).run()


def _refuse_drift(record: RunRecord, config: Config) -> None:
    """Raise BadInput if the next steps would be computed by other means than the last ones."""
    old = read_environment(record.folder / "environment.json")
    drift = numerical(differences(old, environment(config.runtime.intra_op_threads)))
    if drift:
        raise BadInput(
            f"run {record.id}: was trained in another numerical environment, so that its bits "
            f"would not be repeatable ({'; '.join(map(told, drift))}); "
            f"waymark resume --allow-drift goes on all the same."
        )


def _original(tracking: RunStore, record: RunRecord) -> Evidence | None:
    """Return what an interrupted rerun is to be compared with, if that is still there."""
    if names.RERUN_OF not in record.tags:
        return None
    try:
        return evidence(tracking, find(tracking, record.tags[names.RERUN_OF]))
    except BadInput as error:
        print(f"waymark: no verdict: {error}", file=sys.stderr)
        return None


def _initial_parameters(config: Config, data: Dataset) -> State | None:
    if config.init_from is None:
        return None
    start_tensorflow(**vars(config.runtime))
    shapes = parameter_shapes(config, data.spec)
    parameters = read_parameters(Path(config.init_from).expanduser(), shapes, "init_from")
    log_parameters(parameters)
    return parameters


def _tags(resolved: Resolved, data: Dataset) -> dict[str, str]:
    tags = {
        names.VERSION: __version__,
        names.DATA_DIGEST: data.digest,
        names.SAVE_FORMAT: resolved.choices.get("save", ""),
        names.STEPS: str(resolved.config.steps),
    }
    commit = git_commit()
    return {**tags, names.GIT_COMMIT: commit} if commit else tags


def _fetch(tracking: RunStore, record: RunRecord) -> None:
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
