"""Several inputs: `x_train.NAME` in an npz or a folder is one array of a data set with inputs."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waymark.data import sources, splits
from waymark.data.dataset import PARTS, Dataset, from_arrays
from waymark.data.rows import Inputs, NpyRows, Rows
from waymark.data.sources import Arrays
from waymark.errors import BadInput
from waymark.tasks.classification import Classification

from tests.support.data import write_folder

DRAW = np.random.default_rng(5)


def numbered(train: int = 90, **more: int) -> dict[str, np.ndarray]:
    """Return two inputs, in each of which a row tells its number, and labels that tell it too."""
    found, first = {}, 0
    for part, count in {"train": train, **more}.items():
        numbers = np.arange(first, first + count)
        image = DRAW.integers(0, 256, (count, 4, 3), np.uint8)
        image[:, 0, 0] = numbers
        meta = np.stack([numbers, DRAW.normal(size=count)], axis=1)
        found |= {f"x_{part}.meta": meta, f"x_{part}.image": image, f"y_{part}": numbers % 5}
        first += count
    return found


ARRAYS = numbered(90, test=30)


def loader(path: Path, **settings: Any) -> Arrays:
    return Arrays(sampling="epoch", path=str(path), **settings)


def data_of(path: Path, **settings: Any) -> Dataset:
    task = Classification(class_weights=None, label_smoothing=0.0)
    return splits.load(loader(path, **settings), task)


def written(folder: Path, kind: str, arrays: dict[str, Any], name: str = "mine") -> Path:
    """Write arrays as an npz or a folder; what is None is left out."""
    kept = {key: array for key, array in arrays.items() if array is not None}
    if kind == "folder":
        return write_folder(folder / name, kept)
    np.savez(folder / f"{name}.npz", **kept)
    return folder / f"{name}.npz"


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_names_are_in_the_digest(tmp_path: Path, kind: str) -> None:
    data = data_of(written(tmp_path, kind, ARRAYS))
    total = hashlib.sha256()
    for name in sorted(ARRAYS):
        array = ARRAYS[name]
        array = array.astype("<f4" if "meta" in name else "<i4" if name[0] == "y" else "u1")
        array = array[..., None] if "image" in name else array
        total.update(f"{name}\n{array.dtype.name}\n{array.shape}\n".encode() + array.tobytes())
    assert data.digest == total.hexdigest()
    other = {name.replace("meta", "more"): array for name, array in ARRAYS.items()}
    assert data_of(written(tmp_path, kind, other, "other")).digest != data.digest
    assert data.spec.shape == {"image": (4, 3, 1), "meta": (2,)}
    assert list(data.spec.shape) == ["image", "meta"]  # whatever the file's order
    assert data.profile == {"x_train.image": [90, 4, 3, 1], "x_train.meta": [90, 2],
                            "x_test.image": [30, 4, 3, 1], "x_test.meta": [30, 2]}  # fmt: skip


@pytest.mark.parametrize("kind", ["npz", "folder"])
@pytest.mark.parametrize("how", [{}, {"split": "ordered"}, {"group": "patient"}])
def test_all_inputs_are_split_by_the_same_rows(
    tmp_path: Path, kind: str, how: dict[str, Any]
) -> None:
    arrays = {**numbered(90), "patient": np.arange(90) // 3}
    settings = {"test": 21, "validation": 0.1, **how}
    data = data_of(written(tmp_path, kind, arrays), **settings)
    seen = []
    for part in PARTS:
        x, y = data.examples(part)
        read = x[:]
        numbers = read["image"][:, 0, 0, 0].astype(int)
        assert np.array_equal(numbers, read["meta"][:, 0]) and np.array_equal(numbers % 5, y)
        assert np.array_equal(x[np.array([2, 0])]["meta"][:, 0], numbers[[2, 0]])
        seen.append(numbers)
    assert sorted(np.concatenate(seen)) == list(range(90))
    one = {name.replace("x_train.image", "x_train"): a for name, a in arrays.items()}
    del one["x_train.meta"]
    alone = data_of(written(tmp_path, kind, one, "one"), **settings)
    assert np.array_equal(alone.y_val, data.y_val) and np.array_equal(alone.y_test, data.y_test)


def test_sets_may_be_in_two_files_and_a_validation_set_is_found(tmp_path: Path) -> None:
    arrays = numbered(50, val=10, test=20)
    whole = data_of(written(tmp_path, "npz", arrays, "whole"))
    assert whole.evaluated == "val" and len(whole.x_val) == 10
    tests = {name: array for name, array in arrays.items() if "test" in name}
    for kind in ("npz", "folder"):
        rest = {name: array for name, array in arrays.items() if name not in tests}
        path = written(tmp_path, kind, rest, "rest")
        assert loader(path).has_validation()
        test = written(tmp_path, kind, tests, "test")
        assert data_of(path, test=str(test)).digest == whole.digest
    assert not loader(test).has_validation()


@pytest.mark.parametrize(
    ("scale", "divided", "said"),
    [
        ("auto", {"image"}, "image divided by 255, meta float32 as it is, tags uint8 as it is"),
        ("uint8", {"image", "tags"}, "image divided by 255, meta float32 as it is, tags divided"),
        ("none", set(), "image uint8 as it is, meta float32 as it is, tags uint8 as it is"),
        (255, {"image", "meta", "tags"}, "image divided by 255, meta divided by 255, tags div"),
    ],
)
def test_each_input_is_scaled_as_if_it_were_alone(
    tmp_path: Path, scale: Any, divided: set[str], said: str
) -> None:
    tags = {f"x_{part}.tags": np.ones((n, 2), "u1") for part, n in (("train", 90), ("test", 30))}
    data = data_of(written(tmp_path, "npz", {**ARRAYS, **tags}), scale=scale)
    assert data.divide == divided and said in data.summary
    for name, array in data.x_train.named.items():  # type: ignore[union-attr]
        sets = {"x_train": array, "y_train": data.y_train}
        alone = Dataset("one", "", **sets, scale=data.scale)
        assert alone.divide == (name in divided)


def test_inputs_may_be_larger_than_memory_or_not(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine", ARRAYS)
    image = NpyRows(folder / "x_train.image.npy")
    arrays = {**ARRAYS, "x_train.image": image}
    data = from_arrays("mixed", "test", arrays)
    inputs = data.x_train
    assert isinstance(inputs, Inputs) and isinstance(inputs.named["image"], Rows)
    assert data.digest == from_arrays("whole", "test", ARRAYS).digest
    chosen = inputs.choose(np.array([5, 80, 7])).choose(np.array([2, 1]))
    assert len(chosen) == 2
    for rows, found in (([7, 80], chosen[:]), ([3, 3], inputs[np.array([3, 3])])):
        assert np.array_equal(found["image"], ARRAYS["x_train.image"][rows][..., None])
        assert np.array_equal(found["meta"], ARRAYS["x_train.meta"][rows].astype("f4"))
    assert data.nbytes == sum(a.nbytes for a in data.arrays.values() if isinstance(a, np.ndarray))


def test_what_is_kept_is_read_once_and_cannot_be_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "SETTLED", -1e9)
    path = written(tmp_path, "npz", ARRAYS)
    kept = loader(path).load()
    assert loader(path).load() is kept
    with pytest.raises(ValueError, match="read-only"):
        kept.x_train[:1]["meta"][:] = 0


INPUTS = {"x_train.meta": None, "x_train.image": None}
TESTED = {"x_test.meta": None, "x_test.image": None}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "rows": ({"x_train.meta": np.zeros((89, 2))},
             "x_train.meta has 89 rows, but x_train.image 90; every input needs a row for each"),
    "rows of all": ({"y_train": np.zeros(80, int)}, "x_train has 90 images, but y_train 80 labels"),
    "an input is missing": ({"x_test.meta": None},
                            "x_test has the inputs image, but x_train the inputs image, meta; "),
    "an input too many": ({"x_test.more": np.zeros((30, 2))},
                          "x_test has the inputs image, meta, more, but x_train the inputs image"),
    "one array to test on": ({**TESTED, "x_test": np.zeros((30, 2))},
                             "x_test has one input, but x_train the inputs image, meta; both must"),
    "inputs to test on": ({**INPUTS, "x_train": np.zeros((90, 2))},
                          "x_test has the inputs image, meta, but x_train one input; both must be"),
    "both": ({"x_train": np.zeros((90, 2))}, "has x_train and x_train.image; allowed are either"),
    "no name": ({"x_train.": np.zeros((90, 2))}, "the entry 'x_train.' names no input; allowed "),
    "not to be printed": ({"x_train.a\x1b": np.zeros((90, 2))}, r"'x_train.a\\x1b' names no input"),
    "another shape": ({"x_test.meta": np.zeros((30, 3))},
                      r"x_test.meta has images of shape \[3\] and dtype float32, but x_train.me"),
    "another dtype": ({"x_test.image": np.zeros((30, 4, 3), int)}, "x_test.image has images of sh"),
    "one number a row": ({"x_train.meta": np.zeros(90)}, r"x_train.meta has shape \[90\]; allowed"),
    "not finite": ({"x_train.meta": np.full((90, 2), np.inf)}, "x_train.meta has a value in row 0"),
    "texts": ({"x_train.meta": np.full((90, 2), "a")}, "x_train.meta has dtype <U1; allowed are "),
    "no labels": ({"y_test": None}, "has no entry y_test; it holds x_test, x_train, y_train"),
    "no features": (INPUTS, "has no entry x_train; it holds"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(tmp_path: Path, case: str) -> None:
    changed, said = REFUSED[case]
    told = []
    for kind in ("npz", "folder"):
        path = written(tmp_path, kind, {**ARRAYS, **changed})
        with pytest.raises(BadInput, match=said) as refused:
            data_of(path)
        told.append(str(refused.value).replace("mine.npz", "mine"))
    assert told[0] == told[1] and told[0].startswith(str(tmp_path)) and "\n" not in told[0]
