"""ONNX: one file, which ONNX Runtime computes by without TensorFlow."""

from importlib.util import find_spec
from pathlib import Path

from waymark.checkpoints import State
from waymark.config.schema import Config
from waymark.data.signature import Signature
from waymark.errors import BadInput, first_line
from waymark.exporting.serving import serving_function
from waymark.exporting.writing import mute, silence
from waymark.files import replacing, writes

NAME = "model.onnx"
OPSET = 18  # the newest one that tf2onnx 1.17 writes
PACKAGES = ("onnx", "tf2onnx")


def check(config: Config, said: str) -> None:
    """Raise BadInput where a package is not installed."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        packages = " and ".join(missing)
        raise BadInput(f"--to=onnx: needs {packages}, which pip install {' '.join(missing)} gets.")


def write(config: Config, state: State, signature: Signature, path: Path) -> None:
    """Write a model as `path`, whole or not at all; raise BadInput, DoesNotFit."""
    import tensorflow as tf

    with writes(path.parent), replacing(path) as target, silence("tf2onnx"):
        import tf2onnx

        parts = serving_function(config, state, signature, plain=True)
        function = parts[1]  # which has variables as long as the module is there
        specs = [
            tf.TensorSpec((None, *each.shape), each.dtype, name)
            for name, each in signature.tensors.items()
        ]

        def serve(*given: tf.Tensor) -> dict[str, tf.Tensor]:
            found: dict[str, tf.Tensor] = function(
                **dict(zip(signature.tensors, given, strict=True))
            )
            return found

        try:
            with mute():
                tf2onnx.convert.from_function(
                    tf.function(serve, input_signature=specs, autograph=False),
                    input_signature=specs,
                    opset=OPSET,
                    output_path=str(target),
                )
        except Exception as error:  # of an operation that it does not know
            said = f"{type(error).__name__}: {first_line(error)}"
            raise BadInput(f"--to=onnx: tf2onnx cannot convert this model: {said}") from None
