"""A kept checkpoint of a run, written for those who do not use Waymark."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from waymark.errors import BadInput
from waymark.evaluation import restore
from waymark.exporting import keras, onnx, savedmodel, tflite
from waymark.files import writes
from waymark.training.loop import DoesNotFit

Target = Literal["savedmodel", "keras", "onnx", "tflite"]
# Each is a module with NAME, what is written; check(), which refuses before TensorFlow is imported;
# and write().
TARGETS: Mapping[Target, Any] = {
    "savedmodel": savedmodel,
    "keras": keras,
    "onnx": onnx,
    "tflite": tflite,
}


def export_run(
    text: str, target: Target, folder: Path, step: str, overrides: Mapping[str, Any]
) -> Path:
    """Write a run's checkpoint into a folder in the format `target`; return what was written.

    It is there whole or not at all; of a target of the same name it takes the place, unless that
    holds something else, and what else is in the folder stays. Raises BadInput, CorruptCheckpoint.
    """
    if target not in TARGETS:
        raise BadInput(f"--to={target!r}: must be {', '.join(TARGETS)}.")
    written_by = TARGETS[target]
    with restore.find_checkpoint(text, step, overrides) as found:
        config, said = found.config, f"run {found.record.id}"
        path: Path = folder / written_by.NAME
        written_by.check(config, said)
        _refuse_others(target, path)
        signature = restore.recorded_signature(found)
        state = found.read()[1]
        try:
            written_by.write(config, state, signature, path)
        except DoesNotFit as error:
            raise BadInput(f"{said}: its checkpoint does not fit its model: {error}.") from None
        return path


def _refuse_others(target: Target, path: Path) -> None:
    """Raise BadInput if at the path stands what an export may not take the place of."""
    if target != "savedmodel":
        if path.is_dir():
            raise BadInput(f"--to={target}: {path} is a folder, which no file takes the place of.")
        return
    with writes(path):
        free = not os.path.lexists(path) or (
            path.is_dir()
            and not path.is_symlink()
            and (not any(path.iterdir()) or savedmodel.is_savedmodel(path))
        )
    if not free:
        raise BadInput(f"--to={target}: {path} is there, and not a SavedModel alone; it stays.")
