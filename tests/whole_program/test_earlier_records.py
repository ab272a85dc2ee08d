"""Runs that were recorded when the package was called `pipeline`: read, gone on with, repeated.

`recorded_runs.zip` holds what commit ef3a732 recorded of four runs (softmax and CNN, both formats;
90 images of 4x4, SGD, 12 steps), without the database and the pictures, and the data.
"""

import json
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from waymark import compare, evaluate, rerun, resume, run
from waymark.comparison.environment import NUMERICS_KEYS
from waymark.comparison.repository import CHECKOUT
from waymark.comparison.rerun_report import load
from waymark.config.old_names import CLASSES

REPO = Path(__file__).resolve().parents[2]
RUNS = ["softmax_ckpt", "softmax_npz", "cnn_ckpt", "cnn_npz"]

Done = subprocess.CompletedProcess[str]
Program = Callable[..., Done]


@pytest.fixture(scope="session")
def synced(shared_once: Callable[..., tuple[Path, Any]], waymark: Program) -> Path:
    """Return a folder with the data and the recorded runs, whose database `sync` has made."""

    def make(folder: Path) -> None:
        with zipfile.ZipFile(Path(__file__).with_name("recorded_runs.zip")) as archive:
            archive.extractall(folder)
        done = waymark("sync", cwd=folder)
        assert (done.returncode, done.stdout.count(": delivered")) == (0, 4), done

    return shared_once("earlier-records", make)[0]


@pytest.fixture
def folder(synced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the runs, to write into, the current folder."""
    place = Path(shutil.copytree(synced, tmp_path / "runs"))
    monkeypatch.chdir(place)
    return place


def check(report: Any) -> None:
    """The rerun is identical, or what differs names the processor or the build."""
    causes = {what.partition(".")[0] for what, *_ in report.differences}
    assert report.identical or causes & {*NUMERICS_KEYS, "packages"}, report


@pytest.mark.parametrize("name", RUNS)
def test_the_recorded_accuracy_is_restored(
    synced: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(synced)
    found = evaluate(name)
    run_id = found.source.split()[-1]
    (recorded,) = synced.glob(f"mlruns/artifacts/1/{run_id}/artifacts/evaluation/metrics.json")
    was = json.loads(recorded.read_text())
    assert (found.hits, found.accuracy) == (was["hits"], was["accuracy"])


@pytest.mark.parametrize("name", ["softmax_npz", "cnn_ckpt"])
def test_a_run_is_repeated_and_compared_and_goes_on(
    folder: Path, client: Callable[[Path], Any], name: str
) -> None:
    report = rerun(name, "run_name=new")
    check(report)
    code = next(row for row in report.differences if row[0] == "code")
    assert code[1:] == (["pipeline"], ["waymark"]), "one line, not one for each module"
    assert not compare(name, "new").keys
    forked = run("steps=14", "run_name=forked", fork=name)
    result = resume(name, "steps=14", allow_drift=True)
    assert result is not None
    assert result.state_digest == forked.state_digest
    losses = client(folder).get_metric_history(result.run_id, "train/loss")
    assert sorted(point.step for point in losses) == list(range(1, 15))


def test_the_recorded_commit_is_run_in_its_own_layout(
    folder: Path, waymark: Program, environment: dict[str, str], tmp_path: Path
) -> None:
    code = tmp_path / "code"
    cloned = ["git", "clone", "--quiet", "--no-local", f"file://{REPO}", str(code)]
    asked = ["git", "-C", str(code), "cat-file", "-e", "ef3a732^{commit}"]
    if subprocess.run(cloned).returncode or subprocess.run(asked).returncode:
        pytest.skip("this checkout's history does not go back to the recorded commit")
    options = ["--at-commit", "--trust-code", "--json", "progress=false"]
    done = waymark(
        "rerun", "softmax_ckpt", *options, cwd=folder, env={**environment, CHECKOUT: str(code)}
    )
    assert done.returncode in (0, 3), done
    report = load(done.stdout)
    check(report)
    assert not {"git_commit", "code"} & {what for what, *_ in report.differences}


def test_a_forged_record_finds_no_package_of_the_old_name(folder: Path, main: Program) -> None:
    package = folder / "pipeline"
    package.mkdir()
    (package / "__init__.py").write_text("open('imported', 'w')\n")
    (package / "evil.py").write_text("class Softmax:\n    initial = logits = print\n")
    for record in folder.glob("mlruns/artifacts/1/*/artifacts/config.yaml"):
        text = record.read_text()
        if "run_name: softmax_npz" in text:
            break
    record.write_text(text.replace("pipeline.models.softmax.Softmax", "pipeline.evil.Softmax"))
    assert record.read_text() != text
    for words in (
        "evaluate R",
        "resume R steps=14",
        "rerun R",
        "run --config-from R",
        "run --fork R",
    ):
        done = main(*words.replace("R", record.parent.parent.name).split())
        assert done.returncode == 2 and "pipeline.evil.Softmax" in done.stderr, done
        assert len(done.stderr.splitlines()) == 1, done
    assert not (folder / "imported").exists()


@pytest.mark.parametrize("way", ["the command line", "a YAML file"])
def test_an_old_name_is_refused_with_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, main: Program, way: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (old, new), *_ = CLASSES.items()
    if way == "the command line":
        done = main("run", f"model._target_={old}")
    else:
        (tmp_path / "own" / "model").mkdir(parents=True)
        (tmp_path / "own" / "model" / "mine.yaml").write_text(f"_target_: {old}\n")
        done = main("run", "--config-dir", "own", "model=mine", "optimizer.learning_rate=0.1")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done
    assert old in done.stderr and f"is now called {new}." in done.stderr
    assert not (tmp_path / "mlruns").exists()
