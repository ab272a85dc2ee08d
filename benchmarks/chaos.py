"""What benchmarks.torture breaks Waymark with, and how it looks at what is left.

The program, in a process of its own or in this one; files that get damaged.
"""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import psutil

from tests.support.processes import FOREIGN, REPO

BOUND = 120  # seconds that anything may take which is waited for
HOMES = ("artifacts/*/*/artifacts", "spool/*/artifacts")  # of a run's files, below mlruns
DELIVERY = "waymark.tracking.delivery_process"
# A kill is of the process that trains, the one that delivers, or both; of a group of processes;
# or the terminal is closed.
WAYS = ("training", "delivery", "both", "group", "terminal")
DAMAGES = ("truncate", "flip", "delete", "empty", "swap", "rename")


def clean_environment(home: Path) -> None:
    """Give this process, and those it starts, an empty home and no settings of the user's."""
    home.mkdir()
    for key in [key for key in os.environ if key.startswith(FOREIGN)]:
        del os.environ[key]
    os.environ |= {"HOME": str(home), "PYTHONPATH": str(REPO)}
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start `waymark ...` in a folder, as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "waymark", *arguments],
        cwd=folder,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def strike(process: "subprocess.Popen[str]", way: str) -> bool:
    """Do to a program that trains what a way of `WAYS` says; tell whether it was there to be hit.

    It has ended then, but for `delivery`, after which it goes on.
    """
    with contextlib.suppress(psutil.Error):
        children = psutil.Process(process.pid).children()
        found = [child for child in children if any(map(DELIVERY.__eq__, child.cmdline()))]
        for child in found if way in ("delivery", "both") else []:
            child.kill()
        if way == "delivery":
            return bool(found) and process.poll() is None
    with contextlib.suppress(ProcessLookupError):
        if way == "group":
            os.killpg(process.pid, signal.SIGKILL)
        elif way == "terminal":  # what its end sends
            process.send_signal(signal.SIGHUP)
        else:
            process.kill()
    process.wait()
    return process.returncode in (-signal.SIGKILL, 128 + signal.SIGHUP)


def finish(process: "subprocess.Popen[str]", bound: float = BOUND) -> tuple[int, str, str]:
    """Wait for the end of a program; return its status (-9 too if it took too long), out, err."""
    try:
        out, err = process.communicate(timeout=bound)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        err += f"\n(killed: not ended within {bound:.0f} s)"
    return process.returncode, out, err


def newest(folder: Path) -> int:
    """Return the newest step published below a folder where one run was started; 0 if none."""
    mlruns = folder / "mlruns"
    names = [p.stem for home in HOMES for p in mlruns.glob(f"{home}/checkpoints/*-*.json")]
    return max((int(name.rpartition("-")[2]) for name in names if name[0] != "."), default=0)


def watch(process: "subprocess.Popen[str]", folder: Path, step: int) -> int:
    """Wait until a step is published, or the process has ended; return the newest step seen."""
    end, seen = time.monotonic() + BOUND, newest(folder)
    while process.poll() is None and seen < step and time.monotonic() < end:
        time.sleep(0.003)
        seen = max(seen, newest(folder))
    return seen


def left_over(folder: Path) -> list[str]:
    """Return what still waits for delivery in a folder where a run has ended."""
    mlruns = folder / "mlruns"
    paths = [*mlruns.glob("spool/*"), *mlruns.glob("outbox/*.jsonl")]
    names = sorted(path.relative_to(folder).as_posix() for path in paths)
    return [f"left over: {names}"] if names else []


@contextlib.contextmanager
def captured() -> Iterator[Callable[[], list[str]]]:
    """Send this process's stdout and stderr to files; give what returns their texts."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        files, saved = (out, err), (os.dup(1), os.dup(2))

        def texts() -> list[str]:
            sys.stdout.flush()
            sys.stderr.flush()
            return [os.pread(file.fileno(), 10**7, 0).decode() for file in files]

        sys.stdout.flush()
        for number, file in zip((1, 2), files, strict=True):
            os.dup2(file.fileno(), number)
        try:
            yield texts
        finally:
            sys.stdout.flush()
            for number, handle in zip((1, 2), saved, strict=True):
                os.dup2(handle, number)
                os.close(handle)


def waymark(*arguments: str) -> tuple[int, str, str]:
    """Run `waymark ...` in this process, where TensorFlow is loaded already."""
    from waymark import __main__ as program

    argv, path = ["waymark", *arguments], list(sys.path)
    with patch.object(sys, "argv", argv), patch.object(sys, "path", path), captured() as texts:
        try:
            status = program.main()
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        except Exception:
            traceback.print_exc()
            status = -1
        out, err = texts()
        return status, out, err


def damage_one(draw: random.Random, how: str, path: Path) -> str:
    """Damage one file of a folder of checkpoints; say what was done."""
    body = path.read_bytes()
    others = sorted(other for other in path.parent.iterdir() if other != path)
    if how == "truncate" and body:
        path.write_bytes(body[: draw.randrange(len(body))])
        return f"truncate {path.name} to {path.stat().st_size} of {len(body)} bytes"
    if how == "flip" and body:
        at, bit = draw.randrange(len(body)), draw.randrange(8)
        path.write_bytes(body[:at] + bytes([body[at] ^ 1 << bit]) + body[at + 1 :])
        return f"flip bit {bit} of byte {at} of {path.name}"
    if how == "delete":
        path.unlink()
    elif how == "swap" and others:
        other = draw.choice(others)
        path.write_bytes(other.read_bytes())
        other.write_bytes(body)
        return f"swap {path.name} and {other.name}"
    elif how == "rename":
        fake = re.sub(r"-\d+", f"-{draw.randint(1, 70)}", path.name, count=1)
        other = path.with_name(draw.choice(sorted({f"{path.name}.old", fake} - {path.name})))
        path.rename(other)
        return f"rename {path.name} to {other.name}"
    else:
        path.write_bytes(b"")
    return f"{how} {path.name}"
