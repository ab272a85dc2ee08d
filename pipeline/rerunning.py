"""Do a recorded run again, as a new run, and tell whether it came to the same bits."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline import new_process, running
from pipeline.compose import parsed
from pipeline.config import NAME, BadInput, Sentence
from pipeline.environment import CHECKOUT, checkout, diffstat
from pipeline.tracking import Tracking
from pipeline.verdict import Evidence, Verdict, evidence, load

# What a rerun may change: none of it changes the numbers. (Of the data their digest tells.)
FREE = (
    *("log_every", "eval_every", "data.path", "progress", "record.changes"),
    *("experiment_name", "run_name", "trusted_modules"),
)


def rerun(
    text: str,
    overrides: Sequence[str],
    threads: int | None = None,
    at_commit: bool = False,
    trust_code: bool = False,
) -> Verdict:
    """Run a recorded run again and compare every value and every state by its bits.

    `threads` replaces the recorded number of threads, to see what that does. `at_commit` runs
    the recorded commit with its recorded changes instead of the code as it is now; that takes
    `trust_code`.

    Raises BadInput for an unknown run, an override that could change the numbers, or a record
    that is damaged; Failed and Stopped as `running.run` does.
    """
    given = {"tracking.uri": None, **_allowed(overrides)}
    trusted = given.pop("trusted_modules", [])
    tracking = Tracking(given["tracking.uri"])
    record = tracking.find_single(text)
    original = evidence(tracking, record)
    if at_commit:
        words = ["rerun", record.id, *overrides]
        words += [f"--threads={threads}"] if threads is not None else []
        with _worktree(original, trust_code) as code:
            return _in_a_new_process(words, code, checkout=code[0])
    name = f"rerun of {record.name.removeprefix('rerun of ')}"
    given.setdefault("run_name", name[: NAME[1]] if re.fullmatch(NAME[0], name) else None)
    if threads is not None:
        given["runtime.intra_op_threads"] = threads
    resolved = running.record_of(tracking, record, given, trusted)
    try:
        verdict = running.run(resolved, original).verdict
    except running.Failed as failed:
        if failed.verdict is None:
            raise
        verdict = failed.verdict
    assert verdict
    return verdict


def _allowed(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the overrides as values; raise BadInput for one that could change the numbers."""
    given = parsed(overrides)
    for key in given:
        if key == "runtime.intra_op_threads":
            raise BadInput(f"{key}: the number of threads changes the bits; see with --threads N.")
        if key not in FREE and key.partition(".")[0] not in ("save", "tracking"):
            raise BadInput(
                f"{key}: could change the numbers, so a rerun does not take it; "
                f"for an ordinary new run: waymark run --config-from RUN {key}=..."
            )
    return given


def _in_a_new_process(words: Sequence[str], code: Sequence[str], checkout: str) -> Verdict:
    """Do a rerun by the command line of the `code` folders, which may be an older Waymark.

    Raises BadInput, Failed or Stopped with what the process says.
    """
    path = os.pathsep.join([*code, new_process.HOME, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-P", "-m", "pipeline", *words, "--json"]
    last = ""

    def tell(line: str) -> None:  # the last one may be the error
        nonlocal last
        new_process.show(last, sys.stdout)
        last = line

    with tempfile.TemporaryFile("w+") as answer:
        variables = {"PYTHONPATH": path, CHECKOUT: checkout}
        status = new_process.run(command, tell, variables, answer)
        answer.seek(0)
        told = answer.read()
    if status not in (1, 2):
        new_process.show(last, sys.stdout)
    if status in (0, 3):
        return load(told)
    sentence = last.strip().removeprefix("waymark: ") or "the process of the rerun failed"
    if status == 2:
        raise BadInput(sentence)
    raise new_process.ended(status) or running.Failed(sentence)


@contextmanager
def _worktree(original: Evidence, trust_code: bool) -> Iterator[list[str]]:
    """Check out what a run recorded of its code; yield the folders it is imported from."""
    run, commit, patch = original.record, original.facts.get("git_commit"), original.patch or ""
    if not isinstance(commit, str) or not re.fullmatch("[0-9a-f]{40,64}", commit):
        raise BadInput(f"--at-commit: run {run.id} recorded no git commit.")
    where = checkout()
    try:
        top = Path(_git(where, "rev-parse", "--show-toplevel").strip())
    except BadInput:
        raise BadInput(
            f"--at-commit: {where} is no git checkout, which commit {commit[:12]} could come from."
        ) from None
    print(Sentence(_git(top, "log", "-1", "--format=commit %h of %cs: %s", commit).strip()))
    print(Sentence(f"recorded changes: {diffstat(patch)}"), flush=True)
    if re.search(r"^[ +-]\(masked\)$", patch, re.MULTILINE):
        raise BadInput(f"--at-commit: the changes that run {run.id} recorded are masked in part.")
    if not trust_code:
        raise BadInput("--at-commit runs this code: if you trust the record, add --trust-code.")
    with tempfile.TemporaryDirectory(prefix="waymark-") as scratch:
        code = Path(scratch) / "code"
        _git(top, "worktree", "prune")
        _git(top, "worktree", "add", "--quiet", "--detach", str(code), commit)
        try:
            if patch:
                (Path(scratch) / "changes.patch").write_bytes(
                    patch.encode(errors="surrogateescape")
                )
                _git(code, "apply", "--whitespace=nowarn", f"{scratch}/changes.patch")
            inside = Path.cwd().relative_to(top) if Path.cwd().is_relative_to(top) else Path()
            yield [str(code), str(code / inside)]
        finally:
            _git(top, "worktree", "remove", "--force", str(code))


def _git(where: Path, *arguments: str) -> str:
    """Return what git prints; raise BadInput with what it says if it fails."""
    command = ["git", "-C", str(where), *arguments]
    try:
        return subprocess.run(
            command, capture_output=True, check=True, text=True, errors="replace"
        ).stdout
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines() or ["no reason given"]
        raise BadInput(f"--at-commit: git {arguments[0]} fails: {said[-1]}") from None
    except OSError as error:
        raise BadInput(f"--at-commit: git cannot be run ({error.strerror}).") from None
