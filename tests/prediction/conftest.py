"""Trained runs that the tests of predictions share: one for each kind of data and task."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waymark.api import run

from tests.support import pictures
from tests.support.data import pictures as digits
from tests.support.data import write_folder as write_arrays
from tests.support.tables import cars, with_gaps, written

SHORT = ["steps=6", "save=npz", "save.every=3", "eval_every=0", "batch_size=50"]
SHORT += ["progress=false", "runtime.intra_op_threads=2"]
COUNT = 620  # of test examples: three batches, the last of which is not whole


def arrays(folder: Path, **changed: np.ndarray) -> str:
    """Write digits as npz and folder, with other labels if so asked; return the npz's override."""
    found = {**digits(100, COUNT), **changed}
    np.savez(folder / "data.npz", **found)
    write_arrays(folder / "data", {name: found[name] for name in ("x_test", "y_test")})
    return "data=arrays data.path=data.npz"


def labelled(labels: Callable[[np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
    """Return other labels of the digits, by what they are of."""
    found = digits(100, COUNT)
    return {name: labels(found[name]) for name in ("y_train", "y_test")}


def table(folder: Path) -> str:
    """Write a table with gaps and categories as CSV and as Parquet; return how it is read."""
    frame = with_gaps(cars(100 + COUNT)).drop(columns="wheels")
    written(folder / "train.csv", frame[:100])
    written(folder / "test.csv", frame[100:])
    written(folder / "test.parquet", frame[100:])
    reads = "data=table data.path=train.csv data.test=test.csv data.target=price"
    return f"{reads} data.categories=[doors] data.missing=median data.unknown=column"


def pets(folder: Path) -> str:
    """Write folders of pictures; return how they are read."""
    pictures.write_folder(folder / "pets" / "train", 20)
    pictures.write_folder(folder / "pets" / "test", COUNT // 3, seed=1)
    return "data=images data.path=pets data.size=[9,12] data.cache=cache"


def bits(y: np.ndarray) -> np.ndarray:
    """Return the binary digits of labels, uint8 [N, 4]."""
    return (y[:, None] >> np.arange(4) & 1).astype(np.uint8)


RUNS: dict[str, Callable[[Path], str]] = {
    "cnn": lambda folder: f"model=cnn {arrays(folder)}",
    "texts": lambda folder: (
        "model=softmax optimizer=adamw optimizer.use_ema=true "
        + arrays(folder, **labelled(lambda y: np.array(list("jihgfedcba"))[y]))
    ),
    "table": lambda folder: f"model=softmax {table(folder)}",
    "pictures": lambda folder: f"model=softmax {pets(folder)}",
    "multilabel": lambda folder: f"model=linear task=multilabel {arrays(folder, **labelled(bits))}",
    "regression": lambda folder: (
        f"model=linear task=regression {arrays(folder, **labelled(lambda y: y / 2))}"
    ),
}


@pytest.fixture(scope="session")
def trained(
    shared_once: Callable[..., tuple[Path, Any]], empty_store: Path
) -> Callable[[str], tuple[Path, str]]:
    """Return what trains one of RUNS, once: the folder, with the data, and the run's id."""

    def trained(name: str) -> tuple[Path, str]:
        def make(folder: Path) -> str:
            shutil.copytree(empty_store, folder / "mlruns")
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                patch.delenv("MLFLOW_TRACKING_URI", raising=False)
                return run(*RUNS[name](folder).split(), *SHORT).run_id

        return shared_once(f"predict-{name}", make)

    return trained


@pytest.fixture
def within(
    trained: Callable[[str], tuple[Path, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str], str]:
    """Return what makes the folder of a run the current one, as a copy; it returns the run's id."""

    def within(name: str) -> str:
        folder, run_id = trained(name)
        shutil.copytree(folder, tmp_path / name)
        monkeypatch.chdir(tmp_path / name)
        return run_id

    return within
