"""Data sets: arrays in one form, their digest, and where they were read from.

A data set of your own is a subclass of Loader, or any class with `sampling` and `load`,
named by `_target_` in a file under conf/data/. Nothing is converted on the way but labels
(int32), floats (float32) and the channel axis that images [N, H, W] get.
"""

import gzip
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from waymark.config.schema import settings
from waymark.data.dataset import Dataset, from_arrays, gathered, pick
from waymark.data.dataset import ImageSpec as ImageSpec
from waymark.data.randomness import SAMPLING, Tensor, random_key
from waymark.data.rows import Array, NpyRows, npy_files
from waymark.digest import SETTLED
from waymark.errors import BadInput
from waymark.npz import read_npz

FASHION_FILES = {
    "x_train": "train-images-idx3-ubyte.gz",
    "y_train": "train-labels-idx1-ubyte.gz",
    "x_test": "t10k-images-idx3-ubyte.gz",
    "y_test": "t10k-labels-idx1-ubyte.gz",
}
SPLIT_ARRAYS = tuple(FASHION_FILES)
ARRAYS_READ = {*SPLIT_ARRAYS, "x_val", "y_val", "sample_weight"}  # of an npz
INPUTS = ("x_train.", "x_test.", "x_val.")  # with what the names of several inputs begin
MAX_CACHED_BYTES = 256e6  # of a data set that may be kept when a run has ended
MNIST_5K_FILE = Path(__file__).with_name("mnist_5k.npz")
FASHION_DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # package dataset-fashion-mnist

# The digests of the published data sets, in the form in which Dataset holds them.
MNIST_5K = "0e603cdc5e54a5e45c9c13d807e3f9dc3e5b45b93226fa87981e96782191e431"
MNIST = "f2ac7fc2144e34f20bef0b37c9a0e143fc4dfb4dcfba2f75d14fc408e357af8e"
FASHION_MNIST = "1c589f633fb7441c891fb090bf5d618f28f825aba4fe6bcb1fba4f8e51ed0d89"


_last: dict[Any, Dataset] = {}  # at most one


def _checked_size(size: Any) -> Any:
    """Refuse a number that is no size of a set once, not once for each type that it could have."""
    is_size = 0 < size < 1 if isinstance(size, float) else type(size) is int and size > 0
    if isinstance(size, bool | int | float) and not is_size:
        said = "must be a whole number of examples (200) or a fraction between 0 and 1 (0.2)"
        raise PydanticCustomError("size", said)
    return size


def _size_or_nothing(size: Any) -> Any:
    return size and _checked_size(size)


@settings
class Loader(ABC):
    """How batches are drawn, and what is held out to evaluate on."""

    # The defaults stand in conf/config.yaml; these are for code that makes a loader itself.
    sampling: Literal["replacement", "epoch"]
    """`replacement` (uniform draws) or `epoch` (shuffled, without; what data of your own
    have)"""
    scale: Literal["auto", "none", "uint8", 255] = "auto"
    """what is divided by 255 before a model has it: `auto` (uint8 images [N,H,W] and [N,H,W,C]),
    `uint8` (all that is uint8, as in records without this setting), `255` (all) or `none`"""
    test: Annotated[float | int | str | None, BeforeValidator(_checked_size)] = None
    """the test set of data that bring none: a fraction of the training set (null: 0.2), a number
    of examples of it, another file, with `x_test` and `y_test` or a table's columns, or with
    `source` a dotted name"""
    validation: Annotated[float | int, BeforeValidator(_size_or_nothing)] = 0
    """a fraction of the training set, or a number of examples of it, on which training is evaluated
    in place of the test set; 0: none"""
    split: Literal["random", "ordered"] = "random"
    """how they are chosen: `random` (each class, or group, in its share) or `ordered` (the last
    rows)"""
    split_seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """of the random choice, the same for every `seed`"""
    group: str | None = None
    """the entry of file or folder, [N] of the training set, or the column of a table, whose equal
    values stay on one side"""

    @abstractmethod
    def load(self) -> Dataset:
        """Read the data set; raise BadInput for whatever is wrong with it."""

    def encode(self, data: Dataset) -> Dataset:
        """Return a data set that was held out of with what is fitted on its training set alone."""
        return data

    def reads_test_file(self) -> bool:
        """Tell whether `test` may name a file, which `load` reads."""
        return False

    def has_validation(self) -> bool:
        """Tell whether there will be a validation set."""
        return self.validation > 0

    def cache_folder(self) -> Path | None:
        """Return the folder in which is kept what is made of the files, if anything is."""
        return None


