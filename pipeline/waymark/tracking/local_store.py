"""The database file of a local store: made whole or not at all, and read where no write may be.

A new one is made under another name and put in place by a hard link, which fails where a store
already is: a half-made database cannot come into being.
"""

import os
import re
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from functools import cache
from pathlib import Path

LOCK = "mlflow.lock"
JOURNALS = ("-journal", "-wal", "-shm")  # of SQLite, beside its file
CREATE_WAIT_S = 300  # seconds to wait for another process that makes the store, on a slow machine
# For a revision of MLflow's schema the SQL that makes it; `make schema` writes it anew.
SCHEMAS = Path(__file__).with_name("schemas")
QUIET_S = 2.0  # seconds without a change after which nobody is making a store any more


@contextmanager
def connected(
    database: Path, mode: str = "rw", patience: float = 5.0
) -> Iterator[sqlite3.Connection]:
    """Open a database that is there; commit at the end. A lock is waited for so long."""
    address = f"{database.absolute().as_uri()}?mode={mode}"  # a plain name would make a file
    with closing(sqlite3.connect(address, timeout=patience, uri=True)) as connection, connection:
        yield connection


def ensure(database: Path, uri_of: Callable[[Path], str], artifacts: str) -> None:
    """Make a store where there is none; set one aside whose making was interrupted.

    `uri_of` gives the address of a file, `artifacts` is that of the folder for the artifacts.
    Raises ValueError for a store that the installed MLflow does not take, what SQLite and the
    system raise, and Timeout if another process does not come to an end with making it.
    """
    from filelock import FileLock, Timeout

    _import_mlflow()  # takes seconds, in which the lock must be free
    lock = FileLock(database.parent / LOCK)
    if database.exists() and is_whole(database):
        if _left_behind(database):
            with suppress(Timeout, OSError), lock.acquire(timeout=0):
                _clean(database)
        return
    with lock.acquire(timeout=CREATE_WAIT_S):
        _clean(database)
        if database.exists() and not is_whole(database):
            _retire(database)
        if not database.exists():
            _make(database, uri_of, artifacts)


def _import_mlflow() -> None:
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


def is_whole(database: Path) -> bool:
    """Tell whether a store is as MLflow needs it; False for one whose making was interrupted.

    Such a one has no run and no experiment but the default one, which MLflow makes last. Raises
    ValueError for any other one that the installed MLflow does not take.
    """
    from mlflow.store.db.base_sql_model import Base

    with connected(database) as connection:

        def holds(table: str, condition: str = "1") -> bool:
            # A table that an upgrade is changing goes by the second name for a while.
            found = tables & {table, f"_alembic_tmp_{table}"}
            asked = [f"SELECT 1 FROM {name} WHERE {condition} LIMIT 1" for name in found]
            return any(connection.execute(query).fetchone() for query in asked)

        def column(query: str) -> set[str]:
            return {value for (value,) in connection.execute(query)}

        tables = column("SELECT name FROM sqlite_master WHERE type = 'table'")
        known = "alembic_version" in tables
        revisions = column("SELECT version_num FROM alembic_version") if known else set()
        missing = sorted(set(Base.metadata.tables) - tables)
        current = revisions == {needed_revision()}
        if current and not missing:
            return True
        if not current and (holds("runs") or holds("experiments")):
            raise ValueError(other_version(min(revisions, default="")))
        if holds("runs") or holds("experiments", "experiment_id != 0"):
            raise ValueError(f"it has lost tables of MLflow's: {', '.join(missing)}")
        return False


@cache
def needed_revision() -> str:
    """Return the revision of the schema that the installed MLflow needs."""
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())


@contextmanager
def migrations_read_once() -> Iterator[None]:
    """Let MLflow take the revision that it needs from `needed_revision`.

    It would load all of its migrations at each opening of a store, twice.
    """
    needed_revision()
    from mlflow.store.db import utils

    read = utils._get_latest_schema_revision
    utils._get_latest_schema_revision = needed_revision
    try:
        yield
    finally:
        utils._get_latest_schema_revision = read


def other_version(revision: str) -> str:
    """Say which MLflow made a store whose schema has another revision than is needed here."""
    import mlflow

    versions = Path(mlflow.__file__).parent / "store" / "db_migrations" / "versions"
    if not revision or next(versions.glob(f"{revision}_*.py"), None):
        return "an older MLflow made it; `mlflow db upgrade` with its URI brings it up to date"
    return f"a newer MLflow than {mlflow.__version__}, which is installed here, made it"


def _make(database: Path, uri_of: Callable[[Path], str], artifacts: str) -> None:
    """Make a whole store under another name; put it in place in one step."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    new = database.with_name(f".{database.name}.new-{os.getpid()}")
    try:
        # SQLite's own permissions are 0644 at most; those of its journals follow the file's.
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        schema = SCHEMAS / f"{needed_revision()}.sql"
        if schema.exists():  # else MLflow makes its tables by all of its migrations: seconds
            with connected(new) as connection:
                connection.executescript(schema.read_text())
        store = SqlAlchemyStore(uri_of(new), artifacts)  # makes the default experiment
        store.engine.dispose()
        if not database.exists():  # SQLite would play the journals of another into the new one
            _move_journals(database, _unusable(database))
        try:
            os.link(new, database)
        except FileExistsError:  # another program has made it meanwhile
            return
        except OSError:  # the file system knows no links; among ourselves the lock is enough
            if not database.exists():
                os.rename(new, database)
    finally:
        _clean(database)


def _left_behind(database: Path) -> list[Path]:
    """Return what is there of a store being made, or whose making was killed."""
    ending = "|".join(JOURNALS)
    name = re.compile(rf"\.{re.escape(database.name)}\.new-\d+({ending})?")
    return [path for path in database.parent.iterdir() if name.fullmatch(path.name)]


def _clean(database: Path) -> None:
    for path in _left_behind(database):
        path.unlink(missing_ok=True)


def _unusable(database: Path) -> Path:
    return database.with_name(f"{database.name}.unusable-{datetime.now():%Y%m%d-%H%M%S-%f}")


def _retire(database: Path) -> None:
    """Give a store whose making was interrupted, and its journals, another name."""
    while 0 <= time.time() - database.stat().st_mtime < QUIET_S:  # another program may be at it
        time.sleep(0.1)
    if is_whole(database):
        return
    unusable = _unusable(database)
    with connected(database) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        os.rename(database, unusable)
    _move_journals(database, unusable)
    print(
        f"waymark: the making of {database} was once interrupted; it is {unusable.name} now",
        file=sys.stderr,
    )


def _move_journals(database: Path, target: Path) -> None:
    for ending in JOURNALS:
        with suppress(FileNotFoundError):
            os.rename(f"{database}{ending}", f"{target}{ending}")


def copy_to_read(database: Path) -> "tempfile.TemporaryDirectory[str] | None":
    """Copy a store that SQLite cannot read without writing beside it; None if it can.

    It cannot where a journal has to be played back, or one in WAL mode where it may not write.
    """
    try:
        with connected(database, "ro") as connection:
            connection.execute("SELECT 1 FROM sqlite_master").fetchone()
        return None
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise
    folder = tempfile.TemporaryDirectory(prefix="waymark-")
    for ending in ("", "-journal", "-wal"):
        with suppress(FileNotFoundError):
            shutil.copyfile(f"{database}{ending}", f"{folder.name}/{database.name}{ending}")
    return folder
