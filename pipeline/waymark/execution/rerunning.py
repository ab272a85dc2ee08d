"""Do a recorded run again, as a new run, and tell whether it came to the same bits."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from waymark.comparison import own_code
from waymark.comparison.recorded_run import RecordedRun, load_recorded_run
from waymark.comparison.repository import CHECKOUT, checkout, diffstat, git_environment
from waymark.comparison.rerun_report import RerunReport, load
from waymark.config.compose import SEARCHPATH, parse_overrides
from waymark.config.old_names import PACKAGE as OLD_PACKAGE
from waymark.config.record import is_moved_file
from waymark.config.schema import DATA_PLACES, RUN_NAMES
from waymark.errors import BadInput, Failed, printable
from waymark.evaluation.restore import record_as_it_is
from waymark.execution import new_process
from waymark.execution.ending import RerunDiverged
from waymark.execution.execute import run
from waymark.execution.plan import record_of
from waymark.tracking.finder import find_single
from waymark.tracking.remote_store import connect
from waymark.tracking.runs import RunRecord
from waymark.tracking.store import RunStore

# What a rerun may change: none of it changes the numbers. (Of the data their digest tells.)
RERUN_OVERRIDABLE = (
    *("log_every", "eval_every", *DATA_PLACES, "progress", "record.changes"),
    *("experiment_name", "run_name", "trusted_modules", SEARCHPATH),
)

COMMIT = re.compile("[0-9a-f]{40,64}")


def rerun(
    text: str,
    overrides: Sequence[str],
    threads: int | None = None,
    at_commit: bool = False,
    trust_code: bool = False,
) -> RerunReport:
    """Run a recorded run again and compare every value and every state by its bits.

    `threads` replaces the recorded number of threads, to see what that does. `at_commit` runs
    the recorded commit with its recorded changes instead of the code as it is now; that takes
    `trust_code`.

    Raises BadInput for an unknown run, an override that could change the numbers, or a record
    that is damaged; Failed and Interrupted as `run` does.
    """
    given = {"tracking.uri": None, **parse_overrides(overrides)}
    tracking = connect(given["tracking.uri"])
    record = find_single(tracking, text)
    _refuse_others(given, tracking, record)
    original = load_recorded_run(tracking, record)
    if at_commit:
        words = ["rerun", record.id, *overrides]
        words += [f"--threads={threads}"] if threads is not None else []
        with _worktrees(original, trust_code) as (code, where):
            return _in_a_new_process(words, code, where)
    name = f"rerun of {record.name.removeprefix('rerun of ')}"
    legal = re.fullmatch(RUN_NAMES.pattern, name)
    given.setdefault("run_name", name[: RUN_NAMES.longest] if legal else None)
    if threads is not None:
        given["runtime.intra_op_threads"] = threads
    resolved = record_of(tracking, record, given)
    decisive = [key for key in ("eval_every", "save.keep_best") if key in given]
    if resolved.config.stop and decisive:
        raise BadInput(f"{decisive[0]}: decides where a run with stop ends, so a rerun takes none.")
    try:
        verdict = run(resolved, original=original).verdict
    except RerunDiverged as diverged:  # as its original may have
        return diverged.verdict
    assert verdict
    return verdict


def _refuse_others(given: Mapping[str, Any], tracking: RunStore, record: RunRecord) -> None:
    """Raise BadInput for a setting that could change the numbers, unless the record masks it."""
    others = [key for key in given if key not in RERUN_OVERRIDABLE]
    others = [key for key in others if key.partition(".")[0] not in ("save", "tracking")]
    values, _, masked = record_as_it_is(tracking, record) if others else ({}, {}, [])
    for key in others:
        if key == "data.test" and is_moved_file(values["data"].get("test"), given[key]):
            continue
        if key == "runtime.intra_op_threads":
            raise BadInput(f"{key}: the number of threads changes the bits; see with --threads N.")
        if key not in masked:
            raise BadInput(
                f"{key}: could change the numbers, so a rerun does not take it; "
                f"for an ordinary new run: waymark run --config-from {record.id} {key}=..."
            )


def _in_a_new_process(
    words: Sequence[str], code: Sequence[str], checkout: str | None
) -> RerunReport:
    """Do a rerun by the command line in the `code` folders; return its verdict, raise its error."""
    path = os.pathsep.join([*code, new_process.HOME, *filter(None, [os.environ.get("PYTHONPATH")])])
    old = bool(checkout) and Path(str(checkout), "hydra_plugins", "waymark.py").is_file()
    command = [sys.executable, "-P", "-m", OLD_PACKAGE if old else "waymark", *words, "--json"]
    env = {**os.environ, "PYTHONPATH": path, **({CHECKOUT: checkout} if checkout else {})}
    answer, last = [""], ""

    def tell(line: str) -> None:  # the last one may be the error
        nonlocal last
        new_process.show(last, sys.stdout)
        last = line

    status = new_process.run(command, answer.append, tell, env)
    if status not in (1, 2):
        new_process.show(last, sys.stdout)
    if status in (0, 3):
        return load("".join(answer))
    sentence = last.strip().removeprefix("waymark: ") or "the process of the rerun failed"
    if status == 2:
        raise BadInput(sentence)
    raise new_process.ended(status) or Failed(sentence)


@dataclass(frozen=True)
class _Recorded:
    """A checkout's commit and changes as a run recorded them."""

    name: str  # " of NAME"; "" for the code's checkout
    top: Path  # of the repository that has the commit
    commit: str
    patch: str
    changes: str | None  # in one line; None if they were not recorded
    folders: list[Path]  # from which modules of the user's are imported


