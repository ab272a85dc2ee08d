"""What is no input of a run is refused in one sentence, and nothing is written."""

import io
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from waymark.api import predict
from waymark.data.dataset import Dataset
from waymark.errors import BadInput
from waymark.prediction import inputs
from waymark.prediction.arrays import Arrays

X = np.zeros((3, 8, 8), np.uint8)
GOOD = ["size,colour,sold,doors,id", "1.5,red,True,2,7"]


def npz(**arrays: np.ndarray) -> str:
    np.savez("bad.npz", **arrays)
    return "bad.npz"


def npy(shape: tuple[int, ...], content: bytes = b"", dtype: str = "|u1") -> str:
    """Write a folder with an npy file whose header promises a shape."""
    file = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return text("bad/x_test.npy", file.getvalue() + content)[:3]


def text(path: str, content: str | bytes) -> str:
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(*rows: str) -> str:
    return text("bad.csv", "\n".join(rows) + "\n")


def png(path: str) -> str:
    Image.new("RGB", (12, 9)).save(path)
    return path


def short_member() -> str:
    """Write an npz whose directory promises more of an entry than there is."""
    np.savez("bad.npz", x_test=np.zeros((300, 8, 8), np.uint8))
    content = bytearray(Path("bad.npz").read_bytes())
    content[2000] ^= 1  # its checksum is another one now
    return text("bad.npz", bytes(content))


def commented() -> str:
    with zipfile.ZipFile("bad.npz", "w") as archive:
        info = zipfile.ZipInfo("x_test.npy")
        info.comment = b"hidden"
        archive.writestr(info, b"")
    return "bad.npz"


def files() -> dict[str, int]:
    """Return when each file of this folder was last written."""
    return {path.name: path.stat().st_mtime_ns for path in Path().glob("*") if path.is_file()}


def fifo() -> str:
    os.mkfifo("pipe.csv")
    return "pipe.csv"


