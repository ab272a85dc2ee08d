"""A data set as every part of Waymark sees it, and how arrays are checked and brought into it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from waymark.data.columns import Column, EncodedColumn
from waymark.data.digests import dataset_digest
from waymark.data.rows import Array, Features, Inputs, Rows, each, entries, refuse_not_finite
from waymark.errors import BadInput

PARTS = ("train", "val", "test")
MEAN, SCALE = "features/mean", "features/scale"  # statistics of the training set, in the state


@dataclass(frozen=True)
class ImageSpec:
    """What a model must fit."""

    shape: tuple[int, ...] | dict[str, tuple[int, ...]]
    """of one image: (H, W, C) or (D,); of several inputs, of each by its name"""
    outputs: int  # of the model, for one image

    @property
    def classes(self) -> int:
        """Return `outputs`, which models read by this name before there were tasks."""
        return self.outputs


def _nothing() -> np.ndarray:
    return np.empty(0, np.float32)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Features [N, ...], images [N, H, W, C], integers or float32; labels as a task has them.

    Until a task has prepared them, labels are [N, ...] as they were read. Then those of
    classification are int32 [N] from 0, of multilabel uint8 [N, K], of regression float32 [N, T].
    Features that are larger than memory are Rows, which are read by index; those of several inputs
    are Inputs, which hold arrays or Rows by name.

    A test or validation set that is not there has the length 0: `splits.hold_out` makes it.
    """

    name: str
    source: str  # the file, folder or package they came from
    x_train: Features
    y_train: np.ndarray
    x_test: Features = field(default_factory=_nothing)
    y_test: np.ndarray = field(default_factory=_nothing)
    x_val: Features = field(default_factory=_nothing)
    y_val: np.ndarray = field(default_factory=_nothing)
    groups: np.ndarray = field(default_factory=_nothing)
    """[N] of the training set: rows with equal values stay on one side of every split"""
    sample_weight: np.ndarray = field(default_factory=_nothing)
    """float32 [N] of the training set, at least 0: what each example counts in the training loss"""
    outputs: int | None = None
    """how many outputs a model must have; None: one for each class"""
    class_names: tuple[str, ...] = ()
    """of the labels from 0 up, where they were texts"""
    scale: Literal["auto", "none", "uint8", 255] = "uint8"
    """what of the features is divided by 255 before a model has them, see `Loader.scale`"""
    columns: tuple[Column, ...] = ()
    """of a table that the features come from, as they were read"""
    encoding: tuple[EncodedColumn, ...] = ()
    """how those columns became the features"""
    feature_names: tuple[str, ...] = ()
    """of the columns of features [N, D], where they are known"""
    statistics: Mapping[str, np.ndarray] = field(default_factory=dict)
    """of the training set, float32 [D], which are entries of a run's state: `features/mean` and
    `features/scale`, by which features are standardised before a model has them"""
    unread: tuple[str, ...] = ()
    """entries of the file that are none of a data set"""
    read_digest: str = ""
    """the digest of what was read, before anything was held out of it"""
    summary: str = ""
    """how many examples each set has, and how they are scaled"""

    @property
    def spec(self) -> ImageSpec:
        """Return the form of one image, and `outputs` or the classes in all sets together."""
        shape = each(lambda array: array.shape[1:], self.x_train)
        if self.outputs is not None:
            return ImageSpec(shape, self.outputs)
        highest = max(y.max() for y in (self.y_train, self.y_val, self.y_test) if len(y))
        return ImageSpec(shape, int(highest) + 1)

    @property
    def has_classes(self) -> bool:
        """Tell whether a label is the number of a class."""
        return self.y_train.ndim == 1 and self.y_train.dtype.kind in "iu"

    @property
    def arrays(self) -> dict[str, Array]:
        """Return the arrays that are there, by their names: `x_train.NAME` of several inputs."""
        names = [f"{kind}_{part}" for part in PARTS for kind in "xy"]
        names += ["groups", "sample_weight"]
        there = [entries(name, vars(self)[name]) for name in names if len(vars(self)[name])]
        return {name: array for found in there for name, array in found.items()}

    @property
    def nbytes(self) -> int:
        """Return how many bytes of memory the arrays take."""
        arrays = self.arrays.values()
        return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of the arrays as they were read (see waymark.digest)."""
        return self.read_digest or dataset_digest(self.arrays)

    @property
    def divide(self) -> bool | frozenset[str]:
        """Tell whether features are divided by 255 before a model has them, or which inputs are."""
        if isinstance(self.x_train, Inputs):
            return frozenset(n for n, array in self.x_train.named.items() if self._divides(array))
        return self._divides(self.x_train)

    def _divides(self, array: Array) -> bool:
        if self.scale in ("none", 255):
            return self.scale == 255
        pictures = array.ndim == 4 or self.scale == "uint8"
        return bool(array.dtype == np.uint8 and pictures)

    @property
    def evaluated(self) -> Literal["val", "test"]:
        """Return which set evaluations in training are on: the validation set, if there is one."""
        return "val" if len(self.x_val) else "test"

    @property
    def schema(self) -> dict[str, Any]:
        """Return the form of features and labels as MLflow's data sets have it."""
        specs = {}
        for name, arrays in (("features", self.x_train), ("targets", self.y_train)):
            tensors = []
            for entry, array in entries("", arrays).items():
                spec = {"dtype": array.dtype.name, "shape": [-1, *array.shape[1:]]}
                named = {"name": entry[1:]} if entry else {}
                tensors.append({**named, "type": "tensor", "tensor-spec": spec})
            specs[name] = json.dumps(tensors)
        return {"mlflow_tensorspec": specs}

    @property
    def profile(self) -> dict[str, Any]:
        """Return the shape of each set's features, and the names of classes and features, if any.

        Of very many names the first thousand stand there.
        """
        sets = {name: array for name, array in self.arrays.items() if name[0] == "x"}
        shapes = {name: list(array.shape) for name, array in sets.items()}
        names = {"class_names": self.class_names, "feature_names": self.feature_names}
        return {**shapes, **{key: list(known[:1000]) for key, known in names.items() if known}}

    def examples(self, part: str) -> tuple[Features, np.ndarray]:
        """Return the images and the labels of a set: train, val or test."""
        return vars(self)[f"x_{part}"], vars(self)[f"y_{part}"]


