"""A run's checkpoint as a model of MLflow's: logged at the run's end, registered, served."""

import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from waymark import names
from waymark.checkpoints import State
from waymark.checkpoints.store import Manifest
from waymark.config.schema import Config
from waymark.data.dataset import Dataset
from waymark.data.rows import entries
from waymark.data.signature import Signature, signature_of
from waymark.errors import BadInput, explain, printable
from waymark.evaluation import restore
from waymark.evaluation.restore import FoundCheckpoint
from waymark.exporting.savedmodel import write_savedmodel
from waymark.package import __version__
from waymark.tasks import answer_names
from waymark.tracking import logged_models, model_folder, registry
from waymark.tracking.active_run import ActiveRun
from waymark.tracking.model_folder import ModelFacts, Tensor
from waymark.tracking.registry import Registered
from waymark.tracking.remote_store import connect
from waymark.tracking.runs import RunRecord
from waymark.tracking.store import RunStore

PACKAGES = ("tensorflow", "keras", "numpy")  # that a model needs beside MLflow


def write(
    config: Config,
    manifest: Manifest,
    state: State,
    signature: Signature,
    folder: Path,
    data: Dataset | None = None,
) -> None:
    """Write a folder that MLflow's model of a checkpoint is made of.

    The example is the first of the test set, where the data are there.
    """

    def saved(path: Path) -> ModelFacts:
        write_savedmodel(config, state, signature, path)
        inputs = [
            Tensor(name, "str" if each.dtype == "string" else each.dtype, list(each.shape))
            for name, each in signature.inputs.items()
        ]
        packages = [f"{name}=={version(name)}" for name in PACKAGES]
        example, outputs = _example(signature, data), _outputs(path)
        names = answer_names(config.task).names
        said = {"task": signature.task, names: list(signature.output_names), "waymark": __version__}
        return ModelFacts(manifest.step, manifest.digest, inputs, outputs, example, packages, said)

    model_folder.write(folder, saved)


def _outputs(path: Path) -> list[Tensor]:
    """Return the outputs of a SavedModel's serving signature."""
    import tensorflow as tf
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    read = SavedModel.FromString((path / "saved_model.pb").read_bytes())
    found = read.meta_graphs[0].signature_def["serving_default"].outputs
    return [
        Tensor(
            name,
            tf.dtypes.as_dtype(found[name].dtype).name,
            [dimension.size for dimension in found[name].tensor_shape.dim][1:],
        )
        for name in sorted(found)
    ]


def _example(signature: Signature, data: Dataset | None) -> dict[str, list[Any]]:
    """Return a batch of one example by the names of the inputs, as a client sends it."""
    rows: dict[str, Any] = {}
    if data and not signature.takes_columns:
        rows = {name[1:]: array[:1] for name, array in entries("", data.x_test).items()}
    columns = {column.name: column for column in signature.columns}
    example = {}
    for name, each in signature.inputs.items():
        if signature.takes_columns:
            column = columns[each.name]
            text = each.dtype == "string"
            example[name] = [column.categories[0] if text else float(column.fill or 0)]
        else:
            first = rows.get(each.name, np.zeros((1, *each.shape), each.dtype))
            example[name] = np.asarray(first).tolist()
    return example


def write_beside(
    run: ActiveRun, config: Config, data: Dataset, manifest: Manifest, state: State
) -> None:
    """Write the model of a checkpoint beside a run's outbox, whose delivery makes it MLflow's.

    What cannot be written is said, and ends no run.
    """
    folder = run.info.folder.parent / model_folder.FOLDER / str(manifest.step)
    try:
        signature = signature_of(data, config.task, config.data)
        write(config, manifest, state, signature, folder, data)
    except Exception as error:  # of the user's own model; of a full disk
        why = f"step {manifest.step} is no model of MLflow's: {explain(error)}"
        print(printable(f"waymark: {why}"), file=sys.stderr)


def wanted(config: Config, record: RunRecord, tags: Mapping[str, str]) -> bool:
    """Tell whether a run logs its models: in a sweep only where each trial is to."""
    trial = names.PARENT_RUN in {**record.tags, **tags}
    return config.save.log_model is True or (config.save.log_model == "auto" and not trial)


def register(
    text: str, name: str, alias: str | None, step: str, overrides: Mapping[str, Any]
) -> Registered:
    """Make a checkpoint of a run, or of a model's address, a version of the model `name`.

    Raises BadInput, CorruptCheckpoint.
    """
    store = connect(overrides.get("tracking.uri"))
    registry.check_names(store, name, alias)
    with restore.find_checkpoint(text, step, overrides, meanwhile=lambda: None) as found:
        model = _ready(store, found) or _make(store, found)
        return registry.register_model(store, found.record, model, name, alias)


def log_checkpoint(text: str, overrides: Mapping[str, Any]) -> None:
    """Make a model of MLflow's of a run's last checkpoint; raise BadInput, CorruptCheckpoint."""
    store = connect(overrides.get("tracking.uri"))
    with restore.find_checkpoint(text, "latest", overrides, meanwhile=lambda: None) as found:
        if not _ready(store, found):
            _make(store, found)


def to_serve(text: str, step: str, overrides: Mapping[str, Any], folder: Path) -> Path:
    """Return the folder of an MLflow model of RUN, or of the model at an address.

    What is not here is written below `folder`. Raises BadInput, CorruptCheckpoint.
    """
    store = connect(overrides.get("tracking.uri"), reading=True)
    if registry.is_address(text):
        restore.refuse_step(step)
        return logged_models.fetch_model(store, registry.resolve(store, text).model_id, folder)
    with restore.find_checkpoint(text, step, overrides, meanwhile=lambda: None) as found:
        if model := _ready(store, found):
            return logged_models.fetch_model(store, model, folder)
        _write_found(found, folder / "written")
        target = folder / "model"
        logged_models.write_mlflow_model(store, found.record, folder / "written", target)
        return target


def _ready(store: RunStore, found: FoundCheckpoint) -> str | None:
    digest = found.store.manifest(found.step).digest
    return logged_models.ready_model(store, found.record, found.step, digest)


def _make(store: RunStore, found: FoundCheckpoint) -> str:
    """Make MLflow's model of a checkpoint; return its id."""
    record = found.record
    if record.offline or not record.known:
        raise BadInput(f"run {record.id}: MLflow does not have it yet; waymark sync delivers it.")
    with tempfile.TemporaryDirectory(prefix="waymark-") as scratch:
        _write_found(found, Path(scratch) / "written")
        return logged_models.make_model(store, record, Path(scratch) / "written")


def _write_found(found: FoundCheckpoint, folder: Path) -> None:
    """Write the model of a checkpoint that was found."""
    manifest, state = found.read()
    write(found.config, manifest, state, restore.recorded_signature(found), folder)
