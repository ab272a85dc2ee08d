"""What a run ran on and which code it ran: environment.json and changes.patch."""

import os
import platform
import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pipeline
from pipeline.config import FORMAT, without_password

SECRET = re.compile(
    r"(?i)(api[_-]?key|secret|token|passw(or)?d|private[_ ]key|credential)|://[^/\s:]+:[^@\s]+@"
    r"|\b(AKIA[0-9A-Z]{16}|gh[pousr]_\w{20,}|sk-\w{20,}|bearer\s)"
    r"|^.\s*[\"']?[A-Za-z0-9+/]{40,}\W*$"  # of a private key's body
)


def environment(intra_op_threads: int) -> dict[str, Any]:
    """Describe everything beside configuration and data that can change a result's bits."""
    import tensorflow as tf
    from tensorflow.python.framework.config import is_op_determinism_enabled

    build = tf.sysconfig.get_build_info()
    return {
        "format": FORMAT,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "waymark": pipeline.__version__,
        "packages": _packages(),
        "tensorflow": {
            "version": tf.version.VERSION,
            "git": tf.version.GIT_VERSION,
            "cuda": build.get("cuda_version") if build["is_cuda_build"] else None,
            "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS"),
            "deterministic_ops": is_op_determinism_enabled(),
        },
        "cpu": _cpu(),
        "gpus": [device.name for device in tf.config.list_physical_devices("GPU")],
        "intra_op_threads": intra_op_threads,
        "git_commit": git_commit(),
        "command": [Path(sys.argv[0]).name, *map(without_password, sys.argv[1:])],
    }


def _packages() -> dict[str, str]:
    """Return the installed packages and versions; of two of one name, the one imported."""
    found: dict[str, str] = {}
    for distribution in distributions():
        if distribution.name:  # an interrupted pip leaves folders without metadata
            found.setdefault(distribution.name, distribution.version)
    return dict(sorted(found.items()))


def _cpu() -> dict[str, Any]:
    facts: dict[str, Any] = {"machine": platform.machine(), "cores": os.cpu_count()}
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:  # not Linux
        return {**facts, "model": platform.processor()}
    info = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    flags = info.get("flags") or info.get("Features") or ""  # on x86, on ARM
    return {**facts, "model": info.get("model name"), "flags": flags.split()}


def _git(*arguments: str) -> str | None:
    """Run git where the code stands: Waymark's own checkout, else the current folder."""
    root = Path(pipeline.__file__).parent.parent
    where = root if (root / ".git").exists() else Path.cwd()
    command = ["git", "-C", str(where), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def git_commit() -> str | None:
    """Return the commit of the code's checkout, None outside of one."""
    return (_git("rev-parse", "HEAD") or "").strip() or None


def changes() -> str | None:
    """Return the uncommitted changes as a patch, lines that look like secrets masked."""
    patch = _git("diff", "HEAD", "--no-color", "--no-ext-diff")
    if not patch:
        return None
    lines = patch.splitlines(keepends=True)
    return "".join(f"{line[:1]}(masked)\n" if SECRET.search(line) else line for line in lines)
