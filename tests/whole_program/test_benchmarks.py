"""The benchmarks' peers do the job that they are compared by, and the ratios are what they say."""

import sys
from pathlib import Path

import pytest

from benchmarks import terminal
from benchmarks.ways import Measurement, Target, measure, spread

MORE = ("keras_fit", "handwritten", "handwritten --batched")


@pytest.mark.parametrize(
    "program",
    [
        *("reference_tf1", "waymark"),
        *(pytest.param(each, marks=pytest.mark.long) for each in MORE),
    ],
)
def test_every_peer_trains_saves_restores_and_tracks(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MNIST_NPZ", raising=False)
    name, *options = program.split()
    more = ["--folder", str(tmp_path), "--steps", "200"]
    job = measure(["-m", f"benchmarks.peers.{name}", *options, *more])
    assert [mark for mark, _ in job.marks] == ["loop", "restore", "leave"]
    assert 0 < job.part("loop") < job.wall
    said = next(line for line in job.output.splitlines() if "restored" in line)
    assert 0.7 < float(said.split()[-1]) < 0.95  # after 200 steps
    kept = {file.name for file in tmp_path.rglob("*") if file.suffix in (".index", ".keras")}
    assert len(kept) == 4
    if name != "reference_tf1":
        import mlflow

        client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
        (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
        key = "train/loss" if name == "waymark" else "loss"
        steps = [point.step for point in client.get_metric_history(run.info.run_id, key)]
        assert len(set(steps)) == len(steps) == 200


def test_a_ratio_is_of_medians_and_met_or_not() -> None:
    ratio = Target("a / b", [4.0, 2.0, 9.0], [1.0, 2.0, 3.0], least=2)
    assert ratio.row() == ["a / b", "2.00 (0.67 to 9.00)", "at least 2", "yes"]
    ratio = Target("a / b", [1.2, 1.0, 9.0], [1.0, 1.0, 3.0], most=1.1)
    assert ratio.row() == ["a / b", "1.20 (0.33 to 9.00), a tie", "at most 1.1", "no"]
    assert spread([3.0, 1.0, 2.0], 1) == "2.0 (1.0 to 3.0)"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc and prctl are Linux's")
def test_what_a_process_leaves_behind_is_waited_for_and_counted() -> None:
    """As a delivery process may be, which ends after the process that it delivers for."""
    burn = "import time; held = bytearray(100_000_000)\nwhile time.process_time() < 1: pass"
    leave = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]],"
    job = measure(["-c", f"{leave} start_new_session=True)", burn])
    assert job.cpu > 1
    assert job.peak_of_all > job.peak + 100


def test_of_two_programs_the_one_that_took_less_is_ahead() -> None:
    both = ([4.0, 2.0], [1.0, 1.0])
    assert Target("job: a / b", *both).ahead() == ["job", "b", "3.00 (2.00 to 4.00)", "a"]
    assert Target("job: b / a", *both[::-1]).ahead() == ["job", "b", "3.00 (2.00 to 4.00)", "a"]
    assert Target("job: a / b", [1.1], [1.0]).ahead()[1] == "a tie: b"
    assert Target("a / a second", *both).ahead() == []


def test_a_part_lasts_until_the_next_mark_or_the_end() -> None:
    marks = [("loop", 2.0), ("restore", 5.0), ("loop", 6.0), ("leave", 6.5)]
    job = Measurement(8.0, cpu=1.0, peak=1.0, peak_of_all=1.0, marks=marks, output="")
    assert (job.part("loop"), job.part("loop", 1), job.part("leave")) == (
        3.0,
        0.5,
        1.5,
    )


@pytest.mark.long
def test_the_drawn_terminal_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "FILE", tmp_path / "terminal.svg")
    terminal.main()
    drawn = terminal.FILE.read_text().replace("&#160;", " ")
    for said in ("killed by SIGKILL", "resume latest", "3000 losses"):
        assert said in drawn
    assert "identical to run" in drawn and "http://127" in drawn and "url(http" not in drawn
