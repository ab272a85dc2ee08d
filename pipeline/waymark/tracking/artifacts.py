"""The files of a run, here or in its remote home."""

import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path

from waymark.errors import BadInput
from waymark.tracking.limits import store_errors
from waymark.tracking.questions import question
from waymark.tracking.runs import RunRecord
from waymark.tracking.store import RunStore


@question
def fetch(store: RunStore, record: RunRecord, name: str, target: Path) -> None:
    """Bring an artifact of a remote run below `target`; it is there whole or not at all."""
    with store_errors(f"run {record.id}: {name} cannot be fetched"):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            os.replace(store.client.download_artifacts(record.id, name, scratch), target / name)


@question
def newer(store: RunStore, record: RunRecord, folder: str = "checkpoints") -> list[str]:
    """Return a remote run's checkpoints of a folder if newer than those here, else none."""
    there = checkpoints(store, record, folder)
    here = [path.name for path in (record.folder / folder).glob("*.json")]
    return there if _newest(there) > _newest(here) else []


@question
def checkpoints(store: RunStore, record: RunRecord, folder: str = "checkpoints") -> list[str]:
    """Return a remote run's checkpoint files, manifests last; raise BadInput without an answer."""
    if not record.remote or record.offline:
        return []
    names = listed(store, record, folder)
    there = [name for name in names if re.fullmatch(rf"{folder}/\w[\w.-]*", name)]
    return sorted(there, key=lambda name: name.endswith(".json"))


@question
def listed(store: RunStore, record: RunRecord, folder: str | None = None) -> list[str]:
    """Return the names in a folder of a run's remote home; raise BadInput without an answer."""
    with store_errors(f"run {record.id}: its files cannot be listed"):
        return [file.path for file in store.client.list_artifacts(record.id, folder)]


@question
def read(store: RunStore, record: RunRecord, name: str, there: bool = False) -> bytes | None:
    """Return a small artifact, None if the run has none; `there`: from its remote home alone."""
    with suppress(OSError, BadInput):
        path = record.folder / name
        if (path.exists() and not there) or not record.remote or record.offline:
            return path.read_bytes()
        with tempfile.TemporaryDirectory() as scratch:
            fetch(store, record, name, Path(scratch) / "run")
            return (Path(scratch) / "run" / name).read_bytes()
    return None


def _newest(names: list[str]) -> int:
    """Return the highest step that a manifest among some files is for, -1 if there is none."""
    found = [re.search(r"-(\d{1,19})\.json$", name) for name in names]
    return max((int(match[1]) for match in found if match), default=-1)


def list_files(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and change time (ns) of each file below a folder, but temporary ones."""
    found = {}
    for describing in (True, False):  # no manifest may be listed without its payload
        for path in folder.rglob("*"):
            with suppress(FileNotFoundError):
                wanted = not path.name.startswith(".") and (path.suffix == ".json") is describing
                if wanted and path.is_file():
                    facts = path.stat()
                    found[path.relative_to(folder).as_posix()] = (facts.st_size, facts.st_mtime_ns)
    return found
