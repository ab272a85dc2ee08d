"""What a fork begins with: the state of a recorded checkpoint, which the fork's own folder keeps.

It lies whole in the folder `fork` of the run's artifacts, as a checkpoint that retention does not
see, so that a fork is resumed and done again without its origin.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from waymark.checkpoints import SaveFormat, State
from waymark.checkpoints.retention import Save
from waymark.checkpoints.store import CheckpointStore, CorruptCheckpoint, Manifest
from waymark.config.resolve import Resolved, build_group
from waymark.config.schema import Config
from waymark.data.dataset import Dataset
from waymark.errors import BadInput
from waymark.evaluation import restore
from waymark.keras_file import ARCHITECTURE
from waymark.tracking import artifacts
from waymark.tracking.active_run import ActiveRun
from waymark.tracking.finder import find
from waymark.tracking.runs import RunRecord
from waymark.tracking.store import RunStore
from waymark.training.loop import initial_state
from waymark.training.runtime import start_tensorflow

FOLDER = "fork"  # of a run's artifacts
Origin = tuple[Manifest, State]


class NotKept(BadInput):
    """Say which checkpoints a run has, where the one that is asked for is not among them."""


def refuse_settings(config: Config) -> None:
    """Raise BadInput for a fork that has nothing to train, or other parameters to begin with."""
    fork = config.fork
    if fork and config.init_from is not None:
        raise BadInput(
            f"init_from={config.init_from!r}: a fork begins with the whole state of a checkpoint, "
            f"and takes no other parameters."
        )
    if fork and config.epochs is None and config.steps <= fork.step:
        raise BadInput(
            f"steps={config.steps}: is the total, and the fork begins at step {fork.step}; "
            f"give more."
        )


def origin_of(
    store: RunStore, resolved: Resolved, record: RunRecord | None = None
) -> Origin | None:
    """Return what a fork begins with, None for a run that is none.

    That is what the fork itself keeps, if this is the run of `record`, or one that is made from a
    fork's record, else the checkpoint of its origin. Raises BadInput for a state that is lost,
    damaged, or another one.
    """
    config, fork = resolved.config, resolved.config.fork
    if fork is None:
        return None
    refuse_settings(config)
    home = record or find(store, resolved.home or fork.run)
    try:
        manifest, state = read_checkpoint(store, home, config, str(fork.step))
    except NotKept:  # it was killed before
        try:
            origin = find(store, fork.run)
            manifest, state = read_checkpoint(store, origin, config, str(fork.step))
        except BadInput as error:
            raise BadInput(f"run {home.id}: has not kept what it began with; {error}") from None
        home = origin
    if manifest.digest != fork.digest:
        raise BadInput(
            f"run {home.id}: its checkpoint {fork.step} is not what the fork began with; "
            f"the state's digest is {manifest.digest}, not {fork.digest}."
        )
    return manifest, state


def read_checkpoint(store: RunStore, record: RunRecord, config: Config, step: str) -> Origin:
    """Return a run's checkpoint of a step, or the `best`, or for `latest` the newest whole one.

    What a fork began with is one of its checkpoints as well. `config` is that of the new run; if
    its model came from the same file as the run's, it is made as the run recorded it, without the
    file. Raises BadInput for a checkpoint that is damaged, and NotKept.
    """
    values, *_ = restore.record_as_it_is(store, record)
    told = values, lambda key: f"recorded by run {record.id}", config.trusted_modules
    save, task = (build_group(group, *told) for group in ("save", "task"))
    file = values["model"].get("file")
    same = bool(file) and getattr(config.model, "file", None) == file
    if same and (architecture := artifacts.read(store, record, ARCHITECTURE)):
        config.model.use_architecture(architecture, f"recorded by run {record.id}")
    with tempfile.TemporaryDirectory() as scratch:
        fetched = Path(scratch) / "run"
        own, kept = (_open(store, record, name, save, fetched) for name in ("checkpoints", FOLDER))
        steps = sorted({*own.steps(), *kept.steps()})
        if step == "best":
            step = str(restore.choose_step(own, step, record.id, task, "@"))
        if step not in ("latest", *map(str, steps)):
            raise NotKept(f"@{step}: run {record.id} has the checkpoints {steps}, best, latest.")
        start_tensorflow(**vars(config.runtime))
        for each in reversed(steps) if step == "latest" else [int(step)]:
            place = own if each in own.steps() else kept
            try:
                return _read(store, record, place, each, fetched)
            except CorruptCheckpoint as error:
                damage = f"checkpoint {each} in {place.folder.name} is damaged: {error}"
                if step != "latest":
                    raise BadInput(f"run {record.id}: {damage}.") from None
                print(f"waymark: run {record.id}: {damage}", file=sys.stderr)
    raise BadInput(f"run {record.id}: has no whole checkpoint to begin with.")


def _open(
    store: RunStore, record: RunRecord, name: str, save: SaveFormat, fetched: Path
) -> CheckpointStore:
    """Return the checkpoints in a folder of a run; manifests that are not here are fetched."""
    there = artifacts.newer(store, record, name)
    for file in there:
        if file.endswith(".json"):
            artifacts.fetch(store, record, file, fetched)
    return CheckpointStore((fetched if there else record.folder) / name, save)


def _read(
    store: RunStore, record: RunRecord, place: CheckpointStore, step: int, fetched: Path
) -> Origin:
    """Return a checkpoint; its files come after its manifest. Raise CorruptCheckpoint."""
    if place.folder.parent == fetched:
        head = f"{place.folder.name}/{place.path(step).name}."
        for file in artifacts.checkpoints(store, record, place.folder.name):
            if file.startswith(head) and not file.endswith(".json"):
                artifacts.fetch(store, record, file, fetched)
    return place.read(step)


def keep(origin: Origin, run: ActiveRun, config: Config) -> None:
    """Keep in a fork's folder what it begins with, unless it does; raise CheckpointWriteError."""
    manifest, state = origin
    folder = run.info.folder / FOLDER
    folder.mkdir(exist_ok=True)
    store = CheckpointStore(folder, config.save, run.mark_artifacts_dirty)
    store.remove_orphans()
    if manifest.step not in store.steps():
        store.parameters = manifest.parameters
        store.commit(Save(manifest.step, time.time()), state)
    assert config.fork
    print(f"begins at step {manifest.step} of run {config.fork.run}", flush=True)


