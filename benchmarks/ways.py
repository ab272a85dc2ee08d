"""What the benchmarks share: running a program, measuring it, and telling what came of it."""

import contextlib
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).parent
COLUMNS = ("ratio", "measured", "aim", "met")
AHEAD = ("job", "least time or memory", "times less", "than")
TIE = 0.25  # a smaller difference is none, on machines that swing by a factor of two
LOOK_S = 0.05  # between two looks at the memory of the processes
PR_SET_CHILD_SUBREAPER = 36  # of Linux's prctl


def data_overrides() -> list[str]:
    """Return the overrides that choose the data: MNIST where MNIST_NPZ names it."""
    path = os.environ.get("MNIST_NPZ")
    return ["data=mnist", f"data.path={Path(path).absolute()}"] if path else []


@dataclass(frozen=True)
class Measurement:
    """What a process took, from its start to its end."""

    wall: float  # seconds
    cpu: float  # seconds, of all its threads and of every process that it started
    peak: float  # megabytes of memory
    peak_of_all: float  # megabytes: the sum of its peak and those of the processes that it started
    marks: list[tuple[str, float]]  # part of the job -> seconds after the start, in order
    output: str

    def part(self, name: str, trial: int = 0) -> float:
        """Return the seconds from a mark to the next one, or to the process's end."""
        times = [at for _, at in self.marks] + [self.wall]
        places = [i for i, (mark, _) in enumerate(self.marks) if mark == name]
        return times[places[trial] + 1] - times[places[trial]]


def children_of(pid: int) -> set[int]:
    """Return the processes that a process has as its children; none where there is no /proc."""
    found: set[int] = set()
    with contextlib.suppress(OSError):  # it has ended, or one of its threads
        for file in Path(f"/proc/{pid}/task").glob("*/children"):
            found |= {*map(int, file.read_text().split())}
    return found


def with_descendants(pids: set[int]) -> set[int]:
    below = {child for pid in pids for child in children_of(pid)}
    return pids | with_descendants(below) if below else pids


def peak_of(pid: int) -> float:
    """Return the most megabytes that a process has held so far; 0 if it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0


@contextlib.contextmanager
def watched_peaks(started: Callable[[], set[int]]) -> Iterator[dict[int, float]]:
    """Note the peak of each process that was started, and of those below, as it grows."""
    peaks: dict[int, float] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(LOOK_S):
            for pid in with_descendants(started()):
                if peak := peak_of(pid):  # the last counts: the first may be that of its parent
                    peaks[pid] = peak

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def adopting() -> Iterator[None]:
    """Become the parent of all processes below whose own parents end; Linux only."""
    if sys.platform != "linux":
        yield
        return
    system = ctypes.CDLL(None)
    system.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        system.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def wait_for_all(started: Callable[[], set[int]]) -> float:
    """Wait for the processes that were left behind; return their CPU seconds."""
    seconds = 0.0
    while left := started():
        _, _, usage = os.wait4(left.pop(), 0)
        seconds += usage.ru_utime + usage.ru_stime
    return seconds


def measure(arguments: Sequence[str]) -> Measurement:
    """Run Python with these arguments to its end; exit if it fails.

    The time is that until the process itself ends. What it started and waited for is in what the
    system counts for it; what it left behind becomes a child of this process, which waits for it.
    """
    before = children_of(os.getpid())

    def started() -> set[int]:
        return children_of(os.getpid()) - before

    with (
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
        adopting(),
        watched_peaks(started) as peaks,
    ):
        began = time.time()
        child = subprocess.Popen([sys.executable, *arguments], stdout=out, stderr=err)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.time() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        cpu = usage.ru_utime + usage.ru_stime + wait_for_all(started)
        for file in (out, err):
            file.seek(0)
        output = out.read()
        if child.returncode:
            sys.exit(f"{' '.join(arguments)}: exit status {child.returncode}\n{err.read()}")
    words = [line.split() for line in output.splitlines() if line.startswith("mark ")]
    marks = [(name, float(at) - began) for _, name, at in words]
    peak = usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e6 / 1024)
    others = sum(megabytes for pid, megabytes in peaks.items() if pid != child.pid)
    return Measurement(wall, cpu, peak, peak + others, marks, output)


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

    @property
    def extremes(self) -> tuple[float, float]:
        return min(self.over) / max(self.under), max(self.over) / min(self.under)

    @property
    def tie(self) -> bool:
        return abs(self.ratio - 1) < TIE

    def row(self) -> list[str]:
        low, high = self.extremes
        aim = f"at least {self.least}" if self.least is not None else f"at most {self.most}"
        met = self.ratio >= self.least if self.least is not None else self.ratio <= self.most
        return [
            self.what,
            f"{self.ratio:.2f} ({low:.2f} to {high:.2f}){', a tie' if self.tie else ''}",
            aim,
            "yes" if met else "no",
        ]

    def ahead(self) -> list[str]:
        """Return job, who took less, how many times, than whom; of "job: one / other" only."""
        job, _, programs = self.what.partition(": ")
        over, _, under = programs.partition(" / ")
        if not under:
            return []
        ratio, (low, high) = self.ratio, self.extremes
        if ratio < 1:
            over, under, ratio, low, high = under, over, 1 / ratio, 1 / high, 1 / low
        times = f"{ratio:.2f} ({low:.2f} to {high:.2f})"
        return [job, f"a tie: {under}" if self.tie else under, times, over]


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def processor() -> str:
    """Return the processor's name, as Linux tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def report(name: str, tables: Sequence[str], targets: Sequence[Target], numbers: Mapping) -> None:
    """Print the tables of a program, and write all its numbers as JSON beside it."""
    rows = [target.row() for target in targets]
    text = "\n".join([*tables, *([table(COLUMNS, rows)] * bool(rows))])
    print(text, flush=True)
    facts = {
        "data": "mnist" if os.environ.get("MNIST_NPZ") else "mnist_5k",
        "cores": os.cpu_count(),
        "processor": processor(),
        "load": os.getloadavg()[0],
        "numbers": numbers,
        "targets": [asdict(target) for target in targets],
    }
    (HERE / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")
