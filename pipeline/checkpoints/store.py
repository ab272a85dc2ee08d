"""The folder of a run's checkpoints: publishing, finding, verifying and removing them.

The order in which a checkpoint appears, so that it exists completely or not at all:
payload under temporary names, flushed; payload renamed; folder flushed; manifest renamed into
place (this is the moment); folder flushed; state file; retention, manifest before payload.
A file that no manifest names does not exist to Waymark and is swept at the next resume.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pydantic

from pipeline.checkpoints import SaveFormat, State
from pipeline.checkpoints.retention import Memory, after
from pipeline.config import FORMAT
from pipeline.digest import digest

TEMPORARY = ".tmp-"


class Damaged(Exception):
    """Say which checkpoint is damaged, and how."""


@dataclass(frozen=True)
class Manifest:
    step: int
    time: float  # of the state's copy, seconds since the epoch
    digest: str  # of the state
    metrics: dict[str, float]  # evaluated at this step, if it was
    regular: bool  # False: written because of a signal; goes with the next regular one
    memory: Memory  # retention's, after this checkpoint
    files: dict[str, dict[str, Any]]  # payload file -> size, sha256
    graph: dict[str, dict[str, Any]]  # the graph file beside it, likewise


MANIFEST = pydantic.TypeAdapter(Manifest)


def file_facts(path: Path) -> dict[str, Any]:
    """Return a file's size in bytes and SHA-256."""
    with path.open("rb") as file:
        return {
            "size": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def flush(path: Path) -> None:
    """Wait until a file's or folder's contents are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_file(path: Path, text: str) -> None:
    """Write `text` to `path`, durably and in one instant."""
    temporary = path.with_name(TEMPORARY + path.name)
    temporary.write_text(text, encoding="utf-8")
    flush(temporary)
    os.replace(temporary, path)
    flush(path.parent)


def _checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


class CheckpointStore:
    """The checkpoints of one run, in one folder and one format.

    `published` and `removed` are told of files that appeared and names that went, so that a
    remote artifact store can follow.
    """

    def __init__(
        self,
        folder: Path,
        save: SaveFormat,
        published: Callable[[list[Path]], None] = lambda files: None,
        removed: Callable[[list[str]], None] = lambda names: None,
    ) -> None:
        self.folder, self.save = folder, save
        self._published, self._removed = published, removed
        self._resume_point: int | None = None  # the newest checkpoint, if it does not count

    def path(self, step: int) -> Path:
        """Return the checkpoint's path without its endings: what `Saver.restore` takes."""
        return self.folder / f"{self.save.stem}-{step}"

    def steps(self) -> list[int]:
        """Return the published steps, oldest first."""
        head = f"{self.save.stem}-"
        names = [path.name for path in self.folder.glob(f"{head}*.json")]
        middles = [name.removeprefix(head).removesuffix(".json") for name in names]
        return sorted(int(text) for text in middles if text.isdecimal())

    def manifest(self, step: int) -> Manifest:
        """Read the manifest of `step`; raise Damaged."""
        path = self.path(step).with_suffix(".json")
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            if body["format"] != FORMAT:
                raise Damaged(f"{path.name} has format {body['format']!r}, not {FORMAT}")
            checksum = body.pop("checksum")
            if _checksum(body) != checksum or body["step"] != step:
                raise Damaged(f"{path.name} does not hold what was written")
            return MANIFEST.validate_python(body)
        except FileNotFoundError:
            raise Damaged(f"{path.name} is missing") from None
        except (OSError, ValueError, KeyError, TypeError, RecursionError, AttributeError) as error:
            reason = str(error).partition("\n")[0]
            raise Damaged(f"{path.name} cannot be read ({reason})") from None

    def verify(self, manifest: Manifest) -> None:
        """Check every payload file's size and SHA-256; raise Damaged."""
        self._verify(manifest.files)

    def verify_graph(self, manifest: Manifest) -> None:
        """Check the graph file beside the checkpoint; raise Damaged."""
        self._verify(manifest.graph)

    def _verify(self, files: Mapping[str, Mapping[str, Any]]) -> None:
        for name, facts in files.items():
            try:
                if Path(name).name != name:
                    raise Damaged(f"the manifest names a file elsewhere ({name!r})")
                if file_facts(self.folder / name) != facts:
                    raise Damaged(f"{name} does not hold what was written")
            except FileNotFoundError:
                raise Damaged(f"{name} is missing") from None
            except OSError as error:
                raise Damaged(f"{name} cannot be read ({error.strerror})") from None
            except ValueError as error:  # a name that no file can have
                raise Damaged(f"{name!r} cannot be read ({error})") from None

    def read(self, step: int) -> tuple[Manifest, State]:
        """Return a checkpoint's manifest and state, verified; raise Damaged."""
        manifest = self.manifest(step)
        self.verify(manifest)
        try:
            state = self.save.read(self.path(step))
        except (ValueError, OSError, zipfile.BadZipFile, IndexError) as error:
            raise Damaged(f"{self.path(step).name} cannot be read ({error})") from None
        if digest(state) != manifest.digest:
            raise Damaged(f"{self.path(step).name} does not hold the state that was saved")
        return manifest, state

    def newest_whole(self) -> tuple[tuple[Manifest, State] | None, list[str]]:
        """Return the newest checkpoint that is whole, and what is wrong with newer ones."""
        damage: list[str] = []
        for step in reversed(self.steps()):
            try:
                return self.read(step), damage
            except Damaged as error:
                damage.append(f"checkpoint {step} is damaged: {error}")
        return None, damage

    def publish(
        self,
        step: int,
        time: float,
        state: State,
        metrics: Mapping[str, float],
        memory: Memory,
        regular: bool = True,
        graph: Path | None = None,
    ) -> Memory:
        """Write, publish, then apply retention; return retention's memory after it."""
        temporary = self.folder / f"{TEMPORARY}{self.path(step).name}"
        files = {}
        for written in self.save.write(temporary, state):
            flush(written)
            final = self.folder / written.name.removeprefix(TEMPORARY)
            files[final.name] = file_facts(written)
            os.replace(written, final)
        flush(self.folder)
        if regular:
            memory = after(memory, step, time, metrics, self.save.policy)
        facts = {} if graph is None else {graph.name: file_facts(graph)}
        manifest = Manifest(step, time, digest(state), dict(metrics), regular, memory, files, facts)
        body = {"format": FORMAT, **asdict(manifest)}
        body = json.loads(json.dumps(body))
        body["checksum"] = _checksum(body)
        replace_file(self.path(step).with_suffix(".json"), json.dumps(body, indent=1))
        self._published([self.folder / name for name in files])
        self._published([self.path(step).with_suffix(".json")])
        self._retain(memory, step)
        self._resume_point = None if regular else step
        return memory

    def _retain(self, memory: Memory, newest: int) -> None:
        """Point other programs at `newest`, then remove what the memory does not keep."""
        kept, steps = memory.kept(), self.steps()
        stay = [s for s in steps if kept is None or s in kept]
        stay = sorted({s for s in stay if s != self._resume_point} | {newest})
        recent = {newest} if memory.recent is None else {step for step, _ in memory.recent}
        self._published(self.save.point(self.folder, [s for s in stay if s in recent | {newest}]))
        for step in steps:
            if step not in stay:
                self._remove(step)

    def recover(self, newest: Manifest) -> Memory:
        """Finish what a killed process left: go on from `newest` as the newest checkpoint.

        Newer (damaged) checkpoints, temporary files and files without a manifest are removed,
        retention is applied and the state file is rebuilt. Returns retention's memory.
        """
        for step in self.steps():
            if step > newest.step:
                self._remove(step)
        memory, saves = newest.memory, []
        for step in self.steps():
            try:
                manifest = self.manifest(step)
            except Damaged:
                continue
            if manifest.regular:
                saves.append((step, manifest.time))
            elif step != newest.step:
                self._remove(step)
        self._retain(memory, newest.step)
        self._resume_point = None if newest.regular else newest.step
        self.sweep()
        if memory.recent is None:  # all were kept so far; from now on the policy may be another
            memory = replace(memory, recent=tuple(saves))
        return memory

    def sweep(self) -> None:
        """Remove temporary files and payload files that no manifest's step stands for."""
        published = {self.path(step).name for step in self.steps()}
        for path in self.folder.iterdir():
            payload = path.name.startswith(f"{self.save.stem}-")
            orphan = payload and path.name.split(".")[0] not in published
            if path.name.startswith(TEMPORARY) or orphan:
                path.unlink()
            if orphan:
                self._removed([path.name])

    def _remove(self, step: int) -> None:
        manifest, name = self.path(step).with_suffix(".json"), self.path(step).name
        manifest.unlink(missing_ok=True)
        payload = list(self.folder.glob(f"{name}.*"))
        for path in payload:
            path.unlink(missing_ok=True)
        self._removed([manifest.name, *(path.name for path in payload)])
