"""Files made to do harm: refused in one sentence, with little memory, nothing executed."""

import os
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from waymark import npz as reader
from waymark.checkpoints.ckpt import Ckpt
from waymark.checkpoints.external import match_parameters, read_parameters
from waymark.checkpoints.npz import Npz
from waymark.checkpoints.retention import Save
from waymark.checkpoints.store import CheckpointStore, refuse_links
from waymark.checkpoints.tf_bundle import check_bundle, part_key, read_bundle
from waymark.config.compose import compose_config, parse_overrides
from waymark.config.record import from_record
from waymark.errors import BadInput
from waymark.evaluation import graph
from waymark.execution.execute import Result, run
from waymark.training.runtime import start_tensorflow

SHAPES = {"w": (4, 3)}
W = np.arange(12, dtype=np.float32).reshape(4, 3)
MUCH = 50_000_000  # bytes; what the hostile files promise is far more


@pytest.fixture(scope="module", autouse=True)
def tensorflow() -> Any:
    return start_tensorflow(2)


def refused(path: Path, *said: str) -> None:
    """Assert that a file is refused in one printable sentence, and with little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(BadInput) as error:
            read_parameters(path, SHAPES, "--checkpoint")
        assert tracemalloc.get_traced_memory()[1] < MUCH
    finally:
        tracemalloc.stop()
    text = str(error.value)
    assert text.isprintable(), text
    assert text.startswith("--checkpoint=")
    assert not [part for part in said if part not in text], text


# Archives


def header(shape: Any, kind: str = "'<f4'") -> bytes:
    """Return the head of an npy file that promises `shape`."""
    text = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def archive(path: Path, members: dict[str, bytes], packing: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as file:
        for name, body in members.items():
            file.writestr(name, body)
    return path


GOOD = header((4, 3)) + W.tobytes()


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (header((2**40,)), "promises 4,398,046,511,104 bytes and holds 48"),
        (header((2**33,), "'<U1000'"), "bytes and holds 48"),
        (header((2**32, 2**32, 2**32)), "bytes and holds 48"),  # zero, in NumPy's arithmetic
        (header((4, 2)), "promises 32 bytes and holds 48"),
        (header((4, 4)), "promises 64 bytes and holds 48"),
        (header((-1,)), "promises -4 bytes and holds 48"),
        (header((-4, -3)), "cannot be read"),
        (header((4, 3), "'|O'"), "holds a pickled object array, which is never loaded"),
        (header((4, 3), "[('a', '|O')]"), "holds a pickled object array"),
        (header("(4, 3", "'<f4'"), "cannot be read"),
        (header("__import__('os').system('touch called')"), "cannot be read"),
        (header("(" * 500), "cannot be read"),
        (header((4, 3), "'nothing'"), "cannot be read"),
        (header((4, 3)).replace(b"\x01\x00", b"\x09\x09", 1), "cannot be read"),
        (b"no array", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_a_header_that_lies_is_refused(
    head: bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = archive(tmp_path / "x.npz", {"w.npy": head + W.tobytes()})
    refused(path, said)
    assert list(tmp_path.iterdir()) == [path]


def test_a_compressed_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "EXPANSION_ALLOWANCE", 2**20)
    count = 2**24
    body = header((count,)) + bytes(4 * count)
    path = archive(tmp_path / "x.npz", {"w.npy": body}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    refused(path, "promises 67,10", "far more than the file holds")
    many = {f"{n}.npy": header((2**18,)) + bytes(2**20) for n in range(20)}
    refused(archive(path, many, zipfile.ZIP_DEFLATED), "far more than the file holds")
    two = {"w.npy": GOOD, "bomb.npz": path.read_bytes()}
    refused(archive(tmp_path / "y.npz", two), "'bomb.npz' is not an array as NumPy writes it")


@pytest.mark.parametrize("promised", [2**36, 2**20, 200, 4])
def test_an_archive_whose_directory_lies_is_refused(promised: int, tmp_path: Path) -> None:
    path = archive(tmp_path / "x.npz", {"w.npy": GOOD}, zipfile.ZIP_DEFLATED)
    body = path.read_bytes()
    at = body.index(b"PK\x01\x02")
    if promised < 2**32:  # the size of what is unpacked, in the directory alone
        path.write_bytes(body[: at + 24] + struct.pack("<I", promised) + body[at + 28 :])
        refused(path, "is damaged" if promised == 4 else "bytes and holds")
    else:
        extra = struct.pack("<HHQ", 1, 8, promised)
        entry = bytearray(body[at : body.index(b"PK\x05\x06")])
        entry[24:28] = b"\xff" * 4
        entry[30:32] = struct.pack("<H", len(extra))
        end = bytearray(body[body.index(b"PK\x05\x06") :])
        end[12:16] = struct.pack("<I", len(entry) + len(extra))
        path.write_bytes(body[:at] + entry + extra + end)
        refused(path, "promises 68,719,476,736 bytes, far more than the file holds")


@pytest.mark.parametrize(("packing", "name"), [(zipfile.ZIP_BZIP2, "bzip2"), (14, "LZMA")])
def test_an_archive_is_packed_as_numpy_packs(packing: int, name: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "x.npz", {"w.npy": GOOD}, packing)
    refused(path, f"'w.npy' is compressed by {name}; only what NumPy writes is read")


@pytest.mark.parametrize("form", ["npz", "ckpt"])
@pytest.mark.parametrize("name", ["../w", "/w", "a/../../w", "..", "/etc/passwd"])
def test_an_entry_that_is_a_path_is_refused(form: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / "in" / ("x.npz" if form == "npz" else "x")
    path.parent.mkdir()
    if form == "npz":
        archive(path, {f"{name}.npy": GOOD})
    else:
        Ckpt.write(None, path, {name: W})  # type: ignore[arg-type]
    refused(path, f"its entry {name!r} is a path out of the file")
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]


def test_a_name_with_dots_is_a_name() -> None:
    assert match_parameters({"a/..b/w...": W}, SHAPES, "here")["w"].tolist() == W.tolist()


def test_what_a_file_says_does_not_reach_the_terminal(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.npz", {"\x1b[2J\u202e.npy": GOOD, "\x9b.npy": GOOD})
    refused(path, "\\x1b[2J\\u202e")
    Ckpt.write(None, tmp_path / "x", {"\x1b]0;me\x07": W, "b": W})  # type: ignore[arg-type]
    refused(tmp_path / "x", "\\x1b]0;me\\x07")


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    head=st.builds(
        header,
        st.lists(st.integers(-2, 2**62), max_size=4).map(tuple) | st.text("()0,-L*'", max_size=8),
        st.sampled_from(["'<f4'", "'|O'", "'<U9'", "'|V0'", "'<M8'", "[]", "3", "'f4,O'", "'f8'"]),
    )
    | st.binary(max_size=40).map(lambda end: b"\x93NUMPY" + end),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=3),
)
def test_any_archive_is_read_or_refused(head: bytes, flips: list[tuple[float, int]]) -> None:
    with TemporaryDirectory() as folder:
        path = archive(Path(folder) / "x.npz", {"w.npy": head + W.tobytes()})
        body = bytearray(path.read_bytes())
        for place, value in flips:
            body[int(place * len(body))] = value
        path.write_bytes(body)
        tracemalloc.start()
        try:
            found = read_parameters(path, SHAPES, "--checkpoint")
        except BadInput as error:
            assert str(error).isprintable()
        else:
            assert found["w"].shape == (4, 3)
        finally:
            assert tracemalloc.get_traced_memory()[1] < MUCH
            tracemalloc.stop()


# Bundles. An index is a LevelDB table: blocks of entries, each with a CRC, and a footer.


def crc(body: bytes) -> bytes:
    """Return the masked CRC-32C of some bytes."""
    value = 0xFFFFFFFF
    for byte in body:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    value ^= 0xFFFFFFFF
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def varint(number: int) -> bytes:
    return (bytes([number & 127 | 128]) + varint(number >> 7)) if number > 127 else bytes([number])


def block(entries: list[tuple[bytes, bytes]], restarts: list[int] | None = None) -> bytes:
    body, starts = b"", []
    for key, value in entries:
        starts.append(len(body))
        body += varint(0) + varint(len(key)) + varint(len(value)) + key + value
    starts = (starts or [0]) if restarts is None else restarts
    return body + struct.pack(f"<{len(starts) + 1}I", *starts, len(starts))


def table(data: bytes, packing: int = 0, times: int = 1, handle: bytes = b"") -> bytes:
    """Return an index of one data block (named some times), every checksum of which is right."""

    def framed(body: bytes, packing: int = 0) -> bytes:
        whole = body + bytes([packing])
        return whole + crc(whole)

    place = varint(0) + varint(len(data))
    blocks = framed(data, packing)
    names = block([(b"~" * (n + 1), place) for n in range(times)])
    handle = handle or varint(len(blocks)) + varint(len(names))
    footer = (varint(0) + varint(0) + handle).ljust(40, b"\0")
    return blocks + framed(names) + footer + bytes.fromhex("57fb808b247547db")


def entry(shape: Any = (4, 3), kind: int = 1, size: int = 48, **more: Any) -> bytes:
    from tensorflow.core.protobuf.tensor_bundle_pb2 import BundleEntryProto

    body = BundleEntryProto(
        dtype=kind, size=size, crc32c=int.from_bytes(crc(W.tobytes()), "little")
    )
    for length in shape:
        body.shape.dim.add(size=length)
    body.shape.unknown_rank = more.pop("unknown_rank", False)
    if more.pop("slices", False):
        body.slices.add().extent.add()
    return body.SerializeToString()


HEAD = (b"", b"\x08\x01\x1a\x02\x08\x01")  # one data file, written by version 1


def bundle(folder: Path, index: bytes) -> Path:
    (folder / "x.index").write_bytes(index)
    (folder / "x.data-00000-of-00001").write_bytes(W.tobytes())
    return folder / "x"


def one(**changed: Any) -> bytes:
    return table(block([HEAD, (b"w", entry(**changed))]))


def parted(*spans: tuple[int, int], rows: int = 4, **changed: Any) -> bytes:
    """Return an index of one variable [rows, 3], in parts of so many rows from some row on."""
    from tensorflow.core.protobuf.tensor_bundle_pb2 import BundleEntryProto

    whole, parts = BundleEntryProto.FromString(entry((rows, 3), size=0)), []
    for first, length in spans:
        piece = whole.slices.add()
        piece.extent.add(start=first, length=length)
        piece.extent.add()
        own = {"shape": (length, 3), "size": 12 * length, **changed}
        parts.append((part_key(b"w", [(first, length), (0, -1)]), entry(**own)))
    return table(block([HEAD, *sorted(parts), (b"w", whole.SerializeToString())]))


MORE = "promises more than the data file holds"
KIND = "is of a kind that is not read"
FORGED: dict[str, tuple[Callable[[], bytes], str]] = {
    "gigabytes": (lambda: one(shape=(2**36,)), MORE),
    "gigabytes, twice": (lambda: one(shape=(2**36,), size=2**38), MORE),
    "an overflow": (lambda: one(shape=(2**62, 2**62)), MORE),
    "an overflow, then zero": (lambda: one(shape=(2**62, 2**62, 0), size=0), MORE),
    "a negative length": (lambda: one(shape=(-1,)), MORE),
    "two negative lengths": (lambda: one(shape=(-4, -3)), MORE),
    "a negative size": (lambda: one(size=-5), MORE),
    "texts": (lambda: one(shape=(2**36,), kind=7), MORE),
    "the same data often": (
        lambda: table(block([HEAD, *((b"%02d" % n, entry()) for n in range(50))])), MORE,
    ),
    "many lengths": (lambda: one(shape=(1,) * 300), KIND),
    "no rank": (lambda: one(shape=(), unknown_rank=True), KIND),
    "a resource": (lambda: one(kind=20), KIND),
    "a reference": (lambda: one(kind=101), KIND),
    "a slice": (lambda: one(slices=True), KIND),
    "a part of nothing": (lambda: table(block([HEAD, (b"\0w\0\1", entry())])), "a part of nothing"),
    "parts that leave a hole": (lambda: parted((0, 1), (2, 2)), KIND),
    "a part outside": (lambda: parted((0, 2), (3, 2)), KIND),
    "a part that begins before": (lambda: parted((-1, 2), (1, 2)), KIND),
    "a part without length": (lambda: parted((0, 0), (0, 4)), KIND),
    "a part of another shape": (lambda: parted((0, 2), (2, 2), shape=(3, 2)), KIND),
    "a part of another type": (lambda: parted((0, 2), (2, 2), kind=3), KIND),
    "a part in parts": (lambda: parted((0, 2), (2, 2), slices=True), KIND),
    "parts of gigabytes": (
        lambda: parted((0, 2**34), (2**34, 2**34), rows=2**35, size=24), MORE,
    ),
    "no type": (lambda: one(kind=0), "cannot be read"),
    "a type that is none": (lambda: one(kind=999), "cannot be read"),
    "no entry": (lambda: table(block([HEAD, (b"w", b"\xff\xff")])), "cannot be read"),
    "a name that is none": (lambda: table(block([HEAD, (b"\xff", entry())])), "cannot be read"),
    "two headers": (lambda: table(block([HEAD, (b"", b"\xff")])), "not in order"),
    "no order": (lambda: table(block([HEAD, (b"x", entry()), (b"w", entry())])), "not in order"),
    "a long name": (lambda: table(block([HEAD, (b"w" * 5000, entry())])), "index is damaged"),
    "a value cut off": (
        lambda: table(block([HEAD])[:-8] + varint(0) + varint(1) + varint(9) + b"w" + bytes(8)),
        "index is damaged",
    ),
    "a start inside an entry": (
        lambda: table(block([HEAD, (b"w", entry())], [0, 5])), "index is damaged",
    ),
    "more starts than bytes": (
        lambda: table(struct.pack("<I", 2**32 - 1)), "damaged, or compressed",
    ),
    "compressed gigabytes": (lambda: table(varint(2**32 - 1) + bytes(9), 1), "compressed"),
    "a block of gigabytes": (
        lambda: table(block([HEAD]), handle=varint(0) + varint(2**40)), "damaged, or compressed",
    ),
    "a block often": (lambda: table(block([], [0] * 99), times=9), "more than once"),
    "an endless number": (lambda: table(b"\xff" * 1000 + bytes(8)), "index is damaged"),
    "a number cut off": (lambda: table(block([HEAD]), handle=b"\xff" * 40), "index is damaged"),
    "no table": (lambda: bytes(60), "not one that TensorFlow wrote"),
    "nothing": (lambda: b"", "not one that TensorFlow wrote"),
}  # fmt: skip


def test_a_forged_bundle_is_like_a_real_one(tmp_path: Path) -> None:
    check_bundle(bundle(tmp_path, parted((0, 3), (3, 1))))
    path = bundle(tmp_path, one())
    assert read_parameters(path, SHAPES, "here")["w"].tolist() == W.tolist()
    real = {"w": W, "texts": np.array([b"a", b""]), "none": np.zeros((0, 3)), "b": np.True_}
    Ckpt.write(None, path, {**real, **{f"v{n}": W for n in range(999)}})  # type: ignore[arg-type]
    check_bundle(path)


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_bundle_is_refused_before_tensorflow_sees_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensorflow: Any
) -> None:
    """TensorFlow aborts on some of these: a whole process, with all its tests."""
    make, said = FORGED[name]
    path = bundle(tmp_path, make())
    asked: list[str] = []
    monkeypatch.setattr(tensorflow.train, "load_checkpoint", asked.append)
    refused(path, said)
    assert asked == []


def test_parts_that_overlap_are_refused(tmp_path: Path) -> None:
    refused(bundle(tmp_path, parted((0, 2), (1, 2))), "cannot be read")


def test_a_graph_restores_no_forged_bundle(tmp_path: Path, tensorflow: Any) -> None:
    from waymark.data.sources import Dataset

    v1 = tensorflow.compat.v1
    with tensorflow.Graph().as_default():
        parts = [v1.placeholder("float32", [None, 4]), v1.placeholder("float32", [None, 3])]
        weights = v1.get_variable("w", [4, 3])
        for each in (*parts, tensorflow.reduce_mean(parts[0] @ weights * 0 + parts[1])):
            v1.add_to_collection(graph.COLLECTION, each)
        v1.train.Saver([weights]).export_meta_graph(str(tmp_path / "x.meta"))
    images = np.zeros((3, 2, 2, 1), np.uint8), np.arange(3, dtype=np.int32)
    data = Dataset("small", "here", *images, *images)
    assert graph.score(tmp_path / "x.meta", bundle(tmp_path, one()), data, 2) == 1
    for name in ("a negative length", "two headers", "gigabytes"):
        path = bundle(tmp_path, FORGED[name][0]())
        with pytest.raises(BadInput, match=rf"cannot score this data \(.*{FORGED[name][1]}"):
            graph.score(tmp_path / "x.meta", path, data, 2)


numbers = st.sampled_from([0, 1, 3, 4, 48, 2**31, 2**62, 2**63 - 1, -1, -(2**63)])
changes = st.fixed_dictionaries(
    {},
    optional={
        "shape": st.lists(numbers, max_size=3),
        "kind": st.integers(0, 40) | st.sampled_from([101, 107, -1]),
        "size": numbers,
        "slices": st.booleans(),
        "unknown_rank": st.booleans(),
    },
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    changed=changes,
    keys=st.lists(st.sampled_from([b"", b"a", b"w", b"w\xff", b"\0"]), min_size=1, max_size=3),
    pokes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=2),
    framed=st.booleans(),
)
@example({}, [b"w"], [], True)
def test_any_index_is_read_or_refused(
    changed: dict[str, Any], keys: list[bytes], pokes: list[tuple[float, int]], framed: bool
) -> None:
    """Change a real index, before or after its checksums are made; the process must live."""
    body = bytearray(block([HEAD, *((key, entry(**changed)) for key in keys)]))
    body = body if framed else bytearray(table(bytes(body)))
    for place, value in pokes:
        body[int(place * len(body))] = value
    with TemporaryDirectory() as folder:
        path = bundle(Path(folder), table(bytes(body)) if framed else bytes(body))
        try:
            arrays = read_bundle(path)
        except MemoryError:  # which is how TensorFlow says that it was asked for too much
            raise
        except Exception as error:
            arrays = {str(error): W}
        assert sum(array.nbytes for array in arrays.values()) <= W.nbytes


FORGERS: dict[Any, Callable[[Path], Path]] = {
    Npz: lambda path: archive(path.with_name(f"{path.name}.npz"), {"w.npy": header((2**40,))}),
    Ckpt: lambda path: bundle(path.parent, FORGED["no entry"][0]()),
}


@pytest.mark.parametrize("kind", FORGERS)
def test_a_runs_forged_checkpoint_is_damage(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its manifest agrees with its files, so that only reading them finds out."""

    def write(save: Any, path: Path, state: Any) -> list[Path]:
        made = {FORGERS[kind](path), *path.parent.glob("x.*")} - {path.parent / "x"}
        return [made.rename(path.with_name(path.name + made.suffix)) for made in sorted(made)]

    usual = {"every": 1, "max_to_keep": 2, "keep_every_n_hours": None, "keep_best": None}
    own = {"meta_graph": False} if kind is Ckpt else {}
    save = kind(asynchronous=False, log_model=False, **usual, **own)
    store = CheckpointStore(tmp_path, save)
    store.commit(Save(1, 1.0), {"w": W})
    monkeypatch.setattr(kind, "write", write)
    store.commit(Save(2, 2.0), {"w": W})
    found, damage = store.latest_valid()
    assert found is not None
    assert found[0].step == 1
    assert len(damage) == 1
    assert damage[0].startswith(f"checkpoint 2 is damaged: {save.stem}-2 cannot be read (")

    def read(save: Any, path: Path) -> Any:
        raise MemoryError

    monkeypatch.setattr(kind, "read", read)
    with pytest.raises(MemoryError):  # of this machine: nothing is wrong with the files
        store.latest_valid()


