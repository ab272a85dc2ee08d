"""A data set as every part of Waymark sees it, and how arrays are checked and brought into it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from waymark.data.columns import Column
from waymark.data.digests import dataset_digest
from waymark.data.rows import Features, Rows, refuse_not_finite
from waymark.errors import BadInput

PARTS = ("train", "val", "test")
MEAN, SCALE = "features/mean", "features/scale"  # statistics of the training set, in the state


@dataclass(frozen=True)
class ImageSpec:
    """What a model must fit."""

    shape: tuple[int, ...]  # of one image: (H, W, C) or (D,)
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
    Features that are larger than memory are Rows, which are read by index.

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
    feature_names: tuple[str, ...] = ()
    """of the columns of features [N, D], where they are known"""
    statistics: Mapping[str, np.ndarray] = field(default_factory=dict)
    """of the training set, float32 [D], which are entries of a run's state: `features/mean` and
    `features/scale`, by which features are standardised before a model has them"""
    read_digest: str = ""
    """the digest of what was read, before anything was held out of it"""
    summary: str = ""
    """how many examples each set has, and how they are scaled, where that is to be said"""

    @property
    def spec(self) -> ImageSpec:
        """Return the form of one image, and `outputs` or the classes in all sets together."""
        if self.outputs is not None:
            return ImageSpec(self.x_train.shape[1:], self.outputs)
        highest = max(y.max() for y in (self.y_train, self.y_val, self.y_test) if len(y))
        return ImageSpec(self.x_train.shape[1:], int(highest) + 1)

    @property
    def has_classes(self) -> bool:
        """Tell whether a label is the number of a class."""
        return self.y_train.ndim == 1 and self.y_train.dtype.kind in "iu"

    @property
    def arrays(self) -> dict[str, Features]:
        """Return the arrays that are there, by their names."""
        names = [f"{kind}_{part}" for part in PARTS for kind in "xy"]
        names += ["groups", "sample_weight"]
        return {name: vars(self)[name] for name in names if len(vars(self)[name])}

    @property
    def nbytes(self) -> int:
        """Return how many bytes of memory the arrays take."""
        return sum(each.nbytes for each in self.arrays.values() if isinstance(each, np.ndarray))

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of the arrays as they were read (see waymark.digest)."""
        return self.read_digest or dataset_digest(self.arrays)

    @property
    def divide(self) -> bool:
        """Tell whether features are divided by 255 before a model has them."""
        if self.scale in ("none", 255):
            return self.scale == 255
        pictures = self.x_train.ndim == 4 or self.scale == "uint8"
        return bool(self.x_train.dtype == np.uint8 and pictures)

    @property
    def evaluated(self) -> Literal["val", "test"]:
        """Return which set evaluations in training are on: the validation set, if there is one."""
        return "val" if len(self.x_val) else "test"

    @property
    def schema(self) -> dict[str, Any]:
        """Return the form of features and labels as MLflow's data sets have it."""
        specs = {}
        for name, array in (("features", self.x_train), ("targets", self.y_train)):
            spec = {"dtype": array.dtype.name, "shape": [-1, *array.shape[1:]]}
            specs[name] = json.dumps([{"type": "tensor", "tensor-spec": spec}])
        return {"mlflow_tensorspec": specs}

    @property
    def profile(self) -> dict[str, Any]:
        """Return the shape of each set's features, and the names of classes and features, if any.

        Of very many names the first thousand stand there.
        """
        sets = {f"x_{part}": vars(self)[f"x_{part}"].shape for part in PARTS}
        shapes = {name: list(shape) for name, shape in sets.items() if shape[0]}
        names = {"class_names": self.class_names, "feature_names": self.feature_names}
        return {**shapes, **{key: list(each[:1000]) for key, each in names.items() if each}}

    def examples(self, part: str) -> tuple[Features, np.ndarray]:
        """Return the images and the labels of a set: train, val or test."""
        return vars(self)[f"x_{part}"], vars(self)[f"y_{part}"]


def from_arrays(name: str, source: str, arrays: Mapping[str, Features]) -> Dataset:
    """Bring x_train and y_train, and what there is of the other entries, into Dataset's form.

    The labels stay as they are: their form is the task's (see `waymark.tasks`). Raises BadInput
    naming the array, what it has and what is allowed.
    """
    checked: dict[str, Any] = {}
    for part in PARTS:
        pair = (f"x_{part}", f"y_{part}")
        if part != "train" and not any(entry in arrays for entry in pair):
            continue
        labels = checked[f"y_{part}"] = pick(arrays, pair, source)[f"y_{part}"]
        images = checked[f"x_{part}"] = _images(f"{source}: x_{part}", arrays[f"x_{part}"])
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
        if (train.shape[1:], train.dtype) != (images.shape[1:], images.dtype):
            raise BadInput(
                f"{source}: x_{part} has images of shape {list(images.shape[1:])} and dtype "
                f"{images.dtype}, but x_train {list(train.shape[1:])} and {train.dtype}; both must "
                f"be the same."
            )
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


def _images(name: str, array: Features) -> Features:
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
