"""Measure whole processes, from their start to their end: seconds by part, and memory.

    MNIST_NPZ=/path/to/mnist.npz python -m benchmarks.whole

Softmax with 1000 steps, a store that exists (but for the first run in a folder), files that were
read before; the programs in turn. For the memory the CNN runs, too. CPU seconds are those of all
processes of a program; so is the memory in the last column, the sum of what each held at most.
"""

import shutil
import tempfile
from pathlib import Path

from benchmarks.ways import Measurement, Target, measure, report, spread, table

REPETITIONS = 5
FIRST = "waymark, first run in a folder"
PROGRAMS = {
    "waymark": ["waymark"],
    FIRST: ["waymark"],
    "reference_tf1": ["reference_tf1"],
    "handwritten_batched": ["handwritten", "--batched"],
    "bare_loop": ["bare_loop"],
}
PARTS = ("start", "loop", "restore", "leave")

Runs = dict[str, list[Measurement]]  # program -> its measurements


def run(program: str, folder: Path, *more: str) -> Measurement:
    name, *options = PROGRAMS[program]
    place = folder / ("new" if program == FIRST else program)
    if program == FIRST:
        shutil.rmtree(place, ignore_errors=True)
    place.mkdir(exist_ok=True)
    return measure(["-m", f"benchmarks.peers.{name}", *options, "--folder", str(place), *more])


def interleaved(programs: list[str], folder: Path, *more: str) -> Runs:
    """Run the programs in turn."""
    found: Runs = {program: [] for program in programs}
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
    times = [spread([job.wall for job in runs]), spread([job.cpu for job in runs])]
    memory = [[job.peak for job in runs], [job.peak_of_all for job in runs]]
    return [program, *parts, *times, *(spread(peaks, 0) for peaks in memory)]


def aims(small: Runs, large: Runs) -> list[Target]:
    def target(what: str, part: str, runs: Runs, most: float, one: str = "waymark") -> Target:
        other = what.partition(" / ")[2]
        over, under = ([getattr(job, part) for job in runs[each]] for each in (one, other))
        return Target(what, over, under, most=most)

    return [
        target("whole process: waymark / reference_tf1", "wall", small, 0.6),
        target("whole process: waymark / bare_loop", "wall", small, 1.2),
        target("first run in a folder: waymark / reference_tf1", "wall", small, 0.8, FIRST),
        # 1.1 times the CPU seconds of Waymark when it was one process, 6.13 where this took 6.99.
        target("whole process, CPU: waymark / reference_tf1", "cpu", small, 0.96),
        target("peak memory, softmax: waymark / reference_tf1", "peak", small, 0.8),
        target("peak memory, CNN: waymark / reference_tf1", "peak", large, 0.45),
        target("all processes' peaks, CNN: waymark / reference_tf1", "peak_of_all", large, 0.6),
    ]


def numbers_of(job: Measurement) -> dict:
    return {key: value for key, value in vars(job).items() if key != "output"}


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        for program in PROGRAMS:  # so that its store exists, and its files were read
            run(program, Path(name), "--steps", "50")
        found = interleaved(list(PROGRAMS), Path(name))
        both = ["waymark", "reference_tf1"]
        large = interleaved(both, Path(name), "--model", "cnn", "--steps", "200")
    columns = ["softmax, 1000 steps", "start s", "loop s", "restore, evaluate, draw s", "leave s"]
    columns += ["whole s", "CPU s", "peak MB", "peak MB of all processes"]
    rows = [row(program, runs) for program, runs in found.items()]
    rows += [row(f"{program}, CNN, 200 steps", runs) for program, runs in large.items()]
    jobs = found | {f"{program}, cnn": runs for program, runs in large.items()}
    numbers = {program: [numbers_of(job) for job in runs] for program, runs in jobs.items()}
    report("whole", [table(columns, rows)], aims(found, large), numbers)


if __name__ == "__main__":
    main()
