"""Read parameters from any npz or `Saver` checkpoint, also one that Waymark did not write.

Entries are matched to the model's parameters by name, else by a shape that only one of them
has; optimizer slots and counters are ignored; anything else is refused by name. Of a checkpoint
of Waymark's own the manifest beside it tells which entries are parameters, else what they are
called: `step`, the parameters, `<parameter>/<slot>`.

Keras's own files, and what `tf.train.Checkpoint` wrote of a Keras model, are read by a model of the
same structure: there each variable has its place.
"""

import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from waymark.checkpoints import State
from waymark.checkpoints.store import CorruptCheckpoint, read_manifest
from waymark.checkpoints.tf_bundle import first_format, read_bundle, readable
from waymark.digest import digest
from waymark.errors import BadInput, first_line
from waymark.keras_weights import SUFFIXES, VALUE, load_checkpoint, load_file
from waymark.npz import PickledObjects, read_npz

SLOTS = {"Adam", "Adam_1", "Momentum", "RMSProp", "RMSProp_1", "Adagrad"}
Shapes = Mapping[str, tuple[int, ...]]
NO_SHAPES: Shapes = MappingProxyType({})


def read_parameters(
    path: Path, shapes: Shapes, origin: str, statistics: Shapes = NO_SHAPES, model: Any = None
) -> State:
    """Return float32 arrays for the parameters named in `shapes` from a file.

    The `statistics` of its training set come with them, if the file has all of them.

    `path` is an npz file, a checkpoint's prefix (`model_ckpt-1000`) or its index file, a folder
    with a `checkpoint` file, or, if the `model` is one of Keras's, a `.keras` or `.weights.h5`
    file. Raises BadInput, whose sentence begins with `origin`.
    """
    source = f"{origin}={str(path)!r}"
    by_place = getattr(model, "read_weights", None)
    if path.suffix in SUFFIXES:
        if by_place is None:
            raise BadInput(f"{source}: is a file of Keras's, which is read for its models alone.")
        given = by_place(shapes, lambda keras_model: load_file(keras_model, path, source))
        return match_parameters(given, shapes, source)
    arrays = _read(path, source)
    if by_place and any(name.endswith(VALUE) for name in arrays):
        with readable(find_bundle(path)) as prefix:
            given = by_place(shapes, lambda keras_model: load_checkpoint(keras_model, prefix))
        if given is not None:
            return match_parameters(given, shapes, source)
    arrays = _plain(arrays)
    there = statistics if statistics.keys() <= arrays.keys() else {}
    shapes = {**shapes, **there}
    own = _own_parameters(path, arrays, shapes)
    entries = arrays if own is None else {name: arrays[name] for name in {*own, *there}}
    return match_parameters(entries, shapes, source)


def _own_parameters(path: Path, arrays: State, shapes: Shapes) -> list[str] | None:
    """Return which entries of a checkpoint of Waymark's own are parameters, None if it is none."""
    step = arrays.get("step")
    if step is None or (step.dtype, step.shape) != (np.int64, ()):
        return None
    prefix = path.with_suffix("") if path.suffix == ".npz" else find_bundle(path)
    described = False
    with suppress(CorruptCheckpoint, BadInput):
        manifest = read_manifest(prefix.with_name(f"{prefix.name}.json"))
        described = manifest.digest == digest(arrays)
        if described and manifest.parameters:
            return manifest.parameters
    if any(name not in arrays or arrays[name].shape != shapes[name] for name in shapes):
        return None
    slots = {
        name
        for name, array in arrays.items()
        if any(name.startswith(f"{owner}/") and array.shape == shapes[owner] for owner in shapes)
        or (described and array.shape in shapes.values())  # by a manifest without their names
        or array.shape == ()
    }
    return list(shapes) if slots | set(shapes) == set(arrays) else None


def find_bundle(path: Path) -> Path:
    """Return the prefix of the TensorFlow checkpoint that `path` means."""
    if not os.path.isdir(path):  # Path's own raises for a name that is too long
        return path.with_suffix("") if path.suffix == ".index" else path
    from google.protobuf import text_format
    from tensorflow.python.training.checkpoint_state_pb2 import CheckpointState

    state = CheckpointState()  # TensorFlow's own function takes no folder whose name is not UTF-8
    with suppress(OSError, ValueError, text_format.ParseError):  # a `checkpoint` file that is none
        text_format.Parse((path / "checkpoint").read_bytes(), state)
    named = Path(state.model_checkpoint_path)
    if not named.name:
        return path / "model_ckpt"
    # Beside its state file first: a folder may have been moved or copied, whose state file still
    # holds an absolute path.
    beside = path / named.name
    return beside if beside.with_name(f"{named.name}.index").exists() else path / named