@settings
class Mnist5k(Loader):
    """4,000 and 1,000 MNIST digits that come with Waymark, class by class; see mnist_5k.txt."""

    def load(self) -> Dataset:
        """Read Waymark's own file: images uint8 [N, 28, 28, 1]."""
        return _load("mnist_5k", "waymark/mnist_5k.npz", [MNIST_5K_FILE], MNIST_5K)


@settings
class Mnist(Loader):
    """MNIST, 60,000 and 10,000 digits."""

    path: str | None
    """an npz in Keras's layout; null: Keras's cache, else its download"""

    def load(self) -> Dataset:
        """Read the npz: images uint8 [N, 28, 28, 1]; raise BadInput unless it holds MNIST."""
        own = None if self.path is None else expand(self.path)
        path = own or from_keras("mnist", "datasets", ["mnist.npz"]) / "mnist.npz"
        return _load("mnist", str(path), [path], MNIST)


@settings
class FashionMnist(Loader):
    """Fashion-MNIST, 60,000 and 10,000 images."""

    path: str | None
    """a folder with the four original `idx.gz` files; null: Debian's package, else Keras's cache,
    else its download"""

    def load(self) -> Dataset:
        """Read the files: images uint8 [N, 28, 28, 1]; raise BadInput for other data."""
        files = list(FASHION_FILES.values())
        folder = FASHION_DEBIAN if self.path is None else expand(self.path)
        if self.path is None and not folder.exists():
            folder = from_keras("fashion_mnist", "datasets/fashion-mnist", files)
        paths = [folder / file for file in files]
        return _load("fashion_mnist", str(folder), paths, FASHION_MNIST)


@settings
class Arrays(Loader):
    """The user's own arrays: an npz of x_train and y_train, or a folder of such npy files.

    x_test and y_test, x_val and y_val may be there too. Features [N, ...], images [N, H, W] or
    [N, H, W, C], integers or floats; in place of x_train several inputs, x_train.NAME; labels as
    the task takes them; sample_weight [N] of the training set.
    """

    path: str
    """an npz with `x_train` and `y_train`, and, if you have them, `x_test` and `y_test`, `x_val`
    and `y_val`, `sample_weight`, or a folder of such `.npy` files, whose features may be larger
    than memory"""

    def load(self) -> Dataset:
        """Read the npz, or open the folder's files; raise BadInput naming what has another form."""
        path = expand(self.path)
        files = [path, *([expand(self.test)] if isinstance(self.test, str) else [])]
        return _load("arrays", str(path), files, group=self.group)

    def reads_test_file(self) -> bool:
        """Tell that `test` may name a file."""
        return True

    def has_validation(self) -> bool:
        """Tell whether there will be a validation set: asked for, or in the file."""
        brought, path = [], expand(self.path)
        with suppress(OSError, ValueError, zipfile.BadZipFile):  # `load` says what is wrong
            if path.is_dir():
                brought = os.listdir(path)
            else:
                with zipfile.ZipFile(path) as archive:
                    brought = archive.namelist()
        inputs = [name for name in brought if name.startswith("x_val.") and name.endswith(".npy")]
        return bool(inputs) or super().has_validation()


