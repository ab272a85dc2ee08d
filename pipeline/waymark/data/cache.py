"""What was made of the user's files, kept so that it is made once: `data.cache`.

    folder = cache_folder(None)  # ~/.cache/waymark
    found, unreadable = digests(folder, Path("pets"), ["cat/1.png"], pool, seen)
    pixels, sha256 = kept_array(folder, key, (2, 32, 32, 3), make_rows)

In the folder: KEY.npy, an array, and KEY.json, which says what it holds and makes it count;
KEY.lock, which the process has that makes it; NAME.files.json, the digests of a folder's files.
Everything is put in place whole, and may be removed at any time.
"""

import hashlib
import json
import math
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from waymark.digest import SETTLED
from waymark.errors import BadInput, first_line, printable
from waymark.files import TEMPORARY, flush

# What is ours in a folder that may hold anything else as well.
ENDINGS = r"(\.files)?\.(npy|npz|json|lock|txt)(\.\w+)?"
OURS = re.compile(rf"({re.escape(TEMPORARY)})?[0-9a-f]{{64}}{ENDINGS}")
DIGESTS = "digests"  # the folder in it that holds those of data larger than memory


def cache_folder(setting: str | None) -> Path:
    """Return the folder that `data.cache` names; None: `waymark` in the user's cache folder."""
    if setting is not None:
        return Path(os.path.expanduser(setting))
    own = os.environ.get("XDG_CACHE_HOME", "")
    # As its specification says, a relative one does not count.
    home = Path(own) if os.path.isabs(own) else Path(os.path.expanduser("~/.cache"))
    return home / "waymark"


def cached_bytes(folder: Path) -> int:
    """Return how many bytes the files of a cache take."""
    return sum(size for _, size in _files(folder))


def clear(folder: Path) -> int:
    """Remove a cache and return how many bytes it took; what is being made now is left.

    Raises BadInput for what cannot be removed.
    """
    removed = 0
    with ExitStack() as held:
        busy = {path.name[:64] for path, _ in _files(folder) if not _held(path, held)}
        for path, size in _files(folder):
            if path.name.removeprefix(TEMPORARY)[:64] in busy:
                continue
            try:
                path.unlink()
                removed += size
            except FileNotFoundError:
                pass
            except OSError as error:
                raise BadInput(f"{path} cannot be removed: {error.strerror}.") from None
    for place in (folder / DIGESTS, folder):
        with suppress(OSError):  # something else lies there
            place.rmdir()
    return removed


def _held(path: Path, held: ExitStack) -> bool:
    """Hold a lock until `held` ends; tell whether it, or what is no lock, is free."""
    from filelock import FileLock, Timeout

    if path.suffix == ".lock":
        try:
            held.enter_context(FileLock(path, timeout=0))
        except Timeout:
            return False
        except (OSError, NotImplementedError):  # nobody can have it
            pass
    return True


def _files(folder: Path) -> list[tuple[Path, int]]:
    """Return the files of a cache and their sizes; nothing else that lies there."""
    found = []
    for place in (folder, folder / DIGESTS):
        with suppress(OSError), os.scandir(place) as entries:
            for entry in entries:
                if OURS.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    with suppress(FileNotFoundError):
                        found.append((Path(entry.path), entry.stat().st_size))
    return found


def _marks(facts: os.stat_result) -> list[int]:
    return [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]


def _settled(facts: os.stat_result, now: float) -> bool:
    """Tell whether another change would give a file other times; `now` is before it was read."""
    return now - max(facts.st_mtime, facts.st_ctime) > SETTLED