# The run, what is asked about, other arguments, and what is said.
Case = tuple[str, Callable[[], Any], dict[str, Any], str]
ARRAYS: list[Case] = [
    (
        "cnn",
        lambda: npz(x_test=X[:, :7]),
        {},
        r"x_test is uint8\[3, 7, 8\]; .* uint8\[N, 8, 8, 1\]",
    ),
    ("cnn", lambda: npz(x_test=X.astype(np.float32)), {}, r"x_test is float32\[3, 8, 8\]"),
    ("cnn", lambda: npz(x_test=X.astype(np.int64)), {}, r"x_test is int64"),
    ("cnn", lambda: npz(x_test=np.array(3)), {}, r"x_test is int64\[\]"),
    ("cnn", lambda: npz(x_test=X[:0]), {}, "x_test has no example"),
    ("cnn", lambda: npz(x_test=np.array([{}, 1, 2], object)), {}, "pickled objects"),
    ("cnn", lambda: npz(), {}, "holds nothing"),
    ("cnn", lambda: npz(x_test=X, y_test=np.zeros(4)), {}, r"y_test is \[4\], for 3 examples"),
    ("cnn", lambda: npz(x_test=X, y_test=np.zeros(3)), {}, "y_test has dtype float64"),
    (
        "cnn",
        lambda: npz(x_test=X, y_test=np.array([1, 2, 10])),
        {},
        "y_test has the label 10 in row 2; .* 10 classes, 0 to 9",
    ),
    ("cnn", lambda: npz(x=X, y=np.array([1, -2, 3])), {}, ": y has the label -2 in row 1"),
    ("cnn", lambda: npz(x=X, y=np.eye(3, 11)[:, ::-1]), {}, ": y has the label 10 in row 0"),
    ("cnn", lambda: npz(x=X, y=np.zeros(3)), {}, ": y has dtype float64"),
    (
        "cnn",
        lambda: npz(x_test=X, y_test=np.array(["a"] * 3)),
        {},
        "label 'a' in row 0 is not a class",
    ),
    ("cnn", lambda: npy((10**9, 8, 8)), {}, "promises 64,000,000,000 bytes and holds 0"),
    ("cnn", lambda: npy((2, 8, 8), b"0" * 129), {}, "promises 128 bytes and holds 129"),
    ("cnn", lambda: npy((1, 8, 8), b"0" * 64, "|O"), {}, "pickled objects"),
    ("cnn", lambda: text("bad.npz", b"no zip"), {}, "not a readable npz file"),
    ("cnn", lambda: text("bad.npz", b"PK\x03\x04cut"), {}, "npz file: it is cut short"),
    ("cnn", short_member, {}, "Bad CRC-32"),
    ("cnn", commented, {}, "bears a comment"),
    ("cnn", lambda: "test.csv", {}, "test.csv cannot be read: No such file"),
    ("cnn", lambda: lines(*GOOD), {}, r"a CSV or Parquet file; the run's model takes uint8\[N"),
    ("cnn", lambda: ["data.npz", "data"], {}, "data: of several inputs, all must be pictures"),
    ("cnn", lambda: ["data.npz", text("a.png", "")], {}, "a.png pictures; allowed .* one kind"),
    ("cnn", lambda: [], {}, "give an INPUT"),
    ("cnn", fifo, {}, "neither a file nor a folder"),
    ("cnn", lambda: "data.npz", {"top": 11}, "--top 11: the run has 10 classes"),
    ("cnn", lambda: "data.npz", {"top": 0}, "--top 0"),
    ("cnn", lambda: "data.npz", {"resize": True}, "--resize: is for pictures"),
    ("cnn", lambda: "data.npz", {"invert": True}, "--invert: is for pictures"),
    ("cnn", lambda: "data.npz", {"output": "a.txt"}, r"-o a.txt: must end in .csv, .parquet, .npz"),
    ("cnn", lambda: "data.npz", {"output": "no/a.csv"}, "there is no folder no"),
    ("cnn", lambda: "data.npz", {"output": "data.npz"}, "-o data.npz: is one of the inputs"),
    ("cnn", lambda: "data.npz", {"errors": "a.jpg"}, "--errors a.jpg: must end in .png"),
    ("cnn", lambda: npz(x=X), {"errors": "a.png"}, "--errors: labels are not known"),
    ("cnn", lambda: "data.npz", {"step": "4"}, r"--step=4: run \w+ has the checkpoints \[3, 6\]"),
    ("regression", lambda: "data.npz", {"top": 1}, "--top 1: is for task=classification"),
    ("regression", lambda: "data.npz", {"errors": "a.png"}, "of task=classification alone"),
    ("regression", lambda: npz(x_test=X, y_test=np.zeros((3, 2))), {}, "has 2 targets, .* 1"),
]
MULTILABEL: list[Case] = [
    ("multilabel", lambda: npz(x_test=X, y_test=np.zeros((3, 3))), {}, "has 3 labels, .* 4"),
]
TABLES: list[Case] = [
    ("table", lambda: "train.csv", {"errors": "a.png"}, "drawn are pictures"),
    ("table", lambda: npz(x_test=X), {}, "takes the columns of a table"),
    ("table", lambda: lines("size,colour,sold,doors", "1,red,True,2"), {}, "no column 'id'"),
    ("table", lambda: lines("size,colour,sold,door,id", "1,r,True,2,1"), {}, "'doors'.*nearest is"),
    ("table", lambda: lines(GOOD[0], "big,red,True,2,7"), {}, "'size' has 'big' in row 0.*number"),
    ("table", lambda: lines(*GOOD, "inf,red,True,2,7"), {}, "'size' has inf in row 1.* not finite"),
    ("table", lambda: lines(*GOOD, "1e99,red,True,2,7"), {}, "'size' has 1e.99 in row 1"),
    ("table", lambda: lines(*GOOD, "1,red,7,2,7"), {}, "'sold' has '?7'? in row 1.* a boolean"),
    ("table", lambda: lines(*GOOD[:1]), {}, "has no rows"),
    ("table", lambda: lines("size,size", "1,2"), {}, "two columns are named 'size'"),
    ("table", lambda: lines(*GOOD, "1,red,True,2,7,8,9"), {}, "not a readable CSV"),
    ("table", lambda: lines(f"{GOOD[0]},price", f"{GOOD[1]},"), {}, "'price', .* row 0"),
    ("table", lambda: lines(f"{GOOD[0]},price", f"{GOOD[1]},so"), {}, "label 'so' in row 0"),
    ("table", lambda: text("bad.csv", b"a,b\n\xff\xfe,1\n"), {}, "not a readable CSV"),
    ("table", lambda: text("bad.csv", b"a\0b,c\n"), {}, "zero byte"),
    ("table", lambda: text("bad.csv", ""), {}, "bad.csv is empty"),
    ("table", lambda: text("bad.parquet", b"PAR1"), {}, "not a readable CSV or Parquet"),
]
PICTURES: list[Case] = [
    ("pictures", lambda: npz(x_test=X), {}, r"takes uint8\[N, 9, 12, 3\]"),
    ("pictures", lambda: Path("new").mkdir() or "new", {}, "new holds no picture"),
    ("pictures", lambda: "pets", {}, "pets holds no picture, nor does a folder in it"),
    ("pictures", lambda: "pets/test/cat", {"errors": "a.png"}, "labels are not known"),
    ("pictures", lambda: png("a.png"), {"errors": "a.png"}, "--errors a.png: is one of the in"),
    (
        "pictures",
        lambda: [Path(png("pets/test/cat/new.png")).parent.parent],
        {"errors": "pets/test/cat/new.png"},
        "is a file in the folder .*pets/test, an input",
    ),
    ("pictures", lambda: "none.png", {}, "none.png cannot be read"),
    ("table", lambda: text("a.png", ""), {}, "a.png is pictures; .* the columns of a table"),
]


