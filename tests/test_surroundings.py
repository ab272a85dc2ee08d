"""Runs hold in whatever surrounds them: odd environments, edited stores, other programs' loops."""

import asyncio
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import run

Done = subprocess.CompletedProcess[str]
SMOKE = ["+experiment=smoke", "data=arrays", "batch_size=20", "record.changes=false"]
SMOKE += ["progress=false", "runtime.intra_op_threads=2"]


def smoke(path: str, seed: int) -> str:
    """Train a short run in the current folder; return its id."""
    return run(*SMOKE, f"data.path={path}", f"seed={seed}").run_id


def test_a_record_edited_by_hand_is_read_and_goes_on(
    place: Path, small: Path, main: Callable[..., Done], client: Callable[[Path], Any]
) -> None:
    run_id, mlflow = smoke(str(small), 0), client(place)
    mlflow.rename_experiment("1", "renamed")
    mlflow.update_run(run_id, name="given later")
    mlflow.set_tag(run_id, "mlflow.note.content", "mine")
    mlflow.set_tag(run_id, "waymark.steps", "nonsense")
    mlflow.delete_run(run_id)
    for command in (["evaluate", run_id], ["resume", run_id, "steps=30"]):
        gone = main(*command)
        assert (gone.returncode, len(gone.stderr.splitlines())) == (2, 1), gone
    mlflow.restore_run(run_id)
    (folder,) = place.glob(f"mlruns/artifacts/1/{run_id}/artifacts")
    (folder / "evaluation" / "loss.png").unlink()
    (folder / "environment.json").unlink()
    (folder / "checkpoints" / "checkpoint").unlink()
    assert main("evaluate", "given later").returncode == 0
    done = main("resume", "given later", "steps=30")
    assert done.returncode == 0, done
    assert "checkpoints kept      10, 20, 30\n" in done.stdout
    assert yaml.safe_load((folder / "config.yaml").read_text())["steps"] == 30
    record = mlflow.get_run(run_id)
    assert (record.info.status, record.info.run_name) == ("FINISHED", "given later")
    assert record.data.tags["mlflow.note.content"] == "mine"
    losses = mlflow.get_metric_history(run_id, "train/loss")
    assert sorted(point.step for point in losses) == [*range(1, 31)]


def test_a_loop_of_asyncio_may_call(
    place: Path, small: Path, client: Callable[[Path], Any]
) -> None:
    async def both() -> list[str]:
        here = smoke(str(small), 0)
        return [here, await asyncio.to_thread(smoke, str(small), 1)]

    for run_id in asyncio.run(both()):
        assert client(place).get_run(run_id).info.status == "FINISHED"


def test_few_files_no_home_and_no_temporary_folder(
    place: Path, small: Path, environment: dict[str, str], client: Callable[[Path], Any]
) -> None:
    own = {**environment, "TMPDIR": "/nowhere", "TZ": "Europe/Berlin"}
    del own["HOME"]
    words = " ".join([*SMOKE, f"data.path={small}"])
    program = f"ulimit -n 40; exec {sys.executable} -m pipeline run {words}"
    done = subprocess.run(
        ["bash", "-c", program], cwd=place, env=own, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    (record,) = client(place).search_runs(["1"])
    assert record.info.status == "FINISHED"


@pytest.mark.long
def test_two_processes_of_a_pool_record_in_one_store(
    place: Path, small: Path, client: Callable[[Path], Any]
) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        ids = pool.starmap(smoke, [(str(small), seed) for seed in range(4)])
    assert len(set(ids)) == 4
    for run_id in ids:
        losses = client(place).get_metric_history(run_id, "train/loss")
        assert sorted(point.step for point in losses) == [*range(1, 21)]


@pytest.mark.long
def test_many_points_after_a_kill(
    place: Path,
    small: Path,
    start: Callable[..., "subprocess.Popen[str]"],
    main: Callable[..., Done],
    client: Callable[[Path], Any],
    poll: Callable[[Callable[[], Any]], Any],
) -> None:
    """Kill a run behind thousands of points; the resumed one has each of them once."""
    steps = 23_900
    words = [*SMOKE, f"data.path={small}", f"steps={steps}", "eval_every=0", "save.every=2000"]
    with start("run", *words, cwd=place) as process:
        poll(lambda: len([*place.glob("mlruns/artifacts/1/*/artifacts/checkpoints/*.json")]) > 2)
        process.kill()
    done = main("resume", "latest", "progress=false")
    assert done.returncode == 0, done
    (record,) = client(place).search_runs(["1"])
    losses = client(place).get_metric_history(record.info.run_id, "train/loss")
    assert sorted(point.step for point in losses) == [*range(1, steps + 1)]
    assert os.listdir(place) == ["mlruns"]
