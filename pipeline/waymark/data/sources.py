"""Data sets: four arrays in one form, their digest, and where they were read from.

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
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from waymark.config.schema import settings
from waymark.data.randomness import SAMPLING, Tensor, random_key
from waymark.digest import SETTLED, digest
from waymark.errors import BadInput
from waymark.npz import read_npz

MAX_CLASSES = 65_536  # a stray label must not become a matrix that fills the memory
FASHION_FILES = {
    "x_train": "train-images-idx3-ubyte.gz",
    "y_train": "train-labels-idx1-ubyte.gz",
    "x_test": "t10k-images-idx3-ubyte.gz",
    "y_test": "t10k-labels-idx1-ubyte.gz",
}
ENTRIES = tuple(FASHION_FILES)
SMALL = 256e6  # bytes of a data set that may be kept when a run has ended
MNIST_5K_FILE = Path(__file__).with_name("mnist_5k.npz")
FASHION_DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # package dataset-fashion-mnist

# The digests of the published data sets, in the form in which Dataset holds them.
MNIST_5K = "0e603cdc5e54a5e45c9c13d807e3f9dc3e5b45b93226fa87981e96782191e431"
MNIST = "f2ac7fc2144e34f20bef0b37c9a0e143fc4dfb4dcfba2f75d14fc408e357af8e"
FASHION_MNIST = "1c589f633fb7441c891fb090bf5d618f28f825aba4fe6bcb1fba4f8e51ed0d89"


@dataclass(frozen=True)
class ImageSpec:
    """What a model must fit."""

    shape: tuple[int, ...]  # of one image: (H, W, C) or (D,)
    classes: int


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images [N, H, W, C] or [N, D], uint8 or float32 in [0, 1]; labels int32 [N] from 0."""

    name: str
    source: str  # the file, folder or package they came from
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray

    @property
    def spec(self) -> ImageSpec:
        """Return the form of one image and the number of classes in both sets together."""
        highest = max(self.y_train.max(), self.y_test.max())
        return ImageSpec(self.x_train.shape[1:], int(highest) + 1)

    @property
    def nbytes(self) -> int:
        """Return how many bytes the four arrays take."""
        return sum(getattr(self, name).nbytes for name in ENTRIES)

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of the four arrays as they stand here (see waymark.digest)."""
        return digest({name: getattr(self, name) for name in ENTRIES})


_last: dict[Any, Dataset] = {}  # at most one


@settings
class Loader(ABC):
    """How batches are drawn from the training set."""

    sampling: Literal["replacement", "epoch"]
    """`replacement` (uniform draws) or `epoch` (shuffled, without)"""

    @abstractmethod
    def load(self) -> Dataset:
        """Read the data set; raise BadInput for whatever is wrong with it."""


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
        own = None if self.path is None else _expand(self.path)
        path = own or _from_keras("mnist", "datasets", ["mnist.npz"]) / "mnist.npz"
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
        folder = FASHION_DEBIAN if self.path is None else _expand(self.path)
        if self.path is None and not folder.exists():
            folder = _from_keras("fashion_mnist", "datasets/fashion-mnist", files)
        paths = [folder / file for file in files]
        return _load("fashion_mnist", str(folder), paths, FASHION_MNIST)


@settings
class Arrays(Loader):
    """The user's own arrays: an npz of x_train, y_train, x_test and y_test.

    Images [N, H, W], [N, H, W, C] or [N, D], uint8 or float in [0, 1]; labels integers from 0.
    """

    path: str
    """an npz with `x_train`, `y_train`, `x_test` and `y_test`"""

    def load(self) -> Dataset:
        """Read the npz; raise BadInput naming the array that has another form."""
        path = _expand(self.path)
        return _load("arrays", str(path), [path])


def _load(name: str, source: str, files: list[Path], published: str | None = None) -> Dataset:
    """Return the data set in an npz, or in an idx file for each of ENTRIES.

    `published` is the digest it must have. One data set is kept, if it is small, so that the runs
    of a process do not read it again while its files are the same.
    """
    now = time.time()
    try:
        facts = [path.stat() for path in files]  # before they are read
    except (OSError, ValueError):  # the reader says it better
        return _dataset(name, source, files, published)
    marks = [(f.st_dev, f.st_ino, f.st_size, f.st_mtime_ns, f.st_ctime_ns) for f in facts]
    key = name, tuple(map(str, files)), tuple(marks)
    found = _last.get(key)
    if found is None:
        _last.clear()
        found = _dataset(name, source, files, published)
        # Just after one change another one could bear the same time.
        settled = now - max(max(f.st_mtime, f.st_ctime) for f in facts) > SETTLED
        if settled and found.nbytes < SMALL:
            for entry in ENTRIES:
                getattr(found, entry).flags.writeable = False
            _last[key] = found
    return found


def _expand(path: str) -> Path:
    return Path(os.path.expanduser(path))


def _from_keras(name: str, folder: str, files: list[str]) -> Path:
    """Return the folder of Keras's cache that holds these files, downloaded if need be.

    Keras downloads in a process of its own, because it brings TensorFlow along and prints; and
    into a folder of its own, so that other processes find a whole file or none.
    """
    cache = _expand(os.environ.get("KERAS_HOME", "~/.keras")) / folder
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
def _reading(path: Path, kind: str) -> Iterator[None]:
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


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    """Read the four arrays of an npz; nothing in it is executed or believed unchecked."""
    with _reading(path, "npz file"):
        arrays = read_npz(path)
    if sorted(arrays) != sorted(ENTRIES):
        raise BadInput(f"{path} holds {sorted(arrays)[:9]}; allowed are exactly {sorted(ENTRIES)}.")
    return arrays


def _read_idx(path: Path) -> np.ndarray:
    """Read a gzipped idx file of unsigned bytes.

    The format: 0, 0, 8 (unsigned byte), the rank, each length as a big-endian int32, the bytes.
    """
    with _reading(path, "gzipped idx file"), gzip.open(path) as file:
        *kind, rank = file.read(4)
        if kind != [0, 0, 8]:
            raise ValueError("it does not start as one of unsigned bytes does")
        shape = [int.from_bytes(file.read(4), "big") for _ in range(rank)]
        return np.frombuffer(file.read(), np.uint8).reshape(shape)


def _dataset(name: str, source: str, files: list[Path], published: str | None) -> Dataset:
    """Read four arrays into the form that Dataset describes; raise BadInput for others."""
    if len(files) == 1:
        arrays = _read_npz(files[0])
    else:
        arrays = dict(zip(ENTRIES, map(_read_idx, files), strict=True))
    checked: dict[str, np.ndarray] = {}
    for part in ("train", "test"):
        images = checked[f"x_{part}"] = _images(f"{source}: x_{part}", arrays[f"x_{part}"])
        labels = checked[f"y_{part}"] = _labels(f"{source}: y_{part}", arrays[f"y_{part}"])
        if len(images) != len(labels):
            raise BadInput(
                f"{source}: x_{part} has {len(images)} images, but y_{part} {len(labels)} labels."
            )
    train, test = checked["x_train"], checked["x_test"]
    if (train.shape[1:], train.dtype) != (test.shape[1:], test.dtype):
        raise BadInput(
            f"{source}: x_test has images of shape {list(test.shape[1:])} and dtype {test.dtype}, "
            f"but x_train {list(train.shape[1:])} and {train.dtype}; both must be the same."
        )
    dataset = Dataset(name, source, **checked)
    if dataset.spec.classes < 2:
        raise BadInput(f"{source}: y_train and y_test hold only label 0; allowed are 2 classes up.")
    if published and dataset.digest != published:
        raise BadInput(
            f"{source} does not hold {name} as published: its digest is "
            f"{dataset.digest[:12]}, not {published[:12]}; data=arrays reads arrays of your own."
        )
    return dataset


def _images(name: str, array: np.ndarray) -> np.ndarray:
    if array.ndim not in (2, 3, 4) or array.size == 0:
        raise BadInput(
            f"{name} has shape {list(array.shape)}; "
            f"allowed are [N, H, W], [N, H, W, C] and [N, D], none of them 0."
        )
    if array.dtype.name in ("float16", "float32", "float64"):
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= 1):  # NaN compares false
            raise BadInput(f"{name} has values from {low} to {high}; floats must lie in 0 to 1.")
        array = array.astype(np.float32, copy=False)
    elif array.dtype != np.uint8:
        raise BadInput(
            f"{name} has dtype {array.dtype}; allowed are uint8, float16, float32 and float64."
        )
    return np.ascontiguousarray(array[..., np.newaxis] if array.ndim == 3 else array)


def _labels(name: str, array: np.ndarray) -> np.ndarray:
    if array.ndim != 1 or array.size == 0:
        raise BadInput(f"{name} has shape {list(array.shape)}; allowed is [N], N not 0.")
    if array.dtype.kind not in "iu":
        raise BadInput(f"{name} has dtype {array.dtype}; allowed are integers.")
    low, high = array.min(), array.max()
    if low < 0 or high >= MAX_CLASSES:
        raise BadInput(
            f"{name} has labels from {low} to {high}; allowed are 0 to {MAX_CLASSES - 1}."
        )
    return array.astype(np.int32)


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
