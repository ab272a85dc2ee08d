"""Measure how many trials of a sweep a minute holds: softmax, 1000 steps, everything recorded.

    MNIST_NPZ=/path/to/mnist.npz python -m benchmarks.trials --repetitions 5

Three ways, taken in turn: a process for each trial, Hydra's basic launcher (one process, trial
after trial), and joblib with two workers. Every repetition begins with an empty store, and its
time is that of the whole commands, from their start to their end. Without MNIST_NPZ the data set
is the embedded one. Prints one table; benchmarks/trials.json has all the numbers.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

RESULT = Path(__file__).parent / "trials.json"
WAYS = ("one process per trial", "basic launcher", "joblib, n_jobs=2")


def commands(way: str, trials: int) -> list[list[str]]:
    """Return the arguments of the commands that do all trials."""
    seeds = f"seed={','.join(map(str, range(trials)))}"
    if way == "basic launcher":
        return [["-m", seeds]]
    if way == "joblib, n_jobs=2":
        return [["-m", seeds, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]]
    return [[f"seed={seed}"] for seed in range(trials)]


def measure(way: str, trials: int, overrides: Sequence[str]) -> tuple[float, float]:
    """Do all trials; return the seconds of wall time and of CPU that it took."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        for arguments in commands(way, trials):
            command = [sys.executable, "-m", "pipeline", "run", *arguments, "progress=false"]
            command += [f"tracking.uri=sqlite:///{folder}/mlflow.db", *overrides]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
        seconds = time.perf_counter() - began
        runs = len(list(Path(folder).glob("artifacts/*/*/artifacts/evaluation/metrics.json")))
    if runs != trials:
        sys.exit(f"{way}: {runs} trials are recorded, not {trials}.")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("overrides", nargs="*", help="for every trial")
    options = parser.parse_args(arguments)
    path = os.environ.get("MNIST_NPZ")
    data = ["data=mnist", f"data.path={Path(path).absolute()}"] if path else []
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for _ in range(options.repetitions):
        for way in WAYS:
            found[way].append(measure(way, options.trials, [*data, *options.overrides]))
    facts = {"data": "mnist" if path else "mnist_5k", **vars(options), "cores": os.cpu_count()}
    ways = {w: {"wall": [x for x, _ in v], "cpu": [x for _, x in v]} for w, v in found.items()}
    RESULT.write_text(json.dumps({**facts, "seconds": ways}, indent=1) + "\n")
    print("| way | trials per minute | wall seconds a trial | CPU seconds a trial |")
    print("|---|---|---|---|")
    for way, pairs in found.items():
        walls, cpus = (
            [value / options.trials for value in column] for column in zip(*pairs, strict=True)
        )
        print(
            f"| {way} | {told([60 / wall for wall in walls], 1)} | {told(walls)} | {told(cpus)} |"
        )


def told(values: Sequence[float], digits: int = 2) -> str:
    """Return the median of some numbers, with the smallest and the largest."""
    numbers = (statistics.median(values), min(values), max(values))
    middle, low, high = (f"{number:.{digits}f}" for number in numbers)
    return f"{middle} ({low} to {high})"


if __name__ == "__main__":
    main(sys.argv[1:])
