"""CIFAR's files, made up here in its layout: what is read, and that nothing of it is executed."""

import io
import os
import pickle
import shutil
import tarfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waymark.data import cifar
from waymark.data.cifar import Cifar10, Cifar100
from waymark.data.sources import Dataset
from waymark.errors import BadInput
from waymark.tasks.classification import Classification

from tests.support.cifar import (
    NAMES,
    archive,
    cifar10,
    cifar100,
    pickled,
    published,
    write,
)


@pytest.fixture
def ten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = write(tmp_path / "cifar-10-batches-py", cifar10())
    published(monkeypatch, folder)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return folder


def load(path: Path | None) -> Dataset:
    return Cifar10(path=None if path is None else str(path), sampling="epoch").load()


def test_the_digests_are_of_the_files_that_are_read() -> None:
    for layout in (cifar.CIFAR10, cifar.CIFAR100):
        assert set(layout.md5) == {*layout.train, layout.test, layout.names}
        assert all(len(bytes.fromhex(digest)) == 16 for digest in layout.md5.values())


def test_pictures_labels_and_names(ten: Path) -> None:
    data = load(ten)
    assert (data.x_train.shape, data.x_test.shape) == ((100, 32, 32, 3), (20, 32, 32, 3))
    assert (data.x_train.dtype, data.y_train.dtype) == (np.uint8, np.int32)
    assert data.class_names == tuple(NAMES)
    files = cifar10()
    for number in range(100):
        row = files[f"data_batch_{number // 20 + 1}"]["data"][number % 20]
        red, green, blue = row[:1024], row[1024:2048], row[2048:]  # each row by row
        for channel, plane in enumerate((red, green, blue)):
            assert np.array_equal(data.x_train[number, :, :, channel].ravel(), plane)
    assert data.y_train.tolist() == [number % 10 for number in range(20)] * 5
    assert Classification().prepare(data).class_names == tuple(NAMES)