def _load(
    name: str,
    source: str,
    files: list[Path],
    published: str | None = None,
    group: str | None = None,
) -> Dataset:
    """Return the data set in an npz, with or without one of the test set, or in four idx files.

    `published` is the digest it must have, `group` the entry that holds the groups.
    """
    return read_once((name, group), files, lambda: _read(name, source, files, published, group))


def read_once(settings: Any, files: list[Path], read: Callable[[], Dataset]) -> Dataset:
    """Return what `read` makes of files with these settings, now or the last time.

    One data set is kept, if it is small, so that the runs of a process do not read it again while
    its files are the same.
    """
    now = time.time()
    try:
        inner = [[path, *(npy_files(path) if path.is_dir() else [])] for path in files]
        facts = [path.stat() for path in chain(*inner)]  # before they are read
    except (OSError, ValueError):  # the reader says it better
        return read()
    marks = [(f.st_dev, f.st_ino, f.st_size, f.st_mtime_ns, f.st_ctime_ns) for f in facts]
    key = settings, tuple(map(str, files)), tuple(marks)
    found = _last.get(key)
    if found is None:
        _last.clear()
        found = read()
        # Just after one change another one could bear the same time.
        settled = now - max(max(f.st_mtime, f.st_ctime) for f in facts) > SETTLED
        if settled and found.nbytes < MAX_CACHED_BYTES:
            for array in found.arrays.values():
                if isinstance(array, np.ndarray):
                    array.flags.writeable = False
            _last[key] = found
    return found


def expand(path: str) -> Path:
    """Return a path that was given, with the user's home for `~`."""
    return Path(os.path.expanduser(path))


def keras_cache(folder: str) -> Path:
    """Return a folder of Keras's cache."""
    return expand(os.environ.get("KERAS_HOME", "~/.keras")) / folder


