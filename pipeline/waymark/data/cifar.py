"""CIFAR-10 and CIFAR-100 as they are published: Python pickles, of which nothing is executed."""

import hashlib
import io
import math
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from waymark.config.schema import settings
from waymark.data import sources
from waymark.data.dataset import Dataset, from_arrays
from waymark.data.sources import Loader
from waymark.errors import BadInput

MAX_BYTES = 2**30  # that an archive may unpack to: the real ones have less than a fifth of it


class Layout(NamedTuple):
    """In what files a data set is published."""

    folder: str
    archive: str
    train: tuple[str, ...]
    test: str
    names: str
    md5: dict[str, str]
    """of each file, as torchvision has them (torchvision/datasets/cifar.py)"""


CIFAR10 = Layout(
    folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test="test_batch",
    names="batches.meta",
    md5={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
)
CIFAR100 = Layout(
    folder="cifar-100-python",
    archive="cifar-100-python.tar.gz",
    train=("train",),
    test="test",
    names="meta",
    md5={
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    },
)


@settings
class Cifar10(Loader):
    """CIFAR-10, 50,000 and 10,000 pictures of ten things."""

    path: str | None
    """the folder `cifar-10-batches-py`, or the archive `cifar-10-python.tar.gz`; null: Keras's
    cache, else its download"""

    def load(self) -> Dataset:
        """Read the files: images uint8 [N, 32, 32, 3]; raise BadInput unless they are CIFAR's."""
        return _load("cifar10", CIFAR10, self.path, "labels", "label_names")


@settings
class Cifar100(Loader):
    """CIFAR-100, 50,000 and 10,000 pictures of a hundred things, of twenty kinds."""

    path: str | None
    """the folder `cifar-100-python`, or the archive `cifar-100-python.tar.gz`; null: Keras's cache,
    else its download"""
    labels: Literal["fine", "coarse"] = "fine"
    """`fine` (the hundred things) or `coarse` (the twenty kinds)"""

    def load(self) -> Dataset:
        """Read the files: images uint8 [N, 32, 32, 3]; raise BadInput unless they are CIFAR's."""
        kind = self.labels
        return _load("cifar100", CIFAR100, self.path, f"{kind}_labels", f"{kind}_label_names")


def _load(name: str, layout: Layout, path: str | None, labels: str, names: str) -> Dataset:
    """Return the data set at `path`, or in Keras's cache, with the entries of these names."""
    if path is not None:
        given = sources.expand(path)
        source = _inside(layout, given) or given
    else:
        found = _inside(layout, sources.keras_cache("datasets"))
        source = found or sources.from_keras(name, "datasets", [layout.folder]) / layout.folder
    files = [source / file for file in layout.md5] if source.is_dir() else [source]

    def read() -> Dataset:
        contents = (_folder if source.is_dir() else _archive)(source, layout.md5)
        for file, content in contents.items():
            if hashlib.md5(content, usedforsecurity=False).hexdigest() != layout.md5[file]:
                raise BadInput(
                    f"{source}: {file} is not that of {name} as published (by its MD5); "
                    f"data=arrays reads arrays of your own."
                )
        with sources.reading(source, f"copy of {name}"):
            texts = tuple(text.decode() for text in _entry(contents[layout.names], names))
            batch = partial(_batch, key=labels, classes=len(texts))
            x_train, y_train = zip(*[batch(contents[file]) for file in layout.train], strict=True)
            x_test, y_test = batch(contents[layout.test])
            arrays = {"x_train": np.concatenate(x_train), "y_train": np.concatenate(y_train)}
        arrays |= {"x_test": x_test, "y_test": y_test}
        return replace(from_arrays(name, str(source), arrays), class_names=texts)

    return sources.read_once((name, labels), files, read)


def _inside(layout: Layout, folder: Path) -> Path | None:
    """Return where the files are in a folder: Keras's cache, or one in which they were unpacked."""
    own = layout.folder
    if (folder / layout.names).is_file():
        return folder
    # As Keras has them, by its versions: unpacked, or the archive alone.
    for inner in (own, f"{own}-target/{own}", f"{own}/{own}"):
        if (folder / inner / layout.names).is_file():
            return folder / inner
    for archive in (layout.archive, f"{own}.tar.gz", f"{own}-target_archive", f"{own}_archive"):
        if (folder / archive).is_file():
            return folder / archive
    return None


def _folder(folder: Path, names: dict[str, str]) -> dict[str, bytes]:
    contents = {}
    for name in names:
        with sources.reading(folder / name, "file of CIFAR"):
            contents[name] = (folder / name).read_bytes()
    return contents


def _archive(path: Path, names: dict[str, str]) -> dict[str, bytes]:
    """Return the files of these names in an archive, in whatever folder; nothing is unpacked."""
    contents: dict[str, bytes] = {}
    with sources.reading(path, "archive of CIFAR"):
        with tarfile.open(path, "r:gz") as archive:
            left = MAX_BYTES
            for member in archive:
                left -= member.size
                if left < 0:
                    raise ValueError(f"it promises more than {MAX_BYTES:,} bytes")
                name = Path(member.name).name
                if name in names and member.isreg():
                    with archive.extractfile(member) as file:  # type: ignore[union-attr]
                        contents[name] = file.read()
        missing = [name for name in names if name not in contents]
        if missing:
            raise ValueError(f"it has no file {missing[0]}")
    return contents


class _Array:
    """What a pickled array says of itself; NumPy is not asked to make one of it."""

    def __init__(self, *_: object) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def pixels(self) -> np.ndarray:
        """Return uint8 [N, 3, 32, 32]; raise what a state of another kind makes Python raise."""
        _, shape, dtype, by_column, content = self.state
        size, pixels = shape
        if (dtype.state, pixels) != ("u1", 3 * 32 * 32) or not size:
            raise ValueError("its pixels are not bytes [N, 3072]")
        if not isinstance(content, bytes) or len(content) != math.prod(shape):
            raise ValueError(f"its pixels are not the {math.prod(shape):,} bytes that they should")
        rows = np.frombuffer(content, np.uint8).reshape(shape, order="F" if by_column else "C")
        return rows.reshape(size, 3, 32, 32)


class _Dtype(_Array):
    """What a pickled dtype says of itself: its kind and size."""

    def __init__(self, kind: str | bytes = "", *_: object) -> None:
        self.state = kind.decode() if isinstance(kind, bytes) else kind

    def __setstate__(self, state: Any) -> None:
        """Byte order and alignment, which bytes have none of."""


def _reconstruct(*_: object) -> _Array:
    return _Array()


class _Unpickler(pickle.Unpickler):
    """Let a pickle name nothing but what stands in an array, and give it nothing that acts."""

    KNOWN: ClassVar[dict[tuple[str, str], Callable[..., Any]]] = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return a stand-in for what is named, without importing anything."""
        if (module, name) not in self.KNOWN:
            raise ValueError(f"it names {module}.{name}, which no file of CIFAR does")
        return self.KNOWN[module, name]


def _entry(content: bytes, key: str) -> Any:
    """Return an entry of the dictionary in a pickle; nothing in it is executed."""
    found = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    if not isinstance(found, dict) or key.encode() not in found:
        raise ValueError(f"it holds no entry {key}")
    return found[key.encode()]


def _batch(content: bytes, key: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures uint8 [N, 32, 32, 3] and labels int32 [N] of one file."""
    data = _entry(content, "data")
    if not isinstance(data, _Array):
        raise ValueError("its entry data is no array")
    images, labels = data.pixels(), _entry(content, key)
    whole = isinstance(labels, list) and all(type(label) is int for label in labels)
    if not whole or len(labels) != len(images) or not 0 <= min(labels) <= max(labels) < classes:
        raise ValueError(f"its {key} are not {len(images)} integers from 0 to {classes - 1}")
    return images.transpose(0, 2, 3, 1), np.array(labels, np.int32)
