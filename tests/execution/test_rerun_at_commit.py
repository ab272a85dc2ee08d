"""Rerunning in another process and at the recorded commit, with the code as it was."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from waymark import api
from waymark.comparison import environment, repository
from waymark.comparison.repository import CHECKOUT, changes, diffstat, git_commit
from waymark.comparison.rerun_report import ArrayDifference, Divergence, RerunReport
from waymark.errors import BadInput, Failed
from waymark.execution import rerunning
from waymark.processes.signals import Interrupted

from tests.support.processes import BOUND, REPO, Done, Main, git
from tests.support.reruns import (
    OWN,
    SOFTMAX,
    artifacts,
    counts,
    forget,
    is_clean,
    own_model,
    record_fact,
    verdict_of,
)

pytestmark = pytest.mark.usefixtures("no_checkout")

needs_git = pytest.mark.skipif(not shutil.which("git"), reason="git is not here")


# The other process


CHILD = """#!{python}
import json, os, signal, sys
{body}
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return what replaces the other process, which takes seconds, by a few lines of Python."""

    def child(body: str) -> Path:
        path = tmp_path / "child"
        path.write_text(CHILD.format(python=sys.executable, body=body))
        path.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(path))
        return path

    return child


VERDICT = RerunReport(
    *(False, "b", "a", 3, 2, 1, {"train/loss": Divergence(1, math.inf, -0.5)}, 2),
    weights={"w": ArrayDifference(1e-9, math.inf)},
    accuracy=(None, 0.25),
    differences=[("intra_op_threads", 2, 1), ("code", ["x"], []), ("settings.A", None, "1")],
)


@pytest.mark.parametrize("status", [0, 3])
def test_the_verdict_of_the_other_process_comes_back(
    status: int, child: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    lines = "run b (x)\nwaymark: it warns\nat the end\n"
    answer = VERDICT.dump().replace("\n", "")
    child(f"sys.stderr.write({lines!r})\nprint({answer!r})\nsys.exit({status})")
    assert rerunning._in_a_new_process(["rerun", "a"], [], ".") == VERDICT
    assert "".join(capfd.readouterr()) == lines


@pytest.mark.parametrize(
    ("ending", "last", "kind", "text"),
    [
        ("sys.exit(2)", "waymark: it does not fit\n", BadInput, "^it does not fit$"),
        ("sys.exit(1)", "waymark: it does not fit\n", Failed, "^it does not fit$"),
        ("sys.exit(143)", "resume with: waymark resume b\n", Interrupted, "SIGTERM"),
        ("os.kill(os.getpid(), signal.SIGTERM)", "", Interrupted, "SIGTERM"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "", Failed, "SIGKILL|signal 9"),
    ],
)
def test_the_end_of_the_other_process_comes_back(
    ending: str,
    last: str,
    kind: type[Exception],
    text: str,
    child: Callable[[str], Path],
    capfd: pytest.CaptureFixture[str],
) -> None:
    child(f"sys.stderr.write({'run b (x)' + chr(10) + last!r})\nsys.stderr.flush()\n{ending}")
    with pytest.raises(kind, match=text):
        rerunning._in_a_new_process(["rerun", "a"], [], ".")
    said = "".join(capfd.readouterr())
    assert said == "run b (x)\n" + (last if last.startswith("resume with") else "")


SIGNALLED = """
signals = [signal.SIGINT, signal.SIGTERM]
signal.alarm(30)
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
print("ready", "go", sep=chr(10), file=sys.stderr, flush=True)
first = signal.sigwait(signals)
again = signal.sigtimedwait(signals, 0.3)
print("twice" if again else "once", file=sys.stderr)
sys.exit(128 + first)
"""


@pytest.mark.parametrize(("number", "group"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_signal_reaches_the_other_process_once(
    number: signal.Signals,
    group: bool,
    child: Callable[[str], Path],
    tmp_path: Path,
    environment: dict[str, str],
) -> None:
    """A terminal's Ctrl-C goes to all processes of the command; a second one would end it."""
    python = sys.executable
    (tmp_path / "parent.py").write_text(
        "import sys\nfrom waymark.execution import rerunning\n"
        f"sys.executable = {str(child(SIGNALLED))!r}\n"
        "try:\n    rerunning._in_a_new_process(['rerun', 'a'], [], '.')\n"
        "except Exception as error:\n    print(type(error).__name__, error.status)\n"
    )
    with subprocess.Popen(
        [python, "parent.py"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"  # it has handlers, the child waits
            (os.killpg if group else os.kill)(process.pid, number)
            out, err = process.communicate(timeout=BOUND)
        finally:
            process.kill()
    assert [*out.splitlines(), *err.splitlines()] == ["go", "once", f"Interrupted {128 + number}"]


# The recorded commit


def commit(folder: Path, message: str = "a commit") -> str:
    git(folder, "add", "--all", ".")
    git(folder, "commit", "--quiet", f"--message={message}")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def scratch(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Return the folder for temporary files, in which nothing may be left."""
    folder = tmp_path_factory.mktemp("scratch")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    assert [path.name for path in folder.iterdir() if path.name.startswith("waymark")] == []


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scratch: Path) -> Iterator[Path]:
    """Let the code stand in a checkout of its own, `code`; after a test it has one worktree."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    root = tmp_path / "code"
    root.mkdir()
    git(root, "init", "--quiet")
    monkeypatch.setenv(CHECKOUT, str(root))
    yield root
    assert len(git(root, "worktree", "list").splitlines()) == 1
    assert not [*root.glob(".git/worktrees/*")]
    assert git(root, "stash", "list") == ""


AT_COMMIT = ("--at-commit", "--trust-code")


@needs_git
def test_the_code_moved_on(
    place: Path,
    code: Path,
    data: list[str],
    main: Main,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Repeat a run's code as it was: commit, changed lines, new file, own model in a folder."""
    for part in ("pipeline", "conf"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPO / part, code / part, ignore=ignored)
    mine = code / "mine"
    mine.mkdir()
    (code / ".gitignore").write_text("mlruns\n__pycache__\n")
    shutil.move("mlruns", mine / "mlruns")
    monkeypatch.chdir(mine)
    name, helper = "own_model_of_a_commit", "own_model_of_a_commit_helper"
    overrides = own_model(name)
    softmax = code / "pipeline" / "waymark" / "models" / "softmax.py"
    as_now = softmax.read_text()
    softmax.write_text(as_now.replace("return tf.reshape", "return 2 * tf.reshape"))
    first = commit(code, "a first \x1b[31mstate")
    softmax.write_text(as_now)
    own_model(name, OWN.replace("SCALE = 1.0", f"from {helper} import SCALE"))
    Path(f"{helper}.py").write_text("SCALE = 1.5\n")  # git does not know it
    done = main("run", *SOFTMAX, *data, *overrides, "run_name=original")
    run_id = done.stdout.split()[1]
    softmax.write_text(f"{as_now}# a remark\n")
    Path(f"{helper}.py").unlink()
    own_model(name, OWN.replace("SCALE = 1.0", "SCALE = 3.0"))
    commit(code, "the code moved on")
    before, trust = git(code, "status", "--porcelain"), f"trusted_modules=[{name}]"

    told = [
        f"recorded changes: mine/{name}.py +1 -1, mine/{helper}.py +1 -0, "
        "pipeline/waymark/models/softmax.py +1 -1"
    ]
    refused = main("rerun", run_id, trust, "--at-commit")
    lines = refused.stdout.splitlines()
    assert refused.returncode == 2
    assert lines[0].startswith(f"commit {git(code, 'rev-parse', '--short', first)} of ")
    assert "\x1b" not in refused.stdout
    assert lines[1:] == told
    assert "--trust-code" in refused.stderr

    done = main("rerun", run_id, trust, *AT_COMMIT)
    assert done.returncode == 0, done
    assert done.stdout.splitlines()[1:2] == told
    assert done.stderr == ""
    done = Done(done.args, 0, done.stdout.partition(told[0])[2], "")
    verdict = verdict_of(done, run_id, "identical")
    assert is_clean(verdict)
    assert counts(verdict) == (20, 5, 4)
    new = artifacts(verdict.run_id)
    facts = json.loads((new / "environment.json").read_text())
    assert facts["git_commit"] == first
    assert (new / "changes.patch").read_text() == (artifacts(run_id) / "changes.patch").read_text()
    assert git(code, "status", "--porcelain") == before

    # The code as it is now is another one, which is told.
    forget(name, monkeypatch)
    monkeypatch.setattr(environment, "FOLDER", code / "pipeline" / "waymark")
    monkeypatch.setattr(repository, "REPOSITORY", code)
    verdict = verdict_of(main("rerun", run_id, trust), run_id, "different")
    assert verdict.partings["train/loss"].step == 1
    found = {what: (was, now) for what, was, now in verdict.differences}
    assert set(found) == {"git_commit", "code", "uncommitted changes"}
    assert found["git_commit"] == (first, git(code, "rev-parse", "HEAD"))
    both = [name, "waymark.models.softmax"]
    assert found["code"] == (sorted([*both, helper]), both)
    assert found["uncommitted changes"] == (told[0].partition(": ")[2], "none")


OWN_PACKAGE = """
from loose_{0} import SCALE
from waymark.models.softmax import Softmax


class Own(Softmax):
    def logits(self, parameters, images, dropout):
        from own_{0}.late import FACTOR

        return FACTOR * SCALE * super().logits(parameters, images, dropout)
"""


@pytest.mark.long
@needs_git
def test_the_users_own_code_moved_on(
    place: Path,
    data: list[str],
    main: Main,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Repeat a model of a repository beside the current folder: commit, changed lines, a module
    that git ignores and that training alone imports, and one that is in no repository.
    """
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    top, loose = place / "theirs", place / "loose"
    package = top / "src" / "own_x"
    package.mkdir(parents=True)
    loose.mkdir()
    git(top, "init", "--quiet")
    (top / ".gitignore").write_text("late.py\n__pycache__\n")
    (package / "__init__.py").write_text("")
    (package / "model.py").write_text("# first\n" + OWN_PACKAGE.format("x"))
    first = commit(top)
    (package / "model.py").write_text("# changed, token\n" + OWN_PACKAGE.format("x"))
    (package / "late.py").write_text("FACTOR = 1.5\n")
    (loose / "loose_x.py").write_text("SCALE = 1.25")
    for folder in (loose, top / "src"):
        monkeypatch.syspath_prepend(folder)
    overrides = ["model=softmax", "model._target_=own_x.model.Own"]
    run_id = main("run", *SOFTMAX, *data, *overrides).stdout.split()[1]
    recorded = artifacts(run_id)
    facts = json.loads((recorded / "environment.json").read_text())
    own = facts["own"]
    changes_told = "src/own_x/late.py +1 -0, src/own_x/model.py +1 -1"
    modules = {"own_x": "__init__.py", "own_x.model": "model.py", "own_x.late": "late.py"}
    (repository,) = own["repositories"]
    assert repository == {
        "name": "theirs",
        "commit": first,
        "changes": changes_told,
        "modules": {name: f"src/own_x/{file}" for name, file in modules.items()},
    }
    assert (own["copied"], own["left_out"]) == (["loose_x"], [])
    assert {*modules, "loose_x"} <= facts["code"].keys()
    kept = {path: path.read_text() for path in recorded.glob("own_code/*")}
    assert not [path for path, text in kept.items() if str(place) in text or "token" in text]

    # The code moves on.
    (package / "late.py").unlink()
    (package / "model.py").write_text(OWN_PACKAGE.format("x").replace("own_x.late", "loose_x"))
    (loose / "loose_x.py").write_text("SCALE = FACTOR = 3.0")
    commit(top)
    before = (git(top, "status", "--porcelain"), git(top, "worktree", "list"))
    for name in (*modules, "loose_x"):
        sys.modules.pop(name, None)
    shutil.rmtree(package / "__pycache__", ignore_errors=True)
    shutil.rmtree(loose / "__pycache__", ignore_errors=True)
    trust = "trusted_modules=[own_x]"
    verdict = verdict_of(main("rerun", run_id, trust), run_id, "different")
    found = {what: (was, now) for what, was, now in verdict.differences}
    assert found == {
        "code": (["loose_x", "own_x.late", "own_x.model"], ["loose_x", "own_x.model"]),
        "commit of theirs": (first, git(top, "rev-parse", "HEAD")),
        "uncommitted changes of theirs": (changes_told, "none"),
    }

    masked = main("rerun", run_id, trust, "--at-commit")
    assert (masked.returncode, "masked in part" in masked.stderr) == (2, True)
    patch = recorded / "own_code" / "repository-0.patch"
    patch.write_text(patch.read_text().replace("+(masked)", "+# changed"))
    refused = main("rerun", run_id, trust, "--at-commit")
    assert (refused.returncode, "--trust-code" in refused.stderr) == (2, True)
    assert refused.stdout.splitlines()[1:] == [
        f"recorded changes of theirs: {changes_told}",
        "recorded copies: loose_x.py +1 -0",
    ]
    done = main("rerun", run_id, trust, *AT_COMMIT)
    told = "".join(done.stdout.partition("run ")[1:])
    verdict = verdict_of(Done(done.args, done.returncode, told, done.stderr), run_id, "identical")
    assert [what for what, _, _ in verdict.differences] == [
        "code",
        "uncommitted changes of theirs",
    ]
    assert (git(top, "status", "--porcelain"), git(top, "worktree", "list")) == before

    # A stranger's record reaches no other repository, and no folder outside.
    facts["own"]["repositories"][0]["commit"] = "0" * 40
    (recorded / "environment.json").write_text(json.dumps(facts))
    done = main("rerun", run_id, trust, *AT_COMMIT)
    assert (done.returncode, done.stdout) == (2, "")
    assert "of theirs is in no git checkout" in done.stderr


@pytest.fixture
def shadow(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, bytes]]:
    """Return what collects the files of each worktree, whose code is not run."""
    seen: list[dict[str, bytes]] = []

    def look(words: list[str], code: list[str], checkout: str) -> RerunReport:
        folder = Path(checkout)
        assert code[0] == checkout
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        seen.append({path.relative_to(folder).as_posix(): path.read_bytes() for path in files})
        seen[-1].pop(".git")
        return VERDICT

    monkeypatch.setattr(rerunning, "_in_a_new_process", look)
    return seen


FILES = {
    "plain.py": (b"one\ntwo\n", b"one\n2\n"),
    "crlf.py": (b"one\r\ntwo\r\n", b"one\r\n2\r\n"),
    "latin.py": (b"# coding: latin-1\none = 1\n", b"# coding: latin-1\none = '\xe9'\n"),
    "no_end.py": (b"one\ntwo", b"one\n2"),
    "feed.py": (b"one\n\x0c\ntwo\n", b"one\n\x0c\n2\n"),
    "removed.py": (b"one\n", None),
    "new.py": (None, b"one\n"),
    "g\u00fcn/new one.py": (None, b"one\n"),
    "moved.py": (b"".join(b"%d\n" % i for i in range(50)), None),
    "moved_here.py": (None, b"".join(b"%d\n" % i for i in range(50))),
}
GROUPED = {
    "usual": [name for name in FILES if name not in ("crlf.py", "latin.py")],
    "crlf": ["crlf.py"],
    "latin": ["latin.py"],
}
SETTINGS = ["diff.noprefix=true", "diff.mnemonicPrefix=true", "diff.relative=true"]
SETTINGS += [
    "color.ui=always",
    "diff.external=false",
    "diff.renames=copies",
    "apply.whitespace=fix",
]


def as_recorded(run_id: str, commit_id: Any, patch: str) -> None:
    """Let the record of a run say that it ran a commit with changes, as a run records them."""
    record_fact(run_id, "git_commit", commit_id)
    record_fact(run_id, "changes", diffstat(patch))
    path = artifacts(run_id) / "changes.patch"
    path.unlink(missing_ok=True)
    if patch:
        path.write_bytes(patch.encode(errors="surrogateescape"))


def recorded_change(code: Path, run_id: str, names: list[str]) -> None:
    """Commit files, change them, record that for a run; then let the code move on."""
    for which in (0, 1):
        for name in names:
            body, path = FILES[name][which], code / name
            path.unlink(missing_ok=True)
            if body is not None:
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(body)
        if which == 0:
            (code / "readme").write_text("one\n")
            commit(code)
    as_recorded(run_id, git_commit(), changes() or "")
    shutil.rmtree(code / "g\u00fcn", ignore_errors=True)
    for path in code.glob("*.py"):
        path.unlink()
    commit(code)


@needs_git
@pytest.mark.parametrize("setting", [*GROUPED, *SETTINGS])
def test_recorded_changes_are_repeated(
    setting: str,
    copy: dict[str, Any],
    code: Path,
    shadow: list[dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = GROUPED.get(setting, ["plain.py", "new.py"])
    if setting not in GROUPED:
        git(code, "config", *setting.split("="))
    if setting == "diff.relative=true":
        (code / "inside").mkdir()
        monkeypatch.setenv(CHECKOUT, str(code / "inside"))
    recorded_change(code, copy["softmax"], names)
    api.rerun(copy["softmax"], at_commit=True, trust_code=True)
    now = {name: FILES[name][1] for name in names}
    expected = {name: body for name, body in now.items() if body is not None}
    assert shadow == [{**expected, "readme": b"one\n"}]


@needs_git
def test_the_diffstat_is_short(copy: dict[str, Any], code: Path, main: Main) -> None:
    recorded_change(code, copy["softmax"], ["plain.py", "new.py"])
    done = main("rerun", copy["softmax"], "--at-commit")
    assert done.stdout.splitlines()[1] == "recorded changes: new.py +1 -0, plain.py +1 -1"


@pytest.fixture
def patched(copy: dict[str, Any], code: Path) -> Callable[..., str]:
    """Return what gives a run a record of the commit that is there, with other changes."""
    (code / "plain.py").write_text("one\n")
    commit_id = commit(code)

    def patched(patch: str = "") -> str:
        as_recorded(copy["softmax"], commit_id, patch)
        return str(copy["softmax"])

    return patched


ADDED = """diff --git a/{0} b/{0}
new file mode {1}
index 0000000..0123456
--- /dev/null
+++ b/{0}
@@ -0,0 +1 @@
+{2}
"""
LINK = ADDED.format("link", "120000", "..") + "\\ No newline at end of file\n"


@needs_git
def test_a_strangers_record(
    patched: Callable[..., str],
    code: Path,
    tmp_path: Path,
    main: Main,
    shadow: list[dict[str, bytes]],
) -> None:
    """Nothing is written outside of the worktree, and no option reaches git."""
    (code / "hook").write_text(f"#!/bin/sh\ntouch {tmp_path}/evil\n")
    (code / "hook").chmod(0o700)
    run_id = patched(ADDED.format("a.py", "100644", "x"))
    facts = artifacts(run_id) / "environment.json"
    patch = artifacts(run_id) / "changes.patch"
    whole, before = json.loads(facts.read_text()), [*tmp_path.glob("*"), *tmp_path.parent.glob("*")]
    head = whole["git_commit"]
    commits = [
        f"--upload-pack={code}/hook",
        f"--output={tmp_path}/evil",
        "HEAD",
        "main",
        "",
        5,
        None,
    ]
    commits += [f"{head}\n", f"{head}^", head[:12], ["a"], {"a": 1}, head.upper(), "0" * 40]
    for told in commits:
        facts.write_text(json.dumps({**whole, "git_commit": told}))
        done = main("rerun", run_id, *AT_COMMIT)
        assert (done.returncode, done.stdout) == (2, ""), told
        assert done.stderr.startswith("waymark: --at-commit: "), told
        assert len(done.stderr.splitlines()) == 1
    facts.write_text(json.dumps(whole))
    outside = [ADDED.format(name, "100644", "evil") for name in ("../evil", f"{tmp_path}/evil")]
    outside += [
        ADDED.format(".git/hooks/evil", "100644", "evil"),
        ADDED.format(".git", "100644", "x"),
    ]
    outside += [LINK + ADDED.format("link/evil", "100644", "evil")]
    outside += [LINK + ADDED.format("link/code/evil", "100644", "evil")]
    outside += ["diff --git a/plain.py b/../evil\nsimilarity index 100%\n"
                "rename from plain.py\nrename to ../evil\n"]  # fmt: skip
    outside += ["no patch\n", "\x00" * 99]
    for text in outside:
        patch.write_text(text)
        done = main("rerun", run_id, *AT_COMMIT)
        assert done.returncode == 2, text
        assert done.stderr.startswith("waymark: --at-commit: git apply fails: "), done
    assert [*tmp_path.glob("*"), *tmp_path.parent.glob("*")] == before
    assert not (code / "evil").exists()
    assert not [*code.glob(".git/hooks/evil")]
    assert shadow == []


@needs_git
def test_what_a_terminal_would_act_on(
    patched: Callable[..., str], main: Main, shadow: list[dict[str, bytes]]
) -> None:
    run_id = patched(ADDED.format("a\x1b[2Jb\x9b\u202e.py", "100644", "x"))
    done = main("rerun", run_id, "--at-commit")
    assert done.returncode == 2
    assert done.stdout.replace("\n", "").isprintable()


@needs_git
def test_what_at_commit_needs(
    patched: Callable[..., str],
    tmp_path: Path,
    main: Main,
    code: Path,
    shadow: list[dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    masked = ADDED.format("a.py", "100644", "x").replace("+x", "+(masked)")
    run_id = patched(masked)
    done = main("rerun", run_id, *AT_COMMIT)
    assert (done.returncode, done.stderr.count("masked")) == (2, 1)
    (artifacts(run_id) / "changes.patch").unlink()
    with monkeypatch.context() as patch:
        patch.setenv(CHECKOUT, str(tmp_path))
        done = main("rerun", run_id, *AT_COMMIT)
    assert (done.returncode, done.stdout) == (2, "")
    assert "is no git checkout" in done.stderr
    assert str(tmp_path) in done.stderr
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")
        done = main("rerun", run_id, *AT_COMMIT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("waymark: --at-commit: ")
    assert shadow == []
    api.rerun(run_id, "save=npz", threads=2, at_commit=True, trust_code=True)
    assert shadow == [{"plain.py": b"one\n"}]
    # Without a commit there is nothing to go back to.
    facts = artifacts(run_id) / "environment.json"
    facts.write_text("{}")
    done = main("rerun", run_id, *AT_COMMIT)
    assert "recorded no git commit" in done.stderr


@needs_git
def test_in_a_hook_of_another_repository_the_codes_own_one_is_used(
    patched: Callable[..., str],
    tmp_path: Path,
    shadow: list[dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_id, other = patched(ADDED.format("new.py", "100644", "x")), tmp_path / "other"
    other.mkdir()
    git(other, "init", "--quiet")
    (other / "theirs.py").write_text("")
    commit(other)
    with monkeypatch.context() as hook:
        for name, path in (("DIR", ".git"), ("WORK_TREE", "."), ("INDEX_FILE", ".git/index")):
            hook.setenv(f"GIT_{name}", str(other / path))
        api.rerun(run_id, at_commit=True, trust_code=True)
    assert shadow == [{"plain.py": b"one\n", "new.py": b"x\n"}]
    assert git(other, "status", "--porcelain") == ""


@needs_git
@pytest.mark.parametrize("ending", ["sys.exit(2)", "sys.exit(1)", "sys.exit(143)", "abort"])
def test_nothing_is_left_when_the_commit_fails(
    ending: str, patched: Callable[..., str], child: Callable[[str], Path], scratch: Path
) -> None:
    """The fixtures check it: no worktree, no temporary folder."""
    run_id = patched(ADDED.format("new.py", "100644", "x"))
    seen = scratch / "seen"
    ending = {"abort": "os.kill(os.getpid(), signal.SIGKILL)"}.get(ending, ending)
    child(
        f"open({str(seen)!r}, 'w').write(' '.join([*sys.argv[1:], os.environ['PYTHONPATH']]))\n"
        f"print('waymark: no', file=sys.stderr, flush=True)\n{ending}"
    )
    with pytest.raises((BadInput, Failed, Interrupted)):
        api.rerun(run_id, "save=npz", threads=3, at_commit=True, trust_code=True)
    words = seen.read_text().split()
    assert words[:6] == ["-P", "-m", "waymark", "rerun", run_id, "save=npz"]
    assert words[6:8] == ["--threads=3", "--json"]
    assert words[8].startswith(str(scratch))
