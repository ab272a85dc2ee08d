"""Resuming: in any pieces, after any kill, the same bits, and every step recorded once."""

import json
import random
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mlflow.tracking import MlflowClient
from waymark.checkpoints import SaveFormat, store
from waymark.checkpoints.ckpt import Ckpt
from waymark.checkpoints.npz import Npz
from waymark.checkpoints.store import CheckpointStore
from waymark.config.compose import compose_config
from waymark.digest import digest
from waymark.errors import Failed
from waymark.evaluation.restore import load_data
from waymark.execution import execute
from waymark.processes.signals import Interrupted
from waymark.tracking.active_run import ActiveRun
from waymark.training.loop import Trainer
from waymark.training.runtime import start_tensorflow

from tests.support.ends import End, local_end
from tests.support.processes import (
    BOUND,
    THREADS,
    Killed,
    Main,
    StopAt,
    end_sending,
    kept_checkpoints,
)

BASE = ["batch_size=10", "save.max_to_keep=3", "save.keep_every_n_hours=null", THREADS]
SOFTMAX = [*BASE, "save=ckpt", "steps=4000", "save.every=100", "eval_every=250"]
CNN = [*BASE, "save=npz", "steps=300", "save.every=15", "eval_every=30"]
CNN += ["model=cnn", "model.keep_prob=0.5"]
RUNS = {"softmax": SOFTMAX, "cnn": CNN}


@pytest.fixture(scope="module")
def data(small: Path) -> list[str]:
    return ["data=arrays", f"data.path={small}"]


@pytest.mark.parametrize("model", ["softmax", pytest.param("cnn", marks=pytest.mark.long)])
def test_the_machine_in_pieces_of_any_sizes(model: str, data: list[str]) -> None:
    start_tensorflow(2)
    config = compose_config([*RUNS[model], *data]).config
    dataset, total = load_data(config), 60
    whole = Trainer(config, dataset)
    losses = whole.run_steps(total)
    draw = random.Random(f"{model}'s pieces")
    for _ in range(3):
        cuts = sorted(draw.sample(range(1, total), draw.randint(1, 8)))
        pieces, state = [], None
        for first, last in zip([0, *cuts], [*cuts, total], strict=True):
            trainer = Trainer(config, dataset)
            if state is not None:
                trainer.load(state)
            assert trainer.step == first
            pieces.append(trainer.run_steps(last - first))
            state = trainer.state()
        assert state is not None
        assert digest(state) == digest(whole.state())
        np.testing.assert_array_equal(np.concatenate(pieces), losses)