def from_arrays(name: str, source: str, arrays: Mapping[str, Any]) -> Dataset:
    """Bring x_train and y_train, and what there is of the other entries, into Dataset's form.

    The entries x_train.NAME are the inputs of that name. The labels stay as they are: their form
    is the task's (see `waymark.tasks`). Raises BadInput naming the array, what it has and what is
    allowed.
    """
    checked: dict[str, Any] = {}
    arrays = gathered(arrays, source)
    for part in PARTS:
        pair = (f"x_{part}", f"y_{part}")
        if part != "train" and not any(entry in arrays for entry in pair):
            continue
        labels = checked[f"y_{part}"] = pick(arrays, pair, source)[f"y_{part}"]
        images = checked[f"x_{part}"] = _features(f"{source}: x_{part}", arrays[f"x_{part}"])
        if labels.ndim == 0 or labels.size == 0:
            raise BadInput(
                f"{source}: y_{part} has shape {list(labels.shape)}; "
                f"allowed are [N] and [N, ...], none of them 0."
            )
        if len(images) != len(labels):
            raise BadInput(
                f"{source}: x_{part} has {len(images)} images, but y_{part} {len(labels)} labels."
            )
        train = checked["x_train"]
        _refuse_other_form(source, part, images, train)
    if "groups" in arrays:
        groups = checked["groups"] = arrays["groups"]
        if groups.shape != (len(train),) or groups.dtype.kind not in "iuUSb":
            raise BadInput(
                f"{source}: data.group is {groups.dtype}{list(groups.shape)}; allowed are "
                f"{len(train)} integers or texts, one for each row of x_train."
            )
    if "sample_weight" in arrays:
        given = np.asarray(arrays["sample_weight"])
        checked["sample_weight"] = _weights(f"{source}: sample_weight", given, len(train))
    return Dataset(name=name, source=source, **checked)


