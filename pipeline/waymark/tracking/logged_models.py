"""Models of MLflow's that are made of a run's checkpoints: each once, and shown by its run."""

import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from waymark import names
from waymark.tracking import model_folder
from waymark.tracking.limits import fitted, store_errors
from waymark.tracking.model_folder import ModelFacts
from waymark.tracking.questions import question
from waymark.tracking.runs import RunRecord
from waymark.tracking.store import RunStore, pages

SCORES = (*names.EVALUATED, names.RESTORED)  # what the metrics of a model begin with
SAVED_MODEL = "tf2model"  # the folder of a model that holds the SavedModel, as MLflow calls it
READY = "READY"
ID = re.compile(r"m-[0-9a-f]{32}")
CHECKPOINT = re.compile(r"\w+-(0|[1-9][0-9]*)\.json", re.ASCII)  # a manifest


def models_of(store: RunStore, record: RunRecord) -> dict[int, Any]:
    """Return MLflow's models of a run's checkpoints, by step; raise what MLflow raises."""
    query = f"source_run_id = '{record.id}'"
    ask = store.client.search_logged_models
    experiment = [record.experiment_id]
    found = pages(lambda token: ask(experiment, filter_string=query, page_token=token))
    own = ((str((model.tags or {}).get(names.MODEL_STEP, "")), model) for model in found)
    return {int(step): model for step, model in own if step.isdecimal()}


@question
def ready_model(store: RunStore, record: RunRecord, step: int, digest: str) -> str | None:
    """Return the id of MLflow's model of a checkpoint, None if it has none; raise BadInput."""
    if record.offline or not record.known:
        return None
    with store_errors(f"run {record.id}: its models cannot be listed"):
        model = models_of(store, record).get(step)
        same = model is not None and model.tags.get(names.STATE_DIGEST) == digest
        return str(model.model_id) if model and same and model.status == READY else None


@question
def make_model(store: RunStore, record: RunRecord, folder: Path) -> str:
    """Make MLflow's model of a folder that `model_folder.write` wrote; return its id.

    Where it was begun it is gone on with. Raises BadInput.
    """
    with store_errors(f"run {record.id}: no model can be made"):
        run = store.client.get_run(record.id)
        return make(store, record, run, folder, model_folder.read(folder))


def make(store: RunStore, record: RunRecord, run: Any, folder: Path, facts: ModelFacts) -> str:
    """Make MLflow's model of a folder, unless it is there; raise what MLflow raises.

    What is not READY was begun by a process that was killed, and is done again.
    """
    with _alone(record):
        return _make(store, record, run, folder, facts)


def _alone(record: RunRecord) -> AbstractContextManager[object]:
    """Let no other process of this machine make a model of the run meanwhile."""
    home = record.folder.parent
    return FileLock(home / "models.lock") if home.is_dir() else nullcontext()


def _make(store: RunStore, record: RunRecord, run: Any, folder: Path, facts: ModelFacts) -> str:
    client = store.client
    model = models_of(store, record).get(facts.step)
    if model and model.tags.get(names.STATE_DIGEST) != facts.digest:
        delete(store, model)  # of another state, which a damaged checkpoint has cost the run
        model = None
    if model is None:
        tags = {names.MODEL_STEP: str(facts.step), names.STATE_DIGEST: facts.digest}
        params = {key: fitted(text, 500) for key, text in run.data.params.items()}
        named = {"name": f"step-{facts.step}", "source_run_id": record.id}
        model = client.create_logged_model(record.experiment_id, **named, tags=tags, params=params)
    if model.status != READY:
        with tempfile.TemporaryDirectory() as scratch:
            described = Path(scratch) / "model"
            describe(folder, facts, described, record, model)
            saved = str(folder / model_folder.SAVED_MODEL)
            client.log_model_artifacts(model.model_id, saved, SAVED_MODEL)
            client.log_model_artifacts(model.model_id, str(described))
        _link(store, run, model, facts.step)
        client.finalize_logged_model(model.model_id, READY)
    return str(model.model_id)


