"""Folders of pictures: which pixels are read, what is refused, what the cache does."""

import io
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from filelock import FileLock
from PIL import Image
from waymark.config.compose import compose_config
from waymark.data import cache, images, splits
from waymark.data.images import Images
from waymark.data.sources import Dataset
from waymark.errors import BadInput
from waymark.sweeps.trial import identity
from waymark.tasks.classification import Classification

from tests.support.pictures import CLASSES, pixels, write_folder


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of this test's cache; no file is too young to be remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user's"))
    monkeypatch.setattr(cache, "SETTLED", -60)
    return tmp_path / "user's" / "waymark"


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "pets", 3)


def load(folder: Path, size: Any = (9, 12), **settings: Any) -> Dataset:
    size = list(size) if isinstance(size, tuple) else size
    return Images(path=str(folder), size=size, sampling="epoch", **settings).load()


def same(one: Dataset, other: Dataset) -> bool:
    arrays = one.arrays, other.arrays
    return (
        (one.digest, one.class_names) == (other.digest, other.class_names)
        and arrays[0].keys() == arrays[1].keys()
        and all(np.array_equal(each, arrays[1][name]) for name, each in arrays[0].items())
    )


# Which pixels


def triangle(size: int, into: int) -> np.ndarray:
    """Return the weights [into, size] of bilinear interpolation, widened where it shrinks."""
    scale = size / into
    support = max(scale, 1.0)
    centres = (np.arange(into) + 0.5) * scale
    away = np.abs(np.arange(size) + 0.5 - centres[:, None]) / support
    weights = np.maximum(1 - away, 0)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(("height", "width"), [(9, 12), (4, 5), (20, 31), (3, 40), (1, 1)])
def test_resizing_is_bilinear_with_antialiasing(pets: Path, height: int, width: int) -> None:
    read = load(pets, (height, width)).x_train
    whole = np.concatenate([pixels(3, label) for label in range(3)]).astype(float)
    wanted = np.einsum("ah,bw,nhwc->nabc", triangle(9, height), triangle(12, width), whole)
    assert read.shape == (9, height, width, 3) and read.dtype == np.uint8
    assert np.abs(read - wanted).max() <= 1.01  # Pillow rounds after each of the two directions


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "webp"])
def test_a_camera_that_was_turned(tmp_path: Path, orientation: int, kind: str) -> None:
    upright = pixels(1, 0)[0]
    # What the sensor had, by EXIF's table of where its row 0 and column 0 are.
    turned = {
        **{1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1]},
        **{5: upright.swapaxes(0, 1), 6: np.rot90(upright), 7: np.rot90(upright[:, ::-1], -1)},
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name, picture in (("a", turned), ("b", upright)):
        (tmp_path / "data" / name).mkdir(parents=True)
        more: dict[str, Any] = {"exif": exif} if name == "a" else {}
        more |= {"quality": 100, "subsampling": 0} if kind == "jpg" else {}
        more |= {"lossless": True} if kind == "webp" else {}
        file = tmp_path / "data" / name / f"1.{kind}"
        Image.fromarray(np.ascontiguousarray(picture)).save(file, **more)
    one, other = load(tmp_path / "data").x_train.astype(int)
    assert np.abs(one - other).max() <= (6 if kind == "jpg" else 0)


