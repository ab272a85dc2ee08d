"""Measure whole processes, from their start to their end: seconds by part, and memory.

    MNIST_NPZ=/path/to/mnist.npz python -m benchmarks.whole

Softmax with 1000 steps, a store that exists, files that were read before; the programs in turn.
For the memory the CNN runs, too. Then what needs no TensorFlow: the help, a refusal.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.ways import Measurement, Target, data_overrides, measure, report, spread, table

REPETITIONS = 5
PROGRAMS = {
    "waymark": ["waymark"],
    "reference_tf1": ["reference_tf1"],
    "handwritten_batched": ["handwritten", "--batched"],
    "bare_loop": ["bare_loop"],
}
PARTS = ("start", "loop", "restore", "leave")


def run(program: str, folder: Path, *more: str) -> Measurement:
    name, *options = PROGRAMS[program]
    place = folder / program
    place.mkdir(exist_ok=True)
    return measure(["-m", f"benchmarks.peers.{name}", *options, "--folder", str(place), *more])


def interleaved(programs: list[str], folder: Path, *more: str) -> dict[str, list[Measurement]]:
    """Run the programs in turn."""
    found: dict[str, list[Measurement]] = {program: [] for program in programs}
    for repetition in range(REPETITIONS):
        for program in programs:
            found[program].append(run(program, folder, "--seed", str(repetition), *more))
    return found


def part(measured: Measurement, name: str) -> float:
    if name == "start":
        return measured.marks[0][1]
    return measured.part(name) if name in dict(measured.marks) else 0.0


def row(program: str, runs: list[Measurement]) -> list[str]:
    parts = [spread([part(job, name) for job in runs]) for name in PARTS]
    wall, cpu, peak = ([getattr(job, name) for job in runs] for name in ("wall", "cpu", "peak"))
    return [program, *parts, spread(wall), spread(cpu), spread(peak, 0)]


def command(*words: str) -> list[float]:
    """Return the seconds that a command takes which needs no TensorFlow."""
    seconds = []
    for _ in range(REPETITIONS + 1):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "waymark", *words], capture_output=True)
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        for program in PROGRAMS:  # so that its store exists, and its files were read
            run(program, Path(name), "--steps", "50")
        found = interleaved(list(PROGRAMS), Path(name))
        both = ["waymark", "reference_tf1"]
        large = interleaved(both, Path(name), "--model", "cnn", "--steps", "200")
    quick = {
        "waymark --help": command("--help"),
        "a refused configuration": command("run", *data_overrides(), "batch_size=0"),
    }
    columns = ["softmax, 1000 steps", "start s", "loop s", "restore, evaluate, draw s", "leave s"]
    columns += ["whole s", "CPU s", "peak MB"]
    rows = [row(program, runs) for program, runs in found.items()]
    rows += [row(f"{program}, CNN, 200 steps", runs) for program, runs in large.items()]
    times = [[what, spread(seconds)] for what, seconds in quick.items()]
    walls = [[t.wall for t in found[program]] for program in both]
    peaks = [[t.peak for t in found[program]] for program in both]
    peaks += [[t.peak for t in runs] for runs in large.values()]
    targets = [
        Target("whole process: waymark / reference_tf1", *walls, most=0.8),
        Target("peak memory, softmax: waymark / reference_tf1", *peaks[:2], most=0.8),
        Target("peak memory, CNN: waymark / reference_tf1", *peaks[2:], most=0.35),
        Target("waymark --help / a second", quick["waymark --help"], [1.0], most=0.4),
        Target("a refusal / a second", quick["a refused configuration"], [1.0], most=1.0),
    ]
    numbers = {
        program: [{"wall": t.wall, "cpu": t.cpu, "peak": t.peak, "marks": t.marks} for t in runs]
        for program, runs in [*found.items(), *((f"{p}, cnn", t) for p, t in large.items())]
    }
    tables = [table(columns, rows), table(["command", "seconds"], times)]
    report("whole", tables, targets, numbers | quick)


if __name__ == "__main__":
    main()