def gathered(arrays: Mapping[str, Features], source: object) -> dict[str, Any]:
    """Return entries in which those of a set's inputs, x_train.NAME, are one, x_train.

    Raises BadInput for a name that is none, and for x_train beside x_train.NAME.
    """
    found = dict(arrays)
    for whole in (f"x_{part}" for part in PARTS):
        start = f"{whole}."
        named: dict[str, Any] = {
            entry.removeprefix(start): found.pop(entry)
            for entry in arrays
            if entry.startswith(start)
        }
        for name in named:
            if not name or not name.isprintable():
                raise BadInput(
                    f"{source}: the entry {start + name!r} names no input; allowed is {start}NAME, "
                    f"of printable characters."
                )
        if named and whole in found:
            raise BadInput(
                f"{source} has {whole} and {start}{min(named)}; allowed are either, one array or "
                f"several inputs by name."
            )
        if named:
            found[whole] = Inputs(named)
    return found


def pick(arrays: Mapping[str, Features], wanted: tuple[str, ...], source: object) -> Any:
    """Return the entries of a file that are wanted; raise BadInput if one is not there."""
    missing = [name for name in wanted if name not in arrays]
    if missing:
        there = ", ".join(sorted(arrays)[:9]) or "nothing"
        raise BadInput(f"{source} has no entry {missing[0]}; it holds {there}.")
    return {name: arrays[name] for name in wanted}


def _weights(name: str, array: np.ndarray, examples: int) -> np.ndarray:
    if array.shape != (examples,) or array.dtype.kind not in "iuf":
        raise BadInput(
            f"{name} is {array.dtype}{list(array.shape)}; allowed are {examples} numbers, one for "
            f"each row of x_train."
        )
    with np.errstate(over="ignore"):
        weights = array.astype(np.float32)
    wrong = np.flatnonzero(~((weights >= 0) & np.isfinite(weights)))
    if wrong.size:
        raise BadInput(
            f"{name} is {array[wrong[0]]} in row {wrong[0]}; allowed are finite numbers from 0 up."
        )
    if not weights.any():
        raise BadInput(f"{name} is 0 in every row, so that there would be nothing to train on.")
    return weights


def _features(name: str, features: Features) -> Features:
    """Return features as Dataset has them; raise BadInput."""
    if not isinstance(features, Inputs):
        return _images(name, features)
    made = {entry: _images(entry, array) for entry, array in entries(name, features).items()}
    first, *others = made
    for other in others:
        if len(made[other]) != len(made[first]):
            raise BadInput(
                f"{other} has {len(made[other])} rows, but {first.rpartition(': ')[2]} "
                f"{len(made[first])}; every input needs a row for each example."
            )
    return Inputs(dict(zip(features.named, made.values(), strict=True)))


def _refuse_other_form(source: str, part: str, features: Features, train: Features) -> None:
    """Raise BadInput unless a set has the inputs of the training set, in shape and dtype."""
    here, there = entries("", features), entries("", train)
    if here.keys() != there.keys():
        ours, known = (
            f"the inputs {', '.join(x.named)}" if isinstance(x, Inputs) else "one input"
            for x in (features, train)
        )
        raise BadInput(
            f"{source}: x_{part} has {ours}, but x_train {known}; both must be the same."
        )
    for name, images in here.items():
        first = there[name]
        if (first.shape[1:], first.dtype) != (images.shape[1:], images.dtype):
            raise BadInput(
                f"{source}: x_{part}{name} has images of shape {list(images.shape[1:])} and dtype "
                f"{images.dtype}, but x_train{name} {list(first.shape[1:])} and {first.dtype}; "
                f"both must be the same."
            )


def _images(name: str, array: Array) -> Array:
    if array.ndim < 2 or array.size == 0:
        raise BadInput(
            f"{name} has shape {list(array.shape)}; allowed are [N, D], [N, H, W], [N, H, W, C] "
            f"and [N, ...], none of them 0."
        )
    if array.dtype.name in ("float16", "float32", "float64"):
        if isinstance(array, np.ndarray):
            with np.errstate(over="ignore"):
                array = array.astype(np.float32, copy=False)
            refuse_not_finite(name, array)
    elif array.dtype.kind not in "iu":
        raise BadInput(
            f"{name} has dtype {array.dtype}; allowed are integers, float16, float32 and float64."
        )
    if isinstance(array, Rows):
        return array.as_images(name)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return np.ascontiguousarray(array[..., np.newaxis] if array.ndim == 3 else array)