@pytest.mark.parametrize("model", ["softmax", pytest.param("cnn", marks=pytest.mark.long)])
def test_the_program_in_pieces_of_any_sizes(
    model: str,
    place: Path,
    data: list[str],
    undisturbed: Callable[..., End],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short = {"softmax": ["steps=400", "eval_every=150"], "cnn": ["steps=90", "eval_every=40"]}[
        model
    ]
    # All are kept, so that a resume point that stayed would be seen.
    overrides = [*RUNS[model], *short, "save.every=25", "save.max_to_keep=0"]
    expected = undisturbed(*overrides)
    draw, total = random.Random(f"{model}'s stops"), int(short[0].partition("=")[2])
    resolved = compose_config([*overrides, *data])
    run_id, stops = "", sorted(draw.sample(range(1, total - 40), 3))
    for target in stops:
        stop = StopAt(target)
        monkeypatch.setattr("waymark.execution.execute.make_progress", lambda *_, stop=stop: stop)
        with pytest.raises(Interrupted):
            execute.resume("latest", {}) if run_id else execute.run(resolved)
        (folder,) = place.glob("mlruns/artifacts/1/*")
        run_id = folder.name
        now = local_end(place, run_id)
        assert now.status == "KILLED"
        losses = now.points["train/loss"]
        assert target <= len(losses) < total
        assert losses == expected.points["train/loss"][: len(losses)]
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert execute.resume(run_id, {"progress": False}) is not None
    assert local_end(place, run_id) == expected


def killed(
    start: Callable[..., "subprocess.Popen[str]"],
    folder: Path,
    *arguments: str,
    lines: int,
    wait: float,
) -> str:
    """Start the program, kill it some time after so many lines; return its run's id."""
    with start(*arguments, cwd=folder) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        found = filter(lambda line: line.startswith("Step: "), process.stdout)
        assert len(list(islice(found, lines))) == lines
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate(timeout=BOUND)
    assert process.returncode == -signal.SIGKILL
    return first.split()[1]


@pytest.mark.parametrize("model", ["softmax", pytest.param("cnn", marks=pytest.mark.long)])
def test_killed_at_any_moment_and_resumed(
    model: str,
    place: Path,
    start: Callable[..., "subprocess.Popen[str]"],
    data: list[str],
    undisturbed: Callable[..., End],
    main: Main,
    seed: int,
) -> None:
    """Kill a run twice, the second time while it is being resumed."""
    # Far less than what is left of the run, and other moments for every seed.
    draw = random.Random(f"{model} {seed}")
    waits = [draw.uniform(0, 0.1) for _ in range(2)]
    print("seconds after the line:", waits)
    run_id = killed(start, place, "run", *RUNS[model], *data, lines=1, wait=waits[0])
    assert killed(start, place, "resume", run_id, lines=1, wait=waits[1]) == run_id
    done = main("resume", run_id)
    assert done.returncode == 0, done
    assert local_end(place, run_id) == undisturbed(*RUNS[model])


SHORT = [*BASE, "steps=40", "save.every=10", "eval_every=20"]


def after(real: Any, count: int, half: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Return what dies at a later call instead of doing it, or after doing a part of it."""
    calls: list[int] = []

    def dying(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == count:
            if half:
                half(*arguments, **named)
            raise Killed
        return real(*arguments, **named)

    return dying


def torn_payload(save: Any, path: Path, state: Any) -> None:
    for file in type(save).real_write(save, path, state):
        file.write_bytes(file.read_bytes()[:100])


def manifest_alone(checkpoints: CheckpointStore, step: int) -> None:
    checkpoints.path(step).with_suffix(".json").unlink()


POINTS: dict[str, tuple[Any, str, int, Any]] = {
    "before the first checkpoint": (Trainer, "run_steps", 2, None),
    "in training": (Trainer, "run_steps", 5, None),
    "inside a save": (SaveFormat, "write", 2, torn_payload),
    "between payload and manifest": (store, "replace_file", 2, None),
    "between manifest and state file": (CheckpointStore, "_retain", 3, None),
    "inside retention": (CheckpointStore, "_remove", 1, manifest_alone),
    "after the last checkpoint": (execute.RunExecution, "restore_and_evaluate", 1, None),
    "after restoring": (execute, "write_scores", 1, None),
}


@pytest.mark.parametrize(
    ("point", "save"), [(point, ("ckpt", "npz")[at % 2]) for at, point in enumerate(POINTS)]
)
def test_killed_at_a_named_point(
    point: str,
    save: str,
    place: Path,
    data: list[str],
    undisturbed: Callable[..., End],
    main: Main,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    overrides = [*SHORT, f"save={save}"]
    expected = undisturbed(*overrides)
    owner, name, count, half = POINTS[point]
    owner = {"ckpt": Ckpt, "npz": Npz}[save] if owner is SaveFormat else owner
    started: list[ActiveRun] = []
    hold = ActiveRun.__init__

    def held(tracked: ActiveRun, *arguments: Any, **named: Any) -> None:
        hold(tracked, *arguments, **named)
        started.append(tracked)

    with monkeypatch.context() as dying:
        dying.setattr(ActiveRun, "__init__", held)
        dying.setattr(owner, "real_write", getattr(owner, "write", None), raising=False)
        dying.setattr(owner, name, after(getattr(owner, name), count, half))
        with pytest.raises(Killed):
            execute.run(compose_config([*overrides, *data, "progress=false"]))
    end_sending(started[0])
    (folder,) = place.glob("mlruns/artifacts/1/*")
    assert local_end(place, folder.name).status == "RUNNING"
    done = main("resume", folder.name)
    assert (done.returncode, done.stderr) == (0, "")
    assert local_end(place, folder.name) == expected


def test_a_run_that_saved_nothing_starts_again(
    place: Path,
    data: list[str],
    undisturbed: Callable[..., End],
    main: Main,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = np.full((64, 10), 0.125, np.float32)
    np.savez("start.npz", weights)
    overrides = [*SHORT, f"init_from={place}/start.npz"]
    expected = undisturbed(*overrides)

    def crash(*_: Any) -> None:
        raise RuntimeError("no more power\nhere")

    monkeypatch.setattr("waymark.execution.execute.train", crash)
    with pytest.raises(Failed, match=r"RuntimeError: no more power \(.*\); resume with: "):
        execute.run(compose_config([*overrides, *data]))
    (folder,) = place.glob("mlruns/artifacts/1/*")
    run = MlflowClient(f"sqlite:///{place}/mlruns/mlflow.db").get_run(folder.name)
    assert run.info.status == "FAILED"
    assert run.data.tags["waymark.reason"].startswith("RuntimeError: no more power (")
    monkeypatch.undo()
    monkeypatch.chdir(place)

    np.savez("start.npz", weights + 1)
    done = main("resume", folder.name)
    assert (done.returncode, done.stdout) == (2, "")
    assert "is not what the run started from" in done.stderr
    np.savez("start.npz", weights)
    assert main("resume", folder.name).returncode == 0
    found = local_end(place, folder.name)
    assert "traceback.txt" in found.files  # of the first process
    assert (
        replace(found, files=[name for name in found.files if name != "traceback.txt"]) == expected
    )


@pytest.fixture
def finished(place: Path, data: list[str]) -> str:
    return execute.run(compose_config([*SHORT, *data, "progress=false"])).run_id


def test_a_finished_run_has_nothing_left_to_do(place: Path, finished: str, main: Main) -> None:
    before = local_end(place, finished)
    client = MlflowClient(f"sqlite:///{place}/mlruns/mlflow.db")
    ended = client.get_run(finished).info.end_time
    said = f"already finished at step {client.get_run(finished).data.params['steps']}; "
    said += "steps=N extends it\n"
    for text in (finished, "latest"):
        done = main("resume", text)
        assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
    assert local_end(place, finished) == before
    assert client.get_run(finished).info.end_time == ended


@pytest.mark.parametrize("pieces", [["steps=70"], ["steps=41", "steps=55", "steps=70"]])
def test_more_steps_extend_a_run(
    place: Path, finished: str, main: Main, undisturbed: Callable[..., End], pieces: list[str]
) -> None:
    for piece in pieces:
        done = main("resume", finished, piece)
        assert (done.returncode, done.stderr) == (0, "")
    whole = undisturbed(*SHORT, "steps=70")
    now = local_end(place, finished)
    assert (now.status, now.digest) == (whole.status, whole.digest)
    assert now.points["train/loss"] == whole.points["train/loss"]
    # Each old end was evaluated and saved, as the end of a run is; all else is the same.
    assert set(whole.points["test/accuracy"]) <= set(now.points["test/accuracy"])
    run = MlflowClient(f"sqlite:///{place}/mlruns/mlflow.db").get_run(finished)
    folder = place / f"mlruns/artifacts/1/{finished}/artifacts"
    assert run.data.tags["waymark.steps"] == "70"
    assert yaml.safe_load((folder / "config.yaml").read_text())["steps"] == 70
    assert run.data.params["steps"] == "40"  # MLflow lets no param change


def test_fewer_steps_and_other_data_are_refused(
    place: Path, finished: str, main: Main, small: Path
) -> None:
    before = local_end(place, finished)
    fewer = main("resume", finished, "steps=39")
    assert (fewer.returncode, fewer.stdout) == (2, "")
    assert "has already reached 40" in fewer.stderr
    arrays = dict(np.load(small))
    arrays["x_train"][0, 0, 0] ^= 1
    np.savez(place / "other.npz", **arrays)
    other = main("resume", finished, "steps=50", "data.path=other.npz")
    assert (other.returncode, other.stdout) == (2, "")
    assert "is not the data" in other.stderr
    assert local_end(place, finished) == before
    # The same data elsewhere are the same data.
    shutil.copy(small, place / "moved.npz")
    assert main("resume", finished, "steps=50", "data.path=moved.npz").returncode == 0


def test_what_is_kept_may_change_on_resume(place: Path, finished: str, main: Main) -> None:
    assert local_end(place, finished).kept == kept_files([20, 30, 40])
    done = main("resume", finished, "steps=60", "save.max_to_keep=2")
    assert kept_checkpoints(done.stdout) == [50, 60]
    assert local_end(place, finished).kept == kept_files([50, 60])
    done = main("resume", finished, "steps=100", "save.max_to_keep=4")
    assert kept_checkpoints(done.stdout) == [70, 80, 90, 100]
    assert local_end(place, finished).kept == kept_files([70, 80, 90, 100])


def kept_files(steps: list[int]) -> list[str]:
    ends = [".data-00000-of-00001", ".index", ".json"]
    names = [f"model_ckpt-{step}{end}" for step in steps for end in ends]
    return sorted([*names, "checkpoint", "model_ckpt.meta"])


@pytest.mark.parametrize("save", ["ckpt", "npz"])
def test_a_damaged_checkpoint_is_reported_and_the_older_one_used(
    place: Path, data: list[str], main: Main, undisturbed: Callable[..., End], save: str
) -> None:
    overrides = [*SHORT, f"save={save}"]
    run_id = execute.run(compose_config([*overrides, *data, "progress=false"])).run_id
    folder = place / f"mlruns/artifacts/1/{run_id}/artifacts/checkpoints"
    names = {"ckpt": "model_ckpt-40.data-00000-of-00001", "npz": "weights-40.npz"}
    path = folder / names[save]
    whole = path.read_bytes()
    path.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    evaluated = main("evaluate", run_id, "--step", "40")
    assert (evaluated.returncode, evaluated.stdout) == (1, "")
    assert names[save] in evaluated.stderr
    done = main("resume", run_id, "steps=50")
    assert done.returncode == 0, done
    assert done.stderr.startswith("waymark: checkpoint 40 is damaged: ")
    whole_run = undisturbed(*overrides, "steps=50")
    now = local_end(place, run_id)
    assert (now.digest, now.kept) == (whole_run.digest, whole_run.kept)
    assert now.points["train/loss"] == whole_run.points["train/loss"]


def test_a_run_without_a_whole_checkpoint_cannot_go_on(
    place: Path, finished: str, main: Main
) -> None:
    folder = place / f"mlruns/artifacts/1/{finished}/artifacts/checkpoints"
    for path in folder.glob("*.index"):
        path.unlink()
    done = main("resume", finished, "steps=50")
    lines: list[Any] = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert [
        f"checkpoint {step} is damaged" in line
        for step, line in zip((40, 30, 20), lines, strict=False)
    ] == [True] * 3
    assert "none is whole" in lines[3]
    assert len(lines) == 4


def test_a_recorded_configuration_starts_a_new_run(place: Path, finished: str, main: Main) -> None:
    digests = []
    for changed in ([], ["seed=1"]):
        done = main("run", "--config-from", finished, "run_name=again", *changed)
        assert (done.returncode, done.stderr) == (0, "")
        run_id = done.stdout.split()[1]
        assert run_id != finished
        digests.append(local_end(place, run_id).digest)
    assert digests[0] == local_end(place, finished).digest != digests[1]
    for given in ("model=cnm", "stesp=1", "steps"):
        refused = main("run", "--config-from", finished, given)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert given.partition("=")[0] in refused.stderr


def test_another_learning_rate_is_refused_with_the_command_of_a_new_run(
    place: Path, finished: str, main: Main
) -> None:
    refused = main("resume", finished, "optimizer.learning_rate=0.25")
    assert (refused.returncode, refused.stdout) == (2, "")
    command = shlex.split(refused.stderr.partition("a new one: ")[2])
    assert command == ["waymark", "run", "--config-from", finished, "optimizer.learning_rate=0.25"]
    done = main(*command[1:])
    assert (done.returncode, done.stderr) == (0, "")
    config = place / f"mlruns/artifacts/1/{done.stdout.split()[1]}/artifacts/config.yaml"
    assert yaml.safe_load(config.read_text())["optimizer"]["learning_rate"] == 0.25


BEST = "save.keep_best={metric: test/loss, mode: %s}"


def test_every_evaluation_competes_as_the_best_and_so_does_what_is_there_at_a_resume(
    main: Main, place: Path, data: list[str]
) -> None:
    """The highest loss is that of the first evaluation, which meets no save."""
    settings = [*BASE, *data, "save=npz", "save.every=15", "eval_every=4", "progress=false"]
    assert main("run", *settings, "steps=47", BEST % "max").returncode == 0
    (run,) = MlflowClient(f"sqlite:///{place}/mlruns/mlflow.db").search_runs(["1"])
    run_id = run.info.run_id
    folder = place / "mlruns" / "artifacts" / "1" / run_id / "artifacts" / "checkpoints"

    def losses() -> dict[int, float]:
        return dict(local_end(place, run_id).points["test/loss"])

    def kept() -> set[int]:
        return {int(path.stem.rpartition("-")[2]) for path in folder.glob("*.json")}

    best = max(losses(), key=losses().__getitem__)
    assert best % 15
    assert kept() == {30, 45, 47, best}
    scored = json.loads(main("evaluate", run_id, "--step", "best", "--json").stdout)
    assert (scored["step"], scored["accuracy"]) == (
        best,
        dict(local_end(place, run_id).points["test/accuracy"])[best],
    )
    there = [best, 47]  # that were evaluated
    assert main("resume", run_id, "steps=60", BEST % "min", "progress=false").returncode == 0
    least = min([*there, 48, 52, 56, 60], key=losses().__getitem__)
    assert kept() == {45, 47, 60, least}
    manifest = json.loads((folder / "weights-60.json").read_text())
    assert manifest["memory"]["best"]["step"] == least
    assert manifest["parameters"] == ["weights"]
    assert main("resume", run_id, "steps=61", "save.keep_best=null").returncode == 0
    assert kept() == {47, 60, 61}