def first_values(config: Config, data: Dataset, origin: Origin) -> State:
    """Return what a fork takes of a state: all that its model, its data and its optimizer have.

    The optimizer's slots are taken if all are there, else none; of Keras's optimizers the learning
    rate is the configured one. Raises BadInput for a model of other parameters.
    """
    refuse_settings(config)
    start_tensorflow(**vars(config.runtime))
    (manifest, state), fork = origin, config.fork
    assert fork
    initial, parameters, buffers = initial_state(config, data.spec, data.statistics)
    fits = {name for name, value in initial.items() if _kind(value) == _kind(state.get(name))}
    model = [*parameters, *(name for name in buffers if initial[name].dtype.is_floating)]
    for name in [*model, *sorted({*(manifest.parameters or ())} - {*model})]:
        if name not in fits:
            raise BadInput(
                f"fork: step {manifest.step} of run {fork.run} is not of this model: "
                f"{name} is {_kind(state.get(name))} there and {_kind(initial.get(name))} here; "
                f"init_from takes weights for another model."
            )
    others = {"step", *parameters, *buffers, *data.statistics}
    slots = initial.keys() - others
    if hasattr(config.optimizer, "variables"):
        slots = {name for name in slots if not name.endswith("/learning_rate")}
    if missing := slots - fits:
        print(f"waymark: the optimizer begins anew: {min(missing)} is not kept", file=sys.stderr)
        slots = set()
    return {name: state[name] for name in initial if name in fits & {*others, *slots}}


def _kind(value: Any) -> str:
    """Return type and shape of a tensor or an array, as text."""
    return "missing" if value is None else f"{value.dtype.name}{list(value.shape)}"
