"""TensorFlow V2 bundles from anywhere: read, after what their index promises is checked."""

import glob
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from waymark.checkpoints import State

MAGIC = bytes.fromhex("57fb808b247547db")  # at the end of every table
PATTERN = set("*?[\\")  # what makes TensorFlow take a path for a pattern


def read_bundle(prefix: Path) -> State:
    """Return a V2 checkpoint's arrays, but texts; raise what TensorFlow or check_bundle raises."""
    import tensorflow as tf

    check_bundle(prefix)
    with readable(prefix) as path:
        reader = tf.train.load_checkpoint(path)
        types = reader.get_variable_to_dtype_map()
        return {
            name: np.asarray(reader.get_tensor(name))
            for name in sorted(types)
            if types[name] != tf.string  # where object-based checkpoints describe themselves
        }


@contextmanager
def readable(prefix: Path) -> Iterator[str]:
    """Yield a path by which TensorFlow reads a bundle: its own, or one of links to its files.

    It asks for the files that match the path as a pattern, and opens what has its very name: no
    way of writing `[` satisfies both.
    """
    if _is_plain(str(prefix)):
        yield str(prefix)
        return
    places = (tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm")
    place = next((p for p in places if _is_plain(p) and os.access(p, os.W_OK)), None)
    if place is None:
        raise ValueError("its path is a pattern to TensorFlow, and so is TMPDIR")
    with tempfile.TemporaryDirectory(dir=place) as folder:
        for path in (prefix.with_name(f"{prefix.name}.index"), *_data(prefix)):
            end = path.name.removeprefix(prefix.name)
            (Path(folder) / f"bundle{end}").symlink_to(path.absolute())
        yield f"{folder}/bundle"


def _is_plain(path: str) -> bool:
    """Tell whether TensorFlow takes a path for what it is; it does not if it is not UTF-8."""
    return not PATTERN & set(path) and path.encode(errors="ignore").decode() == path


def _data(prefix: Path) -> list[Path]:
    return [p for p in prefix.parent.iterdir() if p.name.startswith(f"{prefix.name}.data-")]


def check_bundle(prefix: Path) -> None:
    """Raise ValueError or IndexError for a bundle that promises more than its data files hold.

    TensorFlow believes an index whose checksums are right, which anybody can make: for what no
    writer writes it aborts the process, and it takes memory before it looks at the data.
    """
    from tensorflow.core.protobuf.tensor_bundle_pb2 import BundleEntryProto

    room = sum(path.stat().st_size for path in _data(prefix))
    last, whole, parts = None, {}, {}
    for key, value in _entries(prefix.with_name(f"{prefix.name}.index")):
        if last is not None and key <= last:  # a search could find what this loop does not see
            raise ValueError("its index is not in order")
        last = key
        if key == b"":  # the header, which TensorFlow checks
            continue
        entry = BundleEntryProto.FromString(value)
        is_part = key.startswith(b"\0")  # of a variable, which is named in another entry
        name = repr(key if is_part else key.decode())
        if is_part:
            parts[key] = entry
        elif entry.slices:
            whole[key] = entry
        size = _check_entry(name, entry)
        room -= entry.size
        if (size > entry.size and not entry.slices) or room < 0:
            raise ValueError(f"its entry {name} promises more than the data file holds")
    for key, entry in whole.items():
        if not _takes_its_parts(key, entry, parts):
            raise ValueError(f"its entry {key.decode()!r} is of a kind that is not read")
    if parts:
        raise ValueError(f"its entry {min(parts)!r} is a part of nothing")


def _check_entry(name: str, entry: Any) -> int:
    """Return how many bytes an entry promises at least; raise ValueError for a strange one."""
    import tensorflow as tf

    kind, lengths = tf.dtypes.as_dtype(entry.dtype), _lengths(entry)
    known = kind.is_numpy_compatible and entry.dtype < 100  # from there on, references
    if not known or entry.shape.unknown_rank or len(lengths) > 64:
        raise ValueError(f"its entry {name} is of a kind that is not read")
    count = math.prod(n or 1 for n in lengths)  # a zero may come too late for TensorFlow
    if min(lengths, default=0) < 0 or count >= 2**60:
        raise ValueError(f"its entry {name} promises more than the data file holds")
    least = 1 if kind == tf.string else kind.size  # a text's length takes a byte or more
    return math.prod(lengths) * least


def _takes_its_parts(key: bytes, entry: Any, parts: dict[bytes, Any]) -> bool:
    """Take a partitioned variable's parts out of `parts`; tell whether together they are it."""
    lengths = _lengths(entry)
    left = math.prod(lengths)
    for piece in entry.slices:
        spans = [(e.start, e.length if e.HasField("length") else -1) for e in piece.extent]
        own = [n if size == -1 else size for (_, size), n in zip(spans, lengths, strict=False)]
        part = parts.pop(part_key(key, spans), None)
        inside = len(spans) == len(lengths) and all(
            start >= 0 and 0 < size <= n - start
            for (start, _), size, n in zip(spans, own, lengths, strict=True)
        )
        fits = part is not None and not part.slices and part.dtype == entry.dtype
        if not (inside and fits and _lengths(part) == own):
            return False
        left -= math.prod(own)
    return left == 0 and bool(entry.size == 0)


def _lengths(entry: Any) -> list[int]:
    return [dim.size for dim in entry.shape.dim]


def part_key(name: bytes, spans: list[tuple[int, int]]) -> bytes:
    """Return the key of a part of a variable, given where it begins and how long it is."""

    def signed(number: int) -> bytes:  # as many ones as bytes, the rest; negatives inverted
        size = (number if number >= 0 else ~number).bit_length() // 7 + 1
        header = (2**size - 1) << 7 * size
        bits = header ^ number if number >= 0 else ~(header ^ ~number)
        return (bits % 2 ** (8 * size)).to_bytes(size, "big")

    rank = b"\1" + bytes([len(spans)]) if spans else b"\0"
    numbers = b"".join(signed(n) for span in spans for n in span)
    return b"\0" + name.replace(b"\0", b"\0\xff") + b"\0\1" + rank + numbers


def first_format(prefix: Path) -> str | None:
    """Return what TensorFlow opens a checkpoint of its first format (V1) by, None if it is none."""
    shard = "-?????-of-?????"
    for path in (prefix, *prefix.parent.glob(glob.escape(prefix.name) + shard)):
        with suppress(OSError), path.open("rb") as file:
            file.seek(-len(MAGIC), os.SEEK_END)
            if file.read() == MAGIC:
                return f"{prefix}{shard if path != prefix else ''}"
    return None


def _entries(index: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of an index: a table as LevelDB has it, without compression."""
    table = index.read_bytes()
    footer = table[-48:]
    if not footer.endswith(MAGIC):
        raise ValueError("its index is not one that TensorFlow wrote")
    _, at = _varint(footer, 0)
    _, at = _varint(footer, at)
    left = len(table)
    for _, handle in _block(table, footer[at:]):
        left -= _varint(handle, _varint(handle, 0)[1])[0]
        if left < 0:
            raise ValueError("its index names a block more than once")
        yield from _block(table, handle)


def _block(table: bytes, handle: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of one block; raise ValueError where others could be seen."""
    offset, at = _varint(handle, 0)
    size, _ = _varint(handle, at)
    block = table[offset : offset + size]
    count = int.from_bytes(block[-4:], "little")
    end = size - 4 - 4 * count
    if len(block) < size or end < 0 or table[offset + size] != 0:
        raise ValueError("its index is damaged, or compressed")
    key, at, starts = b"", 0, {0}
    while at < end:
        start = at
        shared, at = _varint(block, at)
        own, at = _varint(block, at)
        length, at = _varint(block, at)
        if shared == 0:
            starts.add(start)
        key, at = key[:shared] + block[at : at + own], at + own
        if not len(key) == shared + own < 2**12 or at + length > end:
            raise ValueError("its index is damaged")
        yield key, block[at : at + length]
        at += length
    # A search may begin at any of these, so each must be an entry that was seen.
    if not set(np.frombuffer(block, "<u4", count, end).tolist()) <= starts:
        raise ValueError("its index is damaged")


def _varint(body: bytes, at: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, lowest first, and where it ends; IndexError if cut."""
    number = 0
    for place in range(10):
        number |= (body[at + place] & 127) << 7 * place
        if body[at + place] < 128:
            return number, at + place + 1
    raise ValueError("its index is damaged")