# The state file of a folder that somebody gives


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0",
        "{" * 5000,
        'model_checkpoint_path: "["',
        'model_checkpoint_path: "gs://b/y"',
        'model_checkpoint_path: "\x1b[2J"',
        'model_checkpoint_path: "http://127.0.0.1:1/y"',
        'model_checkpoint_path: "*"',
        'model_checkpoint_path: "\\000"',
    ],
)
def test_a_state_file_leads_nowhere_else(text: str, tmp_path: Path) -> None:
    bundle(tmp_path, one())
    (tmp_path / "checkpoint").write_text(text)
    refused(tmp_path)


# Links


@pytest.fixture(scope="module")
def recorded(
    tmp_path_factory: pytest.TempPathFactory, empty_store: Path, small: Path
) -> Iterator[tuple[Path, Result]]:
    """Yield a folder with a finished run."""
    import shutil

    folder = tmp_path_factory.mktemp("recorded")
    shutil.copytree(empty_store, folder / "mlruns")
    settings = ["steps=2", "save.every=1", "batch_size=5", "runtime.intra_op_threads=2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        data = ["data=arrays", f"data.path={small}", "progress=false"]
        yield folder, run(compose_config([*settings, *data]))


PLACES = ["checkpoints", "checkpoints/model_ckpt-2.index", "checkpoints/model_ckpt-2.json"]
PLACES += ["checkpoints/model_ckpt-1.data-00000-of-00001", "checkpoints/checkpoint"]
PLACES += ["checkpoints/.tmp-model_ckpt-3.json", "checkpoints/model_ckpt.meta", "config.yaml"]
PLACES += ["environment.json", "evaluation", "evaluation/metrics.json", "evaluation/deep/er", ""]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", ["evaluate", "resume"])
def test_a_link_in_a_runs_folder_is_refused(
    command: str,
    place: str,
    recorded: tuple[Path, Result],
    main: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(recorded[0])
    folder, run_id = recorded[1].folder, recorded[1].run_id
    path, aside = folder / place, tmp_path / "aside"
    path.parent.mkdir(exist_ok=True)
    there = path.exists()
    path.rename(aside) if there else aside.write_text("precious")
    path.symlink_to(aside)

    def contents() -> dict[Path, bytes]:
        found = [*aside.rglob("*"), *folder.rglob("*"), aside]
        return {file: file.read_bytes() for file in found if file.is_file()}

    before = contents()
    try:
        done = main(command, run_id)
        assert contents() == before
    finally:
        path.unlink()
        if there:
            aside.rename(path)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done
    assert f"{path}: is a symbolic link" in done.stderr
    assert run_id in done.stderr


def test_no_other_special_file_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    refuse_links(tmp_path)
    refuse_links(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "a" / "pipe")
    with pytest.raises(BadInput, match="a/pipe: is no regular file"):
        refuse_links(tmp_path)


def test_a_link_above_a_run_is_fine(
    recorded: tuple[Path, Result], main: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mlruns").symlink_to(recorded[0] / "mlruns")
    monkeypatch.chdir(tmp_path)
    done = main("evaluate", "latest", "--json")
    assert done.returncode == 0, done
    assert f"{recorded[1].restored_accuracy}" in done.stdout


# Whatever is typed


texts = st.text(st.characters(exclude_categories=[]), max_size=12)
likely = st.text("a=+~${}[](),:'\"\\ \t\n.@/-0e", max_size=12)
keys = ["steps=", "run_name=", "+tags.a=", "save.every=", "data.path=", "~", "model="]
long = ["[" * 999, "a=" + "[" * 999, "run_name=\udcff", "+tags.a=\x1b"]
typed = texts | likely | st.sampled_from(long)
typed |= st.builds(str.__add__, st.sampled_from(keys), texts | likely)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(typed, max_size=3))
def test_any_override_is_parsed_or_refused(given: list[str]) -> None:
    try:
        assert isinstance(parse_overrides(given), dict)
    except BadInput as error:
        assert str(error).isprintable()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(typed, min_size=1, max_size=2))
@example(["steps=" + "9" * 5000])
@example(["steps=3", "run_name=a b"])
@example(["+tags.a=1.50", "save=npz"])
def test_any_override_composes_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, given: list[str]
) -> None:
    """What composes is recorded so that it can be read again."""
    try:
        resolved = compose_config(given)
    except BadInput as error:
        assert str(error).isprintable()
    else:
        path = tmp_path_factory.getbasetemp() / "config.yaml"
        path.write_text(resolved.record())
        assert from_record(path, {}, [], ()).config == resolved.config
