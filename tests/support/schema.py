"""Write the text from which new stores are made: `make schema`, after an upgrade of MLflow."""

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from waymark.tracking.local_store import SCHEMAS, needed_revision


def migrate(database: Path) -> None:
    """Make the tables of a new database by MLflow's own migrations."""
    from mlflow.store.db import utils

    engine = utils.create_sqlalchemy_engine(f"sqlite:///{database}")
    utils._initialize_tables(engine)
    engine.dispose()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "mlflow.db"
        migrate(database)
        with closing(sqlite3.connect(database)) as connection:
            statements = [*connection.iterdump()]
    SCHEMAS.mkdir(exist_ok=True)
    for path in SCHEMAS.glob("*.sql"):
        path.unlink()
    (SCHEMAS / f"{needed_revision()}.sql").write_text("\n".join(statements) + "\n")


if __name__ == "__main__":
    main()
