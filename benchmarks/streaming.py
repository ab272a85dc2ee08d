"""Measure training on data larger than memory: what memory it takes, and how much longer.

    python -m benchmarks.streaming [GIGABYTES]

Generated pictures, 32x32x3, in folders of .npy files: 10 GB, unless told otherwise, and 100 MB.
Memory is the most that a process held of its own (RssAnon: files that the system keeps in memory
for all processes are not in it), on the large folder and on the small one. Times are those of the
loop alone on the small one, in one process, from the files and with the data in memory, in turn.
The files are made in the folder for temporary ones, TMPDIR, and removed.
"""

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ways import LOOK_S, Target, measure, report, spread, table

GIGABYTES, SMALL = 10.0, 0.1
REPETITIONS = 5
STEPS = {"softmax": 500, "cnn": 30}
AIMS = {"softmax": 2, "cnn": 1.1}
MORE_MB = 300  # that the large folder may take more than the small one
BLOCK = 10_000  # pictures that are made at a time


def generate(folder: Path, gigabytes: float) -> Path:
    """Write a folder of noisy pictures, a twentieth of them to test on."""
    folder.mkdir()
    things = np.random.default_rng(0).integers(0, 200, (10, 32, 32, 3), np.uint8)
    count = int(gigabytes * 1e9 / things[0].nbytes)
    for part, size in {"test": count // 20, "train": count - count // 20}.items():
        draw = np.random.default_rng(size)
        labels = draw.permutation(np.arange(size) % 10)
        np.save(folder / f"y_{part}.npy", labels)
        form = (size, 32, 32, 3)
        images = np.lib.format.open_memmap(folder / f"x_{part}.npy", "w+", np.uint8, form)
        for start in range(0, size, BLOCK):
            picked = labels[start : start + BLOCK]
            noise = draw.integers(0, 56, (len(picked), 32, 32, 3), np.uint8)
            images[start : start + BLOCK] = things[picked] + noise
        images.flush()
    return folder


@contextmanager
def watched_memory() -> Iterator[list[float]]:
    """Note the most megabytes that this process has held of its own, as its last number."""
    most, ended = [0.0], threading.Event()

    def watch() -> None:
        while True:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon"):
                    most[0] = max(most[0], int(line.split()[1]) * 1024 / 1e6)
            if ended.wait(LOOK_S):
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()


def train(folder: str, mlruns: str) -> None:
    """Carry out one run on a folder, and print its seconds and megabytes."""
    from waymark import api

    words = [f"tracking.uri=sqlite:///{mlruns}/mlflow.db", "progress=false", "steps=2000"]
    began = time.perf_counter()
    with watched_memory() as most:
        api.run("data=arrays", f"data.path={folder}", *words, "eval_every=1000", "save.every=1000")
    print(json.dumps([time.perf_counter() - began, most[0]]))


def loops(folder: str, model: str) -> None:
    """Print milliseconds a step of the loop alone, streamed and in memory, in turn."""
    from waymark import api
    from waymark.evaluation.restore import load_data
    from waymark.training.loop import Trainer
    from waymark.training.runtime import start_tensorflow

    steps = STEPS[model]
    words = [f"model={model}", "data=arrays", f"data.path={folder}", f"steps={steps}"]
    config = api.configure(*words)
    streamed = load_data(config)
    start_tensorflow(**vars(config.runtime))
    arrays: dict[str, Any] = {name: each[:] for name, each in streamed.arrays.items()}
    data = {"streamed": streamed, "in memory": replace(streamed, **arrays)}
    trainers = {way: Trainer(config, each) for way, each in data.items()}
    found: dict[str, list[float]] = {way: [] for way in data}
    losses: dict[str, bytes] = {}
    for _ in range(REPETITIONS):
        for way, trainer in trainers.items():
            trainer.reset(config, data[way])
            began = time.perf_counter()
            losses[way] = trainer.run_steps(steps).tobytes()
            found[way].append((time.perf_counter() - began) / steps * 1000)
            trainer.close()
    if losses["streamed"] != losses["in memory"]:
        sys.exit("the losses are not the same bits")
    print(json.dumps(found))


def inner(*words: str) -> Any:
    """Return what a process of its own prints last, as JSON."""
    output = measure(["-m", "benchmarks.streaming", *words]).output
    return json.loads(output.splitlines()[-1])


def main() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    command, *words = [*sys.argv[1:], str(GIGABYTES)]
    if command in ("train", "loops"):
        return {"train": train, "loops": loops}[command](*words[:2])
    with tempfile.TemporaryDirectory() as scratch:
        sizes = {f"{size:g} GB": size for size in (float(command), SMALL)}
        folders = {
            name: generate(Path(scratch, name.replace(" ", "")), size)
            for name, size in sizes.items()
        }
        time.sleep(4)  # a file that was changed just now is not known by its times
        runs = {name: inner("train", str(path), scratch) for name, path in folders.items()}
        times = {model: inner("loops", str(folders[f"{SMALL:g} GB"]), model) for model in STEPS}
    (large, small) = runs.values()
    rows = [[name, f"{seconds:.0f}", f"{memory:.0f}"] for name, (seconds, memory) in runs.items()]
    tables = [table(("run on", "seconds", "MB of its own at most"), rows)]
    ways = list(next(iter(times.values())))
    lines = [[model, *(spread(times[model][way]) for way in ways)] for model in times]
    tables.append(table(("milliseconds a step", *ways), lines))
    targets = [
        Target(f"{model}: streamed / in memory", *times[model].values(), most=AIMS[model])
        for model in times
    ]
    more = f"MB more on {next(iter(runs))} / {MORE_MB} MB"
    targets.append(Target(more, [large[1] - small[1]], [MORE_MB], most=1))
    report("streaming", tables, targets, {"runs": runs, "loops": times})


if __name__ == "__main__":
    main()
