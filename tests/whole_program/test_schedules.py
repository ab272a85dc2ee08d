"""Schedules and averages through the program: recorded, killed, resumed, repeated, swept."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import yaml
from waymark import api
from waymark.errors import BadInput

from tests.support.ends import End, local_end
from tests.support.processes import THREADS, Main, killed_and_resumed

RATE = "train/learning_rate"
WORDS = ["steps=40", "save.every=10", "eval_every=10", "batch_size=8", THREADS, "progress=false"]
WORDS += ["optimizer.schedule=cosine", "optimizer.weight_decay=0.1", "optimizer.clipnorm=0.5"]


@pytest.fixture(scope="module")
def data(small: Path) -> list[str]:
    return ["data=arrays", f"data.path={small}"]


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, empty_store: Path, data: list[str]
) -> tuple[Path, str]:
    """Return the folder of a run that was killed and resumed, and its id."""
    folder = tmp_path_factory.mktemp("schedules")
    return folder, killed_and_resumed(folder, empty_store, [*WORDS, *data])


@pytest.fixture
def key(finished: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Return that run's id, its folder being the current one."""
    monkeypatch.chdir(finished[0])
    return finished[1]


def record(key: str) -> dict[str, Any]:
    (path,) = Path("mlruns/artifacts").glob(f"*/{key}/artifacts/config.yaml")
    return dict(yaml.safe_load(path.read_text()))


def test_killed_and_resumed_it_ends_as_undisturbed(
    finished: tuple[Path, str], undisturbed: Callable[..., End]
) -> None:
    assert local_end(*finished) == undisturbed(*WORDS)


def test_the_rate_is_recorded_at_each_evaluation(finished: tuple[Path, str], key: str) -> None:
    schedule = keras.optimizers.schedules.CosineDecay(1e-3, 40)
    points = local_end(*finished).points[RATE]
    assert [step for step, _ in points] == [10, 20, 30, 40]
    for step, rate in points:
        np.testing.assert_allclose(rate, schedule(step - 1), rtol=2e-6)
    settings = record(key)["optimizer"]
    assert settings["schedule"] == {"kind": "cosine", "decay_steps": 40, "alpha": 0.0}


def test_repeated_it_is_identical_and_compared_its_schedule_is_one_column(
    key: str, data: list[str]
) -> None:
    verdict = api.rerun(key, "progress=false")
    assert verdict.identical
    plain = api.run(*[word for word in WORDS if "schedule" not in word], *data)
    comparison = api.compare(key, verdict.run_id, plain.run_id)
    assert comparison.keys == ["optimizer.schedule"]
    assert {row.values["optimizer.schedule"] for row in comparison.rows} == {"cosine", "None"}
    assert not any(RATE in row.metrics for row in comparison.rows)


def test_a_resume_changes_no_schedule(key: str, main: Main, client: Callable[[Path], Any]) -> None:
    for given, said in (
        ("optimizer.schedule=exponential", "optimizer.schedule"),
        ("optimizer.schedule=null", "optimizer.schedule"),
        ("optimizer.schedule.alpha=0.5", "optimizer.schedule.alpha"),
        ("optimizer.weight_decay=null", "optimizer.weight_decay"),
    ):
        done = main("resume", key, given)
        assert done.returncode == 2, done
        assert done.stderr.startswith(f"waymark: {said}: cannot change in a recorded run (a fork ")
        command = shlex.split(done.stderr.partition("a new one: ")[2])
        assert command == ["waymark", "run", "--config-from", key, given]
    same = main("resume", key, "optimizer.schedule=cosine", "steps=45", "eval_every=5")
    assert same.returncode == 0, same
    points = {p.step: p.value for p in client(Path.cwd()).get_metric_history(key, RATE)}
    assert points[45] == 0  # its 40 steps are over
    assert record(key)["optimizer"]["schedule"]["decay_steps"] == 40


def test_the_configuration_of_a_run_with_another_schedule(key: str) -> None:
    new = {"optimizer.schedule=exponential": ("exponential", 5, 0.1),
           "optimizer.schedule.decay_steps=null": ("cosine", 5, 0.0),
           "optimizer.schedule=null": None}  # fmt: skip
    for given, expected in new.items():
        result = api.run(given, "steps=5", "save.every=5", config_from=key)
        schedule = record(result.run_id)["optimizer"]["schedule"]
        found = schedule and tuple(schedule.get(k) for k in ("kind", "decay_steps"))
        assert found == (expected and expected[:2])
        assert record(result.run_id)["optimizer"]["weight_decay"] == 0.1
    with pytest.raises(BadInput, match=r"^optimizer\.schedule=cosin: .*the nearest is cosine"):
        api.run("optimizer.schedule=cosin", config_from=key)


@pytest.mark.long
def test_schedules_are_swept(place: Path, data: list[str], client: Callable[[Path], Any]) -> None:
    choice = "optimizer.schedule=cosine,null"
    fixed = ["steps=4", "save.every=4", "eval_every=0", "batch_size=8", "progress=false", *data]
    with pytest.raises(BadInput, match=r"^optimizer\.schedule\.decay_steps: there is no schedule;"):
        api.sweep(choice, "optimizer.schedule.decay_steps=6", *fixed)
    found = api.sweep(choice, *fixed)
    assert {trial.name: trial.status for trial in found.trials} == {
        "schedule=cosine": "FINISHED",
        "schedule=none": "FINISHED",
    }
    varied = ["optimizer.schedule.alpha=0.0,0.5", "optimizer.schedule=cosine"]
    again = api.sweep(*varied, *fixed)
    runs = {trial.name: trial.run_id for trial in again.trials}
    assert set(runs) == {"schedule=cosine", "alpha=0.5"}
    first = next(t.run_id for t in found.trials if t.name == "schedule=cosine")
    assert runs["schedule=cosine"] == first  # it is finished, and not done again
    assert client(place).get_run(first).data.params["optimizer.schedule"] == "cosine"


def test_all_that_scores_takes_the_average(
    place: Path, data: list[str], client: Callable[[Path], Any]
) -> None:
    ema = ["optimizer=keras_sgd", "optimizer.use_ema=true", "optimizer.ema_momentum=0.9"]
    best = "save.keep_best={metric: test/loss, mode: min}"
    how = ["steps=30", "save.every=10", "eval_every=10", "batch_size=8", THREADS, "progress=false"]
    result = api.run(*ema, *data, *how, best, "optimizer.learning_rate=0.5")
    assert result.training == result.restored
    restored = api.evaluate(result.run_id)
    assert restored.metrics == result.restored
    assert api.evaluate(result.run_id, from_meta=True).accuracy == restored.accuracy
    points = {p.step: p.value for p in client(place).get_metric_history(result.run_id, "test/loss")}
    step = min(points, key=points.__getitem__)
    found = api.evaluate(result.run_id, step="best")
    assert (found.step, found.loss) == (step, points[step])
    raw = api.evaluate(None, *data, checkpoint=result.folder / "checkpoints" / "model_ckpt-30")
    assert raw.loss != restored.loss  # it names no optimizer: the parameters themselves
