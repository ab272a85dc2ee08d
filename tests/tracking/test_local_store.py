"""The file of a local store: made whole or not at all, only read, shared by a group."""

import os
import random
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from waymark.errors import BadInput
from waymark.tracking import local_store
from waymark.tracking.finder import find, select
from waymark.tracking.local_store import is_whole
from waymark.tracking.opening import open_store

from tests.support.processes import Done, Main, poll
from tests.support.schema import migrate

SMOKE = ("run", "+experiment=smoke", "progress=false", "record.changes=false")
TINY = ("data=arrays", "steps=4", "save.every=2", "batch_size=5", "eval_every=0")
TINY += ("progress=false", "runtime.intra_op_threads=2", "record.changes=false")
DATABASE = Path("mlruns/mlflow.db")


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder of this test, with nothing in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sql(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        for statement in statements:
            database.execute(statement)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def tree(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Return everything below a folder, with what a write would change."""
    found = {}
    for path in sorted(folder.rglob("*")):
        facts = path.stat()
        body = path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = (body, facts.st_mtime_ns, facts.st_mode)
    return found


# Made whole or not at all.


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("no more power")])
@pytest.mark.parametrize("stopped_in", ["_upgrade_db", "_verify_schema"])
def test_what_stops_the_making_of_a_store_leaves_nothing(
    empty: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, stopped_in: str
) -> None:
    """MLflow upgrades where the prepared SQL is another version's, and verifies it always."""
    from mlflow.store.db import utils

    if stopped_in == "_upgrade_db":
        monkeypatch.setattr(local_store, "SCHEMAS", empty)
    real, seen = getattr(utils, stopped_in), []

    def stopped(engine: Any) -> None:
        real(engine)
        seen.extend(names(empty / "mlruns"))
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(utils, stopped_in, stopped)
        with pytest.raises((KeyboardInterrupt, BadInput)):
            open_store(None, create=True)
    assert any(name.startswith(".mlflow.db.new-") for name in seen)
    assert "mlflow.db" not in seen
    assert names(empty / "mlruns") == ["mlflow.lock"]


def links(how: str) -> Callable[[Path, Path], None]:
    """Return what stands for os.link."""

    def link(new: Path, database: Path) -> None:
        assert not database.exists()
        assert is_whole(new)
        if how == "no links":
            raise PermissionError(1, "Operation not permitted")
        shutil.copy(new, database)
        sql(database, "CREATE TABLE other (a)")
        raise FileExistsError(17, "File exists")

    return link


@pytest.mark.parametrize("how", ["no links", "another was faster"])
def test_a_store_appears_in_one_step(
    empty: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A journal that lies there without its file is not played into the new one."""
    DATABASE.parent.mkdir()
    Path(f"{DATABASE}-journal").write_bytes(b"old")
    monkeypatch.setattr(os, "link", links(how))
    open_store(None, create=True)
    assert is_whole(DATABASE)
    with closing(sqlite3.connect(DATABASE)) as opened:
        found = opened.execute("SELECT 1 FROM sqlite_master WHERE name = 'other'").fetchall()
    assert len(found) == (how == "another was faster")
    database, kept, lock = names(DATABASE.parent)
    assert (database, lock) == ("mlflow.db", "mlflow.lock")
    assert re.fullmatch(r"mlflow\.db\.unusable-[\d-]+-journal", kept)


def content(path: Path) -> tuple[list[Any], dict[str, list[Any]]]:
    """Return what SQLite says of the tables and indexes of a database, and all rows.

    MLflow's migrations write constraints in another order each time.
    """
    with closing(sqlite3.connect(path)) as database:
        parts = database.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall()
        tables = [name for kind, name, _, _ in parts if kind == "table"]
        rows = {name: database.execute(f"SELECT * FROM {name}").fetchall() for name in tables}
    lines = [(*part, sorted(line.strip(" ,") for line in (sql or "").split("\n")))
             for *part, sql in parts]  # fmt: skip
    return sorted(lines), rows


def test_a_new_store_is_what_the_migrations_of_mlflow_make(empty: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    prepared = local_store.SCHEMAS / f"{local_store.needed_revision()}.sql"
    assert prepared.exists(), "the installed MLflow has another schema: make schema"
    open_store(None, create=True)
    artifacts, other = f"{empty}/mlruns/artifacts", Path("migrated.db")
    migrate(other)
    SqlAlchemyStore(f"sqlite:///{other}", artifacts)
    made, migrated = content(DATABASE), content(other)
    for _, rows in (made, migrated):
        ((*experiment, created, updated, workspace),) = rows.pop("experiments")
        assert experiment == [0, "Default", f"{artifacts}/0", "active"]
        assert created == updated
        assert workspace == "default"
    assert made[1].pop("experiment_tags") == [("waymark.root", f"{empty}/mlruns", 0)]
    assert migrated[1].pop("experiment_tags") == []
    assert made == migrated, "the installed MLflow has another schema: make schema"


def test_what_a_kill_left_is_removed_later(place: Path) -> None:
    """Nothing else is, though it has a similar name, and nothing while a store is being made."""
    folder = DATABASE.parent
    for name in (".mlflow.db.new-1", ".mlflow.db.new-22-journal", ".mlflow.db.new-1-shm"):
        (folder / name).touch()
    own = [".mlflow.db.new-mine", "mlflow.db.new-1", ".mlflow.db.new-1.txt"]
    for name in own:
        (folder / name).touch()
    before = names(folder)
    with FileLock(folder / "mlflow.lock"):
        open_store(None)
    assert names(folder) == before
    os.utime(DATABASE)  # it is checked anew only if it may differ
    shutil.copy(DATABASE, "copy")
    os.replace("copy", DATABASE)
    open_store(None)
    assert set(before) - set(names(folder)) == {n for n in before if n.startswith(".")} - set(own)


def test_mlflow_is_imported_before_the_lock_is_taken(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def imported() -> None:
        with FileLock(DATABASE.parent / "mlflow.lock", timeout=0):
            seen.append("free")

    seen: list[str] = []
    monkeypatch.setattr(local_store, "_import_mlflow", imported)
    open_store(None, create=True)
    with FileLock(DATABASE.parent / "mlflow.lock"):  # and none is needed where a store is
        open_store(None)
    assert seen == ["free"]


CUT = "UPDATE alembic_version SET version_num = '451aebb31d03'"
RENAME = "ALTER TABLE {0} RENAME TO _alembic_tmp_{0}"
RUN = "INSERT INTO runs (run_uuid, status, lifecycle_stage) VALUES ('a', 'FINISHED', 'active')"
OWN = "INSERT INTO experiments (experiment_id, name, workspace) VALUES (7, 'own', 'default')"
NO_DEFAULT = "DELETE FROM experiments"
STATES: dict[str, tuple[list[str], str | bool]] = {
    "whole": ([], True),
    "with a run": ([RUN], True),
    "half-made": ([CUT, NO_DEFAULT], False),
    "half-made, no version": (["DROP TABLE alembic_version", NO_DEFAULT], False),
    "half-made, changing": ([CUT, NO_DEFAULT, RENAME.format("runs")], False),
    "no runs": (["DROP TABLE runs"], False),
    "no experiments": (["DROP TABLE experiments"], False),
    "older": ([CUT], "an older MLflow"),
    "older, no version": (["DROP TABLE alembic_version"], "an older MLflow"),
    "older with a run": ([CUT, NO_DEFAULT, RUN], "an older MLflow"),
    "upgrading runs": ([CUT, RUN, NO_DEFAULT, RENAME.format("runs")], "an older MLflow"),
    "upgrading experiments": ([CUT, OWN, RENAME.format("experiments")], "an older MLflow"),
    "lost": ([RUN, "DROP TABLE experiments"], "lost tables of MLflow's: experiments"),
    "lost runs": ([OWN, "DROP TABLE runs"], "lost tables of MLflow's: runs"),
    "newer": (["UPDATE alembic_version SET version_num = 'f0f0'"], "a newer MLflow"),
}


@pytest.mark.parametrize("state", STATES)
def test_which_stores_are_unusable(place: Path, state: str) -> None:
    statements, expected = STATES[state]
    with closing(sqlite3.connect(DATABASE)) as database, database:
        database.execute("PRAGMA legacy_alter_table = ON")
        for statement in statements:
            database.execute(statement)
    if isinstance(expected, bool):
        assert is_whole(DATABASE) == expected
    else:
        before = tree(DATABASE.parent)
        with pytest.raises(BadInput, match=expected):
            open_store(None)
        assert {name: facts[0] for name, facts in tree(DATABASE.parent).items()} == {
            name: facts[0] for name, facts in before.items()
        }


def test_an_unusable_store_is_kept_under_another_name(
    place: Path, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_store, "QUIET_S", 0.2)
    sql(DATABASE, CUT, NO_DEFAULT, "DROP TABLE metrics")
    before = DATABASE.read_bytes()
    done = main("runs")
    assert (done.returncode, done.stdout) == (0, "there are no runs here yet\n"), done
    assert is_whole(DATABASE)
    (kept,) = DATABASE.parent.glob("mlflow.db.unusable-*")
    assert kept.read_bytes() == before
    assert done.stderr.count("\n") == 1
    assert kept.name in done.stderr
    DATABASE.write_bytes(b"")
    open_store(None)
    assert len([*DATABASE.parent.glob("mlflow.db.unusable-*")]) == 2


def test_a_store_that_another_program_is_making_is_waited_for(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path("whole")
    shutil.copy(DATABASE, whole)
    DATABASE.write_bytes(b"")
    real = time.sleep

    def sleep(seconds: float) -> None:
        monkeypatch.setattr(local_store.time, "sleep", real)
        monkeypatch.setattr(local_store, "QUIET_S", 0)
        shutil.copy(whole, DATABASE)

    monkeypatch.setattr(local_store.time, "sleep", sleep)
    os.utime(DATABASE, (time.time() + 60,) * 2)  # a server's clock may be ahead
    os.utime(DATABASE)
    open_store(None)
    assert names(DATABASE.parent) == ["mlflow.db", "mlflow.lock"]


@pytest.mark.long
def test_sixteen_processes_start_together(empty: Path, start: Callable[..., Any]) -> None:
    started = [start(*SMOKE, f"seed={n}", cwd=empty) for n in range(16)]
    done = [(process.communicate(timeout=600), process.returncode) for process in started]
    assert [status for _, status in done] == [0] * 16, done
    assert len(select(open_store(None), None, None, "attributes.status = 'FINISHED'")) == 16
    assert names(empty / "mlruns") == ["artifacts", "mlflow.db", "mlflow.lock"]


@pytest.mark.long
@pytest.mark.parametrize("part", range(5))
def test_a_signal_in_the_first_three_seconds(
    tmp_path: Path,
    start: Callable[..., Any],
    main: Main,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    part: int,
) -> None:
    """Half of the instants count from the start, half from when the folder for runs is there."""
    draw = random.Random(f"{seed} {part}")
    for number in range(10):
        home = tmp_path / str(number)
        home.mkdir()
        monkeypatch.chdir(home)
        sent = draw.choice([signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
        delay, from_start = draw.uniform(0, 3), draw.random() < 0.5
        told = f"seed {seed}, {part}, {number}: {sent.name} after {delay:.3f} s, {from_start}"
        process = start(*SMOKE, "run_name=first", "steps=400", cwd=home)
        if not from_start:
            poll(lambda h=home: (h / "mlruns").exists())
        time.sleep(delay)
        process.send_signal(sent)
        process.communicate(timeout=120)
        _every_command_works(home, main, told)


def _every_command_works(home: Path, main: Main, told: str) -> None:
    made = (home / DATABASE).exists()
    listed = main("runs")
    assert listed.returncode == (0 if made else 2), (told, listed)
    known = made and "first" in listed.stdout
    assert not [*home.glob("mlruns/artifacts/*/*/outbox.jsonl")] or known, told
    assert main("sync").returncode == 0, told
    first = main("resume", "first", "steps=401")
    if known and [*home.glob("mlruns/artifacts/*/*/artifacts/config.yaml")]:
        assert first.returncode == 0, (told, first)
    else:
        assert (first.returncode, first.stderr.count("\n")) == (2, 1), (told, first)
    for command in (
        (*SMOKE, "run_name=second"),
        ("runs",),
        ("evaluate", "second"),
        *([("compare", "first", "second")] if known else []),
    ):
        done = main(*command)
        assert done.returncode == 0, (told, done)
    kept = names(home / "mlruns")
    assert [n for n in kept if n not in ("artifacts", "mlflow.db", "mlflow.lock")] == [], told
    with suppress(BadInput):
        tracking = open_store(None)
        record = find(tracking, "first")
        history = tracking.client.get_metric_history(record.id, "train/loss")
        steps = [point.step for point in history]
        assert sorted(steps) == list(range(1, len(steps) + 1)), told


# Only read.


@pytest.fixture
def no_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this user, who may be root, be told what one is told who may only read."""
    real = os.access

    def access(path: Path, mode: int) -> bool:
        return not (mode == os.W_OK and "mlruns" in str(path)) and real(path, mode)

    monkeypatch.setattr(os, "access", access)


@pytest.mark.usefixtures("delivery_here")
def test_a_store_that_may_only_be_read(
    place: Path,
    small: Path,
    main: Main,
    monkeypatch: pytest.MonkeyPatch,
    no_writing: None,
) -> None:
    """It was written at another path, where something else lies now."""
    for number in (0, 1):
        done = main("run", *TINY, f"data.path={small}", f"seed={number}", f"run_name=n{number}")
        assert done.returncode == 0, done
    sql(DATABASE, "UPDATE runs SET status = 'RUNNING' WHERE name = 'n1'")  # its process is gone
    there = place / "100% there?"
    there.mkdir()
    os.rename("mlruns", there / "mlruns")
    shutil.copytree(there / "mlruns", "mlruns")
    for path in place.glob("mlruns/artifacts/*/*/artifacts/*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    Path(there / "mlruns/.mlflow.db.new-1").touch()
    before = tree(place)
    monkeypatch.chdir(there)
    for command in (
        ("runs",),
        ("compare", "n0", "n1", "--json"),
        ("compare", "--where", "params.steps = '4'", "--csv"),
        ("compare", "n0", "n1", "--plot", str(place / "curves.png")),
        ("evaluate", "n0"),
        ("evaluate", "n0", "--from", "meta"),
        ("evaluate", "n0", "--step", "2"),
    ):
        with FileLock(place / "lock"):
            done = main(*command)
        assert (done.returncode, "not" in done.stderr) == (0, False), done
    (place / "curves.png").unlink()
    (place / "lock").unlink(missing_ok=True)
    assert tree(place) == before
    assert find(open_store(None, reading=True), "n0").folder.is_relative_to(there)


PROGRAM = """
import sys
from waymark import __main__ as program
for words in sys.stdin.read().splitlines():
    sys.argv = ["waymark", *words.split()]
    print("===", words, program.main(), file=sys.stderr)
"""
READ = ("runs", "compare n0 n1", "compare --where params.steps='4' --plot /tmp/curves-PID.png",
        "evaluate n0", "evaluate n0 --from meta", "evaluate n0 --step best")  # fmt: skip
WRITE = ("resume n0 steps=6", "sync", "run +experiment=smoke", "ui")


@pytest.mark.long
@pytest.mark.parametrize("journal", ["delete", "wal", "wal to be read", "to be rolled back"])
def test_a_file_system_that_may_only_be_read(
    place: Path, small: Path, main: Main, environment: dict[str, str], journal: str
) -> None:
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this user may not mount")
    for number in (0, 1):
        options = (f"data.path={small}", f"seed={number}", f"run_name=n{number}", "eval_every=2")
        assert main("run", *TINY, *options).returncode == 0
    if journal != "delete":
        kind = "DELETE" if "rolled" in journal else "WAL"
        sql(DATABASE, f"PRAGMA journal_mode = {kind}")
    if " " in journal:  # copied as a kill would leave it
        (place / "killed").mkdir()
        with closing(sqlite3.connect(DATABASE, isolation_level=None)) as database:
            database.execute("PRAGMA cache_size = 1")
            if kind == "WAL":
                database.execute("UPDATE runs SET name = 'n1' WHERE name = 'n1'")
            else:
                database.execute("BEGIN")
                database.execute("UPDATE runs SET name = 'lost'")
                database.execute("UPDATE metrics SET value = 7")
                database.execute("UPDATE params SET value = 'lost'")
            for ending in ("", "-wal", "-journal"):
                with suppress(FileNotFoundError):
                    shutil.copy(f"{DATABASE}{ending}", "killed")
        assert len(names(place / "killed")) == 2
        for path in (place / "killed").iterdir():
            os.replace(path, DATABASE.with_name(path.name))
    os.rename("mlruns", "moved")
    Path("mlruns").mkdir()
    before = tree(place / "moved")
    mount = "mount --bind moved mlruns && mount -o remount,bind,ro mlruns"
    words = "\n".join([*READ, *WRITE]).replace("PID", str(os.getpid()))
    program = [f'{mount} && exec "$0" "$@"', sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", *program],
        input=words, capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    Path(f"/tmp/curves-{os.getpid()}.png").unlink()
    assert "Traceback" not in done.stderr
    for command in READ:
        told = command.replace("PID", str(os.getpid()))
        assert f"=== {told} 0\n" in done.stderr, done
    for command in WRITE:
        assert f"/mlruns: cannot be written to (Read-only file system).\n=== {command} 2\n" in (
            done.stderr
        ), done
    assert tree(place / "moved") == before


# Shared.


def test_all_files_follow_the_umask(empty: Path, small: Path, main: Main) -> None:
    before = os.umask(0o007)
    try:
        os.chmod(empty, 0o2770)
        seen: set[int] = set()
        for save in ("npz", "ckpt"):
            options = (*TINY, f"data.path={small}", f"save={save}", f"run_name={save}")
            assert main("run", *options).returncode == 0
        assert main("resume", "ckpt", "steps=6").returncode == 0
        assert main("rerun", "npz").returncode == 0
        with closing(sqlite3.connect(DATABASE, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("UPDATE runs SET name = 'other'")
            journal = Path(f"{DATABASE}-journal").stat().st_mode
    finally:
        os.umask(before)
    assert stat.S_IMODE(journal) == 0o660
    for path in (empty / "mlruns").rglob("*"):
        mode = path.stat().st_mode
        seen.add(mode)
        assert stat.S_IMODE(mode) & 0o777 == (0o770 if path.is_dir() else 0o660), path
    assert len(seen) == 2


USERS = 23_001, 23_002
GROUP = 23_000


@pytest.fixture
def open_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the current folder of this test, which all users can reach: pytest's they cannot."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            yield Path(folder)


@pytest.mark.long
def test_two_users_of_a_group(open_folder: Path, small: Path, environment: dict[str, str]) -> None:
    """One begins a run, the other resumes it; what is closed to others is refused in a sentence."""

    def by(user: int, *arguments: str, umask: int = 0o002) -> Done:
        ids = [f"--reuid={user}", f"--regid={GROUP}", "--clear-groups", "--bounding-set=-all"]
        home = {
            **environment,
            "HOME": str(open_folder / f"home-{user}"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = ["setpriv", *ids, str(python), *arguments]
        return subprocess.run(
            command, cwd=open_folder / "shared", env=home, umask=umask,
            text=True, capture_output=True, check=False,
        )  # fmt: skip

    def waymark(user: int, *arguments: str, umask: int = 0o002) -> Done:
        return by(user, "-m", "waymark", *arguments, umask=umask)

    def by_name(name: str) -> str:
        return find(open_store("sqlite:///shared/mlruns/mlflow.db", reading=True), name).id

    def refused(done: Done, word: str) -> None:
        assert (done.returncode, done.stdout) == (2, ""), done
        assert done.stderr.count("\n") == 1, done
        assert word in done.stderr
        assert "Permission denied" in done.stderr

    if os.getuid() or not shutil.which("setpriv"):
        pytest.skip("only root can be two users")
    for path, owner, mode in [("shared", USERS[0], 0o2770)] + [
        (f"home-{user}", user, 0o700) for user in USERS
    ]:
        Path(path).mkdir()
        os.chown(path, owner, GROUP)
        os.chmod(path, mode)
    data = shutil.copy(small, f"{open_folder}/small.npz")
    os.chmod(data, 0o644)
    # This Python may lie in a home folder, from where another user's process cannot start it.
    python = open_folder / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    shutil.copy(sys.executable, python)
    shutil.copy(Path(sys.prefix, "pyvenv.cfg"), python.parent.parent)
    (python.parent.parent / "lib").symlink_to(Path(sys.prefix, "lib"))
    again = "import subprocess, sys; subprocess.run([sys.executable, '-c', ''], check=True)"
    probe = by(USERS[0], "-c", f"open({data!r}, 'rb'); import tensorflow; {again}")
    if probe.returncode:
        pytest.skip(f"another user cannot start this Python: {probe.stderr[-200:]}")
    options = (*TINY, f"data.path={data}")
    assert waymark(USERS[0], "run", *options, "run_name=a").returncode == 0
    for user, command in (
        (USERS[1], ("resume", "a", "steps=6")),
        (USERS[1], ("run", *options, "run_name=b", "seed=1")),
        (USERS[0], ("resume", "b", "steps=6")),
        (USERS[0], ("compare", "a", "b")),
        (USERS[1], ("evaluate", "a")),
    ):
        done = waymark(user, *command)
        assert done.returncode == 0, (user, done)

    assert waymark(USERS[0], "run", *options, "run_name=c", umask=0o077).returncode == 0
    refused(waymark(USERS[1], "resume", "c", "steps=6"), "artifacts")
    refused(waymark(USERS[1], "evaluate", "c"), "artifacts")
    assert waymark(USERS[1], "runs").returncode == 0
    refused(waymark(USERS[1], "compare", "a", "c"), "artifacts")
    (checkpoints,) = Path("shared").glob(f"mlruns/artifacts/*/{by_name('a')}/artifacts/checkpoints")
    os.chmod(checkpoints, 0o700)
    os.chown(checkpoints, USERS[0], GROUP)
    refused(waymark(USERS[1], "evaluate", "a"), "checkpoints")
    os.chmod(checkpoints, 0o2770)
    for path, mode in (("shared/mlruns/mlflow.db", 0o600), ("shared/mlruns", 0o700)):
        os.chmod(path, mode)
        for command in (("runs",), ("run", *options), ("sync",), ("resume", "a", "steps=8")):
            refused(waymark(USERS[1], *command), "mlruns")
    os.chmod("shared/mlruns", 0o2550)
    os.chmod("shared/mlruns/mlflow.db", 0o440)
    assert waymark(USERS[1], "compare", "a", "b").returncode == 0
    refused(waymark(USERS[1], "run", *options), "mlruns")


def test_opening_a_store_keeps_the_locks_of_this_process(place: Path) -> None:
    """A file of this process that is closed takes all POSIX locks on it along: SQLite's, too."""
    write = "import sqlite3; sqlite3.connect('mlruns/mlflow.db', 0).execute('BEGIN EXCLUSIVE')"
    open_store(None)  # which points a copied store's rows to where it lies
    with closing(sqlite3.connect(DATABASE)) as database:
        database.execute("BEGIN")
        database.execute("SELECT * FROM runs").fetchall()
        open_store(None, reading=True)
        open_store(None, create=True)
        done = subprocess.run([sys.executable, "-c", write], capture_output=True, text=True)
    assert done.stderr.endswith("OperationalError: database is locked\n")
