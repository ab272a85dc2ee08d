"""TensorFlow's SavedModel: a folder that TensorFlow, TensorFlow Serving and MLflow load."""

from pathlib import Path

from waymark.checkpoints import State
from waymark.config.schema import Config
from waymark.data.signature import Signature
from waymark.exporting.serving import serving_function
from waymark.exporting.writing import silence
from waymark.files import replacing, writes

NAME = "savedmodel"
PARTS = {"saved_model.pb", "fingerprint.pb", "variables", "assets"}


def check(config: Config, said: str) -> None:
    """Refuse nothing: every model can be written."""


def is_savedmodel(folder: Path) -> bool:
    """Tell whether a folder holds a SavedModel as it is written here, and nothing else."""
    names = {path.name for path in folder.iterdir()}
    return (
        "saved_model.pb" in names
        and names <= PARTS
        and all(path.name.startswith("variables.") for path in (folder / "variables").glob("*"))
    )


def write_savedmodel(
    config: Config, state: State, signature: Signature, folder: Path, plain: bool = False
) -> None:
    """Write a SavedModel as `folder`, whole or not at all; one that is there is replaced.

    Its function is the signature `serving_default`, and `serve`, which takes the same by name; a
    `plain` one is as `serving_function` says. The logits are those of `evaluate` to the bit, for
    the same threads and batches of the same size.
    Raises BadInput where it cannot be written, DoesNotFit for a state of another model.
    """
    import tensorflow as tf

    with writes(folder.parent), replacing(folder) as target, silence():
        module, function = serving_function(config, state, signature, plain)
        tf.saved_model.save(module, str(target), signatures=function)


write = write_savedmodel
