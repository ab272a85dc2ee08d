"""Pictures in folders named by their classes: found, decoded once, and kept in a cache.

The pixels are those of METHOD by the Pillow that is installed, whose version is part of the data
set's digest. The digest is SHA-256 over METHOD, version, size, channels, the SHA-256 of the pixels
(as the cache has it: it is made while they are decoded, and compared with them again where the
file of the cache is not the one it was, by size and times) and the digest of the labels.
"""

import hashlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from waymark.config.schema import settings
from waymark.data import cache
from waymark.data.dataset import PARTS, Dataset, from_arrays
from waymark.data.sources import Loader
from waymark.digest import digest
from waymark.errors import BadInput, first_line

METHOD = "EXIF orientation applied, converted, bilinear with antialiasing"
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
# What is tried on a file, whatever its ending: no format that starts another program.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")  # of 8 bits a channel
MAX_PIXELS = 2**27  # of one picture: its header is small whatever it promises
IGNORED = ("thumbs.db", "desktop.ini", "__macosx")  # and all that begins with a dot
NAMED = 10  # files that a refusal names
AT_ONCE = 1024  # pictures that are decoded before they are written

_progress: ContextVar[Any] = ContextVar("_progress", default="auto")

Size = Annotated[int, Field(ge=1, le=10_000)]


class Picture(NamedTuple):
    """A file of a training, validation or test set."""

    part: str
    label: int
    name: str  # from `top`, with slashes
    top: Path


@settings
class Images(Loader):
    """Pictures of the user's own, in one folder for each class."""

    path: str
    """a folder `CLASS/*.png`, or `train|val|test/CLASS/*.png`: PNG, JPEG, BMP, GIF (the first
    picture), WebP, TIFF, PPM, of 8 bits a channel"""
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
        tops = {"": Path(self.path).expanduser()}
        if isinstance(self.test, str):
            tops["test"] = Path(self.test).expanduser()
        names, pictures, strange = find(tops)
        with _quiet(), ThreadPoolExecutor(os.cpu_count()) as pool, _bar() as show:
            known = self._digests(tops, pictures, strange, pool, show)
            rows = self._rows(pictures, known, strange, pool, show)
            if strange:
                for _ in rows():  # which refuses them all, at its end
                    pass
            shape = (len(pictures), *self._shape)
            key = self._key(pictures, known)
            pixels, sha256 = cache.kept_array(self.cache_folder(), key, shape, rows)
        arrays: dict[str, np.ndarray] = {}
        labels = np.array([each.label for each in pictures], np.int32)
        parts = np.array([each.part for each in pictures])
        for part in dict.fromkeys(parts.tolist()):  # which stand in this order
            first, last = np.flatnonzero(parts == part)[[0, -1]]
            arrays |= {f"x_{part}": pixels[first : last + 1], f"y_{part}": labels[first : last + 1]}
        version = _pillow()
        told = digest({name: array for name, array in arrays.items() if name[0] == "y"})
        whole = "\n".join([*map(str, (METHOD, version, self._shape, sha256, told)), ""])
        data = from_arrays("images", f"{tops['']} (read by Pillow {version})", arrays)
        return replace(
            data, class_names=names, read_digest=hashlib.sha256(whole.encode()).hexdigest()
        )

    def reads_test_file(self) -> bool:
        """Tell that `test` may name a folder of classes."""
        return True

    def has_validation(self) -> bool:
        """Tell whether there will be a validation set: asked for, or in the folder."""
        with suppress(OSError):  # `load` says what is wrong
            return "val" in _sets(Path(self.path).expanduser()) or super().has_validation()
        return super().has_validation()

    def cache_folder(self) -> Path:
        """Return the folder in which decoded pictures are kept."""
        return cache.cache_folder(self.cache)

    @property
    def _shape(self) -> tuple[int, int, int]:
        height, width = self.size if isinstance(self.size, list) else (self.size, self.size)
        return height, width, self.channels

    def _key(self, pictures: list[Picture], known: dict[tuple[Path, str], str]) -> str:
        """Return under what the pixels are kept."""
        total = hashlib.sha256(f"{METHOD}\n{_pillow()}\n{self._shape}\n".encode())
        for each in pictures:
            line = json.dumps([each.part, each.name, known[each.top, each.name]])
            total.update(f"{line}\n".encode())
        return total.hexdigest()

    def _digests(
        self,
        tops: dict[str, Path],
        pictures: list[Picture],
        strange: dict[str, str],
        pool: ThreadPoolExecutor,
        show: Callable[[str, int], Callable[[], None]],
    ) -> dict[tuple[Path, str], str]:
        """Return the SHA-256 of each picture; add to `strange` those that cannot be read."""
        known: dict[tuple[Path, str], str] = {}
        for top in dict.fromkeys(tops.values()):
            names = [each.name for each in pictures if each.top == top]
            seen = show("reading", len(names))
            found, unreadable = cache.digests(self.cache_folder(), top, names, pool, seen)
            known |= {(top, name): content for name, content in found.items()}
            strange |= {f"{top}/{name}": reason for name, reason in unreadable.items()}
        return known

    def _rows(
        self,
        pictures: list[Picture],
        known: dict[tuple[Path, str], str],
        strange: dict[str, str],
        pool: ThreadPoolExecutor,
        show: Callable[[str, int], Callable[[], None]],
    ) -> Callable[[], Iterator[np.ndarray]]:
        """Return what decodes the pictures in their order, and at its end refuses what it cannot.

        The refusal names what is `strange` already as well.
        """
        there = [each for each in pictures if (each.top, each.name) in known]

        def one(each: Picture) -> np.ndarray | str:
            try:
                content = (each.top / each.name).read_bytes()
                if hashlib.sha256(content).hexdigest() != known[each.top, each.name]:
                    return "it changed while it was read"
                return decode(content, self._shape)
            except Exception as error:  # damage makes Pillow raise nearly anything
                return _reason(error)

        def rows() -> Iterator[np.ndarray]:
            seen, wrong = show("decoding", len(there)), dict(strange)
            left = iter(there)
            while some := list(islice(left, AT_ONCE)):
                for each, row in zip(some, pool.map(one, some), strict=True):
                    seen()
                    if isinstance(row, str):
                        wrong[f"{each.top}/{each.name}"] = row
                    elif not wrong:
                        yield row
            if wrong:
                raise BadInput(_refusal(wrong))

        return rows