@question
def fetch_model(store: RunStore, model_id: str, folder: Path) -> Path:
    """Return the folder of a model of MLflow's: where it lies here, or a copy; raise BadInput."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with store_errors(f"model {model_id}: cannot be fetched"):
        model = store.client.get_logged_model(model_id)
        below = f"artifacts/{model.experiment_id}/models/{model_id}/artifacts"
        if store.database and (store.root / below / "MLmodel").is_file():
            return store.root / below
        repository = get_artifact_repository(model.artifact_location, store.uri)
        return Path(repository.download_artifacts("", str(folder)))


@question
def write_mlflow_model(store: RunStore, record: RunRecord, folder: Path, target: Path) -> None:
    """Write into a folder what `make_model` would make; the SavedModel is moved there."""
    describe(folder, model_folder.read(folder), target, record)
    os.rename(folder / model_folder.SAVED_MODEL, target / SAVED_MODEL)


def describe(
    folder: Path, facts: ModelFacts, target: Path, record: RunRecord, model: Any = None
) -> None:
    """Write all of MLflow's form of a model but the SavedModel, by MLflow's own functions."""
    import mlflow
    import numpy as np

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow about itself
        import mlflow.pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.models.utils import _save_example
    from mlflow.types import Schema, TensorSpec
    from mlflow.utils.environment import _mlflow_conda_env, _PythonEnv

    def schema(tensors: list[model_folder.Tensor]) -> Schema:
        return Schema([TensorSpec(np.dtype(t.dtype), (-1, *t.shape), t.name) for t in tensors])

    known: dict[str, Any] = {"run_id": record.id, "metadata": facts.metadata}
    if model is not None:
        known |= {"artifact_path": model.artifact_location, "model_id": model.model_id}
        known["model_uuid"] = model.model_id
    made = Model(signature=ModelSignature(schema(facts.inputs), schema(facts.outputs)), **known)
    # MLflow's `tf2-module` takes one array and returns tensors that its server cannot write as
    # JSON; this form takes inputs by name and returns outputs by name.
    made.add_flavor(
        "tensorflow",
        saved_model_dir=SAVED_MODEL,
        model_type="tf1-estimator",
        meta_graph_tags=["serve"],
        signature_def_key="serving_default",
    )
    conda, python = "conda.yaml", "python_env.yaml"
    mlflow.pyfunc.add_to_model(made, "mlflow.tensorflow", conda_env=conda, python_env=python)
    target.mkdir()
    dtypes = {tensor.name: np.dtype(tensor.dtype) for tensor in facts.inputs}
    example = {name: np.array(rows, dtypes[name]) for name, rows in facts.example.items()}
    _save_example(made, example, str(target))
    # `pyfunc.save_model` would write the rest, but looks through all packages for a second.
    requirements = [f"mlflow=={mlflow.__version__}", *facts.requirements]
    (target / "requirements.txt").write_text("\n".join(requirements), encoding="utf-8")
    _mlflow_conda_env(str(target / conda), additional_pip_deps=requirements)
    _PythonEnv.current().to_yaml(str(target / python))
    files = [path for path in folder.rglob("*") if path.is_file()]
    made.model_size_bytes = sum(path.stat().st_size for path in [*files, *target.iterdir()])
    made.save(str(target / "MLmodel"))


def _link(store: RunStore, run: Any, model: Any, step: int) -> None:
    """Show a model by its run, and by the model its scores on the run's data."""
    from mlflow.entities import LoggedModelOutput, Metric

    client, run_id = store.client, run.info.run_id
    inputs = run.inputs.dataset_inputs if run.inputs else []
    data = inputs[0].dataset if inputs else None
    about = {"model_id": model.model_id, "run_id": run_id}
    about |= {"dataset_name": data.name, "dataset_digest": data.digest} if data else {}
    points = [
        Metric(point.key, point.value, point.timestamp, point.step, **about)
        for key in run.data.metrics
        if key.startswith(SCORES)
        for point in client.get_metric_history(run_id, key)
        if point.step == _scored_at(run.data.tags, key, step)
    ]
    if points:
        client.log_batch(run_id, metrics=points)
    outputs = run.outputs.model_outputs if run.outputs else []
    if model.model_id not in [output.model_id for output in outputs]:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])


def _scored_at(tags: Mapping[str, str], key: str, step: int) -> int | None:
    """Return the step at which a metric of a checkpoint stands.

    Of a run that stopped early the checkpoint that was scored at the end may be an earlier one.
    """
    scored = tags.get(names.SCORED)
    if not key.startswith(names.RESTORED) or not scored:
        return step
    return int(tags[names.STOPPED]) if scored == str(step) else None


def bring(store: RunStore, record: RunRecord, run: Any, takes: Callable[..., bool]) -> None:
    """Make the models that wait in a run's folder; delete those that retention keeps no more.

    `takes` sends something, and tells whether the store takes it. Raises what MLflow raises.
    """
    home = record.folder.parent
    kept = {
        int(found[1])
        for path in (record.folder / "checkpoints").glob("*.json")
        if (found := CHECKPOINT.fullmatch(path.name))
    }
    for step, folder in list(model_folder.waiting(home)):
        with suppress(model_folder.Damaged):
            facts = model_folder.read(folder)
            if step in kept:
                takes(f"the model of step {step}", _offer, store, record, run, folder, facts)
        shutil.rmtree(folder)
    if run.outputs and run.outputs.model_outputs:
        for step, model in models_of(store, record).items():
            if step not in kept and not is_registered(store, model):
                delete(store, model)
    with suppress(OSError):  # somebody else's file is in it
        os.rmdir(home / model_folder.FOLDER)


def _offer(*arguments: Any) -> None:
    """Make a model; a server older than MLflow 3 will never take one."""
    from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException

    try:
        make(*arguments)
    except MlflowException as error:
        if error.error_code != "ENDPOINT_NOT_FOUND":
            raise
        raise MlflowException("it knows no models of runs", INVALID_PARAMETER_VALUE) from None


def delete(store: RunStore, model: Any) -> None:
    """Delete a model of MLflow's, its files last: a kill leaves them to `mlflow gc`."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    store.client.delete_logged_model(model.model_id)
    get_artifact_repository(model.artifact_location, store.uri).delete_artifacts()


def is_registered(store: RunStore, model: Any) -> bool:
    """Tell whether a version of a registered model is made of a model of MLflow's."""
    versions = versions_of(store, model.source_run_id)
    return any(model_id(version) == model.model_id for version in versions)


def versions_of(store: RunStore, run_id: str) -> Iterator[Any]:
    """Yield the versions of registered models that come from a run; raise what MLflow raises."""
    ask = store.client.search_model_versions
    return pages(lambda token: ask(f"run_id = '{run_id}'", page_token=token))


def model_id(version: Any) -> str | None:
    """Return which of MLflow's models a version is made of, None if that is not known."""
    found = ID.findall(version.source or "")
    return getattr(version, "model_id", None) or (found[-1] if found else None)