@pytest.mark.parametrize("form", ["as it is", "protocol 2", "protocol 5", "by column"])
def test_arrays_pickled_by_any_python_are_read(
    ten: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = load(ten).digest
    files = cifar10()
    for name, content in files.items():
        if form == "by column" and "data" in content:
            content["data"] = np.asfortranarray(content["data"])
        files[name] = pickled(content)
        if form == "protocol 5" and "data" not in content:
            bytes_ = {key.encode(): value for key, value in content.items()}
            bytes_[b"label_names"] = [each.encode() for each in NAMES]
            files[name] = pickle.dumps(bytes_, 5)
    write(ten, files)
    published(monkeypatch, ten)
    assert load(ten).digest == wanted


@pytest.mark.parametrize("labels", ["fine", "coarse"])
def test_cifar100_has_two_kinds_of_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: Any
) -> None:
    folder = write(tmp_path / "cifar-100-python", cifar100())
    published(monkeypatch, folder)
    packed = archive(tmp_path / "any.tar.gz", folder)
    for path in (folder, packed, tmp_path):
        data = Cifar100(path=str(path), sampling="epoch", labels=labels).load()
        fine = np.arange(200) % 100
        assert np.array_equal(data.y_test, fine if labels == "fine" else fine // 5)
        assert data.spec.classes == len(data.class_names) == (100 if labels == "fine" else 20)
        assert data.class_names[-1] == ("thing_99" if labels == "fine" else "kind_19")
        assert np.array_equal(data.x_test[3, 1, 2], cifar100()["test"]["data"][3, 34::1024])


PLACES = [
    "cifar-10-batches-py", "cifar-10-batches-py-target/cifar-10-batches-py",
    "cifar-10-batches-py/cifar-10-batches-py", "cifar-10-batches-py.tar.gz",
    "cifar-10-python.tar.gz", "cifar-10-batches-py-target_archive",
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_it_is_found_where_versions_of_keras_put_it(ten: Path, tmp_path: Path, place: str) -> None:
    wanted = load(ten).digest
    there = tmp_path / "keras" / "datasets" / place
    there.parent.mkdir(parents=True)
    if "/" in place or place == ten.name:
        shutil.move(ten, there)
    else:
        archive(there, ten)
        shutil.rmtree(ten)
    assert load(None).digest == wanted
    assert load(None).source == str(there)
    assert load(there.parent).digest == load(there).digest == wanted


def test_the_download_arrives_whole(
    ten: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Keras 3 leaves it: an archive, and a folder in a folder."""
    package = tmp_path / "fake" / "keras"
    package.mkdir(parents=True)
    program = f"""
        import os, shutil
        class cifar10:
            def load_data():
                home = os.environ["KERAS_HOME"] + "/datasets/cifar-10-batches-py-target"
                shutil.copytree({str(ten)!r}, home + "/cifar-10-batches-py")
                open(home + "_archive", "w").close()
        """
    (package / "__init__.py").write_text("from . import datasets\n")
    (package / "datasets.py").write_text(textwrap.dedent(program))
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    data = load(None)
    assert data.source == f"{tmp_path}/keras/datasets/cifar-10-batches-py"
    assert data.digest == load(ten).digest
    assert os.listdir(tmp_path / "keras" / "datasets") == ["cifar-10-batches-py"]


@pytest.mark.long
def test_without_network_it_is_one_sentence(ten: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(BadInput, match=r"^data=cifar10 is not on this machine and .*data.path"):
        load(None)


class Runs:
    """What a pickle would execute."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.file}",)


def changed(name: str, **entries: Any) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        content = {**cifar10()[name], **entries}
        write(folder, {name: {key: each for key, each in content.items() if each is not None}})

    return change


def executing(folder: Path) -> None:
    write(folder, {"test_batch": pickle.dumps(Runs(folder.with_name("executed")))})


def objects(folder: Path) -> None:
    changed("test_batch", data=np.array([b"x" * 3072] * 20, object)[:, None])(folder)


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "executes": (executing, r"it names (posix|nt)\.system, which no file of CIFAR does"),
    "a name of NumPy's": (
        lambda folder: write(folder, {"test_batch": b"cnumpy\nload\n(S'x'\ntR."}),
        r"it names numpy\.load, which",
    ),
    "objects": (objects, "its pixels are not bytes"),
    "no dictionary": (lambda folder: write(folder, {"test_batch": [1]}), "it holds no entry data"),
    "no pixels": (changed("test_batch", data=None), "it holds no entry data"),
    "no labels": (changed("test_batch", labels=None), "it holds no entry labels"),
    "no array": (changed("test_batch", data=[1, 2]), "its entry data is no array"),
    "one pixel less": (
        changed("test_batch", data=np.zeros((20, 3071), np.uint8)),
        r"its pixels are not bytes \[N, 3072\]",
    ),
    "floats": (changed("test_batch", data=np.zeros((20, 3072))), "its pixels are not bytes"),
    "a label too many": (changed("test_batch", labels=[0] * 21), "its labels are not 20 integers"),
    "a label too large": (changed("data_batch_3", labels=[10] * 20), "integers from 0 to 9"),
    "a negative label": (changed("data_batch_3", labels=[-1] * 20), "integers from 0 to 9"),
    "a text for a label": (changed("data_batch_3", labels=["a"] * 20), "integers from 0 to 9"),
    "half": (
        lambda folder: write(folder, {"test_batch": pickled(cifar10()["test_batch"])[:99]}),
        "is not a readable copy of cifar10: ",
    ),
    "nothing": (lambda folder: (folder / "test_batch").write_bytes(b""), "Ran out of input"),
    "text": (lambda folder: (folder / "test_batch").write_text("hello"), "is not a readable copy"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_only_looks_like_it_is_refused(
    ten: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, said = REFUSED[what]
    change(ten)
    with pytest.raises(BadInput, match=r"cifar10 as published \(by its MD5\)") as refused:
        load(ten)
    published(monkeypatch, ten)  # as if somebody had found another file of that MD5
    with pytest.raises(BadInput, match=said) as refused:
        load(ten)
    assert "\n" not in str(refused.value) and str(refused.value).startswith(str(ten))
    assert not ten.with_name("executed").exists()


def test_missing_and_foreign_files_are_refused(ten: Path, tmp_path: Path) -> None:
    whole = archive(tmp_path / "whole.tar.gz", ten)
    (ten / "data_batch_4").unlink()
    with pytest.raises(BadInput, match=r"cifar-10-batches-py/data_batch_4 does not exist\."):
        load(ten)
    with pytest.raises(BadInput, match=r"less.tar.gz is not a readable .*no file data_batch_4\."):
        load(archive(tmp_path / "less.tar.gz", ten))
    (tmp_path / "half.tar.gz").write_bytes(whole.read_bytes()[:-5000])
    with pytest.raises(BadInput, match=r"half.tar.gz is not a readable archive of CIFAR: "):
        load(tmp_path / "half.tar.gz")
    (tmp_path / "text.tar.gz").write_text("hello")
    with pytest.raises(BadInput, match=r"text.tar.gz is not a readable archive of CIFAR: "):
        load(tmp_path / "text.tar.gz")
    with pytest.raises(BadInput, match=r"absent does not exist\."):
        load(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"empty/data_batch_1 does not exist\."):
        load(tmp_path / "empty")


def test_an_archive_that_promises_too_much_is_refused(
    ten: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive(tmp_path / "bomb.tar.gz", ten)
    monkeypatch.setattr(cifar, "MAX_BYTES", 10**5)
    with pytest.raises(BadInput, match=r"bomb.tar.gz .*promises more than 100,000 bytes"):
        load(path)


def test_links_in_an_archive_lead_nowhere(ten: Path, tmp_path: Path) -> None:
    path = tmp_path / "links.tar.gz"
    with tarfile.open(path, "w:gz") as packed:
        for name in cifar.CIFAR10.md5:
            link = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, str(ten / name)
            packed.addfile(link, io.BytesIO())
    with pytest.raises(BadInput, match=r"it has no file data_batch_1\."):
        load(path)
