"""Measure the commands that need no TensorFlow, beside the imports of what they are built on.

    python -m benchmarks.commands

The help; a refused configuration, beside Python importing Hydra and Pydantic; the list of runs and
a comparison of two, in a store of 1,000, beside Python importing MLflow's client. All in turn.
"""

import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from benchmarks.growth import filled
from benchmarks.ways import Target, report, spread, table

REPETITIONS, RUNS = 5, 1000
REFUSAL = "a refused configuration"
CONFIGURING, MLFLOW = "import of Hydra and Pydantic", "import of MLflow's client"


def commands(folder: Path) -> dict[str, list[str]]:
    """Make a store of many runs; return for each command Python's arguments."""
    store = filled(folder, RUNS)
    with closing(sqlite3.connect(store / "mlflow.db")) as database:
        two = [run for (run,) in database.execute("SELECT run_uuid FROM runs LIMIT 2")]
    waymark, uri = ["-m", "waymark"], f"tracking.uri=sqlite:///{store}/mlflow.db"
    return {
        "waymark --help": [*waymark, "--help"],
        REFUSAL: [*waymark, "run", "batch_size=0"],
        CONFIGURING: ["-c", "import hydra, pydantic"],
        "waymark runs": [*waymark, "runs", uri],
        "waymark compare": [*waymark, "compare", *two, uri],
        MLFLOW: ["-c", "from mlflow.tracking import MlflowClient"],
    }


def seconds(what: str, arguments: list[str]) -> float:
    """Return the seconds that a command takes; exit if its status is not what it should be."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    took = time.perf_counter() - began
    if (done.returncode != 0) != (what == REFUSAL):
        sys.exit(f"{what}: exit status {done.returncode}\n{done.stderr}")
    return took


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        measured = commands(Path(folder))
        found: dict[str, list[float]] = {what: [] for what in measured}
        for repetition in range(REPETITIONS + 1):  # the first reads the files
            for what, arguments in measured.items():
                took = seconds(what, arguments)
                if repetition:
                    found[what].append(took)
    targets = [
        Target("waymark --help / a second", found["waymark --help"], [1.0], most=0.4),
        Target("a refusal / a second", found[REFUSAL], [1.0], most=1.0),
        Target(f"a refusal: waymark / {CONFIGURING}", found[REFUSAL], found[CONFIGURING], most=1.5),
    ]
    for what in ("waymark runs", "waymark compare"):
        job = f"{what.removeprefix('waymark ')}, {RUNS:,} in the store"
        targets.append(Target(f"{job}: waymark / {MLFLOW}", found[what], found[MLFLOW], most=1.4))
    rows = [[what, spread(taken)] for what, taken in found.items()]
    report("commands", [table(["command", "seconds"], rows)], targets, found)


if __name__ == "__main__":
    main()
