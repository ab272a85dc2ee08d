"""A kept checkpoint, written for those who do not use Waymark."""

import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from waymark.checkpoints import State
from waymark.errors import BadInput, first_line
from waymark.evaluation import restore
from waymark.training.runtime import start_if_imported, start_tensorflow

Target = Literal["keras"]
TARGETS: tuple[Target, ...] = ("keras",)
FILE = "model.keras"


def export_run(
    text: str, target: Target, folder: Path, step: str, overrides: Mapping[str, Any]
) -> Path:
    """Write a run's checkpoint into a folder, as `model.keras`; return the file.

    It holds the model as it was recorded, with the checkpoint's values, not compiled, and takes
    features as they are after Waymark's scaling. Where the optimizer keeps a mean of the
    parameters, it holds that, as `evaluate` scores it. Raises BadInput, CorruptCheckpoint.
    """
    if target not in TARGETS:
        raise BadInput(f"--to={target!r}: must be {' or '.join(TARGETS)}.")
    with restore.find_checkpoint(text, step, overrides) as found:
        config, model = found.config, found.config.model
        if not hasattr(model, "keras_model"):
            raise BadInput(
                f"run {found.record.id}: its model is a {type(model).__name__}, and not one of "
                f"Keras's; save=npz writes its weights by name."
            )
        start_if_imported(**vars(config.runtime))
        spec = None if model.is_recorded else restore.load_data(config).spec
        start_tensorflow(**vars(config.runtime))
        restore.use_keras_settings(found.folder)
        state = found.store.read(found.step)[1]
        made = model.keras_model(spec, config.seed, config.precision)
        assign(made, _scored(config.optimizer, made, state), f"run {found.record.id}")
        return _save(made, folder, model.said)


def _scored(optimizer: Any, model: Any, state: State) -> State:
    """Return a state with the mean of each parameter in its place, where the optimizer keeps one.

    A mean that is not there is left out.
    """
    if not hasattr(optimizer, "averages"):
        return state
    optimizer.slots({v.path: v.value.read_value() for v in model.trainable_variables})
    means = optimizer.averages()
    others = {name: value for name, value in state.items() if name not in means}
    return others | {name: state[mean] for name, mean in means.items() if mean in state}


def assign(model: Any, state: State, said: str) -> None:
    """Give a Keras model the values of a state, by path; raise BadInput unless it has them all."""
    for variable in model.variables:
        value = state.get(variable.path)
        if value is None or value.shape != tuple(variable.shape):
            raise BadInput(f"{said}: its checkpoint does not fit its model: {variable.path}.")
        variable.assign(value)


def _save(model: Any, folder: Path, said: str) -> Path:
    """Save a model as Keras does, whole or not at all."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".waymark-") as scratch:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model.save(f"{scratch}/{FILE}")
            os.replace(f"{scratch}/{FILE}", folder / FILE)
    except OSError as error:
        raise BadInput(f"{folder}: cannot be written to ({error.strerror or error}).") from None
    except Exception as error:  # of a class that Keras cannot save
        said = f"{said}: Keras cannot save this model: {type(error).__name__}: {first_line(error)}"
        raise BadInput(said) from None
    return folder / FILE
