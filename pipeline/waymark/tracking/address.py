"""Where a store of runs is: the address that a user gives, checked and taken apart."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from waymark.config.masking import without_password
from waymark.errors import BadInput

SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql")


@dataclass(frozen=True)
class Address:
    """Where a store is."""

    named: str  # as the user gave it, for messages
    uri: str  # for MLflow
    database: Path | None  # the file of a local store
    root: Path  # the folder below which runs write: the store's, or a spool's
    server: bool  # MLflow's, which may be down

    @property
    def display_uri(self) -> str:
        """Return the address without password."""
        return without_password(f"sqlite:///{self.database}" if self.database else self.uri) or ""

    @property
    def store_key(self) -> str:
        """Return what outboxes call the store: no user, no password; nothing for a local file."""
        return "" if self.database else re.sub(r"://\S*@", "://", self.display_uri)


def resolve_address(uri: str | None) -> Address:
    """Return what `uri`, MLFLOW_TRACKING_URI or `mlruns` means; raise BadInput if unusable."""
    elsewhere = os.environ.get("MLFLOW_TRACKING_URI")
    from_where = "MLFLOW_TRACKING_URI" if elsewhere and not uri else "tracking.uri"
    uri = uri or elsewhere or "sqlite:///mlruns/mlflow.db"
    scheme = urlsplit(uri).scheme.partition("+")[0]
    named = f"{from_where}={without_password(uri)!r}"
    server = scheme in ("http", "https")
    try:
        if scheme not in SCHEMES or (server and urlsplit(uri).port == 0):
            raise ValueError
    except ValueError:  # of the port, too
        raise BadInput(
            f"{named}: cannot be used; give sqlite:///FILE, "
            f"an http(s)://HOST:PORT server, or a database that MLflow knows."
        ) from None
    if scheme == "sqlite":
        database = _database(uri, named)
        return Address(named, database_uri(database), database, database.parent, server=False)
    return Address(named, uri, None, Path("mlruns").absolute(), server)


def location(folder: Path) -> str:
    """Return the address of a folder from which MLflow makes this very folder's path again.

    It decodes a plain path as well, and writes the first experiment's into SQL as repr() has it.
    """
    return "".join(quote(c) if c in "%?:'\\" or not c.isprintable() else c for c in str(folder))


def _database(uri: str, named: str) -> Path:
    """Return the file that an address means, as written or percent-encoded: what exists of more.

    Raises BadInput for a path that MLflow's database cannot have.
    """

    def existing(path: Path) -> int:
        return next(len(p.parts) for p in (path, *path.parents) if os.path.lexists(p))

    text = uri.partition(":///")[2]
    if "?" in text.rpartition("/")[2]:
        raise BadInput(f"{named}: cannot be used; no options go with a file (%3F means ? in one).")
    database = max((Path(t).absolute() for t in (text, unquote(text))), key=existing)
    try:
        str(database).encode()
    except UnicodeEncodeError:
        raise BadInput(f"{database}: MLflow records no path that is not UTF-8.") from None
    if len(os.fsencode(os.path.realpath(database))) > 504:
        raise BadInput(f"{database}: SQLite takes a path of 504 bytes at most.")
    return database


def database_uri(database: Path) -> str:
    """Return the address of a file for SQLAlchemy, which decodes it."""
    path = str(database)
    if not {"?", "%"} & set(path):
        return f"sqlite:///{path}"
    # With the driver's name, as MLflow makes the folder that stands in an address without one.
    return f"sqlite+pysqlite:///{quote(path)}"


def page_of(place: str, *options: str) -> str:
    """Return a page of MLflow's UI, in the part of it that is about training models."""
    return f"#/{place}?{'&'.join(['workflowType=machine_learning', *options])}"
