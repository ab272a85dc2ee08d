"""Keras's own files, and what they name: read and checked before Keras makes anything of it.

Keras's `safe_mode` has been got round again and again, so only what is allowed here is made.
"""

import builtins
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waymark.errors import BadInput, first_line
from waymark.npz import EXPANSION_ALLOWANCE, MAX_EXPANSION, NUMPY_COMPRESSION

ARCHITECTURE = "model.json"  # the artifact that holds a model's config, as Keras writes it
CONFIG, WEIGHTS = "config.json", "model.weights.h5"
MEMBERS = {CONFIG, WEIGHTS, "metadata.json"}
HDF5, ZIP = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"
DAMAGE = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError, RuntimeError)
WRITTEN = "model.save('model.keras') writes one"

# What Keras writes of values that are no objects.
VALUES = {"__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__"}
# The parts of Keras whose classes, and functions, a model is made of: none reads or writes a file.
CLASSES = {"layers", "models", "initializers", "regularizers", "constraints", "activations"}
CLASSES |= {"dtype_policies", "quantizers", "random", "ops"}
FUNCTIONS = {"activations", "ops"}
OF_KERAS = {"Sequential", "Model", "Functional", "DTypePolicy", "FloatDTypePolicy"}  # by `keras.X`
REFUSED = {
    "Lambda": "a Lambda layer, which is code",
    "TFSMLayer": "a TFSMLayer, a link to other files",
    "TorchModuleWrapper": "a module of PyTorch",
    "JaxLayer": "a function of JAX",
    "FlaxLayer": "a module of Flax",
}
LINKS = ("vocabulary", "filepath")  # settings of layers that may be lists, or paths of files


@dataclass(frozen=True)
class OwnObject:
    """A class or function of the user's own, as a config names it."""

    module: str
    name: str
    registered: str  # what Keras looks it up by


def read_config(path: Path, said: str) -> dict[str, Any]:
    """Return what a `.keras` file says of its model; raise BadInput for what is not one."""
    with _opened(path, said) as archive:
        text = archive.read(CONFIG)
    return parse_config(text, f"{said}: its {CONFIG}")


def extract_weights(path: Path, folder: Path, said: str) -> Path:
    """Write the weights that a `.keras` file holds into a folder; return their file."""
    target = folder / WEIGHTS
    with _opened(path, said) as archive, archive.open(WEIGHTS) as inside, target.open("wb") as file:
        shutil.copyfileobj(inside, file)  # to its end, where zipfile compares the checksum
    return target


