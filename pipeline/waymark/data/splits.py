"""Which examples are held out of the training set, to validate or to test on.

    data = hold_out(config.data.load(), config.data)
    print(len(data.x_train), len(data.x_val), len(data.x_test))

A split is a function of the arguments alone: its randomness is the raw stream of NumPy's Philox
generator, which no version of NumPy changes (what draws from it, and scikit-learn's splits, may).
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from waymark.data.rows import choose, entries
from waymark.data.sources import Dataset, Loader
from waymark.errors import BadInput
from waymark.users_code import defined

TEST, VALIDATION = 1, 2  # the second word of a split's key
TEST_SHARE = 0.2  # of the training set, for data that bring no test set


def load(loader: Any, task: Any) -> Dataset:
    """Return what a loader reads, its labels in the form of a task, split; raise BadInput."""
    data = loader.load()
    _refuse_other(data, loader.load, "data")
    data = task.prepare(data)
    _refuse_other(data, task.prepare, "task")
    return hold_out(data, loader)


def _refuse_other(data: object, made: Callable[..., Any], group: str) -> None:
    """Raise BadInput for what a class of the user's own returned in place of a data set."""
    if not isinstance(data, Dataset):
        raise BadInput(
            f"{group}._target_: {made.__qualname__}(){defined(made)} must return a "
            f"waymark.data.dataset.Dataset; it returns {type(data).__name__}."
        )


def hold_out(data: Dataset, loader: object) -> Dataset:
    """Return a data set with the test and validation sets that its loader's settings ask for.

    The test set is taken first, out of the training set as it was read, then the validation set.
    A loader of the user's own that has no such settings brings both itself. Raises BadInput for
    what is asked for and already there, and for what cannot be split.
    """
    note, before = "", data.y_train
    if data.class_names:  # the same numbers of other classes are other data
        named = "\n".join([data.digest, *data.class_names]).encode(errors="surrogateescape")
        data = replace(data, read_digest=hashlib.sha256(named).hexdigest())
    if isinstance(loader, Loader):
        data = replace(data, scale=loader.scale, read_digest=data.digest)
        if isinstance(loader.test, str):
            if not loader.reads_test_file():
                raise BadInput(f"data.test={loader.test!r}: {data.name} reads no other file.")
        elif loader.test is not None and len(data.x_test):
            raise BadInput(f"data.test={loader.test}: {data.source} brings its own test set.")
        if loader.group is not None and not len(data.groups):
            raise BadInput(f"data.group={loader.group!r}: {data.name} has no groups.")
        if loader.validation and len(data.x_val):
            raise BadInput(
                f"data.validation={loader.validation}: {data.source} brings its own validation "
                f"set; data.validation=0 takes that."
            )
        if not len(data.x_test):
            assert not isinstance(loader.test, str)  # whose entries are there
            note = f" (data.test={TEST_SHARE} by default)" if loader.test is None else ""
            data = _move(data, loader, "test", loader.test or TEST_SHARE, TEST)
        if loader.validation:
            data = _move(data, loader, "val", loader.validation, VALIDATION)
        _refuse_lost_classes(data, before, loader)
        data = loader.encode(data)
    elif not len(data.x_test):
        raise BadInput(f"{data.source} brings no test set; derive its class from Loader.")
    counts = {"training": data.y_train, "validation": data.y_val, "test": data.y_test}
    sizes = [f"{len(labels):,} {use}" for use, labels in counts.items() if len(labels)]
    told = [f"{', '.join(sizes)} examples{note}", _scaled(data), *_notes(data)]
    return replace(data, summary="; ".join(told))


def _refuse_lost_classes(data: Dataset, before: np.ndarray, loader: Loader) -> None:
    """Raise BadInput for a class of which what was held out left nothing to train on."""
    if not data.has_classes or len(before) == len(data.y_train):
        return
    lost = np.setdiff1d(before, data.y_train)
    if lost.size:
        name = data.class_names[lost[0]] if data.class_names else lost[0]
        cause = f"data.group={loader.group!r}" if loader.group else "data.split=ordered"
        raise BadInput(
            f"{cause}: all {np.count_nonzero(before == lost[0])} examples of class {name} would be "
            f"held out, and none be trained on; hold out another number, or in another way."
        )


def _notes(data: Dataset) -> list[str]:
    """Return what may be a mistake in the data: classes without examples, entries not read."""
    notes = []
    if data.has_classes:
        counts = np.bincount(data.y_train, minlength=data.spec.outputs)
        lacking = np.flatnonzero(counts == 0)
        if lacking.size:
            first = [data.class_names[i] if data.class_names else str(i) for i in lacking[:3]]
            shown = ", ".join(first) + (", ..." if lacking.size > 3 else "")
            notes.append(
                f"no training example has class {shown} ({lacking.size} of {len(counts)} classes)"
            )
    if data.unread:
        notes.append(f"not read: {', '.join(data.unread[:9])}")
    return notes


def _scaled(data: Dataset) -> str:
    """Return what is done to the features, or to each input, before a model has them."""
    if data.statistics:
        return "standardised"
    divide, scaled = data.divide, []
    for name, array in entries("", data.x_train).items():
        divided = divide if isinstance(divide, bool) else name[1:] in divide
        said = "divided by 255" if divided else f"{array.dtype} as it is"
        scaled.append(f"{name[1:]} {said}" if name else said)
    return ", ".join(scaled)


