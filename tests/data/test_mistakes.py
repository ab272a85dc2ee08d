"""What looks like a mistake in data of one's own is refused, or said in the run's first lines."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waymark.api import describe_data
from waymark.config.compose import compose_config
from waymark.data import splits
from waymark.data.dataset import Dataset
from waymark.errors import BadInput
from waymark.tasks.metrics import judged_by

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3)).astype(np.float32)
Y = np.repeat(np.arange(3), 20)
NAMES = np.array(["ant", "bee", "cat"])


def load(folder: Path, *words: str, **arrays: np.ndarray) -> Dataset:
    path = folder / f"{len(list(folder.iterdir()))}.npz"
    np.savez(path, **{"x_train": X, "y_train": Y, **arrays})  # type: ignore[arg-type]
    config = compose_config(["data=arrays", f"data.path={path}", *words]).config
    return splits.load(config.data, config.task)


def test_the_same_numbers_of_other_classes_are_other_data(tmp_path: Path) -> None:
    numbers = load(tmp_path)
    named, again = (load(tmp_path, y_train=NAMES[Y]) for _ in range(2))
    renamed = load(tmp_path, y_train=np.array(["A", "B", "C"])[Y])
    assert named.digest == again.digest
    assert len({each.digest for each in (numbers, named, renamed)}) == 3
    assert all(np.array_equal(each.y_train, numbers.y_train) for each in (named, renamed))


@pytest.mark.parametrize(
    ("words", "more"),
    [
        (["data.split=ordered", "data.test=20"], {}),
        (["data.group=patient", "data.test=20"], {"patient": Y}),
    ],
)
def test_a_class_that_nothing_would_be_left_of_is_refused(
    tmp_path: Path, words: list[str], more: dict[str, np.ndarray]
) -> None:
    with pytest.raises(BadInput, match=r"all 20 examples of class \w+ would be held out"):
        load(tmp_path, *words, **more, y_train=NAMES[Y])


def test_classes_without_a_training_example_are_told(tmp_path: Path) -> None:
    gaps = load(tmp_path, y_train=Y * 10)
    assert gaps.spec.outputs == 21
    assert "no training example has class 1, 2, 3, ... (18 of 21 classes)" in gaps.summary
    assert "no training example" not in load(tmp_path).summary


def test_entries_that_are_not_read_are_told(tmp_path: Path) -> None:
    found = load(tmp_path, sample_weights=np.ones(60), x_valid=X, patient=Y)
    assert found.summary.endswith("; not read: patient, sample_weights, x_valid")
    other = tmp_path / "test.npz"
    np.savez(other, x_test=X, y_test=Y, x_val=X)
    assert load(tmp_path, f"data.test={other}").summary.endswith("; not read: x_val")


def test_a_one_hot_label_tells_how_many_classes_there_are(tmp_path: Path) -> None:
    eye = np.eye(5, dtype=int)[Y]
    assert load(tmp_path, y_train=eye).spec.outputs == 5
    with pytest.raises(BadInput, match="columns for y_train 5 and y_test 4 classes"):
        load(tmp_path, y_train=eye, x_test=X, y_test=np.eye(4)[Y])


@pytest.mark.parametrize("found", [{}, {"cost": len}, None])
def test_a_task_that_measures_nothing_is_refused(found: Any) -> None:
    class Task:
        def metrics(self) -> Any:
            return found

    with pytest.raises(BadInput, match=r"Task.metrics\(\).* must return a mapping"):
        judged_by(Task())


def test_metrics_are_checked_before_data_are_described() -> None:
    with pytest.raises(BadInput, match="metrics='r2': there is no such metric"):
        describe_data("metrics=[r2]")


class Loads:
    sampling = "epoch"

    def load(self) -> Any:
        return None


class Prepares:
    def prepare(self, data: Dataset) -> Any:
        return data.name


def test_what_is_no_data_set_is_refused_by_who_made_it(tmp_path: Path) -> None:
    task = compose_config([]).config.task
    with pytest.raises(BadInput, match=r"Loads.load\(\).*must return .*Dataset; it returns NoneTy"):
        splits.load(Loads(), task)
    loader = compose_config([]).config.data
    with pytest.raises(BadInput, match=r"Prepares.prepare\(\).* it returns str"):
        splits.load(loader, Prepares())
