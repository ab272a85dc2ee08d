"""Weights in files of Keras's and of `tf.train.Checkpoint`, given to a Keras model that is built.

The model itself tells how its variables stand in such a file: by the places of its layers.
"""

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from waymark.errors import BadInput, first_line
from waymark.keras_file import extract_weights

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"  # what names of object-based checkpoints end with
SUFFIXES = (".keras", ".h5", ".hdf5")
Shapes = Mapping[str, tuple[int, ...]]


def load_file(model: Any, path: Path, said: str) -> None:
    """Give a model the weights of a `.keras` or `.weights.h5` file of the same model.

    Raises BadInput, which names what is missing or has another shape, for another one's.
    """
    with tempfile.TemporaryDirectory(prefix="waymark-") as scratch:
        folder = Path(scratch)
        if path.suffix == ".keras":
            file = extract_weights(path, folder, said)
        elif path.name.endswith(".weights.h5"):
            file = path
        else:
            raise BadInput(
                f"{said}: is in Keras's older format; read are .keras files and .weights.h5, which "
                f"model.save and model.save_weights write."
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras's, of NumPy's
            model.save_weights(folder / "own.weights.h5")
        wanted, found = _shapes(folder / "own.weights.h5", said), _shapes(file, said)
        if problem := unlike(wanted, found):
            raise BadInput(f"{said}: does not fit the model: {problem}.")
        try:
            model.load_weights(file)
        except Exception as error:
            raise BadInput(f"{said}: cannot be read ({first_line(error)}).") from None


def load_checkpoint(model: Any, path: str) -> bool:
    """Give a model what `tf.train.Checkpoint(NAME=model)` wrote of the same model at `path`.

    Returns whether it did: variables are found by the objects that hold them, as TensorFlow does.
    """
    import tensorflow as tf

    with tempfile.TemporaryDirectory(prefix="waymark-") as scratch:
        own = _objects(tf.train.Checkpoint(root=model).write(f"{scratch}/own"))
    graph = _objects(path)
    parts = {child.local_name for child in own.nodes[0].children}
    places = {child.local_name: child.node_id for child in graph.nodes[0].children}
    for name, node in {"root": 0, **places}.items():
        if _variables(graph, node, parts) == _variables(own, 0, parts):
            try:
                status = tf.train.Checkpoint(**{name: model}).read(path)
                status.assert_existing_objects_matched().expect_partial()
                return True
            except (AssertionError, ValueError):  # another object; a variable of another shape
                continue
    return False


def _objects(path: str) -> Any:
    """Return how the objects hang together that a checkpoint was written of."""
    import tensorflow as tf
    from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

    text = tf.train.load_checkpoint(path).get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH")
    return TrackableObjectGraph.FromString(text)


def _variables(graph: Any, start: int, parts: set[str]) -> int:
    """Return how many variables the `parts` of an object hold, however deep."""
    seen: set[int] = set()
    left = [each.node_id for each in graph.nodes[start].children if each.local_name in parts]
    while left:
        node = left.pop()
        if node not in seen:
            seen.add(node)
            left += [child.node_id for child in graph.nodes[node].children]
    return sum(bool(graph.nodes[node].attributes) for node in seen)


def unlike(wanted: Shapes, found: Shapes) -> str | None:
    """Say in what the arrays of a file are not those of a model, None if they are.

    What stands beside the model, as an optimizer's state, is left aside.
    """
    for name, shape in sorted(wanted.items()):
        if name not in found:
            return f"it has no {name} {list(shape)}"
        if found[name] != shape:
            return f"its {name} is {list(found[name])}, not {list(shape)}"
    roots = {name.partition("/")[0] for name in wanted}
    more = [name for name in found if name not in wanted and name.partition("/")[0] in roots]
    return f"its {min(more)} {list(found[min(more)])} is of no variable" if more else None


def _shapes(path: Path, said: str) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the arrays in an HDF5 file; raise BadInput."""
    import h5py

    found: dict[str, tuple[int, ...]] = {}

    def visit(name: str, node: Any) -> None:  # it follows no links
        if isinstance(node, h5py.Dataset):
            if node.external or node.is_virtual:
                raise ValueError(f"its {name} is a link to another file")
            found[name] = tuple(node.shape)

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except FileNotFoundError:
        raise BadInput(f"{said}: there is no such file.") from None
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise BadInput(f"{said}: is damaged ({first_line(error)}).") from None
    return found
