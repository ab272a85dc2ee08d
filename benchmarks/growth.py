"""Measure whether time stays flat: as a run's steps grow, a sweep's trials, a store's runs.

    MNIST_NPZ=/path/to/mnist.npz python -m benchmarks.growth

One run of 100,000 steps, of which the first and the last are compared, window by window; one sweep
of 300 short trials, likewise; and the whole command for a run of one step on a store of 10 runs and
on one of 1,000, in turn.
"""

import shutil
import sqlite3
import tempfile
import time
import uuid
from contextlib import closing
from itertools import pairwise
from pathlib import Path

from benchmarks.loop import Loop, Silent
from benchmarks.ways import Target, data_overrides, measure, report, spread, table

REPETITIONS = 5
STEPS, WINDOW = 100_000, 1000
TRIALS = 300
RUNS = (10, 1000)
FLAT = 1.25  # what is told apart from flat


class Clock(Silent):
    """Note when the training has come how far."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = [(0, time.perf_counter())]

    def on_steps(self, step: int, loss: float) -> None:
        self.seen.append((step, time.perf_counter()))

    def windows(self) -> list[float]:
        """Return the milliseconds a step of each window of steps."""
        marks = [pair for pair in self.seen if pair[0] % WINDOW == 0]
        return [1000 * (b - a) / (y - x) for (x, a), (y, b) in pairwise(marks)]


def steps(folder: Path) -> tuple[list[float], list[float]]:
    """Train a softmax, everything recorded; return the first and the last windows."""
    loop = Loop("softmax", folder, f"steps={STEPS}", "eval_every=1000")
    clock = Clock()
    loop.train(True, True, True, clock)
    windows = clock.windows()
    return windows[1:11], windows[-10:]


def trials(folder: Path) -> tuple[list[float], list[float]]:
    """Do a sweep; return the seconds from trial to trial of the first and of the last."""
    more = ["--folder", str(folder), "--steps", "20", "--trials", str(TRIALS)]
    marks = measure(["-m", "benchmarks.peers.waymark", *more]).marks
    gaps = [b - a for a, b in pairwise(at for mark, at in marks if mark == "loop")]
    return gaps[5:35], gaps[-30:]


def command(store: Path) -> list[str]:
    uri = f"tracking.uri=sqlite:///{store}/mlflow.db"
    return ["-m", "waymark", "run", uri, "steps=1", "progress=false", *data_overrides()]


def filled(store: Path, runs: int) -> Path:
    """Make a store of so many runs, all but one of them copies in files and database."""
    measure(command(store))
    with closing(sqlite3.connect(store / "mlflow.db")) as database, database:
        database.row_factory = sqlite3.Row
        (first,) = database.execute("SELECT run_uuid, artifact_uri FROM runs").fetchall()
        home = Path(first["artifact_uri"]).parent
        tables = ("runs", "params", "tags", "metrics", "latest_metrics")
        rows = {name: database.execute(f"SELECT * FROM {name}").fetchall() for name in tables}
        for _ in range(runs - 1):
            other = uuid.uuid4().hex
            shutil.copytree(home, home.with_name(other))
            for name, known in rows.items():
                for row in known:
                    values = dict(row) | {"run_uuid": other}
                    if name == "runs":
                        values["artifact_uri"] = str(home.with_name(other) / "artifacts")
                    places = ", ".join("?" * len(values))
                    into = f"INSERT INTO {name} ({', '.join(values)}) VALUES ({places})"
                    database.execute(into, list(values.values()))
    return store


def runs(folder: Path) -> tuple[list[float], list[float]]:
    """Return the seconds of a run's command on a small and on a large store."""
    stores = [filled(folder / f"store-{count}", count) for count in RUNS]
    found: list[list[float]] = [[], []]
    for _ in range(REPETITIONS):
        for seconds, store in zip(found, stores, strict=True):
            seconds.append(measure(command(store)).wall)
    return found[0], found[1]


def main() -> None:
    found = {}
    for growth in (steps, trials, runs):
        with tempfile.TemporaryDirectory() as folder:
            found[growth.__name__] = growth(Path(folder))
    names = {
        "steps": f"ms a step, at the start and at the end of {STEPS:,}",
        "trials": f"s from trial to trial, at the start and at the end of {TRIALS}",
        "runs": f"s of a whole command with steps=1, {RUNS[0]} and {RUNS[1]:,} runs in the store",
    }
    rows = [[names[what], *map(spread, pair)] for what, pair in found.items()]
    targets = [Target(names[what], last, first, most=FLAT) for what, (first, last) in found.items()]
    report("growth", [table(["as it grows", "small", "large"], rows)], targets, found)


if __name__ == "__main__":
    main()