def files_of(path: Path) -> list[Path]:
    """Return the files that `read_parameters` reads for `path`, as far as they are there."""
    if path.suffix in (".npz", *SUFFIXES):
        return [path] if os.path.isfile(path) else []
    prefix = find_bundle(path)
    if not os.path.isdir(prefix.parent):
        return []
    names, data = (prefix.name, f"{prefix.name}.index"), f"{prefix.name}.data-"
    there = [p for p in prefix.parent.iterdir() if p.name in names or p.name.startswith(data)]
    return sorted(file for file in there if file.is_file())


def _read(path: Path, source: str) -> State:
    try:
        if path.suffix == ".npz":
            return read_npz(path)
        prefix = find_bundle(path)
        if not prefix.with_name(f"{prefix.name}.index").exists():
            first = first_format(prefix)
            if first:
                raise BadInput(
                    f"{source}: is a checkpoint of TensorFlow's first format (V1), "
                    f"which is not read; TensorFlow converts it: "
                    f"r = tf.train.load_checkpoint({first!r}); np.savez('converted.npz', "
                    f"**{{n: r.get_tensor(n) for n in r.get_variable_to_shape_map()}})"
                )
            raise BadInput(f"{source}: there is no such npz file or checkpoint.")
        return read_bundle(prefix)
    except BadInput:
        raise
    except FileNotFoundError:
        raise BadInput(f"{source}: there is no such file.") from None
    except PickledObjects:
        raise BadInput(
            f"{source}: holds a pickled object array, which is never loaded; "
            f"if you trust the file, convert it: np.savez('converted.npz', "
            f"*np.load({str(path)!r}, allow_pickle=True)['arr_0'])"
        ) from None
    except Exception as error:
        kind = "is damaged" if isinstance(error, zipfile.BadZipFile) else "cannot be read"
        raise BadInput(f"{source}: {kind} ({first_line(error)}).") from None


def _plain(arrays: State) -> State:
    """Take off what `tf.train.Checkpoint` adds to names, unless two entries would be one."""
    plain = {name: name.removesuffix(VALUE) for name in arrays}
    return {name if plain[name] in arrays else plain[name]: arrays[name] for name in arrays}


def match_parameters(arrays: State, shapes: Shapes, origin: str) -> State:
    """Assign every parameter one entry and every entry one parameter; raise BadInput."""
    for name in arrays:
        if name.startswith("/") or ".." in name.split("/"):
            raise BadInput(f"{origin}: its entry {name!r} is a path out of the file, not a name.")
    left = {name: a for name, a in arrays.items() if not _is_slot(name, arrays)}
    named = [name for name in shapes if name in left and left[name].shape == shapes[name]]
    found = {name: left.pop(name) for name in named}
    for name in [name for name in shapes if name not in found]:
        fits = [entry for entry, array in left.items() if array.shape == shapes[name]]
        if len(fits) != 1:
            why = "no entry fits" if not fits else f"{fits} fit equally"
            has = ", ".join(f"{n} {list(a.shape)}" for n, a in sorted(arrays.items())[:8])
            wanted = f"{name} {list(shapes[name])}"
            raise BadInput(f"{origin}: does not fit the model: {why} {wanted} (it has {has}).")
        found[name] = left.pop(fits[0])
    if left:
        entry = min(left)
        raise BadInput(
            f"{origin}: does not fit the model: its entry {entry} {list(left[entry].shape)} "
            f"belongs to no parameter."
        )
    for name, array in found.items():
        if array.dtype.kind != "f":
            raise BadInput(f"{origin}: {name} is {array.dtype.name}, not floating point.")
    return {name: np.asarray(found[name], np.float32) for name in shapes}


def _is_slot(name: str, arrays: State) -> bool:
    owner, _, last = name.rpartition("/")
    return (
        arrays[name].shape == ()
        or (owner in arrays and last in SLOTS)
        or ".OPTIMIZER_SLOT" in name
        or name.startswith("optimizer/")
    )