def digests(
    folder: Path, top: Path, names: Sequence[str], pool: Executor, seen: Callable[[], None]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the SHA-256 of the files `names` in `top`, and the reason for each unreadable one.

    A file whose size and times of change are what they were is not read again; for each that is,
    `seen` is called, in a thread of the `pool`.
    """
    where = os.path.realpath(top)
    known_as = hashlib.sha256(os.fsencode(where)).hexdigest()
    memory = folder / f"{known_as}.files.json"
    known: Any = {}
    with suppress(OSError, ValueError):
        known = json.loads(memory.read_bytes())
    known = known if isinstance(known, dict) else {}

    found: dict[str, str] = {}
    kept: dict[str, Any] = {}
    anew = []
    for name in names:
        old = known.get(name)
        with suppress(OSError):  # the reader says it
            if isinstance(old, list) and old[:-1] == _marks(os.stat(f"{where}/{name}")):
                kept[name], found[name] = old, old[-1]
                continue
        anew.append(name)

    def read(name: str) -> tuple[list[Any], bool] | str:
        now, path = time.time(), f"{where}/{name}"
        try:
            facts = os.stat(path)
            with open(path, "rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            return error.strerror or first_line(error)
        seen()
        return [*_marks(facts), content], _settled(facts, now)

    unreadable: dict[str, str] = {}
    for name, entry in zip(anew, pool.map(read, anew), strict=True):
        if isinstance(entry, str):
            unreadable[name] = entry
            continue
        found[name] = entry[0][-1]
        kept |= {name: entry[0]} if entry[1] else {}
    if kept != known:
        with suppress(OSError):  # they are read again next time
            folder.mkdir(parents=True, exist_ok=True)
            with _put(memory) as file:
                file.write(json.dumps(kept).encode())
    return found, unreadable


def kept_array(
    folder: Path, key: str, shape: tuple[int, ...], rows: Callable[[], Iterable[np.ndarray]]
) -> tuple[np.ndarray, str]:
    """Return the array uint8 `shape` that is kept as `key`, and the SHA-256 of its bytes.

    Where none is, it is made of `rows` by one process, while others wait. It is mapped, not
    read; where the cache cannot be written it is in memory, and a line says so.
    """
    try:
        found = _read(folder, key, shape)
        if found is None:
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder / f"{key}.lock"):
                found = _read(folder, key, shape, tell=True)
                if found is None:
                    _write(folder, key, shape, rows())
                    found = _read(folder, key, shape)
        if found is not None:
            return found
        reason = "what was written is not there"
    except (OSError, NotImplementedError) as error:  # the latter of a file system without locks
        reason = (error.strerror if isinstance(error, OSError) else "") or first_line(error)
    said = f"waymark: nothing can be kept in {folder} ({reason}); data.cache names another folder"
    print(printable(said), file=sys.stderr)
    return _in_memory(shape, rows())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print("waymark: waiting for another process that decodes the same files", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _put(path: Path) -> Iterator[BinaryIO]:
    """Write a file under a name of this process's own, and put it in place whole."""
    name = f"{TEMPORARY}{path.name}.{os.getpid()}_{secrets.token_hex(4)}"
    temporary = path.with_name(name)
    try:
        with temporary.open("xb") as file:
            yield file
        flush(temporary)
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _in_memory(shape: tuple[int, ...], rows: Iterable[np.ndarray]) -> tuple[np.ndarray, str]:
    try:
        array = np.empty(shape, np.uint8)
    except (MemoryError, ValueError):
        raise BadInput(
            f"{list(shape)} take {math.prod(shape):,} bytes, more than the memory has left."
        ) from None
    for place, row in enumerate(rows):
        array[place] = row
    return array, _sha256(array)


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(array.reshape(-1).data).hexdigest()


def _read(
    folder: Path, key: str, shape: tuple[int, ...], tell: bool = False
) -> tuple[np.ndarray, str] | None:
    """Return what is kept, whole; None if nothing is, or it is damaged. Raises OSError.

    It is compared with its SHA-256 where size or times are not those of when that was last done.
    """
    path, said = folder / f"{key}.npy", folder / f"{key}.json"
    try:
        entry, now = json.loads(said.read_bytes()), time.time()
        array = np.lib.format.open_memmap(path, mode="r")
        facts = path.stat()
        whole = array.shape == shape and array.dtype == np.uint8
        if whole and (entry["marks"] != _marks(facts) or not _settled(facts, now)):
            whole = _sha256(array) == entry["sha256"]
            if whole and entry["marks"] != _marks(facts):
                with suppress(OSError), _put(said) as file:
                    file.write(json.dumps({**entry, "marks": _marks(facts)}).encode())
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, EOFError):
        whole = False
    if whole:
        return np.asarray(array), str(entry["sha256"])
    if tell:
        print(printable(f"waymark: {path} was damaged and is made again"), file=sys.stderr)
    return None


def _write(folder: Path, key: str, shape: tuple[int, ...], rows: Iterable[np.ndarray]) -> None:
    """Write rows, uint8 shape[1:], as they come, then what makes them count; raise OSError."""
    path, said, total = folder / f"{key}.npy", folder / f"{key}.json", hashlib.sha256()
    for left in folder.glob(f"{TEMPORARY}{key}.*"):  # of a process that was killed
        left.unlink(missing_ok=True)
    said.unlink(missing_ok=True)
    try:
        with _put(path) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for row in rows:
                content = np.ascontiguousarray(row).data.cast("B")
                file.write(content)
                total.update(content)
        with _put(said) as file:
            entry = {"sha256": total.hexdigest(), "marks": _marks(path.stat())}
            file.write(json.dumps(entry).encode())
    except OSError:
        path.unlink(missing_ok=True)  # else it would fill the disk for nothing
        raise
