"""Runs hold in whatever surrounds them: odd environments, edited stores, other programs' loops."""

import asyncio
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from waymark import BadInput, Failed, listing, run, table
from waymark.checkpoints.retention import Policy, Save, initial_retention, record_save
from waymark.execution import new_process
from waymark.tracking.liveness import is_alive
from waymark.tracking.lock import last_activity_ms
from waymark.tracking.runs import RunRecord, RunSummary

from tests.support.processes import Done, kept_checkpoints, poll

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
    mlflow.delete_experiment("1")
    again = ["run", *SMOKE, f"data.path={small}", "experiment_name=renamed"]
    for command in (["evaluate", run_id], ["resume", run_id], again):
        gone = main(*command)
        assert (gone.returncode, len(gone.stderr.splitlines())) == (2, 1), gone
    assert "this experiment was deleted in MLflow" in gone.stderr
    assert main("runs").stdout == "there are no runs here yet\n"
    mlflow.restore_experiment("1")
    assert run_id[:8] in main("runs").stdout
    (folder,) = place.glob(f"mlruns/artifacts/1/{run_id}/artifacts")
    (folder / "evaluation" / "loss.png").unlink()
    (folder / "environment.json").unlink()
    (folder / "checkpoints" / "checkpoint").unlink()
    assert main("evaluate", "given later").returncode == 0
    done = main("resume", "given later", "steps=30")
    assert done.returncode == 0, done
    assert kept_checkpoints(done.stdout) == [10, 20, 30]
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
    program = f"ulimit -n 40; exec {sys.executable} -m waymark run {words}"
    done = subprocess.run(
        ["bash", "-c", program], cwd=place, env=own, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    (record,) = client(place).search_runs(["1"])
    assert record.info.status == "FINISHED"


@pytest.fixture
def small_tmpdir(
    tmp_path_factory: pytest.TempPathFactory,
    mounted: Callable[[Path, str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[int], Path]:
    """Return what lets TMPDIR be on a disk that has some bytes left.

    To be called by the test itself: what captures its output begins with a file in TMPDIR.
    """

    def small_tmpdir(left: int) -> Path:
        folder = mounted(tmp_path_factory.mktemp("disk") / "small", "size=64k")
        (folder / "full").write_bytes(bytes(65536 - left))
        monkeypatch.setenv("TMPDIR", str(folder))
        monkeypatch.setattr(tempfile, "tempdir", None)  # it is looked for anew
        return folder

    return small_tmpdir


@pytest.mark.parametrize("left", [0, 4096])
def test_a_full_temporary_folder(
    left: int,
    place: Path,
    small: Path,
    main: Callable[..., Done],
    small_tmpdir: Callable[[int], Path],
) -> None:
    folder = small_tmpdir(left)
    trained_resumed_and_compared(main, small)
    for words in (["evaluate", "latest", "--from", "meta"], ["rerun", "latest"]):
        done = main(*words)
        assert done.returncode == 0, done
    assert os.listdir(place) == ["mlruns"]
    assert os.listdir(folder) == ["full"]


def test_a_temporary_folder_too_full_for_another_process(
    capfd: pytest.CaptureFixture[str], small_tmpdir: Callable[[int], Path]
) -> None:
    """What goes there, or what comes back, does not fit."""
    small_tmpdir(4096)
    with pytest.raises(BadInput, match=r"cannot be written to \(No space left on device\)"):
        new_process.call("why", len, bytes(8000))
    with pytest.raises(Failed):
        new_process.call("why", bytes, 8000)
    assert capfd.readouterr().err.count("cannot be written to (No space left on device)") == 1


def trained_resumed_and_compared(main: Callable[..., Done], small: Path) -> None:
    commands = [
        ["run", *SMOKE, f"data.path={small}"],
        ["run", *SMOKE, f"data.path={small}", "seed=1"],
        ["resume", "latest", "steps=30"],
        ["evaluate", "latest"],
        ["compare", "--experiment", "waymark"],
        ["sync"],
    ]
    for words in commands:
        done = main(*words)
        assert done.returncode == 0, done
    assert done.stdout == "nothing left to deliver\n"


def test_a_store_behind_a_link_to_another_file_system_if_there_is_one(
    place: Path,
    small: Path,
    main: Callable[..., Done],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> None:
    memory = Path("/dev/shm")
    if memory.is_dir() and memory.stat().st_dev != place.stat().st_dev:
        there = Path(tempfile.mkdtemp(dir=memory))
        request.addfinalizer(lambda: shutil.rmtree(there))
    else:
        there = tmp_path_factory.mktemp("there")
    shutil.move(place / "mlruns", there / "mlruns")
    (place / "mlruns").symlink_to(there / "mlruns")
    trained_resumed_and_compared(main, small)
    assert (place / "mlruns").is_symlink()
    assert os.listdir(there) == os.listdir(place) == ["mlruns"]


def test_a_hard_linked_copy_shares_what_is_appended_and_the_database_alone(
    place: Path,
    small: Path,
    main: Callable[..., Done],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """As `cp -al` makes one: MLflow has the runs of both, and each has its own checkpoints."""
    run_id = smoke(str(small), 0)
    copy = tmp_path_factory.mktemp("linked") / "copy"
    shutil.copytree(place, copy, copy_function=os.link)
    before = {p: p.read_bytes() for p in place.rglob("*") if p.is_file()}
    monkeypatch.chdir(copy)
    trained_resumed_and_compared(main, small)
    assert main("resume", run_id, "steps=30").returncode == 0
    monkeypatch.chdir(place)
    changed = {p.name for p, content in before.items() if p.read_bytes() != content}
    assert changed == {"mlflow.db", "outbox.jsonl"}
    assert before.keys() == {p for p in place.rglob("*") if p.is_file()}
    assert "model_ckpt-20 " in main("evaluate", run_id).stdout
    done = main("resume", run_id, "steps=40")
    assert kept_checkpoints(done.stdout) == [10, 20, 30, 40]
    assert main("sync").stdout == "nothing left to deliver\n"


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize("change", ["2026-03-29T01:00:00+00:00", "2026-10-25T01:00:00+00:00"])
def test_daylight_saving_moves_no_time(
    change: str, berlin: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ages, signs of life and hourly checkpoints are those of any other day."""
    moment = datetime.fromisoformat(change).timestamp()
    assert {time.localtime(moment + s).tm_gmtoff for s in (-1, 1)} == {3600, 7200}

    def around(moment: float) -> Any:
        now = moment + 1800
        monkeypatch.setattr(time, "time", lambda: now)
        beats = [is_alive({"host": "elsewhere"}, now - age) for age in (299, 301, 3700, -29, -31)]
        record = RunRecord("a", "a", "a", "1", "RUNNING", now - 5400, {}, Path("a"), False)
        tracking: Any = None  # is asked for nothing
        age = listing._listed(tracking, record, RunSummary({}, {}, None)).age
        policy = Policy(2, 1.0, None)
        state = initial_retention(moment - 7200, policy)
        for step in range(1, 25):
            state = record_save(state, Save(step, moment - 7200 + 600 * step), policy)
        return (
            beats,
            age,
            table.age(age),
            last_activity_ms(record, now + 99) - now * 1000,
            state.hourly,
        )

    assert around(moment) == around(moment - 7 * 86400)
    assert around(moment)[:3] == ([True, False, False, True, False], 5400, "1 h")


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
