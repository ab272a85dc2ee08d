"""Pictures in folders named by their classes: found, decoded once, and kept in a cache.

The pixels are those of METHOD by the Pillow that is installed, whose version is part of the data
set's digest. The digest is SHA-256 over METHOD, version, size, channels, the SHA-256 of the pixels
(as the cache has it: it is made while they are decoded, and compared with them again where the
file of the cache is not the one it was, by size and times) and the digest of the labels.
"""

import hashlib
import math
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from waymark.config.schema import settings
from waymark.data import cache
from waymark.data.dataset import PARTS, Dataset, from_arrays
from waymark.data.picture_file import ENDINGS, decode, quiet, reason
from waymark.data.sources import Loader, expand
from waymark.digest import digest
from waymark.errors import BadInput, listed

METHOD = "EXIF orientation applied, converted, bilinear with antialiasing"
VALIDATION = ("val", "valid", "validation")  # what the folder of a validation set may be called
IGNORED = ("thumbs.db", "desktop.ini", "__macosx")  # and all that begins with a dot
NAMED = 10  # files that a refusal names
AT_ONCE = 1024  # pictures at most that are decoded before they are written
AT_ONCE_BYTES = 2**26  # and so many bytes, but for one picture a thread

# What begins a bar, with a word and a total, and returns what moves it by one.
Show = Callable[[str, int], Callable[[], None]]

_progress: ContextVar[Any] = ContextVar("_progress", default="auto")

Size = Annotated[int, Field(ge=1, le=10_000)]


class Picture(NamedTuple):
    """A file of a training, validation or test set."""

    part: str
    label: int
    name: str  # from `top`, with slashes
    top: Path

    @property
    def path(self) -> str:
        """Return where it is."""
        return f"{self.top}/{self.name}"


@dataclass(frozen=True)
class Found:
    """What lies in folders of pictures."""

    names: tuple[str, ...]  # of the classes, whose numbers are their places
    pictures: list[Picture]  # set by set, class by class, in the order of their names
    strange: dict[str, str]  # what is there besides, and why it is no picture


@settings
class Images(Loader):
    """Pictures of the user's own, in one folder for each class."""

    path: str
    """a folder `CLASS/*.png`, or `train/CLASS/*.png` with `val` (`valid`, `validation`) and `test`:
    PNG, JPEG, BMP, GIF (the first picture), WebP, TIFF, PPM, of 8 bits a channel"""
    size: Annotated[list[Size], Field(min_length=2, max_length=2)] | Size
    """[height, width] to which they are resized, whatever their own is; or one number for both"""
    channels: Literal[1, 3] = 3
    """3 (RGB) or 1 (grey); what is transparent loses that"""
    cache: str | None = None
    """a folder for the decoded pictures; null: `waymark` in the user's cache folder"""

    def load(self) -> Dataset:
        """Read the pictures, uint8 [N, H, W, C], decoded now or before; raise BadInput.

        Labels are int32 [N], numbers of the classes' folders in the order of their names.
        """
        tops = {"": expand(self.path)}
        if isinstance(self.test, str):
            tops["test"] = expand(self.test)
        found = find(tops)
        with quiet(), ThreadPoolExecutor(os.cpu_count()) as pool, _bar() as show:
            known = _contents(found, self.cache_folder(), pool, show)
            rows = partial(_decoded, found, known, self._shape, pool, show)
            if found.strange:
                deque(rows(), 0)  # which looks for more of it, and refuses all
            shape = (len(found.pictures), *self._shape)
            pixels, sha256 = cache.kept_array(
                self.cache_folder(), self._key(found.pictures, known), shape, rows
            )
        labels = np.array([each.label for each in found.pictures], np.int32)
        parts = [each.part for each in found.pictures]
        arrays: dict[str, np.ndarray] = {}
        for part in dict.fromkeys(parts):
            first = parts.index(part)
            rows_of = slice(first, first + parts.count(part))
            arrays |= {f"x_{part}": pixels[rows_of], f"y_{part}": labels[rows_of]}
        labels_digest = digest({name: each for name, each in arrays.items() if name[0] == "y"})
        whole = "".join(f"{each}\n" for each in (self._method, sha256, labels_digest))
        data = from_arrays("images", f"{tops['']} (read by Pillow {_pillow()})", arrays)
        return replace(data, class_names=found.names, read_digest=_sha256(whole.encode()))

    def reads_test_file(self) -> bool:
        """Tell that `test` may name a folder of classes."""
        return True

    def has_validation(self) -> bool:
        """Tell whether there will be a validation set: asked for, or in the folder."""
        with suppress(OSError):  # `load` says what is wrong
            return "val" in _sets(expand(self.path)) or super().has_validation()
        return super().has_validation()

    def cache_folder(self) -> Path:
        """Return the folder in which decoded pictures are kept."""
        return cache.cache_folder(self.cache)

    @property
    def _shape(self) -> tuple[int, int, int]:
        height, width = self.size if isinstance(self.size, list) else (self.size, self.size)
        return height, width, self.channels

    @property
    def _method(self) -> str:
        return f"{METHOD}\nPillow {_pillow()}\n{self._shape}"

    def _key(self, pictures: list[Picture], known: Mapping[str, str]) -> str:
        """Return under what the pixels are kept."""
        total = hashlib.sha256(f"{self._method}\n".encode())
        for each in pictures:
            total.update(os.fsencode(f"{each.part}/{each.name}\0{known[each.path]}\n"))
        return total.hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _contents(found: Found, folder: Path, pool: Executor, show: Show) -> dict[str, str]:
    """Return the SHA-256 of each picture; those that cannot be read are strange."""
    known: dict[str, str] = {}
    for top in {each.top: None for each in found.pictures}:
        names = [each.name for each in found.pictures if each.top == top]
        seen = show("reading", len(names))
        contents, unreadable = cache.digests(folder, top, names, pool, seen)
        known |= {f"{top}/{name}": content for name, content in contents.items()}
        found.strange.update({f"{top}/{name}": why for name, why in unreadable.items()})
    return known


