"""Rows: what is read by index is what NumPy has; one digest for a file of arrays and a folder."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as any_array
from waymark.config.compose import compose_config
from waymark.data import cache, digests, rows, splits
from waymark.data.dataset import Dataset
from waymark.data.rows import NpyRows, Rows, choose
from waymark.digest import SETTLED
from waymark.errors import BadInput

from tests.support.data import pictures, write_folder

ARRAYS = pictures(200, 60)


def data_of(path: Path, *overrides: str) -> Dataset:
    config = compose_config(["data=arrays", f"data.path={path}", *overrides]).config
    return splits.load(config.data, config.task)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Return how many rows were read of npy files, one number for each time."""
    counts: list[int] = []
    read_raw = NpyRows.read_raw

    def counted(self: NpyRows, picked: np.ndarray) -> np.ndarray:
        counts.append(len(picked))
        return read_raw(self, picked)

    monkeypatch.setattr(NpyRows, "read_raw", counted)
    yield counts


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every file be one whose times are those of its last change."""
    monkeypatch.setattr(rows, "SETTLED", -1e9)


@given(st.data(), st.sampled_from([(7, 2), (7, 3, 2), (7, 2, 3, 1)]))
def test_rows_are_what_numpy_has(tmp_path_factory: Any, data: Any, shape: tuple[int, ...]) -> None:
    dtype = data.draw(st.sampled_from(["u1", "<i8", ">i4", "<f8", ">f4", "f2"]))
    array = data.draw(any_array(np.dtype(dtype), shape))
    path = tmp_path_factory.mktemp("rows") / "x.npy"
    np.save(path, array)
    file = NpyRows(path)
    assert file.whole().tobytes() == array.tobytes()
    with np.errstate(over="ignore"):
        known = array.astype(np.float32 if array.dtype.kind == "f" else array.dtype)
    known = known[..., np.newaxis] if known.ndim == 3 else known
    found = file.as_images("x")
    assert (found.shape, found.dtype) == (known.shape, known.dtype.newbyteorder("="))
    assert (len(found), found.size, found.ndim) == (7, known.size, known.ndim)
    indices = np.array(data.draw(st.lists(st.integers(0, 6), max_size=9)), np.int64)
    cut = data.draw(st.slices(7))
    for key in (indices, cut, 3, -1, indices % 2 == 0 if len(indices) == 7 else cut):
        assert np.array_equal(found[key], known[key], equal_nan=known.dtype.kind == "f")
    some = choose(found, indices)
    assert isinstance(some, Rows) and some.shape == known[indices].shape
    if len(indices):
        again = np.array([len(indices) - 1, 0])
        expected = known[indices][again]
        for picked in (some[again], choose(some, again)[:]):
            assert np.array_equal(picked, expected, equal_nan=known.dtype.kind == "f")
    with pytest.raises(IndexError):
        found[7]


def test_a_piece_is_not_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", ARRAYS["x_train"])
    monkeypatch.setattr(rows, "PIECE", 64 * 30)
    lengths = [len(piece) for piece in NpyRows(tmp_path / "x.npy").pieces()]
    assert lengths == [30] * 6 + [20]


FORMS = {
    "pictures": ARRAYS,
    "no test set": {name: ARRAYS[name] for name in ("x_train", "y_train")},
    "double, big-endian": {**ARRAYS, **{n: ARRAYS[n].astype(">f8") for n in ("x_train", "x_test")}},
    "texts": {**ARRAYS, **{n: ARRAYS[n].astype(str) for n in ("y_train", "y_test")}},
    "groups": {**ARRAYS, "patient": np.arange(200) // 4},
    "labels in Fortran order": {
        **ARRAYS,
        **{n: np.asfortranarray(np.eye(10)[ARRAYS[n]]) for n in ("y_train", "y_test")},
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_is_the_same_data_as_an_npz(tmp_path: Path, form: str) -> None:
    np.savez(tmp_path / "mine.npz", **FORMS[form])
    folder = write_folder(tmp_path / "mine", {**FORMS[form], "notes": np.arange(3)})
    words = ["data.validation=0.2"] + ["data.group=patient"] * (form == "groups")
    npz, streamed = (data_of(path, *words) for path in (tmp_path / "mine.npz", folder))
    assert streamed.digest == npz.digest
    assert streamed.summary == f"{npz.summary}; not read: notes"
    assert streamed.arrays.keys() == npz.arrays.keys()
    for name, array in npz.arrays.items():
        assert isinstance(streamed.arrays[name], Rows) == name.startswith("x")
        assert np.array_equal(streamed.arrays[name][:], array), name
    assert streamed.spec == npz.spec and streamed.class_names == npz.class_names
    assert streamed.nbytes == sum(a.nbytes for n, a in npz.arrays.items() if n[0] != "x")


@pytest.mark.usefixtures("settled")
def test_the_digest_is_made_in_one_pass_and_kept(
    tmp_path: Path, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "mine", ARRAYS)
    first = data_of(folder).digest
    assert sum(reads) == 260
    reads.clear()
    assert data_of(folder).digest == first and not reads
    monkeypatch.setattr(digests, "_known", {})  # as in another process
    assert data_of(folder).digest == first and not reads
    # Another file of this size and these times.
    changed = ARRAYS["x_train"].copy()
    changed[7, 0, 0] ^= 1
    before = (folder / "x_train.npy").stat()
    np.save(folder / "x_train.npy", changed)
    os.utime(folder / "x_train.npy", ns=(before.st_mtime_ns, before.st_mtime_ns))
    assert data_of(folder).digest != first and sum(reads) == 260
    # Other labels.
    reads.clear()
    write_folder(folder, {"y_test": 9 - ARRAYS["y_test"]})
    assert data_of(folder).digest != first and sum(reads) == 260


def test_digests_are_cleared_with_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "folder", lambda: tmp_path / "cache" / cache.DIGESTS)
    digests.write(f"{'0' * 64}.txt", b"a digest")
    digests.write(f"{'1' * 64}.npz", b"labels")
    assert cache.cached_bytes(tmp_path / "cache") == 14
    assert cache.clear(tmp_path / "cache") == 14 and not (tmp_path / "cache").exists()


def test_a_file_changed_just_now_is_read_again(tmp_path: Path, reads: list[int]) -> None:
    folder = write_folder(tmp_path / "mine", ARRAYS, settled=False)
    assert NpyRows(folder / "x_train.npy").mark is None and SETTLED == 3
    for _ in range(2):
        data_of(folder)
    assert sum(reads) == 520


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("damage", ["", "f" * 63, "x" * 64])
def test_a_damaged_cache_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr(digests, "folder", lambda: cache)
    folder = write_folder(tmp_path / "mine", ARRAYS)
    first = data_of(folder).digest
    (kept,) = cache.iterdir()
    kept.write_text(damage)
    monkeypatch.setattr(digests, "_known", {})
    assert data_of(folder).digest == first == kept.read_text()


@pytest.mark.usefixtures("settled")
def test_without_a_cache_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[int]
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(digests, "folder", lambda: tmp_path / "file")
    folder = write_folder(tmp_path / "mine", ARRAYS)
    digest = data_of(folder).digest
    assert data_of(folder).digest == digest and sum(reads) == 260


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def touch(path: Path) -> None:
    os.utime(path)


@pytest.mark.parametrize("change", [cut, touch])
def test_a_file_that_changes_meanwhile_is_not_read(tmp_path: Path, change: Any) -> None:
    path = write_folder(tmp_path / "mine", ARRAYS) / "x_train.npy"
    file = NpyRows(path)
    change(path)
    with pytest.raises(BadInput, match=r"x_train.npy has changed since it was opened\.$"):
        file[:1]


def test_a_file_that_is_cut_while_it_is_read_ends_no_process(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "mine", ARRAYS) / "x_train.npy"
    file: Any = NpyRows(path)
    cut(path)
    facts = path.stat()
    file._known = (facts.st_size, facts.st_mtime_ns)
    for key in (slice(190, 200), [199, 3]):
        with pytest.raises(BadInput, match="has become shorter"):
            file[key]


def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = NpyRows(write_folder(tmp_path / "mine", ARRAYS) / "x_train.npy")

    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(BadInput, match=r"x_train.npy cannot be read: Input/output error\.$"):
        file[:1]


def test_a_file_is_closed_when_nothing_reads_it(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine", ARRAYS)
    before = set(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else set()
    some: Any = choose(NpyRows(folder / "x_train.npy").as_images("x"), np.arange(3))
    assert some[:].shape == (3, 8, 8, 1)  # though the whole is forgotten
    del some
    if before:
        assert set(os.listdir("/proc/self/fd")) <= before


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a file is missing": ({"y_train": None}, "mine has no entry y_train; it holds "),
    "no features": ({"x_train": None}, "mine has no entry x_train; it holds "),
    "half a test set": ({"y_test": None}, "mine has no entry y_test; it holds "),
    "lengths": ({"y_train": np.zeros(9, int)}, "x_train has 200 images, but y_train 9 labels"),
    "other shape": ({"x_test": np.zeros((60, 9, 9), "u1")}, r"x_test has images of shape \[9, 9, "),
    "one number a row": ({"x_train": np.zeros(200, "u1")}, r"x_train has shape \[200\]; allowed"),
    "nothing in a row": ({"x_train": np.zeros((200, 0))}, r"x_train has shape \[200, 0\]; allowed"),
    "complex": ({"x_train": np.zeros((200, 3), complex)}, "x_train has dtype complex128; allowed"),
    "texts": ({"x_train": np.full((200, 3), "a")}, "x_train has dtype <U1; allowed are integers"),
    "not finite": ({"x_train": np.full((200, 3), np.nan), "x_test": np.zeros((60, 3))},
                   "x_train has a value in row 0 that is not finite as a float32"),
    "too large for float32": ({"x_test": np.where(np.arange(60)[:, None] == 59, 1e300, [0.0]),
                              "x_train": np.zeros((200, 1))},
                              "x_test has a value in row 59 that is not finite as a float32"),
    "objects": ({"x_train": np.array([{}] * 200)}, "'x_train.npy' holds pickled objects"),
    "objects as labels": ({"y_train": np.array([{}] * 200)}, "'y_train.npy' holds pickled"),
    "Fortran order": ({"x_train": np.asfortranarray(ARRAYS["x_train"])},
                      "x_train.npy is in Fortran order, in which no example lies in one piece"),
    "one class": ({"y_train": np.zeros(200, int), "y_test": np.zeros(60, int)}, "only the label 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_of_a_folder(tmp_path: Path, case: str) -> None:
    changed, said = REFUSED[case]
    arrays = {**ARRAYS, **changed}
    folder = write_folder(tmp_path / "mine", {k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(BadInput, match=said) as folders:
        data_of(folder)
    if "npy" not in said:  # an npz of the same arrays is refused in the same words
        np.savez(tmp_path / "mine", **{k: v for k, v in arrays.items() if v is not None})
        with pytest.raises(BadInput) as npzs:
            data_of(tmp_path / "mine.npz")
        assert str(npzs.value).replace("mine.npz", "mine") == str(folders.value)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, "'x_train.npy' promises 12,800 bytes and holds 12,799"),
        (
            lambda path: path.write_bytes(b"text"),
            "mine/x_train.npy is not a readable npy file: EOF",
        ),
        (lambda path: (path.unlink(), path.mkdir()), "mine has no entry x_train; it holds x_test"),
        (lambda path: shutil.rmtree(path.parent), "mine does not exist"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path: Path, damage: Any, said: str) -> None:
    folder = write_folder(tmp_path / "mine", ARRAYS)
    damage(folder / "x_train.npy")
    with pytest.raises(BadInput, match=said):
        data_of(folder)


def test_sets_may_come_from_a_file_and_a_folder(tmp_path: Path) -> None:
    train = {name: ARRAYS[name] for name in ("x_train", "y_train")}
    test = {name: ARRAYS[name] for name in ("x_test", "y_test")}
    folders = [write_folder(tmp_path / "train", train), write_folder(tmp_path / "test", test)]
    for name, arrays in {"train": train, "test": test, "both": ARRAYS}.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    known = data_of(tmp_path / "both.npz")
    for path in (folders[0], tmp_path / "train.npz"):
        for other in (folders[1], tmp_path / "test.npz"):
            found = data_of(path, f"data.test={other}")
            assert found.digest == known.digest
            assert np.array_equal(found.x_test[:], known.x_test)
    with pytest.raises(BadInput, match="brings its own test set"):
        data_of(write_folder(tmp_path / "all", ARRAYS), f"data.test={folders[1]}")
