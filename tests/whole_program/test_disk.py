"""A disk that is full, or takes no large file: earlier checkpoints stay, and the run can go on."""

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from mlflow.tracking import MlflowClient
from waymark.checkpoints.store import CheckpointStore

from tests.support.ends import End
from tests.support.processes import Main

SHORT = ["data=arrays", "model=cnn", "steps=30", "save.every=10", "eval_every=0", "batch_size=10"]
SHORT += ["progress=false", "runtime.intra_op_threads=2"]  # 3.9 MB a checkpoint


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let this process write no file beyond a size: EFBIG, as a full disk gives ENOSPC."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def the_run(place: Path) -> Any:
    (run,) = MlflowClient(f"sqlite:///{place}/mlruns/mlflow.db").search_runs(["1"])
    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def checkpoints(place: Path) -> Path:
    (folder,) = place.glob("mlruns/artifacts/1/*/artifacts/checkpoints")
    return folder


def goes_on(main: Main, place: Path, digest: str) -> None:
    """Check that the run can be resumed once there is room, with the right end."""
    run = the_run(place)
    assert run.data.tags["waymark.resume"] == f"waymark resume {run.info.run_id}"
    done = main("resume", run.info.run_id, "tracking.flush_seconds=60")
    assert (done.returncode, done.stderr) == (0, "")
    run = the_run(place)
    assert (run.info.status, run.data.tags["waymark.state_digest"]) == ("FINISHED", digest)
    assert (run.data.tags["waymark.reason"], run.data.tags["waymark.resume"]) == ("", "")


@pytest.mark.parametrize("save", ["ckpt", "npz"])
def test_a_file_that_may_not_grow(
    save: str, place: Path, small: Path, main: Main, undisturbed: Callable[..., End]
) -> None:
    with largest_file(2_000_000):
        done = main("run", *SHORT, f"data.path={small}", f"save={save}")
    assert done.returncode == 1
    run = the_run(place)
    reason = "checkpoint 10 cannot be written: File too large"
    assert (run.info.status, run.data.tags["waymark.reason"]) == ("FAILED", reason)
    end = f"failed: {reason}; resume with: waymark resume {run.info.run_id}\n"
    assert done.stderr == f"waymark: run {run.info.run_id} {end}"
    graph = {"model_ckpt.meta"} if save == "ckpt" else set()
    assert set(contents(checkpoints(place))) == graph  # nothing half-written fills the disk
    goes_on(main, place, undisturbed(*SHORT).digest)


def test_too_little_room_is_said_before_it_is_tried(
    place: Path,
    small: Path,
    main: Main,
    undisturbed: Callable[..., End],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Usage(NamedTuple):
        free: int

    left = [Usage(10**9), Usage(5_000_000)]
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: left.pop(0))
        done = main("run", *SHORT, f"data.path={small}", "save=npz")
    assert (done.returncode, left) == (1, [])
    found = contents(checkpoints(place))
    assert set(found) == {"weights-10.npz", "weights-10.json"}
    run = the_run(place)
    assert run.info.status == "FAILED"
    reason = run.data.tags["waymark.reason"]
    assert reason.startswith("checkpoint 20 takes 7.9 MB with its records, and the disk of ")
    assert reason.endswith("checkpoints has 5.0 MB left")
    goes_on(main, place, undisturbed(*SHORT).digest)


@pytest.fixture
def small_disk(
    tmp_path: Path,
    empty_store: Path,
    mounted: Callable[[Path, str], Path],
    request: pytest.FixtureRequest,
) -> Path:
    """Mount a file system of 12 MB, or with the options that a test gives."""
    disk = mounted(tmp_path / "disk", getattr(request, "param", "size=12m"))
    shutil.copytree(empty_store, disk / "mlruns")
    return disk


@pytest.mark.parametrize("save", ["ckpt"])
def test_a_full_disk(
    save: str,
    small_disk: Path,
    small: Path,
    main: Main,
    undisturbed: Callable[..., End],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(small_disk)
    # The check beforehand is taken out, so that writing itself meets the end of the disk.
    with monkeypatch.context() as unseen:
        unseen.setattr("waymark.checkpoints.store.DISK_RESERVE", -(10**9))
        done = main("run", *SHORT, f"data.path={small}", f"save={save}")
    assert done.returncode == 1
    before = contents(checkpoints(small_disk))
    assert {name.partition(".")[0] for name in before} <= {
        "checkpoint", "model_ckpt", "model_ckpt-10", "model_ckpt-20", "weights-10", "weights-20"
    }  # fmt: skip
    run = the_run(small_disk)
    assert run.info.status == "FAILED"
    assert "cannot be written: No space left on device" in run.data.tags["waymark.reason"]
    assert done.stderr.count("\n") == 1
    again = main("resume", run.info.run_id)
    assert again.returncode == 1
    assert "MB left" in again.stderr
    assert contents(checkpoints(small_disk)) == before
    subprocess.run(["mount", "-o", "remount,size=60m", str(small_disk)], check=True)
    goes_on(main, small_disk, undisturbed(*SHORT).digest)


@pytest.mark.parametrize("small_disk", ["size=60m,nr_inodes=500"], indirect=True)
@pytest.mark.parametrize("left", [0, 9])
def test_a_disk_that_takes_no_more_files(
    left: int,
    small_disk: Path,
    small: Path,
    main: Main,
    undisturbed: Callable[..., End],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the first checkpoint on. Where some are `left` it is said before it is tried."""
    monkeypatch.chdir(small_disk)
    commit, filling = CheckpointStore.commit, small_disk / "filling"

    def fills(store: CheckpointStore, *arguments: Any) -> Any:
        manifest = commit(store, *arguments)
        if not filling.exists():
            filling.mkdir()
            with suppress(OSError):  # the database's journal comes and goes
                for number in range(os.statvfs(small_disk).f_favail - left):
                    (filling / str(number)).touch()
        return manifest

    with monkeypatch.context() as full:
        full.setattr(CheckpointStore, "commit", fills)
        if not left:
            full.setattr("waymark.checkpoints.store.FILE_RESERVE", 0)
        done = main("run", *SHORT, f"data.path={small}", "tracking.flush_seconds=0.1")
    assert done.returncode == 1
    run = the_run(small_disk)
    if left:
        reason = "checkpoint 20 takes 16 more files with its records, and the disk of "
        assert run.data.tags["waymark.reason"].startswith(reason)
        assert run.info.status == "FAILED"
    else:  # MLflow's database takes no more either
        reason = "checkpoint 20 cannot be written: No space left on device"
    assert f"failed: {reason}" in done.stderr
    files = {f"model_ckpt-10.{end}" for end in ("json", "index", "data-00000-of-00001")}
    assert set(contents(checkpoints(small_disk))) == {*files, "checkpoint", "model_ckpt.meta"}
    assert main("resume", run.info.run_id).returncode in (1, 2)
    shutil.rmtree(filling)
    main("sync")  # now it is recorded as well
    goes_on(main, small_disk, undisturbed(*SHORT).digest)
