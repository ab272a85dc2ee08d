"""Opening a store of runs: its address, its schema, a store that was moved, runs that died."""

import errno
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from waymark import names
from waymark.errors import BadInput
from waymark.processes.process_state import same_environment, set_level, set_variable
from waymark.tracking import local_store, outbox
from waymark.tracking.address import Address, database_uri, location, resolve_address
from waymark.tracking.limits import store_errors
from waymark.tracking.recovery import mark_dead_runs_killed, report_left_out
from waymark.tracking.runs import remove_deleted_spools
from waymark.tracking.store import LocalFile, RunStore

LOCATION_COLUMNS = {"experiments": "artifact_location", "runs": "artifact_uri"}


def open_store(
    uri: str | None,
    create: bool = False,
    reading: bool = False,
    recovered: Callable[[str, str], None] = report_left_out,
) -> RunStore:
    """Open the store, creating a local one if asked; raise BadInput if it cannot be used.

    With `reading` a local one that may not be written to will do. `recovered` is told the id
    of each dead run that is delivered on the way, and what was left out of it, in words.
    """
    address = resolve_address(uri)
    check_there(address, create)
    parts = [address.database, address.root] if address.database else []
    read_only = reading and not all(os.access(path, os.W_OK) for path in parts)
    if (address.database or create) and not reading:
        _check_writable(address.root)
    _mlflow_defaults()
    with store_errors(f"{address.named}: cannot be used"):
        file = _open_file(address.database, address, read_only) if address.database else None
        from mlflow.tracking import MlflowClient

        client = MlflowClient(file.uri if file else address.uri)
        store = RunStore(address, client, file, read_only, recovered)
        if not (address.server or read_only):
            mark_dead_runs_killed(store)
    if not read_only:
        remove_deleted_spools(address.root / "spool")
    return store


def check_there(address: Address, create: bool) -> None:
    """Raise BadInput if a local store is not there and not to be made, or may not be read."""
    if not address.database or _is_there(address.database) or create:
        return
    lost = next(address.root.glob(f"artifacts/*/*/{outbox.NAME}"), None)
    hint = "; waymark sync makes it again from the runs' folders" if lost else ""
    raise BadInput(f"there are no runs here: {address.database} does not exist{hint}.")


def _is_there(database: Path) -> bool:
    """Tell whether there is a file; raise BadInput if it may not be read.

    It is not opened: closing it would drop all locks that SQLite has on it in this process.
    """
    try:
        database.stat()
        if not os.access(database, os.R_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return True
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise BadInput(f"{database}: cannot be read ({error.strerror}).") from None


def _check_writable(root: Path) -> None:
    """Create the folder for everything that runs write, where needed, and try to write."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):  # without a name: a kill leaves nothing
            pass
    except OSError as error:
        raise BadInput(f"{root}: cannot be written to ({error.strerror}).") from None


def _open_file(database: Path, address: Address, read_only: bool) -> LocalFile:
    """Open the database of a local store, which is then as it has to be."""
    path, uri, copy = database, address.uri, None
    if read_only:
        copy = local_store.copy_to_read(database)
        if copy:
            path = Path(copy.name) / database.name
            uri = database_uri(path)
    store = _mlflow_store(path, uri, address.root, read_only)
    return LocalFile(path, uri, store, _relocate(path, address.root, read_only), copy)


def _relocate(path: Path, address_root: Path, read_only: bool) -> list[str]:
    """Point a moved or copied store's rows to where it lies now: MLflow's are absolute.

    Returns the roots that stay in the rows, the longest first, where nothing may be written.
    """
    root = location(address_root)
    tagged = "(SELECT experiment_id FROM experiment_tags WHERE key = ?)"
    own = f"artifact_location = ? || experiment_id AND experiment_id NOT IN {tagged}"
    with local_store.connected(path) as database:  # writes nothing, and takes no lock, without need
        values = "SELECT DISTINCT value FROM experiment_tags WHERE key = ?"
        roots = {value for (value,) in database.execute(values, (names.ROOT_TAG,))} - {root}
        if read_only:
            return sorted(roots, key=len, reverse=True)
        for old in roots:
            for table, column in LOCATION_COLUMNS.items():
                database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE substr({column}, 1, ?) = ?",
                    (root, len(old) + 1, len(old) + 1, f"{old}/"),
                )
            change = "UPDATE experiment_tags SET value = ? WHERE key = ? AND value = ?"
            database.execute(change, (root, names.ROOT_TAG, old))
        new = f"SELECT experiment_id FROM experiments WHERE {own}"
        for (experiment,) in database.execute(
            new, (f"{root}/artifacts/", names.ROOT_TAG)
        ).fetchall():
            database.execute(
                "INSERT OR IGNORE INTO experiment_tags (key, value, experiment_id) "
                "VALUES (?, ?, ?)",  # another process may have done so meanwhile
                (names.ROOT_TAG, root, experiment),
            )
    return []


_stores: dict[Any, Any] = {}  # at most one


def _mlflow_store(path: Path, uri: str, root: Path, read_only: bool) -> Any:
    """Return MLflow's store of a local file, made and checked anew only if it may differ."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    artifacts = location(root / "artifacts")
    known = path.exists() and (uri, *_version(path))
    if known not in _stores:
        if not read_only:
            local_store.ensure(path, database_uri, artifacts)
        elif not local_store.is_whole(path):
            raise ValueError("its making was interrupted")
        for last in _stores.values():  # its connections may be to a file that was there before
            last.engine.dispose()
        store = SqlAlchemyStore(uri, artifacts)
        known = uri, *_version(path)
        _stores.clear()
        _stores[known] = store
    return _stores[known]


def _version(path: Path) -> tuple[Any, ...]:
    """Return what tells a database file and its schema from any other."""
    with local_store.connected(path) as database:  # MLflow tries a minute and a half to open it
        schema = database.execute("PRAGMA schema_version").fetchone()  # counts its changes
    file = path.stat()
    return file.st_dev, file.st_ino, schema


def import_mlflow() -> None:
    """Import of MLflow what opening a store needs, in good time."""
    _mlflow_defaults()
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


def _mlflow_defaults() -> None:
    """Keep MLflow from retrying for minutes and from reporting usage, unless the user asks."""
    set_variable("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    set_variable("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    set_variable("MLFLOW_DISABLE_TELEMETRY", "true")
    set_variable("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    set_variable("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    with same_environment():
        import mlflow.tracking  # noqa: F401  (it sets the levels as it is imported)

    if "MLFLOW_LOGGING_LEVEL" not in os.environ:  # it logs what it raises as well
        for name in ("mlflow", "alembic"):
            set_level(name, logging.CRITICAL)


def ui_command(store: RunStore, host: str, port: int) -> list[str]:
    """Return the command line of MLflow's server on a local store."""
    _mlflow_defaults()
    set_variable("MLFLOW_LOGGING_LEVEL", "CRITICAL")
    set_variable("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # ten more processes
    set_variable("PYTHONWARNINGS", "ignore")  # of what MLflow imports, for its authors
    options = {
        "--backend-store-uri": store.uri,
        "--artifacts-destination": location(store.root / "artifacts"),
        "--host": host,
        "--port": str(port),
        "--workers": "1",
    }
    return [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        *(x for pair in options.items() for x in pair),
    ]
