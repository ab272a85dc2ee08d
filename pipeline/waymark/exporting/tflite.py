"""TFLite, which LiteRT computes by, on telephones too: one file, converted by TensorFlow."""

import re
import tempfile
from pathlib import Path

from waymark.checkpoints import State
from waymark.config.schema import Config
from waymark.data.signature import Signature
from waymark.errors import BadInput, first_line
from waymark.exporting.savedmodel import write_savedmodel
from waymark.exporting.writing import mute, silence
from waymark.files import replacing, writes

NAME = "model.tflite"
# What the converter's error tells of operations that a plain interpreter has not.
UNKNOWN = re.compile(r"^(?:TF Select|Custom) ops: (.+?)\s*$", re.MULTILINE)


def check(config: Config, said: str) -> None:
    """Refuse nothing: TensorFlow is there."""


def write(config: Config, state: State, signature: Signature, path: Path) -> None:
    """Write a model as `path`, of TFLite's own operations; raise BadInput, DoesNotFit."""
    import tensorflow as tf

    with (
        writes(path.parent),
        replacing(path) as target,
        silence(),
        tempfile.TemporaryDirectory() as scratch,
    ):
        folder = Path(scratch) / "savedmodel"
        write_savedmodel(config, state, signature, folder, plain=True)
        try:
            with mute():
                converter = tf.lite.TFLiteConverter.from_saved_model(str(folder))
                content = converter.convert()
        except Exception as error:
            said = f"TensorFlow cannot convert this model: {type(error).__name__}"
            if unknown := UNKNOWN.findall(str(error)):
                operations = ", ".join(sorted({*", ".join(unknown).split(", ")}))
                said = f"TFLite has none of the model's operations {operations}"
            else:
                said += f": {first_line(error)}"
            raise BadInput(f"--to=tflite: {said}; --to=savedmodel takes every model.") from None
        target.write_bytes(content)