def decode(content: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """Return the picture in a file as uint8 [H, W, C]; raise what Pillow raises, ValueError."""
    import io

    from PIL import Image, ImageOps

    height, width, channels = shape
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(
                f"it promises {image.width} x {image.height} pixels; allowed are {MAX_PIXELS:,}"
            )
        if image.mode not in MODES:
            raise ValueError(f"its pixels are {image.mode}, not of 8 bits a channel")
        upright = ImageOps.exif_transpose(image)
    if "transparency" in upright.info:
        upright = upright.convert("RGBA")
    plain = upright.convert("RGB" if channels == 3 else "L")
    resized = plain.resize((width, height), Image.Resampling.BILINEAR)  # antialiased, downwards
    return np.asarray(resized).reshape(shape)


def _reason(error: Exception) -> str:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):  # whose text holds an address
        return "it is no picture of a known format"
    if isinstance(error, Image.DecompressionBombError):
        return f"it promises more than {MAX_PIXELS:,} pixels"
    return first_line(error).rstrip(".")


@contextmanager
def _quiet() -> Iterator[None]:
    """Let Pillow print nothing: what it warns of is refused here, or does not matter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


def _pillow() -> str:
    import PIL

    return PIL.__version__


def find(tops: dict[str, Path]) -> tuple[tuple[str, ...], list[Picture], dict[str, str]]:
    """Return the names of the classes, the pictures in their order, and what is none, with why.

    `tops` are the data's folder, as "", and that of a test set of its own, as "test". Raises
    BadInput for folders that hold no classes, or others than the training set has.
    """
    folders: dict[tuple[Path, str], Path] = {}
    strange: dict[str, str] = {}
    for given, top in tops.items():
        try:
            sets = {given: "."} if given else _sets(top)
        except OSError as error:
            raise BadInput(f"{top} is not a readable folder: {error.strerror}.") from None
        if given and given in {part for _, part in folders}:
            raise BadInput(f"data.test={str(top)!r}: {tops['']} brings its own test set.")
        folders |= {(top, part): Path(inner) for part, inner in sets.items()}
    names: tuple[str, ...] = ()
    pictures: list[Picture] = []
    empty: list[str] = []
    for part in PARTS:
        for top, inner in [(t, inner) for (t, each), inner in folders.items() if each == part]:
            classes = _classes(top / inner, strange)
            if part == "train":
                names = _checked_names(top / inner, classes)
            for name in classes:
                if name not in names:
                    raise BadInput(
                        f"{top / inner}: the class {name!r} is not one of the training set, which "
                        f"has {', '.join(names[:9])}."
                    )
                found = _pictures(top / inner / name, strange)
                empty += [] if found else [str(top / inner / name)]
                label = names.index(name)
                pictures += [
                    Picture(part, label, (inner / name / n).as_posix(), top) for n in found
                ]
    if not strange and empty:
        raise BadInput(f"{', '.join(empty[:NAMED])}: a class needs a picture.")
    return names, pictures, strange


def _entries(folder: Path) -> Iterable[os.DirEntry[str]]:
    """Return what lies in a folder, in the order of the names, without what systems leave there."""
    with os.scandir(folder) as entries:
        found = [e for e in entries if e.name[0] != "." and e.name.lower() not in IGNORED]
    return sorted(found, key=lambda entry: entry.name)


def _sets(top: Path) -> dict[str, str]:
    """Return the folder, from `top`, of each set: train, val, test, or the one there is."""
    inner = [entry.name for entry in _entries(top) if entry.is_dir()]
    split = "train" in inner and set(inner) <= set(PARTS)
    if split and any(entry.is_dir() for entry in _entries(top / "train")):  # else it is a class
        return {part: part for part in PARTS if part in inner}
    return {"train": "."}


def _is_picture(name: str) -> bool:
    return name.lower().endswith(ENDINGS)


def _classes(folder: Path, strange: dict[str, str]) -> list[str]:
    """Return the names of the folders in a folder; a picture beside them is strange."""
    entries = _entries(folder)
    for entry in entries:
        if not entry.is_dir() and _is_picture(entry.name):
            strange[entry.path] = "it lies in no class's folder"
    return [entry.name for entry in entries if entry.is_dir()]


def _checked_names(folder: Path, names: list[str]) -> tuple[str, ...]:
    if len(names) < 2:
        there = f"the one folder {names[0]!r}" if names else "no folder"
        raise BadInput(f"{folder}: holds {there}; allowed are 2 classes up, a folder for each.")
    for name in names:
        if name.encode(errors="replace").decode() != name:
            raise BadInput(f"{folder}: the name of the class {name!r} is not UTF-8.")
    return tuple(names)


def _pictures(folder: Path, strange: dict[str, str]) -> list[str]:
    """Return the names of the pictures in a folder; all else there is strange."""
    found = []
    for entry in _entries(folder):
        if entry.is_file() and _is_picture(entry.name):
            found.append(entry.name)
        else:
            kind = "folder" if entry.is_dir() else "file" if not entry.is_file() else ""
            strange[entry.path] = f"it is a {kind}" if kind == "folder" else "it is no picture"
    return found


def _refusal(wrong: dict[str, str]) -> str:
    """Return what says of all files, in the order of their names, what is wrong with them."""
    shown = [f"{name} ({wrong[name]})" for name in sorted(wrong)[:NAMED]]
    more = f", and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
    one = "1 file is no picture" if len(wrong) == 1 else f"{len(wrong)} files are no pictures"
    return f"{one} that can be read: {', '.join(shown)}{more}."


@contextmanager
def showing(progress: Any) -> Iterator[None]:
    """Show what is decoded in this context as the setting `progress` says."""
    token = _progress.set(progress)
    try:
        yield
    finally:
        _progress.reset(token)


@contextmanager
def _bar() -> Iterator[Callable[[str, int], Callable[[], None]]]:
    """Yield what begins a bar, with a word and a total, and returns what moves it by one.

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
            bar.start()
            bar.update(task, advance=1, visible=True)

        return move

    try:
        yield begin
    finally:
        bar.stop()