def from_keras(name: str, folder: str, files: list[str]) -> Path:
    """Return the folder of Keras's cache that holds these files, downloaded if need be.

    Keras downloads in a process of its own, because it brings TensorFlow along and prints; and
    into a folder of its own, so that other processes find a whole file or none.
    """
    cache = keras_cache(folder)
    program = (
        "import socket; socket.setdefaulttimeout(20); "
        f"import keras; keras.datasets.{name}.load_data()"
    )
    try:
        if all((cache / file).exists() for file in files):
            return cache
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as home:
            subprocess.run(
                [sys.executable, "-c", program],
                env={**os.environ, "KERAS_HOME": home},
                check=True,
                capture_output=True,
                text=True,
                errors="replace",
            )
            for file in files:
                (found,) = Path(home).rglob(file)
                found.replace(cache / file)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).rstrip().rpartition("\n")[2]
        raise BadInput(
            f"data={name} is not on this machine and could not be downloaded ({reason}); "
            f"name a copy with data.path, or use data=mnist_5k, which needs no network."
        ) from None
    return cache


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turn into BadInput what a missing, foreign or damaged file makes its reader raise."""
    try:
        yield
    except BadInput:
        raise
    except FileNotFoundError:
        raise BadInput(f"{path} does not exist.") from None
    except IsADirectoryError:
        raise BadInput(f"{path} is a folder, not a file.") from None
    except Exception as error:  # damage makes zipfile, zlib and NumPy raise nearly anything
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise BadInput(f"{path} is not a readable {kind}: {reason}.") from error


def _read_npz(path: Path) -> dict[str, Array]:
    with reading(path, "npz file"):
        return {**read_npz(path)}


def _read_arrays(path: Path, group: str | None) -> dict[str, Array]:
    """Read the arrays of an npz, or of a folder; nothing in it is executed or believed unchecked.

    Of a folder features are opened only, and what is no entry of a data set is not read.
    """
    if not path.is_dir():
        return _read_npz(path)
    found: dict[str, Array] = {}
    for file in npy_files(path):
        with reading(file, "npy file"):
            rows, name = NpyRows(file), file.stem
            kept = name[:2] == "y_" or name in ("sample_weight", group)
            found[name] = rows.whole() if kept else rows
    return found


def _read_idx(path: Path) -> np.ndarray:
    """Read a gzipped idx file of unsigned bytes.

    The format: 0, 0, 8 (unsigned byte), the rank, each length as a big-endian int32, the bytes.
    """
    with reading(path, "gzipped idx file"), gzip.open(path) as file:
        *kind, rank = file.read(4)
        if kind != [0, 0, 8]:
            raise ValueError("it does not start as one of unsigned bytes does")
        shape = [int.from_bytes(file.read(4), "big") for _ in range(rank)]
        return np.frombuffer(file.read(), np.uint8).reshape(shape)


def _read(
    name: str, source: str, files: list[Path], published: str | None, group: str | None
) -> Dataset:
    arrays: dict[str, Any]
    unread: set[str] = set()
    if len(files) == len(SPLIT_ARRAYS):
        arrays = dict(zip(SPLIT_ARRAYS, map(_read_idx, files), strict=True))
    else:
        found, *test_set = (
            _read_npz(path) if published else _read_arrays(path, group) for path in files
        )
        arrays = gathered({name: a for name, a in found.items() if name != "groups"}, source)
        unread = found.keys() - {group} - ARRAYS_READ if not published else set()
        unread = {name for name in unread if not name.startswith(INPUTS)}
        if group is not None:
            arrays["groups"] = pick(found, (group,), f"data.group={group!r}: {source}")[group]
        if test_set and "x_test" in arrays:
            raise BadInput(f"data.test={str(files[1])!r}: {source} brings its own test set.")
        for entries in test_set:
            there = gathered(entries, files[1])
            arrays |= pick(there, ("x_test", "y_test"), files[1])
            unread |= there.keys() - {"x_test", "y_test", group}
    if published:  # whose digest is that of int32 labels
        whole = {key: a for key, a in arrays.items() if key[0] == "y" and a.dtype.kind in "iu"}
        arrays |= {key: np.asarray(labels, np.int32) for key, labels in whole.items()}
    dataset = replace(from_arrays(name, source, arrays), unread=tuple(sorted(unread)))
    if published and dataset.digest != published:
        raise BadInput(
            f"{source} does not hold {name} as published: its digest is "
            f"{dataset.digest[:12]}, not {published[:12]}; data=arrays reads arrays of your own."
        )
    return dataset


def batch_indices(
    sampling: str, seed: Tensor | int, step: Tensor, batch_size: int, examples: int
) -> Tensor:
    """Return which examples make the batch of `step` (from 1): int64 [batch_size].

    "epoch" goes through a new permutation of all examples in each epoch, batches running on from
    one epoch into the next.
    """
    import tensorflow as tf

    if sampling == "replacement":
        key = random_key(seed, SAMPLING, step)
        return tf.random.stateless_uniform([batch_size], key, 0, examples, tf.int64, alg="philox")
    places = (step - 1) * batch_size + tf.range(batch_size, dtype=tf.int64)
    epochs = places // examples
    first = epochs[0]  # a batch touches this epoch and at most the next
    # The permutation is a block cipher on the index, so no epoch's order is ever stored. Of each
    # of its key's three words it may use as few as 8 bits, hence words drawn for (seed, epoch);
    # at TensorFlow's usual 4 rounds neighbours stay correlated.
    keys = [random_key(seed, SAMPLING, first + later) for later in (0, 1)]
    words = [tf.random.stateless_uniform([3], k, None, None, tf.int32, alg="philox") for k in keys]
    return tf.raw_ops.RandomIndexShuffle(
        index=places % examples,
        seed=tf.gather(tf.stack(words), epochs - first),
        max_index=tf.constant(examples - 1, tf.int64),
        rounds=24,
    )
