"""The outbox of a run: all that MLflow is to know about it, in one append-only file.

Each line is a checksum, a space, and a JSON pair [kind, value]. `run` comes first and says what
the run was created with; then points, tags, MLflow's ids and the status, as they come; and
`delivered`, once all above it has reached MLflow. A torn or damaged line is passed over.
"""

import json
import os
import threading
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt

from waymark.config.schema import settings
from waymark.tracking import ownership
from waymark.tracking.ownership import Lease

NAME = "outbox.jsonl"


@dataclass(frozen=True)
class Points:
    """Values of one metric at some steps, all with one timestamp (ms since the epoch)."""

    key: str
    steps: Sequence[int]
    values: Sequence[float]
    time: int

    def without(self, known: Collection[int]) -> "list[Points]":
        """Return the points at other steps than those, in a list; none if there are none."""
        new = {s: v for s, v in zip(self.steps, self.values, strict=True) if s not in known}
        return [Points(self.key, [*new], [*new.values()], self.time)] if new else []


@settings
class RunCreation:
    """What a run is created with; `id` is its name on this machine, for good."""

    id: Annotated[str, Field(pattern="^[0-9A-Za-z]+$")]  # it becomes part of a search
    address: str  # of the store it belongs to, without password; "" for the one beside it
    experiment: str
    name: str | None
    start: NonNegativeInt  # ms since the epoch
    tags: dict[str, str]
    params: dict[str, str]
    # All of them or none; earlier runs have no schema.
    dataset: dict[Literal["name", "digest", "source", "profile", "schema"], str]


@dataclass
class Content:
    """What an outbox holds."""

    creation: RunCreation | None = None
    ids: tuple[str, str] | None = None  # MLflow's: run, experiment
    points: list[Points] = field(default_factory=list)
    digests: dict[int, str] = field(default_factory=dict)  # of the states saved, by step
    tags: dict[str, str] = field(default_factory=dict)  # set since, the last value of each
    leases: list[Lease] = field(default_factory=list)  # of the processes that trained the run here
    before: list[Lease] = field(default_factory=list)  # the ones that they went on from
    status: tuple[str, int] | None = None  # at the end, and when (ms); None while it goes on
    delivered: bool = False

    def metrics(self) -> dict[str, dict[int, float]]:
        """Return the points as key -> step -> value."""
        found: dict[str, dict[int, float]] = {}
        for p in self.points:
            found.setdefault(p.key, {}).update(zip(p.steps, p.values, strict=True))
        return found

    def begin(self, lease: Lease, before: Lease | None) -> None:
        """Begin another lease of the run; the tags of one that another machine followed are old."""
        if before and not self.is_of(before):
            self.tags = {}
        self.leases.append(lease)
        self.before += [before] if before else []
        self.status = None

    def is_of(self, owner: Lease) -> bool:
        """Tell whether a process that wrote here owns the run."""
        return any(lease.is_named_by(owner) for lease in self.leases)

    def may_write(self, owner: Lease) -> bool:
        """Tell whether nobody else has taken the run since the last lease that began here."""
        nobody = not (owner.number or owner.process)
        taken = [old for old in self.before if old.finished or not owner.finished]
        return nobody or self.is_of(owner) or any(old.is_named_by(owner) for old in taken)


class Outbox:
    """An outbox open for appending."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        # A kill may have torn the last line: close it, so that the next one stands alone.
        self._torn = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
        self._file = path.open("ab", buffering=0)
        self._mutex = threading.Lock()

    def append(self, kind: str, value: Any) -> None:
        """Add an entry; raise OSError if the disk does not take it."""
        body = json.dumps([kind, value]).encode()
        with self._mutex:
            line = b"\n" * self._torn + b"%08x %s\n" % (zlib.crc32(body), body)
            self._torn = self._file.write(line) != len(line)
        if self._torn:
            raise OSError(f"{self.path}: the disk took only a part of an entry")

    def add(self, points: Points) -> None:
        """Add points."""
        self.append("points", [points.key, [*points.steps], [*points.values], points.time])

    def flush(self) -> None:
        """Wait until everything appended is on disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; all that was added is in it already."""
        self._file.close()


def read(path: Path) -> Content:
    """Return what an outbox holds; nothing if there is none."""
    return OutboxReader(path).read()


class OutboxReader:
    """Follows an outbox that a process, maybe another one, appends to."""

    def __init__(self, path: Path) -> None:
        self.content = Content()
        self._path, self._offset = path, 0

    def read(self) -> Content:
        """Take up the entries added since; one that is not there as a whole waits."""
        with suppress(OSError), self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
            last = data.rfind(b"\n") + 1
            whole = data if any(_entries(data[last:])) else data[:last]
            self._offset += len(whole)
            for kind, value in _entries(whole):
                with suppress(ValueError, TypeError, OverflowError, AttributeError):
                    _put(self.content, kind, value)
                    self.content.delivered = kind == "delivered"
        return self.content


def is_delivered(path: Path) -> bool:
    """Tell from the end of an outbox whether all of it has reached MLflow."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 100))
        return [entry[0] for entry in _entries(file.read())][-1:] == ["delivered"]


def is_pending(path: Path) -> bool:
    """Tell whether something in an outbox may still be on its way to MLflow."""
    return path.exists() and not is_delivered(path)


def _entries(data: bytes) -> Iterator[tuple[str, Any]]:
    for line in data.split(b"\n"):
        crc, _, body = line.partition(b" ")
        if crc != b"%08x" % zlib.crc32(body):
            continue
        try:
            kind, value = json.loads(body)
        except (ValueError, TypeError, RecursionError):
            continue
        if isinstance(kind, str):
            yield kind, value


def _put(content: Content, kind: str, value: Any) -> None:
    """Take up an entry; raise ValueError or TypeError for one that no outbox holds."""
    if kind == "run":
        creation = RunCreation(**value)
        if creation.dataset and {"name", "digest", "source", "profile"} - creation.dataset.keys():
            raise ValueError
        content.creation = content.creation or creation
    elif kind == "points":
        key, steps, values, at = value
        points = Points(str(key), [int(s) for s in steps], [float(v) for v in values], int(at))
        if len(points.steps) != len(points.values):
            raise ValueError
        content.points.append(points)
    elif kind == "digest":
        step, text = value
        content.digests[int(step)] = str(text)
    elif kind == "tags":
        content.tags |= {str(key): str(text) for key, text in value.items()}
    elif kind == "ids":
        run, experiment = value
        content.ids = str(run), str(experiment)
    elif kind == "status":
        status, at = value
        content.status = str(status), int(at)
    elif kind == "begun":
        after = value.pop("after", None)
        content.begin(ownership.load(value), ownership.load(after) if after else None)
