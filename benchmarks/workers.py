"""Measure a sweep on two workers beside the ideal: the steps alone, on all cores.

    MNIST_NPZ=/path/to/mnist.npz python -m benchmarks.workers

64 trials of softmax with 20,000 steps, everything recorded, by two processes of Hydra's joblib
launcher; the ideal is as many processes as there are cores, which do as many steps in Waymark's
compiled loop and nothing else, start not included. All of them have one thread for an operation.
It takes half an hour, so `make bench` leaves it out.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.peers.bare_loop import make_trainer
from benchmarks.ways import Target, data_overrides, measure, report, spread, table

REPETITIONS = 5
WORKERS, TRIALS, STEPS = 2, 64, 20_000
CORES = os.cpu_count() or 1
ONE_THREAD = "runtime.intra_op_threads=1"


def sweep(folder: Path, seed: int) -> float:
    """Return the seconds of a whole sweep, from a seed on."""
    seeds = ",".join(map(str, range(seed, seed + TRIALS)))
    joblib = ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={WORKERS}"]
    job = [f"steps={STEPS}", f"seed={seeds}", ONE_THREAD, *data_overrides(), "progress=false"]
    uri = f"tracking.uri=sqlite:///{folder}/mlflow.db"
    return measure(["-m", "waymark", "run", "-m", uri, *job, *joblib]).wall


def ideal() -> float:
    """Return the seconds of the steps alone, divided among all cores."""
    command = [sys.executable, "-m", "benchmarks.workers", "share"]
    pipe = subprocess.PIPE
    shares = [subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe) for _ in range(CORES)]
    for share in shares:
        expect("ready", share)
    began = time.perf_counter()
    for share in shares:
        print(file=share.stdin, flush=True)
    for share in shares:
        expect("done", share)
    took = time.perf_counter() - began
    for share in shares:
        share.communicate()
    return took


def expect(word: str, share: "subprocess.Popen[str]") -> None:
    """Wait until a process says that it is so far; exit if it ends before."""
    if share.stdout.readline().strip() != word:
        sys.exit(f"{share.args!r}: exit status {share.wait()}")


def do_share() -> None:
    """Do one core's share of the steps, when the other processes are ready as well."""
    trainer = make_trainer(ONE_THREAD)
    print("ready", flush=True)
    input()
    for _ in range(TRIALS):
        trainer.run_steps(STEPS // CORES)
    print("done", flush=True)


def main() -> None:
    if sys.argv[1:] == ["share"]:
        return do_share()
    whole, alone = [], []
    with tempfile.TemporaryDirectory() as folder:
        measure(["-m", "benchmarks.peers.waymark", "--folder", folder, "--steps", "50"])
        for repetition in range(REPETITIONS):
            whole.append(sweep(Path(folder), repetition * TRIALS))
            alone.append(ideal())
    over = [100 * (a / b - 1) for a, b in zip(whole, alone, strict=True)]
    job = f"{TRIALS} trials of {STEPS:,} steps, {WORKERS} workers"
    columns = [job, "whole s", "the steps alone s", "percent over them"]
    rows = [["waymark", spread(whole), spread(alone), spread(over, 1)]]
    targets = [Target(f"{job}: waymark / the steps alone", whole, alone, most=1.15)]
    return report("workers", [table(columns, rows)], targets, {"waymark": whole, "alone": alone})


if __name__ == "__main__":
    main()
