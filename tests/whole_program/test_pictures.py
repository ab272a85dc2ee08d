"""Pictures of the user's own, through the whole program."""

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from waymark import api
from waymark.data import images

from tests.support import cifar
from tests.support.ends import local_end
from tests.support.pictures import CLASSES, write_folder
from tests.support.processes import THREADS, Done, Main, killed

SHORT = ["steps=40", "save.every=10", "eval_every=20", "batch_size=10", THREADS, "progress=false"]


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of this test's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    return tmp_path / "user" / "waymark"


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 60 pictures, as written: no test changes it."""
    return write_folder(tmp_path_factory.mktemp("pictures") / "pets", 20)


@pytest.mark.parametrize("save", ["npz", pytest.param("ckpt", marks=pytest.mark.long)])
def test_a_run_is_killed_resumed_repeated_and_evaluated(
    place: Path, pets: Path, main: Main, kept: Path, save: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["data=images", f"data.path={pets}", "data.size=[6,8]", "data.validation=0.2"]
    words += [*SHORT, f"save={save}"]
    done = main("run", *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1] == (
        "data         images: 6x8x3, 3 classes; 38 training, 10 validation, 12 test examples "
        "(data.test=0.2 by default); divided by 255"
    )
    whole = done.stdout.split()[1]
    folder = local_folder(place, whole)
    scores = json.loads((folder / "evaluation" / "metrics.json").read_text())
    assert scores["class_names"] == list(CLASSES) and scores["accuracy"] > 0.9
    assert (folder / "evaluation" / "confusion_matrix.png").exists()
    with monkeypatch.context() as patch:  # none of the rest decodes anything
        patch.setattr(images, "decode", lambda *_: pytest.fail("decodes"))
        begun = killed(20, *words)
        assert main("resume", begun).returncode == 0
        assert not local_end(place, begun).unlike(local_end(place, whole))
        done = main("rerun", whole)
        assert done.returncode == 0 and "identical" in done.stdout
        scored = json.loads(main("evaluate", whole, "--json").stdout)
        assert scored["accuracy"] == scores["accuracy"]
    # Without a cache, and elsewhere, the bits are the same.
    moved = shutil.copytree(pets, place / "moved")
    assert main("data", "--clear-cache").returncode == 0 and not kept.exists()
    elsewhere = [f"data.path={moved}", f"data.cache={place}/other"]
    done = main("rerun", whole, *elsewhere)
    assert done.returncode == 0 and "identical" in done.stdout
    assert main("resume", whole, *elsewhere, "steps=41").returncode == 0
    refused = main("resume", whole, "data.size=[8,6]")
    assert refused.returncode == 2 and "data.size: cannot change" in refused.stderr
    Image.new("RGB", (12, 9)).save(moved / "owl" / "000.png")
    for command in ("resume", "evaluate"):
        refused = main(command, whole, *elsewhere)
        assert refused.returncode == 2
        assert "moved (read by Pillow" in refused.stderr and "is not the data" in refused.stderr


def local_folder(place: Path, run_id: str) -> Path:
    (found,) = place.glob(f"mlruns/artifacts/*/{run_id}/artifacts")
    return found


@pytest.mark.long
def test_a_sweep_selects_on_the_folder_of_validation_pictures(
    place: Path, pets: Path, main: Main
) -> None:
    for part, seed in (("train", 1), ("val", 2), ("test", 3)):
        write_folder(place / "sets" / part, 5, seed)
    words = ["data=images", f"data.path={place}/sets", "data.size=8", *SHORT, "save=npz"]
    done = main("run", "-m", *words, "data.cache=first", "seed=0,1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "val/accuracy" in done.stdout and "2 finished; 2 new" in done.stdout
    again = main("run", "-m", *words, "data.cache=other", "seed=0,1")
    assert again.returncode == 0 and "2 finished\n" in again.stdout


def test_what_would_be_read_is_shown(place: Path, pets: Path, main: Main, kept: Path) -> None:
    duplicate = place / "pets"
    shutil.copytree(pets, duplicate)
    for name in ("a.png", "b.png", "c.png", "d.png", "e.png"):
        shutil.copy(duplicate / "cat" / "000.png", duplicate / "cat" / name)
    words = ["data", "data=images", f"data.path={duplicate}", "data.size=[9,12]"]
    words += ["data.split=ordered", "data.test=15"]
    shown = main(*words, "--pictures", "sheet.png")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert f"images from {duplicate} (read by Pillow " in shown.stdout
    size = sum(path.stat().st_size for path in kept.iterdir())
    found = json.loads(main(*words, "--json").stdout)
    assert (found["cache"], found["cached_bytes"]) == (str(kept), size)
    assert f"{size / 1000:#.4g} kB in the cache {kept}" in shown.stdout
    assert found["parts"]["train"]["classes"] == {"cat": 25, "dog": 20, "owl": 5}
    assert [each["in_train"] for each in found["parts"].values()] == [50, 0]
    with Image.open("sheet.png") as sheet:
        assert sheet.size[0] > sheet.size[1] > 100
    cleared = main("data", "--clear-cache")
    assert cleared.stdout == f"removed {size / 1000:#.4g} kB from {kept}\n"
    assert main("data", "--clear-cache").stdout == f"removed 0 bytes from {kept}\n"


def test_a_cache_elsewhere_is_cleared_by_its_name(place: Path, pets: Path, main: Main) -> None:
    words = ["data=images", f"data.path={pets}", "data.size=4", "data.cache=mine"]
    for given in (words, ["data.cache=mine"]):
        assert main("data", *words).returncode == 0 and list(place.glob("mine/*.npy"))
        assert main("data", *given, "--clear-cache").stdout.endswith(" from mine\n")
        assert not (place / "mine").exists()
    refused = main("data", "--clear-cache", "--json")
    assert refused.returncode == 2 and "--clear-cache: reads no data" in refused.stderr


def test_a_contact_sheet_shows_the_pictures(place: Path, main: Main) -> None:
    """Of one colour each, so that the sheet's colours tell which stand where."""
    colours = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
    for name, colour in colours.items():
        (place / "flags" / name).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (8, 8), colour).save(place / "flags" / name / f"{number}.png")
    words = ["data=images", "data.path=flags", "data.size=8", "data.test=3"]
    assert main("data", *words, "--pictures", "sheet.png").returncode == 0
    sheet = np.asarray(Image.open("sheet.png").convert("RGB"))
    for row, colour in enumerate(colours.values()):
        band = sheet[len(sheet) * row // 3 : len(sheet) * (row + 1) // 3].reshape(-1, 3)
        shares = {each: (band == each).all(1).mean() for each in colours.values()}
        assert shares[colour] > 0.4 and sum(shares.values()) == shares[colour]
    np.savez("table.npz", x_train=np.zeros((9, 4)), y_train=np.arange(9) % 3)
    for given, said in (
        (
            ["data=arrays", "data.path=table.npz", "data.test=3"],
            "arrays: has features of shape [4]",
        ),
        (words, "/dev/null/sheet.png cannot be written: Not a directory."),
    ):
        refused = main("data", *given, "--pictures", "/dev/null/sheet.png")
        assert refused.returncode == 2 and said in refused.stderr


@pytest.mark.parametrize("progress", ["auto", "false"])
def test_a_terminal_gets_a_bar(
    place: Path, pets: Path, environment: dict[str, str], progress: str
) -> None:
    ours, theirs = pty.openpty()
    words = ["data=images", f"data.path={pets}", "data.size=8", f"progress={progress}"]
    done = subprocess.run(
        [sys.executable, "-m", "waymark", "data", *words],
        env={**environment, "TERM": "xterm", "COLUMNS": "80"},
        stdout=subprocess.PIPE, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    drawn = b""
    while True:
        try:
            drawn += os.read(ours, 10_000)
        except OSError:  # as Linux says that nobody has the other end
            break
    os.close(ours)
    assert done.returncode == 0
    assert (b"decoding" in drawn and b"60/60" in drawn) == (progress == "auto")
    assert progress == "auto" or drawn == b""


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a file": (
        lambda pets: (pets / "cat" / "x.txt").touch(), "cat/x.txt (it is not a picture file)"
    ),
    "a class": (lambda pets: (pets / "ant").mkdir(), "pets/ant: a class needs a picture."),
    "a folder": (shutil.rmtree, "pets is not a readable folder: No such file or directory."),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_wrong_is_one_sentence_before_a_run_is_made(
    place: Path, pets: Path, main: Main, what: str
) -> None:
    folder = Path(shutil.copytree(pets, place / "pets"))
    change, said = REFUSED[what]
    change(folder)
    words = ["data=images", f"data.path={folder}", "data.size=8", *SHORT]
    done: Done = main("run", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("waymark: ") and said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(place.glob("mlruns/artifacts/*/*"))


def test_cifar_is_trained_on(place: Path, main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cifar.write(place / "cifar-10-batches-py", cifar.cifar10())
    cifar.published(monkeypatch, folder)
    words = ["data=cifar10", f"data.path={folder}", *SHORT, "save=npz"]
    done = main("run", *words)
    assert (done.returncode, done.stderr) == (0, "")
    whole = done.stdout.split()[1]
    scores = json.loads((local_folder(place, whole) / "evaluation" / "metrics.json").read_text())
    assert scores["class_names"] == cifar.NAMES
    packed = cifar.archive(place / "packed.tar.gz", folder)
    scored = json.loads(main("evaluate", whole, f"data.path={packed}", "--json").stdout)
    assert scored["accuracy"] == scores["accuracy"]
    summary = api.describe_data(*words[:2])
    assert summary.parts["train"].in_train == 100 and summary.parts["test"].in_train == 0


@pytest.mark.long
@pytest.mark.parametrize("save", ["npz", "ckpt"])
@pytest.mark.parametrize("data", ["cifar10", "cifar100"])
def test_cifar_is_resumed_and_repeated(
    place: Path, main: Main, monkeypatch: pytest.MonkeyPatch, data: str, save: str
) -> None:
    name = "cifar-10-batches-py" if data == "cifar10" else "cifar-100-python"
    folder = cifar.write(place / name, getattr(cifar, data)())
    cifar.published(monkeypatch, folder)
    words = [f"data={data}", f"data.path={folder}", *SHORT, f"save={save}"]
    whole = main("run", *words).stdout.split()[1]
    begun = killed(20, *words)
    packed = cifar.archive(place / "packed.tar.gz", folder)
    assert main("resume", begun, f"data.path={packed}").returncode == 0
    assert not local_end(place, begun).unlike(local_end(place, whole))
    done = main("rerun", whole)
    assert done.returncode == 0 and "identical" in done.stdout
    if data == "cifar100":
        refused = main("resume", whole, "data.labels=coarse")
        assert refused.returncode == 2 and "data.labels: cannot change" in refused.stderr