GREY = np.arange(9 * 12, dtype=np.uint8).reshape(9, 12) * 2
MODES: dict[str, tuple[Any, str]] = {
    "1": (Image.fromarray(GREY).convert("1"), "png"),
    "L": (Image.fromarray(GREY), "png"),
    "LA": (Image.fromarray(np.dstack([GREY, GREY]), "LA"), "png"),
    "P": (Image.fromarray(pixels(1, 0)[0]).quantize(8), "gif"),
    "RGB": (Image.fromarray(pixels(1, 0)[0]), "bmp"),
    "RGBA": (Image.fromarray(np.dstack([pixels(1, 0)[0], GREY]), "RGBA"), "png"),
    "CMYK": (Image.fromarray(pixels(1, 0)[0]).convert("CMYK"), "tif"),
    "PPM": (Image.fromarray(pixels(1, 0)[0]), "ppm"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_every_kind_are_converted(tmp_path: Path, mode: str, channels: Any) -> None:
    picture, ending = MODES[mode]
    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
        picture.save(tmp_path / "data" / name / f"1.{ending.upper()}")
    read = load(tmp_path / "data", channels=channels).x_train
    wanted = np.asarray(picture.convert("RGB" if channels == 3 else "L")).reshape(9, 12, channels)
    assert read.shape == (2, 9, 12, channels)
    assert np.abs(read[0].astype(int) - wanted).max() <= 1  # L by way of RGB rounds


def test_transparent_pixels_of_a_palette_keep_their_colour(tmp_path: Path) -> None:
    palette = Image.fromarray(pixels(1, 0)[0]).quantize(8)
    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
        palette.save(tmp_path / "data" / name / "1.png", transparency=b"\0\x80\xff")
    assert np.array_equal(load(tmp_path / "data").x_train[0], palette.convert("RGB"))


# Which pictures


def test_classes_are_numbered_by_their_names(pets: Path) -> None:
    data = load(pets)
    assert data.class_names == CLASSES
    assert data.y_train.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    whole = [picture for label in range(3) for picture in pixels(3, label)]
    assert np.array_equal(data.x_train, whole)
    assert not len(data.x_test) and not len(data.x_val)
    assert Classification().prepare(data).class_names == CLASSES


def test_folders_of_sets(tmp_path: Path) -> None:
    for seed, part in enumerate(("val", "train", "test")):
        write_folder(tmp_path / "data" / part, seed + 1, seed)
    shutil.rmtree(tmp_path / "data" / "test" / "cat")  # a class that it need not have
    data = load(tmp_path / "data")
    assert [len(data.x_train), len(data.x_val), len(data.x_test)] == [6, 3, 6]
    assert data.y_test.tolist() == [1, 1, 1, 2, 2, 2]
    assert np.array_equal(data.x_val[1], pixels(1, 1, 0)[0])
    assert np.array_equal(data.x_test[-1], pixels(3, 2, 2)[-1])


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_the_folder_of_the_validation_set_has_three_names(tmp_path: Path, name: str) -> None:
    data = tmp_path / "data"
    for seed, part in enumerate(("train", "val", "test")):
        write_folder(data / part, seed + 1, seed)
    before = load(data)
    (data / "val").rename(data / name)
    assert same(before, load(data)) and len(before.x_val)
    loader = Images(path=str(data), size=4, sampling="epoch", test=None)
    assert splits.evaluated_part(loader, Classification()) == "val"
    write_folder(data / "val", 1)
    with pytest.raises(BadInput, match=rf"data holds val and {name}; one folder can be the vali"):
        load(data)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("train", "test"):
        shutil.copytree(write_folder(tmp_path / "pets", 2) / "cat", tmp_path / "data" / name)
    assert load(tmp_path / "data").class_names == ("test", "train")


def test_the_test_set_may_lie_elsewhere(pets: Path, tmp_path: Path) -> None:
    other = write_folder(tmp_path / "other", 1, seed=5)
    data = load(pets, test=str(other))
    assert data.y_test.tolist() == [0, 1, 2] and np.array_equal(data.x_test[0], pixels(1, 0, 5)[0])
    assert same(data, load(pets, test=str(other)))


@pytest.mark.parametrize("parts", [[], ["train"], ["train", "val"], ["train", "val", "test"]])
@pytest.mark.parametrize("held_out", [0, 3])
def test_a_validation_set_is_known_before_it_is_loaded(
    tmp_path: Path, parts: list[str], held_out: int
) -> None:
    for part in parts or ["."]:
        write_folder(tmp_path / "data" / part, 8)
    loader = Images(
        path=str(tmp_path / "data"), size=4, sampling="epoch", validation=held_out, test=None
    )
    if "val" in parts and held_out:
        with pytest.raises(BadInput, match="brings its own validation set"):
            splits.load(loader, Classification())
        return
    known = splits.evaluated_part(loader, Classification())
    assert splits.load(loader, Classification()).evaluated == known


def test_what_systems_leave_in_folders_is_no_picture(pets: Path) -> None:
    before = load(pets)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._1.png"):
        (pets / "cat" / name).write_bytes(b"?")
        (pets / name).write_bytes(b"?")
    (pets / "__MACOSX").mkdir()
    (pets / ".ipynb_checkpoints").mkdir()
    (pets / "labels.txt").write_text("what they are")  # beside the classes
    (pets / "dog" / "link.png").symlink_to(pets / "dog" / "000.png")
    after = load(pets)
    assert len(after.x_train) == len(before.x_train) + 1


# What is refused


def png_of(width: int, height: int) -> bytes:
    """Return a PNG that promises so many pixels, and holds none."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def sixteen_bits(ending: str = "png") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((9, 12), 50_000, np.uint16)).save(file, ending)
    return file.getvalue()


def whole(ending: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(1, 0)[0]).resize((400, 300)).save(file, ending)
    return file.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
FILES: dict[str, tuple[str, bytes, str]] = {
    "text": ("notes.txt", b"hello", r"cat/notes.txt \(it is not a picture file\)"),
    "array": ("a.npy", b"\x93NUMPY", r"cat/a.npy \(it is not a picture file\)"),
    "empty": ("a.png", b"", r"cat/a.png \(it is not a picture of a known format\)"),
    "text as a picture": (
        "a.jpg",
        b"hello",
        r"cat/a.jpg \(it is not a picture of a known format\)",
    ),
    "PostScript": ("a.png", EPS, r"cat/a.png \(it is not a picture of a known format\)"),
    "half a PNG": ("a.png", whole("png")[:-900], r"cat/a.png \(.*truncated"),
    "half a JPEG": ("a.jpg", whole("jpeg")[:-900], r"cat/a.jpg \(.*truncated"),
    "16 bits": ("a.png", sixteen_bits(), r"cat/a.png \(its pixels are I;16, not of 8 bits a chan"),
    "bomb": ("a.png", png_of(12_000, 12_000), r"cat/a.png \(it promises 12000 x 12000 pixels"),
    "large bomb": ("a.png", png_of(10**6, 10**6), r"cat/a.png \(it promises more than 134,217,728"),
}


@pytest.mark.parametrize("what", FILES)
def test_a_file_that_is_no_picture_is_named(pets: Path, what: str, kept: Path) -> None:
    name, content, said = FILES[what]
    (pets / "cat" / name).write_bytes(content)
    with pytest.raises(BadInput, match=rf"^1 file is not a picture that can be read: \S*{said}"):
        load(pets)
    assert not list(kept.glob("*.npy*"))
    (pets / "cat" / name).unlink()
    load(pets)


def test_all_of_them_are_named_at_once(pets: Path, kept: Path) -> None:
    load(pets)  # is in the cache
    (pets / "owl" / "folder").mkdir()
    (pets / "owl" / "none.png").symlink_to("nowhere")
    (pets / "dog" / "000.png").write_bytes(b"damaged")
    (pets / "lost.png").write_bytes(b"beside")
    for number in range(8):
        (pets / "cat" / f"{number}.txt").touch()
    with pytest.raises(BadInput) as refused:
        load(pets)
    said = str(refused.value)
    assert said.startswith("12 files are not pictures that can be read: ")
    assert said.endswith("and 2 more.") and said.count(" (it ") == 10
    for name in ("dog/000.png", "cat/7.txt", "lost.png"):
        assert f"{pets}/{name} (" in said
    os.mkfifo(pets / "owl" / "pipe.png")  # which nobody writes to
    with pytest.raises(BadInput, match="13 files"):
        load(pets)


def two_sets(pets: Path) -> None:
    inner = pets / "train"
    inner.mkdir()
    for name in CLASSES:
        (pets / name).rename(inner / name)
    shutil.copytree(inner, pets / "test")


def new_class(pets: Path) -> None:
    two_sets(pets)
    (pets / "test" / "cat").rename(pets / "test" / "cow")


def third_set(pets: Path) -> None:
    two_sets(pets)
    (pets / "test").rename(pets / "dev")


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (shutil.rmtree, r"pets is not a readable folder: No such file or directory\.$"),
    "a file": (
        lambda pets: (shutil.rmtree(pets), pets.touch()),
        r"pets is not a readable folder: Not a directory\.$",
    ),
    "nothing": (emptied, r"pets holds no folder; allowed are 2 up, one for each class\.$"),
    "one class": (
        lambda pets: [shutil.rmtree(pets / name) for name in ("cat", "owl")],
        r"pets holds the one folder 'dog'; allowed are 2 up",
    ),
    "an empty class": (
        lambda pets: (pets / "ant").mkdir(),
        r"^\S*pets/ant: a class needs a picture\.$",
    ),
    "two empty classes": (
        lambda pets: [(pets / name).mkdir() for name in ("ant", "bee")],
        r"^\S*pets/ant, \S*pets/bee: a class needs a picture\.$",
    ),
    "a class of the test set alone": (
        new_class,
        r"pets/test/cow: 'cow' is not a class of the training set, which has cat, dog, owl\.$",
    ),
    "an empty test set": (
        lambda pets: (two_sets(pets), emptied(pets / "test")),
        r"pets/test: a class needs a picture\.$",
    ),
    "a set of another name": (third_set, r"6 files .*train/cat \(it is a folder\)"),
    "a name that is not UTF-8": (
        lambda pets: os.rename(bytes(pets / "cat"), bytes(pets) + b"/c\xe9t"),
        r"pets: the name of the class 'c\\+udce9t' is not UTF-8\.$",
    ),
}


@pytest.mark.parametrize("what", FOLDERS)
def test_a_folder_that_holds_no_classes_is_refused(pets: Path, what: str, kept: Path) -> None:
    change, said = FOLDERS[what]
    change(pets)
    with pytest.raises(BadInput, match=said) as refused:
        load(pets)
    assert "\n" not in str(refused.value)
    assert not list(kept.glob("*.npy*"))


def test_two_test_sets_are_refused(pets: Path, tmp_path: Path) -> None:
    two_sets(pets)
    other = write_folder(tmp_path / "other", 1)
    with pytest.raises(BadInput, match=r"^data.test='.*other': \S*pets brings its own test set"):
        load(pets, test=str(other))
    with pytest.raises(BadInput, match="brings its own test set"):
        loader = Images(path=str(pets), size=4, sampling="epoch", test=0.2)
        splits.load(loader, Classification())


@pytest.mark.parametrize(
    "words",
    [
        "data.size=0", "data.size=[8]", "data.size=[8,8,8]", "data.size=8.5", "data.size=20000",
        "data.size=big", "data.channels=2", "data.cache=7", "data.size=null",
    ],
)  # fmt: skip
def test_settings_are_bounded(words: str) -> None:
    with pytest.raises(BadInput, match=rf"^{words.split('=')[0]}=.*the command line"):
        compose_config(["data=images", "data.path=pets", "data.size=8", words])


def test_memory_that_is_not_there_is_told(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> np.ndarray:
        raise MemoryError

    monkeypatch.setattr(cache.np, "empty", none)
    with pytest.raises(BadInput, match=r"^\[9, 9, 12, 3\] take 2,916 bytes, more than"):
        load(pets, cache="/dev/null/cache")


# The cache


def forbidden(*_: Any, **__: Any) -> Any:
    raise AssertionError("is not to be called")


def test_the_second_start_neither_decodes_nor_reads(
    pets: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(pets)
    with monkeypatch.context() as patch:
        patch.setattr(images, "decode", forbidden)
        patch.setattr(cache.hashlib, "file_digest", forbidden)
        patch.setattr(cache, "_sha256", forbidden)
        assert same(first, load(pets))
        shutil.copytree(pets, pets.with_name("moved"))
        with pytest.raises(AssertionError, match="not to be called"):
            load(pets.with_name("moved"))  # is read
        patch.undo()
        monkeypatch.setattr(cache, "SETTLED", -60)
        monkeypatch.setattr(images, "decode", forbidden)
        assert same(first, load(pets.with_name("moved")))  # but not decoded
    assert len(list(kept.glob("*.npy"))) == 1


def test_young_files_are_read_again(
    pets: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "SETTLED", 3600)
    read: list[str] = []
    file_digest = cache.hashlib.file_digest
    monkeypatch.setattr(
        cache.hashlib,
        "file_digest",
        lambda file, kind: (read.append(file.name), file_digest(file, kind))[1],
    )
    load(pets)
    load(pets)
    assert len(read) == 18 and not list(kept.glob("*.files.json"))


def test_every_change_is_seen(pets: Path, tmp_path: Path) -> None:
    """Whatever is done to the files, what is read is what one without a cache reads."""

    def repaint(name: str, seed: int) -> None:
        Image.fromarray(pixels(1, 0, seed)[0]).save(pets / name, compress_level=0)

    repaint("cat/000.png", 1)
    facts = (pets / "cat/000.png").stat()

    def same_size_and_time() -> None:
        repaint("cat/000.png", 2)
        os.utime(pets / "cat/000.png", ns=(facts.st_atime_ns, facts.st_mtime_ns))
        assert (pets / "cat/000.png").stat().st_size == facts.st_size

    changes: list[Callable[[], Any]] = [
        lambda: None,
        same_size_and_time,
        lambda: (pets / "cat/000.png").rename(pets / "cat/9.png"),
        lambda: (pets / "cat/9.png").rename(pets / "dog/9.png"),
        lambda: (pets / "owl/001.png").unlink(),
        lambda: repaint("owl/7.png", 3),
        lambda: (pets / "owl").rename(pets / "ant"),
        lambda: (pets / "dog/000.png").rename(pets / "dog/x.png"),
    ]  # fmt: skip
    seen = set()
    for number, change in enumerate(changes):
        change()
        fresh = load(pets, cache=str(tmp_path / f"fresh-{number}"))
        assert same(load(pets), fresh)
        seen.add(fresh.digest)
    assert len(seen) == len(changes)


def test_a_file_that_changes_while_it_is_read_is_refused(
    pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = cache.digests

    def then_changed(*arguments: Any) -> Any:
        found = digests(*arguments)
        (pets / "cat" / "000.png").write_bytes((pets / "cat" / "001.png").read_bytes())
        return found

    monkeypatch.setattr(cache, "digests", then_changed)
    with pytest.raises(BadInput, match=r"cat/000.png \(it changed while it was read\)"):
        load(pets)


def test_the_digest_tells_what_is_trained_on(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(pets).digest
    moved = Path(shutil.copytree(pets, tmp_path / "moved"))
    (moved / "cat" / "000.png").rename(moved / "cat" / "0.png")  # stays the first
    assert load(moved).digest == first == load(moved, cache="/dev/null/none").digest
    others = [load(pets, 9).digest, load(pets, channels=1).digest]
    with monkeypatch.context() as patch:
        patch.setattr(PIL, "__version__", "99.0")
        others += [load(pets).digest]
    with monkeypatch.context() as patch:
        patch.setattr(images, "METHOD", "nearest")
        others += [load(pets).digest]
    (moved / "cat" / "0.png").rename(moved / "dog" / "0.png")
    others += [load(moved).digest]
    two_sets(pets)
    others += [load(pets).digest]
    assert len({first, *others}) == 1 + len(others)


def entry_of(kept: Path, ending: str) -> Path:
    (found,) = [path for path in kept.glob(f"*{ending}") if ".files." not in path.name]
    return found


DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes | None]]] = {
    "a byte": (".npy", lambda content: content[:-1] + bytes([content[-1] ^ 1])),
    "half": (".npy", lambda content: content[: len(content) // 2]),
    "nothing": (".npy", lambda content: b""),
    "text": (".npy", lambda content: b"hello"),
    "another shape": (".npy", lambda content: content.replace(b"(9, 9, 12, 3)", b"(9, 12, 9, 3)")),
    "gone": (".npy", lambda content: None),
    "no JSON": (".json", lambda content: content[:-9]),
    "another kind of JSON": (".json", lambda content: b"[1]"),
    "empty JSON": (".json", lambda content: b"{}"),
    "another digest": (".json", lambda content: b'{"sha256": "0", "marks": []}'),
    "no word": (".json", lambda content: None),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_found_and_made_good(
    pets: Path, kept: Path, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    first = load(pets)
    wanted = {name: array.copy() for name, array in first.arrays.items()}
    ending, damage = DAMAGE[what]
    path = entry_of(kept, ending)
    changed = damage(path.read_bytes())
    path.unlink()  # the first one has it mapped
    if changed is not None:
        path.write_bytes(changed)
    again = load(pets)
    assert again.digest == first.digest
    assert all(np.array_equal(again.arrays[name], array) for name, array in wanted.items())
    said = capfd.readouterr().err
    gone = changed is None
    assert said == (
        "" if gone else f"waymark: {entry_of(kept, '.npy')} was damaged and is made again\n"
    )
    assert same(load(pets), again) and capfd.readouterr().err == ""


def test_a_damaged_memory_of_files_is_made_again(pets: Path, kept: Path) -> None:
    first = load(pets)
    (memory,) = kept.glob("*.files.json")
    for content in (b"", b"[1]", b'{"cat/000.png": 7, "cat/001.png": [1]}', b"\xff"):
        memory.write_bytes(content)
        assert same(load(pets), first)


def test_a_cache_that_was_copied_is_used(
    pets: Path, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(pets)
    other = Path(shutil.copytree(kept, tmp_path / "other"))
    monkeypatch.setattr(images, "decode", forbidden)
    assert same(load(pets, cache=str(other)), first)
    monkeypatch.setattr(cache, "_sha256", forbidden)  # compared once, then known by its times
    assert same(load(pets, cache=str(other)), first)


def test_what_cannot_be_kept_is_decoded_all_the_same(
    pets: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    data = load(pets, cache=str(tmp_path / "file"))
    assert same(data, load(pets))
    said = capfd.readouterr().err
    assert said == (
        f"waymark: nothing can be kept in {tmp_path}/file (Not a directory); data.cache names "
        f"another folder\n"
    )


def test_a_full_disk_and_one_that_is_read_only(
    pets: Path,
    tmp_path: Path,
    mounted: Callable[[Path, str], Path],
    capfd: pytest.CaptureFixture[str],
) -> None:
    data = load(pets, 64)
    full = mounted(tmp_path / "full", "size=64k")
    assert same(load(pets, 64, cache=str(full)), data)
    assert f"nothing can be kept in {full} (No space left on device); " in capfd.readouterr().err
    assert not list(full.glob("*.npy*"))
    kept = mounted(tmp_path / "kept", "size=4m")
    load(pets, 64, cache=str(kept))
    subprocess.run(["mount", "-o", "remount,ro", str(kept)], check=True)
    assert same(load(pets, 64, cache=str(kept)), data) and capfd.readouterr().err == ""
    assert same(load(pets, 32, cache=str(kept)), load(pets, 32))
    assert "(Read-only file system)" in capfd.readouterr().err


def test_clearing_removes_what_is_ours(pets: Path, kept: Path) -> None:
    data = load(pets)
    load(pets, 4)
    (kept / "mine.npy").write_bytes(b"mine")
    (kept / f".tmp-{'0' * 64}.npy.12_abcd").write_bytes(b"of a process that was killed")
    total = sum(path.stat().st_size for path in kept.iterdir()) - len(b"mine")
    assert cache.cached_bytes(kept) == total
    busy = min(kept.glob("?" * 64 + ".npy"))
    with FileLock(busy.with_suffix(".lock")):
        removed = cache.clear(kept)
        assert busy.exists() and removed < total
    assert removed + cache.clear(kept) == total
    assert [path.name for path in kept.iterdir()] == ["mine.npy"]
    assert data.x_train.sum() > 0  # which is mapped
    assert cache.clear(kept.with_name("absent")) == 0


@pytest.mark.parametrize(
    ("value", "folder"),
    [("/other", "/other/waymark"), ("", "~/.cache/waymark"), ("relative", "~/.cache/waymark")],
)
def test_the_cache_is_the_users(value: str, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert cache.cache_folder(None) == Path(folder).expanduser()
    assert cache.cache_folder("~/mine") == Path("~/mine").expanduser()


def test_where_data_and_cache_lie_does_not_tell_trials_apart(tmp_path: Path) -> None:
    pets = write_folder(tmp_path / "pets", 8)
    moved = shutil.copytree(pets, tmp_path / "moved")
    words = ["data=images", "data.size=8", "batch_size=2"]
    first = identity(compose_config([*words, f"data.path={pets}"]))
    other = [f"data.path={moved}", f"data.cache={tmp_path}/other"]
    assert identity(compose_config([*words, *other])) == first
    assert identity(compose_config([*words, *other, "data.channels=1"])) != first


# Several processes

PROGRAM = """
import os, signal, sys
from waymark.data import images
how, path = sys.argv[1:]
real, count = images.decode, 0

def decode(content, shape):
    global count
    count += 1
    if how == "dies" and count == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "waits" and count == 1:
        print("decodes", flush=True)
        sys.stdin.readline()
    return real(content, shape)

images.decode = decode
images.AT_ONCE = 2
data = images.Images(path=path, size=8, sampling="epoch").load()
print(count, data.digest)
"""


def start(how: str, pets: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, how, str(pets)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_one_process_decodes_while_others_wait(pets: Path, kept: Path) -> None:
    first = start("waits", pets)
    assert first.stdout and first.stdin
    assert first.stdout.readline() == "decodes\n"
    second = start("reads", pets)
    assert second.stderr
    assert "waiting for another process" in second.stderr.readline()
    out, err = first.communicate("go on\n", timeout=60)
    count, digest = out.split()
    assert (count, err) == ("9", "")
    assert second.communicate(timeout=60) == (f"0 {digest}\n", "")
    assert digest == load(pets, 8).digest


def test_a_kill_while_it_is_filled_leaves_nothing_that_counts(pets: Path, kept: Path) -> None:
    killed = start("dies", pets)
    killed.communicate(timeout=60)
    assert killed.returncode == -9
    assert list(kept.glob(".tmp-*.npy.*")) and not list(kept.glob("*.npy"))
    out, err = start("reads", pets).communicate(timeout=60)
    assert (out.split()[0], err) == ("9", "")
    assert not list(kept.glob(".tmp-*")) and load(pets, 8).digest == out.split()[1]