@contextmanager
def _worktrees(original: RecordedRun, trust_code: bool) -> Iterator[tuple[list[str], str | None]]:
    """Check out the recorded code; yield the folders to import from, and Waymark's checkout."""
    own = own_code.own_facts(original.facts)
    gone = [name for name in own.patches() if not original.patches.get(name)]
    if gone:
        raise BadInput(f"--at-commit: run {original.record.id} has lost {gone[0]}.")
    copies = original.patches.get(own_code.COPIES, "")
    main = _recorded_checkout(original, own)
    others = [_recorded_repository(original, *each) for each in enumerate(own.repositories)]
    checkouts = [each for each in (main, *others) if each]
    for each in checkouts:
        text = _git(each.top, "log", "-1", "--format=commit %h of %cs: %s", each.commit)
        print(printable(text.strip() + (f" ({each.name[4:]})" if each.name else "")))
        changes = "not recorded" if each.changes is None else each.changes
        print(printable(f"recorded changes{each.name}: {changes}"), flush=True)
    if copies:
        print(printable(f"recorded copies: {diffstat(copies)}"), flush=True)
    if own.left_out:
        print(printable(f"not recorded, so as they are now: {', '.join(own.left_out)}"), flush=True)
    patches = [copies, *(each.patch for each in checkouts)]
    if any(re.search(r"^[ +-]\(masked\)$", patch, re.MULTILINE) for patch in patches):
        raise BadInput(
            f"--at-commit: the changes that run {original.record.id} recorded are masked in part."
        )
    if not trust_code:
        raise BadInput("--at-commit runs this code: if you trust the record, add --trust-code.")
    with tempfile.TemporaryDirectory(prefix="waymark-") as scratch, ExitStack() as stack:
        folders = []
        if copies:
            place = Path(scratch) / "copies"
            place.mkdir()
            _git(place, "init", "--quiet")  # else the changes are those of one around it
            _apply(place, copies)
            folders.append(place)
        if main:
            code = stack.enter_context(_worktree(main, Path(scratch) / "code"))
            here = Path.cwd()
            inside = here.relative_to(main.top) if here.is_relative_to(main.top) else "."
            source = code / "pipeline"  # it was the package once, and the folder above the root
            folders += [source] if (source / "waymark").is_dir() else []
            folders += [code, code / inside, *(code / folder for folder in main.folders)]
        else:
            folders.append(Path(new_process.HOME))
        for number, each in enumerate(others):
            place = stack.enter_context(_worktree(each, Path(scratch) / f"own-{number}"))
            folders += [place / folder for folder in each.folders]
        yield list(map(str, folders)), str(code) if main else None


