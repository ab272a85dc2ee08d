"""Measure how many trials of a sweep a minute holds: softmax, 1000 steps, everything recorded.

    MNIST_NPZ=/path/to/mnist.npz python -m benchmarks.trials [--all]

Eight trials in one process, in turn with the strongest of the others and with Keras; --all takes
the other slow one as well, and other ways to do Waymark's (a quarter of an hour more). The time is
that of whole processes, from their start to their end, with stores that exist already.
"""

import sys
import tempfile
from itertools import pairwise
from pathlib import Path

from benchmarks.ways import Measurement, Target, data_overrides, measure, report, spread, table

REPETITIONS, TRIALS = 5, 8
WAYS = {
    "waymark": ["waymark"],
    "handwritten_batched": ["handwritten", "--batched"],
    "handwritten": ["handwritten"],
    "keras_fit": ["keras_fit"],
}
MORE = ("waymark, one process each", "waymark by joblib")
ONLY_ALL = ("handwritten", *MORE)
AIMS = {"handwritten_batched": 2.5, "handwritten": 15, "keras_fit": 14}


def run(way: str, folder: Path, seed: int, trials: int = TRIALS) -> list[Measurement]:
    """Do trials from a seed on; return what the processes took."""
    if way in WAYS:
        name, *options = WAYS[way]
        place = folder / way
        place.mkdir(exist_ok=True)
        more = ["--folder", str(place), "--seed", str(seed), "--trials", str(trials)]
        return [measure(["-m", f"benchmarks.peers.{name}", *options, *more])]
    place = folder / str(MORE.index(way))
    place.mkdir(exist_ok=True)
    uri = f"tracking.uri=sqlite:///{place}/mlflow.db"
    command, common = ["-m", "waymark", "run"], [uri, "progress=false", *data_overrides()]
    seeds = range(seed, seed + trials)
    if way == MORE[0]:
        return [measure([*command, *common, f"seed={n}"]) for n in seeds]
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    return [measure([*command, "-m", *common, f"seed={','.join(map(str, seeds))}", *joblib])]


def later(measured: Measurement) -> list[float]:
    """Return the seconds from the beginning of each trial's loop, but the first, to the next."""
    loops = [at for mark, at in measured.marks if mark == "loop"]
    return [b - a for a, b in pairwise(loops[1:])]


def main() -> None:
    every = "--all" in sys.argv
    ways = [way for way in (*WAYS, *MORE) if every or way not in ONLY_ALL]
    found: dict[str, list[list[Measurement]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as name:
        for way in ways:
            run(way, Path(name), 10**6, 2)
        for repetition in range(REPETITIONS):
            for way in ways:
                found[way].append(run(way, Path(name), repetition * TRIALS))
    wall = {way: [sum(t.wall for t in runs) for runs in found[way]] for way in ways}
    cpu = {way: [sum(t.cpu for t in runs) / TRIALS for runs in found[way]] for way in ways}
    gaps = {way: [gap for runs in found[way] for gap in later(runs[0])] for way in ways}
    rows = [
        [
            *(way, spread(wall[way]), spread([60 * TRIALS / seconds for seconds in wall[way]], 1)),
            *(spread(gaps[way]) if gaps[way] else "", spread(cpu[way])),
        ]
        for way in ways
    ]
    targets = [
        Target(f"8 trials: {way} / waymark", wall[way], wall["waymark"], least=aim)
        for way, aim in AIMS.items()
        if way in ways
    ]
    rates = [60 / gap for gap in gaps["waymark"]]
    both = (gaps["waymark"], gaps["handwritten_batched"])
    targets.append(Target("a later trial: waymark / handwritten_batched", *both, most=0.3))
    targets.append(Target("waymark's later trials / 90 a minute", rates, [90.0], least=1))
    columns = [f"{TRIALS} trials", "whole s", "trials a minute", "s a later trial", "CPU s a trial"]
    numbers = {way: {"wall": wall[way], "cpu": cpu[way], "later": gaps[way]} for way in ways}
    report("trials-all" if every else "trials", [table(columns, rows)], targets, numbers)


if __name__ == "__main__":
    main()