def _decoded(
    found: Found,
    known: Mapping[str, str],
    shape: tuple[int, int, int],
    pool: Executor,
    show: Show,
) -> Iterator[np.ndarray]:
    """Yield the pictures, uint8 `shape`, in their order, decoded in the threads of a pool.

    At the end raises BadInput if any is not what was `known`, or no picture, or what is strange
    was found.
    """

    def one(path: str) -> np.ndarray | str:
        try:
            content = Path(path).read_bytes()
            if _sha256(content) != known[path]:
                return "it changed while it was read"
            return decode(content, shape)
        except Exception as error:  # damage makes Pillow raise nearly anything
            return reason(error)

    paths = [each.path for each in found.pictures if each.path in known]
    seen, wrong = show("decoding", len(paths)), dict(found.strange)
    at_once = min(AT_ONCE, max(AT_ONCE_BYTES // math.prod(shape), os.cpu_count() or 1))
    for start in range(0, len(paths), at_once):
        some = paths[start : start + at_once]
        for path, row in zip(some, pool.map(one, some), strict=True):
            seen()
            if isinstance(row, str):
                wrong[path] = row
            elif not wrong:
                yield row
    if wrong:
        shown = [f"{path} ({wrong[path]})" for path in sorted(wrong)[:NAMED]]
        more = f", and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        count = (
            "1 file is not a picture" if len(wrong) == 1 else f"{len(wrong)} files are not pictures"
        )
        raise BadInput(f"{count} that can be read: {', '.join(shown)}{more}.")


def _pillow() -> str:
    import PIL

    return PIL.__version__


def find(tops: Mapping[str, Path]) -> Found:
    """Return the pictures in the data's folder, `tops[""]`, and in that of a test set, `"test"`.

    Raises BadInput for folders that hold no classes, or others than the training set has.
    """
    try:
        folders = {part: (tops[""], inner) for part, inner in _sets(tops[""]).items()}
        if "test" in folders and "test" in tops:
            raise BadInput(f"data.test={str(tops['test'])!r}: {tops['']} brings its own test set.")
        folders |= {part: (top, ".") for part, top in tops.items() if part}
        return _find(folders)
    except OSError as error:
        raise BadInput(f"{error.filename} is not a readable folder: {error.strerror}.") from None


def _find(folders: Mapping[str, tuple[Path, str]]) -> Found:
    """Find the pictures of each set, training first; its folder is given as the top and the way."""
    found = Found(_class_names(Path(*folders["train"])), [], {})
    empty = []
    for part in filter(folders.__contains__, PARTS):
        top, inner = folders[part]
        for name in _classes(top / inner, found.strange):
            way = (Path(inner) / name).as_posix()
            folder = top / way
            if name not in found.names:
                raise BadInput(
                    f"{folder}: {name!r} is not a class of the training set, which has "
                    f"{', '.join(found.names[:NAMED])}."
                )
            files = _pictures(folder, found.strange)
            empty += [] if files else [str(folder)]
            label = found.names.index(name)
            found.pictures.extend(Picture(part, label, f"{way}/{each}", top) for each in files)
        if not found.strange and not any(each.part == part for each in found.pictures):
            empty += [str(top / inner)]
    if empty and not found.strange:
        raise BadInput(f"{', '.join(empty[:NAMED])}: a class needs a picture.")
    return found


def entries_of(folder: Path) -> Iterable[os.DirEntry[str]]:
    """Return what lies in a folder, in the order of the names, without what systems leave there."""
    with os.scandir(folder) as entries:
        found = [e for e in entries if e.name[0] != "." and e.name.lower() not in IGNORED]
    return sorted(found, key=lambda entry: entry.name)


def _sets(top: Path) -> dict[str, str]:
    """Return the folder, from `top`, of each set: train, val, test, or the one there is.

    Raises BadInput for two that would be the validation set.
    """
    inner = [entry.name for entry in entries_of(top) if entry.is_dir()]
    named = {"val" if name in VALIDATION else name: name for name in inner}
    split = "train" in inner and set(named) <= set(PARTS)
    if split and any(entry.is_dir() for entry in entries_of(top / "train")):  # else it is a class
        if len(named) < len(inner):
            both = listed([name for name in inner if name in VALIDATION])
            raise BadInput(f"{top} holds {both}; one folder can be the validation set.")
        return {part: named[part] for part in PARTS if part in named}
    return {"train": "."}


def _is_picture(name: str) -> bool:
    return name.lower().endswith(ENDINGS)


def _classes(folder: Path, strange: dict[str, str]) -> list[str]:
    """Return the names of the folders in a folder; a picture beside them is strange."""
    entries = entries_of(folder)
    for entry in entries:
        if not entry.is_dir() and _is_picture(entry.name):
            strange[entry.path] = "it lies in no class's folder"
    return [entry.name for entry in entries if entry.is_dir()]


def _class_names(folder: Path) -> tuple[str, ...]:
    names = _classes(folder, {})
    if len(names) < 2:
        there = f"the one folder {names[0]!r}" if names else "no folder"
        raise BadInput(f"{folder} holds {there}; allowed are 2 up, one for each class.")
    for name in names:
        if name.encode(errors="replace").decode() != name:
            raise BadInput(f"{folder}: the name of the class {name!r} is not UTF-8.")
    return tuple(names)


def _pictures(folder: Path, strange: dict[str, str]) -> list[str]:
    """Return the names of the pictures in a folder; all else there is strange."""
    found = []
    for entry in entries_of(folder):
        if entry.is_file() and _is_picture(entry.name):
            found.append(entry.name)
        else:
            strange[entry.path] = "it is a folder" if entry.is_dir() else "it is not a picture file"
    return found


@contextmanager
def showing(progress: Any) -> Iterator[None]:
    """Show what is decoded in this context as the setting `progress` says."""
    token = _progress.set(progress)
    try:
        yield
    finally:
        _progress.reset(token)


@contextmanager
def _bar() -> Iterator[Show]:
    """Yield what shows a bar, or nothing.

    It is drawn from the first move on, to standard error, if that is a terminal.
    """
    shown = _progress.get()
    if shown is False or (shown == "auto" and not sys.stderr.isatty()):
        yield lambda word, total: lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Left

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Left())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)

    def begin(word: str, total: int) -> Callable[[], None]:
        task = bar.add_task(word, total=total, visible=False)

        def move() -> None:
            if not bar.live.is_started:
                bar.start()
                bar.console.show_cursor(True)  # for a signal may end the process at once
            bar.update(task, advance=1, visible=True)

        return move

    try:
        yield begin
    finally:
        bar.stop()