def _recorded_checkout(original: RecordedRun, own: own_code.OwnFacts) -> _Recorded | None:
    """Return what a run recorded of the code's checkout, None if it was in none; raise BadInput."""
    run, commit = original.record, original.facts.get("git_commit")
    if commit is None and (own.repositories or own.copied):
        return None
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise BadInput(f"--at-commit: run {run.id} recorded no git commit.")
    where, patch = checkout(), original.patches.get(own_code.CHANGES, "")
    try:
        top = Path(_git(where, "rev-parse", "--show-toplevel").strip())
    except BadInput:
        raise BadInput(
            f"--at-commit: {where} is no git checkout, which commit {commit[:12]} could come from."
        ) from None
    folders = own_code.import_folders(own.checkout)
    return _Recorded("", top, commit, patch, diffstat(patch), folders)


def _recorded_repository(
    original: RecordedRun, number: int, facts: own_code.RepositoryFacts
) -> _Recorded:
    """Return what a run recorded of a repository of the user's; raise BadInput if it is gone."""
    if not COMMIT.fullmatch(facts.commit):
        raise BadInput(f"--at-commit: of {facts.name} no git commit is recorded.")
    patch = original.patches.get(own_code.patch_name(number), "")
    folders = own_code.import_folders(facts.modules)
    for top in _repositories_here(facts.modules):
        with suppress(BadInput):
            _git(top, "cat-file", "-e", f"{facts.commit}^{{commit}}")
            return _Recorded(f" of {facts.name}", top, facts.commit, patch, facts.changes, folders)
    raise BadInput(
        f"--at-commit: commit {facts.commit[:12]} of {facts.name} is in no git checkout that "
        f"modules are imported from here; PYTHONPATH can name the folder of one."
    )


def _repositories_here(modules: Iterable[str]) -> list[Path]:
    """Return the checkouts that modules could come from, the likely first; import nothing."""
    found = []
    for name in sorted({name.partition(".")[0] for name in modules}):
        with suppress(Exception):  # of somebody's own way to import
            spec = PathFinder.find_spec(name)
            places = [spec.origin, *(spec.submodule_search_locations or [])] if spec else []
            found += [Path(place).resolve().parent for place in places if place]
    found += [Path(folder).resolve() for folder in [os.getcwd(), *sys.path]]
    return list(dict.fromkeys(filter(None, map(own_code.top_of, found))))


@contextmanager
def _worktree(recorded: _Recorded, place: Path) -> Iterator[Path]:
    _git(recorded.top, "worktree", "prune")
    _git(recorded.top, "worktree", "add", "--quiet", "--detach", str(place), recorded.commit)
    try:
        _apply(place, recorded.patch)
        yield place
    finally:
        _git(recorded.top, "worktree", "remove", "--force", str(place))


def _apply(place: Path, patch: str) -> None:
    if patch:
        file = place.with_name("changes.patch")
        file.write_bytes(patch.encode(errors="surrogateescape"))
        _git(place, "apply", "--whitespace=nowarn", str(file))


def _git(where: Path, *arguments: str) -> str:
    """Return what git prints; raise BadInput with what it says if it fails."""
    try:
        command = ["git", "-C", str(where), *arguments]
        done = subprocess.run(command, capture_output=True, env=git_environment())
    except OSError as error:
        raise BadInput(f"--at-commit: git cannot be run ({error.strerror}).") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise BadInput(f"--at-commit: git {arguments[0]} fails: {said[-1]}")
    return done.stdout.decode(errors="replace")