@pytest.mark.parametrize(
    "cases",
    [ARRAYS, TABLES, PICTURES, pytest.param(MULTILABEL, marks=pytest.mark.long)],
    ids=["arrays", "tables", "pictures", "multilabel"],
)
def test_what_is_no_input_is_refused(
    cases: list[Case], within: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_ids: dict[str, str] = {}
    for name, make, options, words in cases:
        if name not in run_ids:
            run_ids[name] = within(name)
        monkeypatch.chdir(tmp_path / name)
        shutil.rmtree("bad", ignore_errors=True)
        Path("bad.npz").unlink(missing_ok=True)
        given = make()
        before = files()
        with pytest.raises(BadInput, match=words) as refused:
            predict(run_ids[name], given, **{"output": "found.csv", **options})
        assert "\n" not in str(refused.value)
        assert files() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to(within: Callable[[str], str]) -> None:
    run_id = within("cnn")
    Path("closed").mkdir(mode=0o500)
    with pytest.raises(BadInput, match="the folder closed cannot be written to"):
        predict(run_id, "data.npz", output="closed/a.csv")


def test_floats_that_are_not_finite(within: Callable[[str], str]) -> None:
    """They are told by their row, in whichever part it is."""
    values = np.zeros((700, 3))
    form = Dataset("form", "", np.zeros((1, 3), np.float32), np.zeros(1))
    within("cnn")
    for wrong in (np.nan, np.inf, 1e300):
        values[600, 1] = wrong
        np.savez("bad.npz", x=values)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(BadInput, match=r"in row 600 "):
            patch.setattr(inputs, "PART_BYTES", 1)
            list(Arrays(Path("bad.npz"), form).parts())


@pytest.mark.long
def test_memory_does_not_grow_with_the_input(within: Callable[[str], str]) -> None:
    """A file of 1.3 GB, most of it a hole on the disk, is predicted in far less memory."""
    run_id = within("texts")
    big = np.lib.format.open_memmap("big.npy", "w+", np.uint8, (20_000_000, 8, 8))
    big[-1] = 1
    del big
    program = (
        "import threading, psutil\n"
        "from waymark import predict\n"
        "over, most, me = threading.Event(), [0], psutil.Process()\n"
        "def watch():  # what is mapped of the file is no memory of the process's own\n"
        "    while not over.wait(0.02):\n"
        "        now = me.memory_info()\n"
        "        most.append(now.rss - now.shared)\n"
        "watching = threading.Thread(target=watch)\n"
        "watching.start()\n"
        f"found = predict({run_id!r}, 'big.npy', output='found.npz', top=1)\n"
        "over.set()\n"
        "watching.join()\n"
        "print(found.total, max(most) // 2**20)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    total, most = map(int, done.stdout.splitlines()[-1].split())
    assert (total, most < 1200) == (20_000_000, True), done
