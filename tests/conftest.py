"""What the whole-program tests share: the program, places to run it in, a look into MLflow."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import absl.logging
import numpy as np
import pytest

# Hydra resets Python's logging, which closes all handlers; TensorFlow's, made while pytest has
# sys.stderr, would take pytest's own file with it.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__

REPO = Path(__file__).resolve().parent.parent
FOREIGN = ("MLFLOW_", "HYDRA_", "KERAS_", "TF_", "XDG_", "PYTHON", "WAYMARK_")

Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return an environment with an empty home and no settings of the user's."""
    home = tmp_path_factory.mktemp("home")
    own = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
    return {**own, "HOME": str(home), "PYTHONPATH": str(REPO)}


@pytest.fixture(scope="session")
def start(environment: dict[str, str]) -> Callable[..., "subprocess.Popen[str]"]:
    """Return what starts `waymark ...` in a folder, as a process of its own."""

    def start(*arguments: str, cwd: Path, **options: Any) -> "subprocess.Popen[str]":
        settings = {"env": environment, "text": True, "stdin": subprocess.DEVNULL, **options}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [sys.executable, "-m", "pipeline", *arguments]
        return subprocess.Popen(command, cwd=cwd, **{**pipes, **settings})

    return start


@pytest.fixture(scope="session")
def waymark(start: Callable[..., "subprocess.Popen[str]"]) -> Callable[..., Done]:
    """Return what runs `waymark ...` in a folder to its end."""

    def waymark(*arguments: str, cwd: Path, **options: Any) -> Done:
        with start(*arguments, cwd=cwd, **options) as process:
            try:
                out, err = process.communicate(timeout=120)
            finally:
                process.kill()
        return Done(arguments, process.returncode, out, err)

    return waymark


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Return what runs `waymark ...` in this process, whose TensorFlow has two threads."""
    from pipeline import __main__ as program

    def main(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["waymark", *arguments])
        monkeypatch.setattr(sys, "path", list(sys.path))
        capfd.readouterr()
        try:
            status = program.main()
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        return Done(arguments, status, *capfd.readouterr())

    return main


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an `mlruns` with a store and no run: making one takes seconds, copying it none."""
    from pipeline.tracking import Tracking

    folder = tmp_path_factory.mktemp("store") / "mlruns"
    Tracking(f"sqlite:///{folder}/mlflow.db", create=True)
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> Path:
    """Return the current folder of this test, with a store and no run in it."""
    shutil.copytree(empty_store, tmp_path / "mlruns")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def client() -> Callable[[Path], Any]:
    """Return what opens MLflow's client on the store of a folder."""
    from mlflow.tracking import MlflowClient

    return lambda folder: MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an npz of 200 and 60 noisy pictures, 8x8, of ten things: the CNN is quick on it."""
    rng = np.random.default_rng(4)
    things = rng.integers(0, 200, (10, 8, 8))
    labels = rng.permutation(np.arange(260) % 10)
    images = (things[labels] + rng.integers(0, 56, (260, 8, 8))).astype(np.uint8)
    path = tmp_path_factory.mktemp("data") / "small.npz"
    parts = {"x_train": images[:200], "y_train": labels[:200]}
    np.savez(path, **parts, x_test=images[200:], y_test=labels[200:])
    return path
