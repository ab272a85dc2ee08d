"""The folder of a run's checkpoints: committing, finding, verifying and removing them.

The order in which a checkpoint appears, so that it exists completely or not at all:
payload under temporary names, flushed with the run's records; payload renamed; folder flushed;
manifest renamed into place (this is the moment); folder flushed; state file; retention, manifest
before payload.
A file that no manifest names is removed at the next resume, if its name is one that Waymark gives;
other files in the folder are somebody else's, and stay.
"""

import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pydantic

from waymark.checkpoints import SaveFormat, State, retention
from waymark.config.record import check_format
from waymark.config.schema import FORMAT
from waymark.digest import digest
from waymark.errors import BadInput, UserMessage, first_line
from waymark.files import TEMPORARY, flush, replace_file

DISK_RESERVE = 4_000_000  # bytes that a checkpoint leaves free for the run's records
FILE_RESERVE = 16  # files that the disk must still take, for a checkpoint and the run's records


class CheckpointWriteError(UserMessage):
    """Say which checkpoint could not be saved, and why."""


class CorruptCheckpoint(UserMessage):
    """Say which checkpoint is damaged, and how."""


@dataclass(frozen=True)
class Manifest:
    """What is recorded of one checkpoint; its field names stand in manifests."""

    step: int
    time: float  # of the state's copy, seconds since the epoch
    digest: str  # of the state
    metrics: dict[str, float]  # evaluated at this step, if it was
    regular: bool  # on schedule; False: written because of a signal, or as the best
    memory: retention.RetentionState  # after this checkpoint
    files: dict[str, dict[str, Any]]  # payload file -> size, sha256
    graph: dict[str, dict[str, Any]]  # the graph file beside it, likewise
    parameters: list[str] | None = None  # which entries of the state are the model's, if known


MANIFEST = pydantic.TypeAdapter(Manifest)


def file_facts(path: Path) -> dict[str, Any]:
    """Return a file's size in bytes and SHA-256."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": sha256}


def _reason(error: Exception) -> str:
    """Return the system's own words for why writing failed; TensorFlow hides them in a path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    words = str(error).splitlines()[0].rpartition(" [Op:")
    return (words[0] or words[2]).rpartition("; ")[2]


def refuse_links(folder: Path) -> None:
    """Raise BadInput if a run's folder or anything in it is a special file, or cannot be read.

    Through a link a stranger's run would read and write elsewhere; a pipe would be waited for, a
    device read without end.
    """
    for path in (folder, *folder.rglob("*")):
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:  # nothing is here yet, or a live run has just removed it
            continue
        except OSError as error:
            raise BadInput(f"{path}: cannot be read ({error.strerror}).") from None
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            kind = "a symbolic link" if stat.S_ISLNK(mode) else "no regular file"
            raise BadInput(f"{path}: is {kind}; a run's folder holds plain files alone.")


