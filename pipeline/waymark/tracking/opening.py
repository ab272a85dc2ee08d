"""Opening a store of runs: its address, its schema, a store that was moved, runs that died."""

import errno
import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from contextlib import nullcontext
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
from waymark.tracking.store import RunStore

LOCATION_COLUMNS = (
    *(("experiments", "artifact_location"), ("runs", "artifact_uri")),
    *(("logged_models", "artifact_location"), ("model_versions", "source")),
    ("model_versions", "storage_location"),
)


def open_store(
    uri: str | None,
    create: bool = False,
    reading: bool = False,
    recovered: Callable[[str, str], None] = report_left_out,
) -> RunStore:
    """Open the store, creating a local one if asked; raise BadInput if it cannot be used.

    With `reading` a local one that may not be written to will do. `recovered` is told the id
    of each dead run that is delivered on the way, and what was left out of it.
    """
    address = resolve_address(uri)
    check_there(address, create)
    parts = [address.database, address.root] if address.database else []
    read_only = reading and not all(os.access(path, os.W_OK) for path in parts)
    if (address.database or create) and not reading:
        _check_writable(address.root)
    _mlflow_defaults()
    once = local_store.migrations_read_once() if address.database else nullcontext()
    with store_errors(f"{address.named}: cannot be used"), once:
        from mlflow.tracking import MlflowClient

        path, copy, maker, moved_from = address.database, None, None, []
        if address.database and read_only:
            copy = local_store.copy_to_read(address.database)
            path = Path(copy.name) / address.database.name if copy else address.database
        if path:
            maker = _mlflow_store(path, address.root, read_only)
            moved_from = _relocate(path, address.root, read_only)
        client = MlflowClient(database_uri(path) if path else address.uri)
        store = RunStore(address, client, recovered, maker or client, moved_from, copy)
        if not (address.server or read_only):
            mark_dead_runs_killed(store)
    if not read_only:
        remove_deleted_spools(address.root / "spool")
    return store


def check_there(address: Address, create: bool) -> None:
    """Raise BadInput if a local store is not there and not to be made, or may not be read.

    It is not opened: closing it would drop all locks that SQLite has on it in this process.
    """
    if not address.database:
        return
    try:
        address.database.stat()
        if not os.access(address.database, os.R_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except (FileNotFoundError, NotADirectoryError):
        if not create:
            lost = any(address.root.glob(f"artifacts/*/*/{outbox.NAME}"))
            hint = "; waymark sync makes it again from the runs' folders" * lost
            missing = f"{address.database} does not exist{hint}"
            raise BadInput(f"there are no runs here: {missing}.") from None
    except OSError as error:
        raise BadInput(f"{address.database}: cannot be read ({error.strerror}).") from None


def _check_writable(root: Path) -> None:
    """Create the folder for everything that runs write, where needed, and try to write."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=root).close()  # without a name: a kill leaves nothing
    except OSError as error:
        raise BadInput(f"{root}: cannot be written to ({error.strerror}).") from None


def _relocate(path: Path, address_root: Path, read_only: bool) -> list[str]:
    """Point a moved store's rows, which are absolute, to where it lies now.

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
            for table, column in LOCATION_COLUMNS:
                database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE substr({column}, 1, ?) = ?",
                    (root, len(old) + 1, len(old) + 1, f"{old}/"),
                )
            change = "UPDATE experiment_tags SET value = ? WHERE key = ? AND value = ?"
            database.execute(change, (root, names.ROOT_TAG, old))
        new = f"SELECT ?, ?, experiment_id FROM experiments WHERE {own}"
        given = names.ROOT_TAG, root, f"{root}/artifacts/", names.ROOT_TAG
        rows = database.execute(new, given).fetchall()
        insert = "INSERT OR IGNORE INTO experiment_tags (key, value, experiment_id)"
        database.executemany(f"{insert} VALUES (?, ?, ?)", rows)  # another process may do so, too
    return []


_stores: dict[Any, Any] = {}  # at most one


def _mlflow_store(path: Path, root: Path, read_only: bool) -> Any:
    """Return MLflow's store of a local file, made and checked anew only if it may differ."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    uri, artifacts = database_uri(path), location(root / "artifacts")
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
    with same_environment(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "IProgress not found")  # of tqdm, in a notebook
        import mlflow.tracking  # noqa: F401  (it sets the levels as it is imported)

    if "MLFLOW_LOGGING_LEVEL" not in os.environ:  # it logs what it raises as well
        for name in ("mlflow", "alembic"):
            set_level(name, logging.CRITICAL)
