"""The code's git repository: its commit, and its uncommitted changes as a patch."""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from waymark.package import REPOSITORY

SECRET = re.compile(
    r"(?i)(api[_-]?key|secret|token|passw(or)?d|private[_ ]key|credential)|://[^/\s:]+:[^@\s]+@"
    r"|\b(AKIA[0-9A-Z]{16}|gh[pousr]_\w{20,}|sk-\w{20,}|bearer\s)"
    r"|^.\s*[\"']?[A-Za-z0-9+/]{40,}\W*$"  # of a private key's body
)
# Variables by which git, in a hook, tells which repository called it; and those that change
# which files it takes, or what its patches are.
LEADING_GIT = (
    "GIT_DIR", "GIT_COMMON_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX",
    "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_DIFF_OPTS",
    "GIT_LITERAL_PATHSPECS", "GIT_GLOB_PATHSPECS", "GIT_NOGLOB_PATHSPECS", "GIT_ICASE_PATHSPECS",
)  # fmt: skip
PATIENCE = 10.0  # seconds that a program which only tells something may take
CHECKOUT = "WAYMARK_CHECKOUT"  # variable of `rerun --at-commit`: the code stands there
# Options of `git diff`, whatever the user's git is set to.
PLAIN = (
    "--no-color", "--no-ext-diff", "--no-textconv", "--no-relative",
    "--src-prefix=a/", "--dst-prefix=b/",
)  # fmt: skip


def program_output(*command: str, env: Mapping[str, str] | None = None) -> str | None:
    """Return what a program prints, None if it is not there, fails, or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE, env=env)
    except (OSError, subprocess.TimeoutExpired):
        return None
    # A patch must come through as it is: line ends and bytes that are no UTF-8 as well.
    return done.stdout.decode(errors="surrogateescape") if done.returncode == 0 else None


def git_environment(**variables: str) -> dict[str, str]:
    """Return the environment for git, and more variables; a hook's repository does not count."""
    return {k: v for k, v in os.environ.items() if k not in LEADING_GIT} | variables


def checkout() -> Path:
    """Return where the code stands: Waymark's own checkout, else the current folder."""
    if CHECKOUT in os.environ:
        return Path(os.environ[CHECKOUT])
    return REPOSITORY if REPOSITORY and (REPOSITORY / ".git").exists() else Path.cwd()


def git(*arguments: str, at: Path | None = None, **variables: str) -> str | None:
    """Return what git prints in a folder, else in the code's checkout; None if it fails."""
    command = ("git", "-C", str(at or checkout()), *arguments)
    return program_output(*command, env=git_environment(**variables))


def git_commit() -> str | None:
    """Return the commit of the code's checkout, None outside of one."""
    return (git("rev-parse", "HEAD") or "").strip() or None


def changes(files: Iterable[Path] = ()) -> str | None:
    """Return the uncommitted changes as a patch, lines that look like secrets masked.

    Python files that git does not know yet are changes, too, and `files` even where git ignores
    them. Bytes that are no UTF-8 are in it as Python's surrogates. None if there are none.
    """
    top = (git("rev-parse", "--show-cdup") or "").strip() or "."  # from a folder in it
    new = git("ls-files", "--others", "--exclude-standard", "-z", "--", f"{top}/*.py") or ""
    return changes_at(checkout(), files, new=new) or None


def changes_at(
    where: Path, files: Iterable[Path], since: str = "HEAD", new: str = "", only: bool = False
) -> str | None:
    """Return as `changes` does how a checkout differs from a commit; None if git fails.

    Of what git does not know there are `files`, and those in `new`, a list as git prints it. With
    `only` nothing but `files` is looked at.
    """
    paths, literal = [str(path) for path in files], "--literal-pathspecs"
    if paths:
        new += git(literal, "ls-files", "--others", "-z", "--", *paths, at=where) or ""
    with tempfile.TemporaryDirectory() as scratch:
        index = {}
        if new or since != "HEAD":  # into an index beside git's own, which stays as it is
            index = {"GIT_INDEX_FILE": f"{scratch}/index"}
            git("read-tree", since, at=where, **index)
            names = new.rstrip("\0").split("\0") if new else paths
            git(literal, "add", "--intent-to-add", "--force", "--", *names, at=where, **index)
        chosen = paths if only else []
        patch = git(literal, "diff", since, *PLAIN, "--", *chosen, at=where, **index)
    return None if patch is None else masked_lines(patch)


def masked_lines(patch: str) -> str:
    """Return a patch whose lines that look like secrets are masked."""
    lines = patch.split("\n")
    return "\n".join(f"{line[:1]}(masked)" if SECRET.search(line) else line for line in lines)


def diffstat(patch: str, beside: str = "") -> str:
    """Count a patch's lines by file, in one line; not of files that `beside` changes likewise."""
    own, other = _by_file(patch), _by_file(beside)
    counts = []
    for name, lines in own.items():
        if lines != other.get(name):
            signs = [line[:1] for line in lines if not line.startswith(("+++ ", "--- "))]
            counts.append(f"{name} +{signs.count('+')} -{signs.count('-')}")
    more = f" and {len(counts) - 10} more" if len(counts) > 10 else ""
    return ", ".join(counts[:10]) + more or "none"


def _by_file(patch: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in patch.splitlines():
        if line.startswith("diff --git "):
            lines = found.setdefault(line.rpartition(" b/")[2], [])
        elif not line.startswith("index "):
            lines.append(line)
    return found