def parse_config(text: bytes, said: str) -> dict[str, Any]:
    """Return a model's config, without what it was compiled with; raise BadInput."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{said} cannot be read ({first_line(error)}).") from None
    if not isinstance(config, dict) or not {"class_name", "config"} <= config.keys():
        raise BadInput(f"{said} describes no model.")
    for node in _nodes(config):
        if "class_name" in node:
            node.pop("compile_config", None)
    return config


def check_config(config: Any, trusted: Sequence[str], said: str) -> list[OwnObject]:
    """Return what a config names of the user's own, in order; raise BadInput for what is not made.

    That is all but Keras's classes, and functions that compute, and what the `trusted` modules
    hold.
    """
    own: dict[OwnObject, None] = {}
    for node in _nodes(config):
        for key in LINKS:
            if isinstance(node.get(key), str):
                raise BadInput(
                    f"{said}: names another file ({key}={node[key]!r}), which is refused."
                )
        if "class_name" in node and (found := _check_object(node, trusted, said)):
            own[found] = None
    names = [each.registered for each in own]
    if twice := {name for name in names if names.count(name) > 1}:
        raise BadInput(f"{said}: names two things {min(twice)!r} of yours.")
    return list(own)


def texts(config: Any) -> set[str]:
    """Return all texts in a config, by any of which Keras may look up what was registered."""
    found: set[str] = set()
    for node in _nodes({"": config}):
        for value in node.values():
            found |= {x for x in (value if isinstance(value, list) else [value]) if type(x) is str}
    return found


def _check_object(node: dict[str, Any], trusted: Sequence[str], said: str) -> OwnObject | None:
    """Check one object that a config describes; return it if it is the user's own."""
    name, module = node["class_name"], node.get("module")
    is_function = name == "function"
    if not isinstance(name, str):
        raise BadInput(f"{said}: has {str(name)[:80]} in the place of a class's name.")
    if name in VALUES:
        return None
    if name.startswith("__"):
        what = "a lambda, which is code" if name == "__lambda__" else f"a {name}"
        raise BadInput(f"{said}: holds {what}, and is refused.")
    name = node.get("config") if is_function else name
    if not (isinstance(name, str) and isinstance(module, str)):
        raise BadInput(f"{said}: names {str(name)[:80]!r} without its module; it is not made.")
    registered = node.get("registered_name") or name
    if not f"{module}.".startswith(("keras.", "builtins.")):
        if not f"{module}.".startswith(tuple(f"{root}." for root in trusted)):
            raise BadInput(
                f"{said}: names {module}.{name}, which is not part of Keras; "
                f"if you trust its module, say so with trusted_modules=[...]."
            )
        return OwnObject(module, name, str(registered))
    if name in REFUSED:
        raise BadInput(f"{said}: holds {REFUSED[name]}, and is refused.")
    _, *parts = module.split(".")
    place = parts[1] if parts[:1] == ["src"] and len(parts) > 1 else "".join(parts[:1])
    if is_function:
        # Keras's own bear this module, too; Python's are never meant.
        made = place in FUNCTIONS or (module == "builtins" and not hasattr(builtins, name))
    else:
        made = place in CLASSES or (module == "keras" and name in OF_KERAS)
    if not made or registered not in (name, node["class_name"]):
        raise BadInput(
            f"{said}: names {module}.{name} ({registered}), which is no part of a model; allowed "
            f"are Keras's layers, and classes of trusted_modules."
        )
    return None


def _nodes(config: Any) -> Iterator[dict[str, Any]]:
    """Yield all mappings in a config, however deep."""
    left = [config]
    while left:
        node = left.pop()
        if isinstance(node, dict):
            yield node
            left += node.values()
        elif isinstance(node, list):
            left += node


@contextmanager
def _opened(path: Path, said: str) -> Iterator[zipfile.ZipFile]:
    """Open a `.keras` file that holds what Keras writes, and nothing else; raise BadInput."""
    if os.path.isdir(path):
        raise BadInput(f"{said}: is a folder, not a .keras file ({WRITTEN}).")
    try:
        with path.open("rb") as file:
            first = file.read(8)
            if first == HDF5:
                raise BadInput(
                    f"{said}: is a HDF5 file; models are read from .keras files ({WRITTEN})."
                )
            if not first.startswith(ZIP):
                raise BadInput(f"{said}: is not a .keras file ({WRITTEN}).")
            with zipfile.ZipFile(file) as archive:
                _check_members(archive.infolist(), os.fstat(file.fileno()).st_size)
                yield archive
    except FileNotFoundError:
        raise BadInput(f"{said}: there is no such file.") from None
    except OSError as error:
        raise BadInput(f"{said}: cannot be read ({error.strerror or first_line(error)}).") from None
    except DAMAGE as error:
        raise BadInput(f"{said}: is damaged ({first_line(error)}).") from None


def _check_members(members: list[zipfile.ZipInfo], size: int) -> None:
    """Raise ValueError for an archive that holds other things than Keras writes."""
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        raise ValueError("it holds two entries of one name")
    if missing := MEMBERS - set(names):
        raise ValueError(f"it holds no {min(missing)}")
    if others := set(names) - MEMBERS:
        raise ValueError(f"it holds {min(others)!r} besides, which a run does not keep")
    if sum(member.file_size for member in members) > MAX_EXPANSION * size + EXPANSION_ALLOWANCE:
        raise ValueError("it promises far more bytes than the file holds")
    if any(
        m.comment or m.flag_bits & 1 or m.compress_type not in NUMPY_COMPRESSION for m in members
    ):
        raise ValueError("it is not packed as Keras packs it")