def evaluated_part(loader: Any, task: Any) -> Literal["val", "test"]:
    """Return which set evaluations in training are on; a user's own class is asked to load it."""
    if type(loader).__module__.startswith("waymark."):
        return "val" if loader.has_validation() else "test"
    return load(loader, task).evaluated


def _move(data: Dataset, loader: Loader, part: str, size: int | float, purpose: int) -> Dataset:
    """Return a data set of whose training set `size` examples are another set's."""
    examples, groups = len(data.x_train), data.groups if len(data.groups) else None
    setting = "data.test" if part == "test" else "data.validation"
    count, key = held_out_count(size, examples, setting), (loader.split_seed, purpose)
    if loader.split == "ordered":
        rows = last_rows(examples, count, groups)
    elif groups is not None:
        rows = grouped(groups, count, key)
    elif not data.has_classes:
        rows = np.sort(_shuffled(examples, key)[:count])
    else:
        rows = stratified(data.y_train, count, key, data.class_names)
    left = np.ones(examples, bool)
    left[rows] = False
    kept = np.flatnonzero(left)
    return replace(
        data,
        x_train=choose(data.x_train, kept),
        y_train=data.y_train[kept],
        groups=data.groups[kept] if groups is not None else data.groups,
        sample_weight=data.sample_weight[kept] if len(data.sample_weight) else data.sample_weight,
        **{f"x_{part}": choose(data.x_train, rows), f"y_{part}": data.y_train[rows]},
    )


def held_out_count(size: int | float, examples: int, key: str) -> int:
    """Return how many examples a setting holds out: an integer's own, or a fraction's.

    Raises BadInput, with the setting's `key`, unless both sides get an example.
    """
    count = size if isinstance(size, int) else round(size * examples)
    if not 1 <= count < examples:
        raise BadInput(
            f"{key}={size!r}: holds out {count} of {examples} examples; "
            f"allowed are 1 to {examples - 1}, or a fraction of them between 0 and 1."
        )
    return count


def stratified(
    labels: np.ndarray, count: int, key: tuple[int, int], names: Sequence[str] | None = None
) -> np.ndarray:
    """Return `count` rows, int64, ascending, in which each class has its share.

    `labels` are int [N]. A class's share is rounded by largest remainder, and each class keeps an
    example on both sides; raises BadInput, with its name or number, where it has too few.
    """
    classes, place, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    few = np.flatnonzero(sizes < 2)
    if few.size:
        name = names[classes[few[0]]] if names else classes[few[0]]
        raise BadInput(
            f"class {name} has {sizes[few[0]]} example left to split; a class needs one on each "
            f"side, so remove it, or split with data.split=ordered."
        )
    if not len(classes) <= count <= len(labels) - len(classes):
        raise BadInput(
            f"a split into {len(labels) - count} and {count} examples has no room for each of "
            f"{len(classes)} classes on both sides."
        )
    ideal = sizes * (count / len(labels))
    shares = np.clip(np.floor(ideal).astype(np.int64), 1, sizes - 1)
    while (missing := count - int(shares.sum())) != 0:
        step = 1 if missing > 0 else -1
        free = np.flatnonzero((shares + step >= 1) & (shares + step < sizes))
        wanted = free[np.argsort(step * (shares - ideal)[free], kind="stable")]
        shares[wanted[: abs(missing)]] += step
    shuffled = _shuffled(len(labels), key)
    by_class = shuffled[np.argsort(place[shuffled], kind="stable")]
    starts = np.cumsum(sizes) - sizes
    rank = np.arange(len(labels)) - np.repeat(starts, sizes)  # within its class
    return np.sort(by_class[rank < np.repeat(shares, sizes)])


def grouped(groups: np.ndarray, count: int, key: tuple[int, int]) -> np.ndarray:
    """Return the rows, int64, ascending, of whole groups that come nearest to `count` rows.

    `groups` [N] has equal values for what must stay together. Raises BadInput for a single group.
    """
    values, place, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(values) < 2:
        raise BadInput(
            f"data.group has the one value {values[0].item()!r} left, which cannot be split."
        )
    order = _shuffled(len(values), key)
    held = np.cumsum(sizes[order])[:-1]  # by the first 1, 2, ... groups, never by all
    chosen = order[: int(np.abs(held - count).argmin()) + 1]
    return np.flatnonzero(np.isin(place, chosen))


def last_rows(examples: int, count: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Return the last `count` rows, int64; raise BadInput if that cuts one of the `groups` [N]."""
    if groups is not None:
        cut = np.intersect1d(groups[: examples - count], groups[examples - count :])
        if cut.size:
            raise BadInput(
                f"data.split=ordered: group {cut[0]} stands on both sides of row "
                f"{examples - count}; hold out another number, or split at random."
            )
    return np.arange(examples - count, examples)


def _shuffled(count: int, key: tuple[int, int]) -> np.ndarray:
    """Return 0 to count - 1 in the order that the key decides."""
    words = np.random.Philox(key=key).random_raw(count)
    return np.argsort(words, kind="stable")