def _checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def read_manifest(path: Path) -> Manifest:
    """Read a manifest; raise CorruptCheckpoint, or BadInput for another format."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        checksum = body.pop("checksum")
        if _checksum(body) != checksum:
            raise CorruptCheckpoint(f"{path.name} does not hold what was written")
        check_format(body["format"], path)  # only now is another format not damage
        return MANIFEST.validate_python(body)
    except FileNotFoundError:
        raise CorruptCheckpoint(f"{path.name} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, AttributeError) as error:
        raise CorruptCheckpoint(f"{path.name} cannot be read ({first_line(error)})") from None


class CheckpointStore:
    """The checkpoints of one run, in one folder and one format.

    `changed` is called when files have appeared or gone. `records` is a file that is on disk before
    a checkpoint is committed.
    """

    def __init__(
        self,
        folder: Path,
        save: SaveFormat,
        changed: Callable[[], None] = lambda: None,
        records: Path | None = None,
    ) -> None:
        self.folder, self.save, self._changed = folder, save, changed
        self._records = [records] if records else []
        self.parameters: list[str] | None = None  # the entries of the state that are the model's
        self.registered: frozenset[int] = frozenset()  # steps that stay whatever retention says
        self.policy = retention.Policy(save.max_to_keep, save.keep_every_n_hours, save.keep_best)
        self.retention = retention.initial_retention(time.time(), self.policy)
        self._off_schedule: set[int] = set()  # steps committed because of a signal, or as the best
        stem, endings = re.escape(save.stem), "|".join(map(re.escape, (".json", *save.endings)))
        name = rf"{stem}-(0|[1-9][0-9]*)({endings})"
        # TensorFlow adds an ending of its own to what it has not finished.
        other = rf"{re.escape(TEMPORARY)}({name}(\.tempstate[0-9]+)?|checkpoint|{stem}\.meta)"
        self._name, self._temporary = re.compile(name, re.ASCII), re.compile(other, re.ASCII)

    def path(self, step: int) -> Path:
        """Return the checkpoint's path without its endings: what `Saver.restore` takes."""
        return self.folder / f"{self.save.stem}-{step}"

    def steps(self) -> list[int]:
        """Return the steps that have a manifest, oldest first."""
        return sorted(step for name, step in self._own().items() if name.endswith(".json"))

    def _own(self) -> dict[str, int]:
        """Return the names of files here that Waymark can have given, and their steps."""
        try:
            with os.scandir(self.folder) as entries:
                names = [each.name for each in entries if each.is_file()]
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise BadInput(f"{self.folder}: cannot be read ({error.strerror}).") from None
        return {name: int(found[1]) for name in names if (found := self._name.fullmatch(name))}

    def manifest(self, step: int) -> Manifest:
        """Read the manifest of `step`; raise CorruptCheckpoint, or BadInput for another format."""
        manifest = read_manifest(self.path(step).with_suffix(".json"))
        if manifest.step != step:
            raise CorruptCheckpoint(f"{self.path(step).name}.json does not hold what was written")
        return manifest

    def verify(self, files: Mapping[str, Mapping[str, Any]]) -> None:
        """Check the size and SHA-256 of files that a manifest names; raise CorruptCheckpoint."""
        for name, facts in files.items():
            try:
                if Path(name).name != name:
                    raise CorruptCheckpoint(f"the manifest names a file elsewhere ({name!r})")
                if file_facts(self.folder / name) != facts:
                    raise CorruptCheckpoint(f"{name} does not hold what was written")
            except FileNotFoundError:
                raise CorruptCheckpoint(f"{name} is missing") from None
            except OSError as error:
                raise CorruptCheckpoint(f"{name} cannot be read ({error.strerror})") from None
            except ValueError as error:  # a name that no file can have
                raise CorruptCheckpoint(f"{name!r} cannot be read ({error})") from None

    def read(self, step: int) -> tuple[Manifest, State]:
        """Return a checkpoint's manifest and state, verified; raise CorruptCheckpoint."""
        manifest, name = self.manifest(step), self.path(step).name
        self.verify(manifest.files)
        try:
            state = self.save.read(self.path(step))
            found = digest(state)
        except MemoryError:  # says nothing about the file
            raise
        except Exception as error:  # TensorFlow and NumPy raise nearly anything for a forged file
            raise CorruptCheckpoint(f"{name} cannot be read ({first_line(error)})") from None
        if found != manifest.digest:
            raise CorruptCheckpoint(f"{name} does not hold the state that was saved")
        return manifest, state

    def latest_valid(self) -> tuple[tuple[Manifest, State] | None, list[str]]:
        """Return the newest checkpoint that is valid, and what is wrong with newer ones."""
        damage: list[str] = []
        for step in reversed(self.steps()):
            try:
                return self.read(step), damage
            except CorruptCheckpoint as error:
                damage.append(f"checkpoint {step} is damaged: {error}")
        return None, damage

    def would_keep(self, save: retention.Save) -> bool:
        """Tell whether retention keeps a save: off the schedule only the best so far."""
        after = retention.record_save(self.retention, save, self.policy)
        return save.on_schedule or after != self.retention

    def commit(self, save: retention.Save, state: State, graph: Path | None = None) -> Manifest:
        """Write a checkpoint, then apply retention; CheckpointWriteError leaves earlier ones."""
        self._check_room(save.step, state)
        try:
            return self._commit(save, state, graph)
        except Exception as error:  # OSError, and what TensorFlow raises
            self.remove_orphans()  # what is half-written may be all that fills the disk
            said = f"checkpoint {save.step} cannot be written: {_reason(error)}"
            raise CheckpointWriteError(said) from error

    def _commit(self, save: retention.Save, state: State, graph: Path | None) -> Manifest:
        step, files = save.step, {}
        payload = self.save.write(self.folder / f"{TEMPORARY}{self.path(step).name}", state)
        flush(*payload, *self._records)
        for written in payload:
            final = self.folder / written.name.removeprefix(TEMPORARY)
            files[final.name] = file_facts(written)
            os.replace(written, final)
        after = retention.record_save(self.retention, save, self.policy)
        manifest = Manifest(
            step=step,
            time=save.time,
            digest=digest(state),
            metrics=dict(save.metrics),
            regular=save.on_schedule,
            memory=after,
            files=files,
            graph={} if graph is None else {graph.name: file_facts(graph)},
            parameters=self.parameters,
        )
        body = {"format": FORMAT, **asdict(manifest)}
        body["checksum"] = _checksum(body)
        replace_file(self.path(step).with_suffix(".json"), json.dumps(body, indent=1))
        self.retention = after
        self._off_schedule -= {step}
        self._off_schedule |= set() if save.on_schedule else {step}
        self._retain(step)
        return manifest

    def _check_room(self, step: int, state: State) -> None:
        """Raise CheckpointWriteError if the disk has too little room."""
        disk = os.statvfs(self.folder)
        if disk.f_files and disk.f_favail < FILE_RESERVE:  # some file systems count none
            raise CheckpointWriteError(
                f"checkpoint {step} takes {FILE_RESERVE} more files with its records, and the disk "
                f"of {self.folder} takes {disk.f_favail}"
            )
        need = sum(array.nbytes for array in state.values()) + DISK_RESERVE
        free = shutil.disk_usage(self.folder).free
        if free < need:
            raise CheckpointWriteError(
                f"checkpoint {step} takes {need / 1e6:.1f} MB with its records, and the disk of "
                f"{self.folder} has {free / 1e6:.1f} MB left"
            )

    def _retain(self, newest: int) -> None:
        """Point other programs at `newest`, which stays; remove what retention does not keep."""
        kept, steps = self.retention, self.steps()
        on_schedule = [step for step in steps if step not in self._off_schedule]
        if kept.recent is None:
            recent, best = on_schedule[-1:], [kept.best.step] if kept.best else []
            stay = {*on_schedule, *best, newest}
        else:
            recent = [step for step, _ in kept.recent if step in steps]
            stay = (kept.retained_steps() or set()) | {newest} | self.registered
        self.save.update_state_file(self.folder, newest, recent)
        for step in steps:
            if step not in stay:
                self._remove(step)
        self._changed()

    def begin(self, start: float, now: float) -> None:
        """Prepare for a run that started at `start` and has saved nothing by `now`."""
        self.remove_orphans()
        state = retention.initial_retention(start, self.policy)
        self.retention = retention.resume_retention(state, [], start, now, self.policy)

    def repair_and_prune(self, newest: Manifest, start: float, now: float) -> None:
        """Go on at `now` from `newest`, in a run that started at `start`.

        Newer (corrupt) checkpoints, temporary files and files without a manifest are removed.
        """
        there = []
        for step in self.steps():
            if step > newest.step:
                self._remove(step)
                continue
            with suppress(CorruptCheckpoint):
                found = self.manifest(step)
                there.append(retention.Save(step, found.time, found.metrics, found.regular))
        self._off_schedule = {save.step for save in there if not save.on_schedule}
        self.retention = retention.resume_retention(newest.memory, there, start, now, self.policy)
        self._retain(newest.step)
        self.remove_orphans()

    def remove_orphans(self) -> None:
        """Remove temporary files, and payload files of steps without a manifest."""
        complete = set(self.steps())
        orphans = {name for name, step in self._own().items() if step not in complete}
        for path in self.folder.iterdir():
            if path.name in orphans or (self._temporary.fullmatch(path.name) and path.is_file()):
                path.unlink(missing_ok=True)

    def _remove(self, step: int) -> None:
        """Remove a checkpoint, its manifest first."""
        head = self.path(step).name
        names = [f"{head}{ending}" for ending in self.save.endings]
        with suppress(CorruptCheckpoint, BadInput):  # of a format that does not tell its endings
            names += [n for n in self.manifest(step).files if n.startswith(f"{head}.")]
        for path in (self.folder / name for name in (f"{head}.json", *names)):
            if path.is_file():
                path.unlink(missing_ok=True)
