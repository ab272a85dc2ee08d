"""What the benchmarks share: running a program, measuring it, and telling what came of it."""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
COLUMNS = ("ratio", "measured", "aim", "met")
TIE = 0.25  # a smaller difference is none, on machines that swing by a factor of two


def data_overrides() -> list[str]:
    """Return the overrides that choose the data: MNIST where MNIST_NPZ names it."""
    path = os.environ.get("MNIST_NPZ")
    return ["data=mnist", f"data.path={Path(path).absolute()}"] if path else []


@dataclass(frozen=True)
class Measurement:
    """What a process took, from its start to its end."""

    wall: float  # seconds
    cpu: float  # seconds, of all its threads and children
    peak: float  # megabytes of memory
    marks: list[tuple[str, float]]  # part of the job -> seconds after the start, in order
    output: str

    def part(self, name: str, trial: int = 0) -> float:
        """Return the seconds from a mark to the next one, or to the process's end."""
        times = [at for _, at in self.marks] + [self.wall]
        places = [i for i, (mark, _) in enumerate(self.marks) if mark == name]
        return times[places[trial] + 1] - times[places[trial]]


def measure(arguments: Sequence[str]) -> Measurement:
    """Run Python with these arguments to its end; exit if it fails."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began = time.time()
        child = subprocess.Popen([sys.executable, *arguments], stdout=out, stderr=err)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.time() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        for file in (out, err):
            file.seek(0)
        output = out.read()
        if child.returncode:
            sys.exit(f"{' '.join(arguments)}: exit status {child.returncode}\n{err.read()}")
    words = [line.split() for line in output.splitlines() if line.startswith("mark ")]
    marks = [(name, float(at) - began) for _, name, at in words]
    unit = 1e6 if sys.platform == "darwin" else 1e3  # of ru_maxrss
    return Measurement(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit, marks, output)


def spread(values: Sequence[float], digits: int = 2, unit: float = 1) -> str:
    """Return the median of some numbers, with the smallest and the largest."""
    numbers = (statistics.median(values), min(values), max(values))
    middle, low, high = (f"{number * unit:.{digits}f}" for number in numbers)
    return f"{middle} ({low} to {high})"


@dataclass(frozen=True)
class Target:
    """A ratio that is aimed at: the median of `over` by the median of `under`."""

    what: str
    over: Sequence[float]
    under: Sequence[float]
    least: float | None = None
    most: float | None = None

    @property
    def ratio(self) -> float:
        return statistics.median(self.over) / statistics.median(self.under)

    def row(self) -> list[str]:
        low, high = min(self.over) / max(self.under), max(self.over) / min(self.under)
        aim = f"at least {self.least}" if self.least is not None else f"at most {self.most}"
        met = self.ratio >= self.least if self.least is not None else self.ratio <= self.most
        tie = ", a tie" if abs(self.ratio - 1) < TIE else ""
        return [
            self.what,
            f"{self.ratio:.2f} ({low:.2f} to {high:.2f}){tie}",
            aim,
            "yes" if met else "no",
        ]


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def report(name: str, tables: Sequence[str], targets: Sequence[Target], numbers: Mapping) -> None:
    """Print the tables of a program, and write all its numbers as JSON beside it."""
    rows = [target.row() for target in targets]
    text = "\n".join([*tables, *([table(COLUMNS, rows)] * bool(rows))])
    print(text, flush=True)
    facts = {
        "data": "mnist" if os.environ.get("MNIST_NPZ") else "mnist_5k",
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "load": os.getloadavg()[0],
        "numbers": numbers,
        "targets": rows,
    }
    (HERE / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")
