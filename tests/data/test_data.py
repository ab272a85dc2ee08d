"""Data sets: what is read, what is refused, and that damage never passes for data."""

import gzip
import hashlib
import io
import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pydantic
import pytest
import yaml
from hydra.utils import get_class
from hypothesis import given, settings
from hypothesis import strategies as st
from waymark.data import sources as data
from waymark.data.sources import Arrays, Dataset, FashionMnist, ImageSpec, Mnist, Mnist5k
from waymark.digest import digest
from waymark.errors import BadInput
from waymark.tasks.classification import Classification

from tests.support.processes import REPO

MNIST_NPZ = Path(os.environ.get("MNIST_NPZ", REPO.parent / "shared" / "data" / "mnist.npz"))
needs_mnist = pytest.mark.skipif(not MNIST_NPZ.exists(), reason="MNIST_NPZ names no mnist.npz")
needs_fashion = pytest.mark.skipif(
    not data.FASHION_DEBIAN.exists(), reason="the package dataset-fashion-mnist is not installed"
)
MNIST_5K_DIGEST = "0e603cdc5e54a5e45c9c13d807e3f9dc3e5b45b93226fa87981e96782191e431"  # in records
MNIST_SHA256 = {
    "x_train": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
    "y_train": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
    "x_test": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
    "y_test": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
}
FASHION_SHA256 = {
    "x_train": "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
    "y_train": "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
    "x_test": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
    "y_test": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
}


def packed(content: bytes) -> bytes:
    """Compress without the time of day, which is in no test's name then."""
    return gzip.compress(content, mtime=0)


def small(**changed: Any) -> dict[str, np.ndarray]:
    """Return a small valid set of arrays, with some entries changed; None leaves one out."""
    arrays = {
        "x_train": np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3),
        "y_test": np.array([1, 0]),
    }
    return {k: v for k, v in {**arrays, **changed}.items() if v is not None}


def npz(folder: Path, arrays: dict[str, Any]) -> Path:
    path = folder / "mine.npz"
    np.savez(path, **arrays)
    return path


def arrays(path: Path | str) -> Dataset:
    loader = Arrays(path=str(path), sampling="replacement")
    return Classification().prepare(loader.load())


def entries(dataset: Dataset) -> dict[str, np.ndarray]:
    return {name: getattr(dataset, name) for name in data.SPLIT_ARRAYS}


def sha256(arrays: dict[str, np.ndarray]) -> dict[str, str]:
    """Hash the C-order bytes of arrays as uint8, the form in which they are published."""
    return {k: hashlib.sha256(v.astype(np.uint8).tobytes()).hexdigest() for k, v in arrays.items()}


def header(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    buffer = io.BytesIO()
    head = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, head)
    return buffer.getvalue()


def idx(values: np.ndarray) -> bytes:
    lengths = b"".join(n.to_bytes(4, "big") for n in values.shape)
    return bytes([0, 0, 8, values.ndim]) + lengths + values.tobytes()


# What is read


def test_import_is_light() -> None:
    program = "import sys, waymark.data.sources; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True, check=True
    )
    heavy = {"tensorflow", "keras", "mlflow", "sklearn", "pandas"}
    assert heavy & set(done.stdout.split()) == set()


SETTINGS: dict[str, dict[str, Any]] = {
    "mnist_5k": {},
    "mnist": {"path": None},
    "fashion_mnist": {"path": None},
    "arrays": {"path": "???", "sampling": "epoch"},
    "images": {
        **{"path": "???", "size": "???", "channels": 3, "cache": None},
        "sampling": "epoch",
    },
    "cifar10": {"path": None, "sampling": "epoch"},
    "cifar100": {"path": None, "labels": "fine", "sampling": "epoch"},
}


@pytest.mark.parametrize("choice", SETTINGS)
def test_group_file_gives_every_setting_but_those_of_all_data(choice: str) -> None:
    shared = yaml.safe_load((REPO / "conf" / "config.yaml").read_text())["data"]
    values = yaml.safe_load((REPO / "conf" / "data" / f"{choice}.yaml").read_text())
    cls: Any = get_class(values.pop("_target_"))
    assert {*shared, *values} == set(cls.__dataclass_fields__)
    own = {key: cls.__dataclass_fields__[key].default for key in shared if key != "sampling"}
    assert own == {key: shared[key] for key in own}
    assert values == SETTINGS[choice]


def test_sampling_is_one_of_two() -> None:
    with pytest.raises(pydantic.ValidationError, match="'replacement' or 'epoch'"):
        Mnist5k(sampling="shuffle")  # type: ignore[arg-type]


def test_mnist_5k_is_the_recorded_one() -> None:
    dataset = Mnist5k(sampling="replacement").load()
    for part, each in (("train", 400), ("test", 100)):
        x, y = entries(dataset)[f"x_{part}"], entries(dataset)[f"y_{part}"]
        assert (x.shape, x.dtype, y.dtype) == ((10 * each, 28, 28, 1), np.uint8, np.int32)
        assert np.array_equal(y, np.repeat(np.arange(10), each))
    assert dataset.spec == ImageSpec((28, 28, 1), 10)
    assert dataset.digest == digest(entries(dataset)) == MNIST_5K_DIGEST


def test_file_of_mnist_5k_is_the_one_described() -> None:
    file = data.MNIST_5K_FILE
    described = file.with_suffix(".txt").read_text()
    assert f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}" in described
    assert "Yann LeCun and Corinna Cortes" in described and "CC BY-SA 3.0" in described


def test_damaged_mnist_5k_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = tmp_path / "mnist_5k.npz"
    damaged.write_bytes(data.MNIST_5K_FILE.read_bytes()[:-1000])
    monkeypatch.setattr(data, "MNIST_5K_FILE", damaged)
    with pytest.raises(BadInput, match=r"mnist_5k.npz is not a readable npz file: .+\.$"):
        Mnist5k(sampling="replacement").load()


def test_mnist_5k_with_other_digits_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "MNIST_5K_FILE", npz(tmp_path, small()))
    with pytest.raises(BadInput, match="does not hold mnist_5k as published"):
        Mnist5k(sampling="replacement").load()


@needs_mnist
def test_mnist_is_the_published_one() -> None:
    dataset = Mnist(path=str(MNIST_NPZ), sampling="replacement").load()
    assert sha256(entries(dataset)) == MNIST_SHA256
    assert dataset.x_train.shape == (60_000, 28, 28, 1)
    assert dataset.x_test.shape == (10_000, 28, 28, 1)
    assert (dataset.x_train.dtype, dataset.y_train.dtype) == (np.uint8, np.int32)
    assert dataset.spec == ImageSpec((28, 28, 1), 10)
    assert dataset.digest == data.MNIST
    assert dataset.source == str(MNIST_NPZ)


@needs_mnist
def test_mnist_is_found_in_keras_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "mnist.npz").symlink_to(MNIST_NPZ)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    dataset = Mnist(path=None, sampling="replacement").load()
    assert (dataset.name, dataset.digest) == ("mnist", data.MNIST)


@needs_mnist
def test_one_pixel_makes_another_mnist(tmp_path: Path) -> None:
    with np.load(MNIST_NPZ, allow_pickle=False) as file:
        changed = dict(file)
    changed["x_test"][9_999, 14, 14] ^= 1
    path = npz(tmp_path, changed)
    with pytest.raises(BadInput, match="does not hold mnist as published"):
        Mnist(path=str(path), sampling="replacement").load()


@needs_fashion
def test_fashion_mnist_is_the_published_one() -> None:
    dataset = FashionMnist(path=None, sampling="replacement").load()
    assert sha256(entries(dataset)) == FASHION_SHA256
    assert dataset.x_train.shape == (60_000, 28, 28, 1)
    assert dataset.spec == ImageSpec((28, 28, 1), 10)
    assert dataset.digest == data.FASHION_MNIST
    assert dataset.source == str(data.FASHION_DEBIAN)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (0, 2)])
def test_idx_round_trips(shape: tuple[int, ...], tmp_path: Path) -> None:
    values = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    (tmp_path / "values.gz").write_bytes(packed(idx(values)))
    read = data._read_idx(tmp_path / "values.gz")
    assert (read.dtype, read.shape, read.tobytes()) == (np.uint8, shape, values.tobytes())


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not a readable gzipped idx file"),
        (idx(np.zeros(3, np.uint8)), "Not a gzipped file"),
        (packed(b""), "not a readable gzipped idx file"),
        (packed(b"\0\0\x0d\x01\0\0\0\x01abcd"), "not start as one of unsigned bytes"),
        (packed(idx(np.zeros(3, np.uint8))[:-1]), "cannot reshape"),
        (packed(idx(np.zeros(3, np.uint8)) + b"x"), "cannot reshape"),
        (packed(idx(np.zeros(300, np.uint8)))[:-9], "ended before"),
        (packed(bytes([0, 0, 8, 3]) + b"\xff" * 12 + b"x"), "not a readable gzipped idx"),
    ],
)
def test_idx_refuses(content: bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "values.gz"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=problem) as refused:
        data._read_idx(path)
    assert str(refused.value).startswith(f"{path} ")


def test_fashion_mnist_reads_four_files_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, values in small().items():
        content = packed(idx(values.astype(np.uint8)))
        (tmp_path / data.FASHION_FILES[name]).write_bytes(content)
    with pytest.raises(BadInput, match="does not hold fashion_mnist as published"):
        FashionMnist(path=str(tmp_path), sampling="replacement").load()
    monkeypatch.setattr(data, "FASHION_MNIST", arrays(npz(tmp_path, small())).digest)
    dataset = FashionMnist(path=str(tmp_path), sampling="replacement").load()
    assert np.array_equal(dataset.x_train[..., 0], small()["x_train"])
    assert np.array_equal(dataset.y_test, small()["y_test"])
    (tmp_path / data.FASHION_FILES["y_test"]).unlink()
    with pytest.raises(BadInput, match=r"t10k-labels-idx1-ubyte.gz does not exist"):
        FashionMnist(path=str(tmp_path), sampling="replacement").load()


# Keras's download


def fake_keras(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> Path:
    """Put a package `keras` of ours before the real one; return where its cache is."""
    package = folder / "fake" / "keras"
    package.mkdir(parents=True)
    program = f"class mnist:\n    def load_data():\n{textwrap.indent(body, ' ' * 8)}\n"
    (package / "__init__.py").write_text("from . import datasets\n")
    (package / "datasets.py").write_text(program + "fashion_mnist = mnist\n")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.setenv("KERAS_HOME", str(folder / "cache"))
    return folder / "cache" / "datasets"


def test_download_arrives_whole_in_keras_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = npz(tmp_path, small())
    body = f"""\
        import os, shutil
        print("Downloading data")
        os.mkdir(os.environ["KERAS_HOME"] + "/datasets")
        shutil.copy({str(path)!r}, os.environ["KERAS_HOME"] + "/datasets/mnist.npz")
        """
    cache = fake_keras(tmp_path, monkeypatch, textwrap.dedent(body))
    monkeypatch.setattr(data, "MNIST", arrays(path).digest)
    dataset = Mnist(path=None, sampling="replacement").load()
    assert dataset.source == str(cache / "mnist.npz")
    assert dataset.digest == data.MNIST
    assert [file.name for file in cache.iterdir()] == ["mnist.npz"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("loader", [Mnist, FashionMnist])
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("print('Downloading'); raise OSError('no route')", r"\(OSError: no route\)"),
        ("print('did nothing')", "not enough values"),
        ("import os; os.abort()", "SIGABRT"),
    ],
)
def test_failed_download_is_one_sentence(
    loader: type,
    body: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    cache = fake_keras(tmp_path, monkeypatch, body)
    monkeypatch.setattr(data, "FASHION_DEBIAN", tmp_path / "absent")
    with pytest.raises(BadInput, match=reason) as refused:
        loader(path=None, sampling="replacement").load()
    message = str(refused.value)
    assert "data.path" in message and "data=mnist_5k" in message and "\n" not in message
    assert [file for file in cache.rglob("*") if file.is_file()] == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.long
def test_real_keras_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(BadInput, match=r"could not be downloaded .*URL fetch failure"):
        Mnist(path=None, sampling="replacement").load()
    assert capfd.readouterr() == ("", "")


def test_unwritable_cache_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "file"))
    with pytest.raises(BadInput, match=r"could not be downloaded .*Not a directory"):
        Mnist(path=None, sampling="replacement").load()


# The user's own arrays


@st.composite
def valid_arrays(draw: st.DrawFn) -> dict[str, np.ndarray]:
    image = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    dtype = draw(st.sampled_from(["uint8", "<f2", "<f4", "<f8", ">f4", ">f8"]))
    label = draw(st.sampled_from(["uint8", "<i4", ">i8", "uint64"]))
    pixels = st.integers(0, 255) if dtype == "uint8" else st.floats(0, 1, width=16)
    result = {}
    for part in ("train", "test"):
        count = draw(st.integers(1, 5))
        x = draw(hnp.arrays(dtype, (count, *image), elements=pixels))
        result[f"x_{part}"] = np.asfortranarray(x) if draw(st.booleans()) else x
        result[f"y_{part}"] = draw(hnp.arrays(label, count, elements=st.integers(0, 9)))
    result["y_train"][0] = draw(st.integers(1, 9))
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("arrays")


@settings(deadline=None)
@given(given_arrays=valid_arrays(), compress=st.booleans())
def test_valid_arrays_round_trip(
    folder: Path, given_arrays: dict[str, np.ndarray], compress: bool
) -> None:
    save: Any = np.savez_compressed if compress else np.savez
    save(folder / "mine.npz", **given_arrays)
    dataset = arrays(folder / "mine.npz")
    for name, array in entries(dataset).items():
        was = given_arrays[name]
        wanted = "int32" if name[0] == "y" else "uint8" if was.dtype == np.uint8 else "float32"
        shape = (*was.shape, 1) if was.ndim == 3 else was.shape
        assert (array.dtype.name, array.dtype.isnative, array.shape) == (wanted, True, shape)
        assert array.flags.c_contiguous
        assert np.array_equal(array, was.astype(wanted).reshape(shape))
    top = max(given_arrays["y_train"].max(), given_arrays["y_test"].max())
    assert dataset.spec == ImageSpec(dataset.x_train.shape[1:], int(top) + 1)
    assert dataset.digest == digest(entries(dataset))


def zipped(save: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **small())
    return buffer.getvalue()


WHOLE = {"stored": zipped(np.savez), "deflated": zipped(np.savez_compressed)}


def outcome(path: Path) -> str:
    try:
        return arrays(path).digest
    except BadInput as refused:
        return str(refused)


@pytest.mark.parametrize("kind", WHOLE)
@settings(deadline=None, max_examples=300)
@given(draw=st.data())
def test_damage_is_refused_or_harmless(kind: str, folder: Path, draw: st.DataObject) -> None:
    whole = WHOLE[kind]
    path = folder / f"{kind}.npz"
    path.write_bytes(whole)
    untouched = arrays(path).digest
    place = draw.draw(st.integers(0, len(whole) - 1))
    flip = draw.draw(st.integers(1, 255))
    cut = draw.draw(st.integers(0, len(whole) - place))
    damaged = draw.draw(
        st.sampled_from(
            [
                whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :],
                whole[:place],
                whole[:place] + whole[place + cut :],
                whole[:place] + whole[cut:],
            ]
        )
    )
    path.write_bytes(damaged)
    found = outcome(path)
    assert found == untouched or found.startswith(str(path))
    assert "\n" not in found


def test_an_entry_whose_comment_hides_the_next_ones_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(WHOLE["stored"])) as archive:
        first, last = archive.infolist()[0], archive.infolist()[-1]
    whole = bytearray(WHOLE["stored"])
    directory = whole.rindex(b"PK\x01\x02", 0, whole.index(b"PK\x01\x02", last.header_offset) + 4)
    hidden = 46 + len(archive.infolist()[1].filename)  # the second entry of the directory
    whole[directory + 32 : directory + 34] = hidden.to_bytes(2, "little")
    path = tmp_path / "hidden.npz"
    path.write_bytes(whole)
    with zipfile.ZipFile(path) as archive:
        assert len(archive.infolist()) == 3 and archive.infolist()[0].filename == first.filename
    assert outcome(path).startswith(f"{path} is not a readable npz file: an entry bears a comment")


def test_flipped_pixel_is_refused(tmp_path: Path) -> None:
    damaged = bytearray(WHOLE["stored"])
    damaged[damaged.index(small()["x_train"].tobytes()) + 5] ^= 1
    (tmp_path / "mine.npz").write_bytes(damaged)
    with pytest.raises(BadInput, match=r"npz file: Bad CRC-32 for file 'x_train.npy'"):
        arrays(tmp_path / "mine.npz")


def test_labels_in_every_form_are_the_same_labels(tmp_path: Path) -> None:
    numbers = small()
    whole = arrays(npz(tmp_path, numbers))
    for form in (
        lambda y: y[:, np.newaxis].astype(np.uint8),
        lambda y: np.eye(3, dtype=np.float32)[y],
        lambda y: np.eye(3, dtype=bool)[y],
        lambda y: np.array(["ant", "bee", "cat"])[y],
        lambda y: np.array(["ant", "bee", "cat"])[y][:, np.newaxis],
    ):
        formed = {key: form(y) for key, y in numbers.items() if key.startswith("y_")}
        dataset = arrays(npz(tmp_path, {**numbers, **formed}))
        assert dataset.digest == whole.digest
        texts = formed["y_train"].dtype.kind == "U"
        assert dataset.class_names == (("ant", "bee", "cat") if texts else ())


NAN = np.full((2, 4, 3), np.nan, np.float32)
FLOATS = np.zeros((6, 4, 3), np.float32)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"y_test": None}, "has no entry y_test; it holds x_test, x_train, y_train"),
        ({"x_train": np.zeros(6, np.uint8)}, r"x_train has shape \[6\]; allowed are \[N, D\]"),
        ({"x_train": np.zeros((0, 4, 3), np.uint8)}, r"x_train has shape \[0, 4, 3\]; allowed"),
        ({"x_train": np.zeros((6, 0), np.uint8)}, r"x_train has shape \[6, 0\]; allowed"),
        ({"x_train": np.uint8(3)}, r"x_train has shape \[\]"),
        ({"x_train": np.zeros((6, 4, 3), np.int64)}, "x_test has .* uint8, but x_train .* int64"),
        ({"x_test": np.zeros((2, 4, 3), bool)}, "x_test has dtype bool; allowed"),
        ({"x_test": np.zeros((2, 4, 3), np.complex64)}, "x_test has dtype complex64; allowed"),
        ({"x_test": np.zeros((2, 4, 3), "S2")}, "x_test has dtype .S2; allowed"),
        ({"x_test": np.zeros((2, 4, 3), "f4,f4")}, "x_test has dtype .*; allowed"),
        ({"x_train": FLOATS, "x_test": NAN}, "x_test has a value in row 0 that is not finite"),
        ({"x_train": FLOATS + np.inf}, "x_train has a value in row 0 that is not finite"),
        ({"x_train": FLOATS}, r"x_test has images .* uint8, but x_train .* float32; both must"),
        ({"x_test": np.zeros((2, 3, 4), np.uint8)}, r"x_test has .*\[3, 4, 1\].*\[4, 3, 1\]"),
        ({"x_test": np.zeros((2, 12), np.uint8)}, r"x_test has .*\[12\].*\[4, 3, 1\]"),
        ({"y_train": np.zeros(5, int)}, "x_train has 6 images, but y_train 5 labels"),
        ({"y_test": np.zeros(3, int)}, "x_test has 2 images, but y_test 3 labels"),
        ({"y_test": np.zeros((2, 1, 1), int)}, r"y_test has shape \[2, 1, 1\]; allowed are \[N\]"),
        ({"y_test": np.zeros(0, int)}, r"y_test has shape \[0\]; allowed are \[N\]"),
        ({"y_test": np.array([[0, 1, 0], [0, 1, 1]])}, "y_test has .* row 1 is not one-hot"),
        ({"y_test": np.array([[0.0, 1.0], [0.5, 0.5]])}, "y_test has .* row 1 is not one-hot"),
        ({"y_test": np.array([[0.0, np.nan]] * 2)}, "y_test has .* row 0 is not one-hot"),
        ({"y_test": np.zeros(2)}, "y_test has dtype float64; allowed are integers and texts"),
        ({"y_test": np.zeros(2, bool)}, "y_test has dtype bool; allowed are integers and texts"),
        (
            {"y_test": np.array(["a", "b"])},
            "label 'a' in row 0 is a text, unlike y_train's",
        ),
        (
            {"y_train": np.array(list("abcabc")), "y_test": np.array(["a", "d"])},
            "y_test: label 'd' in row 1 is not among the 3 of y_train",
        ),
        ({"y_train": np.array(list("abcabc"))}, "y_test has dtype int64; allowed are texts"),
        ({"y_test": np.array([0, -1])}, "y_test has labels from -1 to 0; allowed are 0 to 65535"),
        ({"y_test": np.array([0, 65536])}, "y_test has labels from 0 to 65536; allowed are 0 to"),
        ({"y_test": np.array([0, 2**64 - 1], np.uint64)}, "y_test has labels from 0 to 184467"),
        ({"y_train": np.zeros(6, int), "y_test": np.zeros(2, int)}, "have only the label 0"),
        ({"y_test": np.array([0, "one"], object)}, "'y_test.npy' holds pickled objects"),
    ],
)
def test_arrays_refuses(changed: dict[str, np.ndarray], problem: str, tmp_path: Path) -> None:
    path = npz(tmp_path, small(**changed))
    with pytest.raises(BadInput, match=problem) as refused:
        arrays(path)
    message = str(refused.value)
    assert message.startswith(str(path)) and message.endswith(".") and "\n" not in message


def test_user_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npz(tmp_path, small())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert arrays("~/mine.npz").source == str(tmp_path / "mine.npz")


@pytest.mark.parametrize("loader", [Arrays, Mnist])
@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("absent.npz", None, "absent.npz does not exist"),
        ("absent/absent.npz", None, "absent.npz does not exist"),
        ("~nobody-of-that-name/a.npz", None, "a.npz does not exist"),
        (".", None, r"(is a folder, not a file|has no entry x_train; it holds nothing)\.$"),
        ("nul\0.npz", None, "embedded null byte"),
        ("empty.npz", b"", "File is not a zip file"),
        ("text.npz", b"hello", "File is not a zip file"),
        ("nothing.npz", b"PK\x05\x06" + b"\0" * 18, "has no entry x_train; it holds nothing"),
        ("one.npy", header((1,)) + b"x", "is not a readable npz file: File is not a zip file"),
    ],
)
def test_path_refused(
    loader: type, name: str, content: bytes | None, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=problem):
        loader(path=name if name[0] == "~" else str(path), sampling="replacement").load()


@pytest.mark.parametrize(
    ("member", "problem"),
    [
        (header((1 << 40, 4, 3)) + b"x", "'x_test.npy' promises 13,194,139,533,312 bytes"),
        (header((2, 4, 3)) + b"x", "'x_test.npy' promises 24 bytes and holds 1"),
        (header((2, 4, 3)) + b"x" * 25, "'x_test.npy' promises 24 bytes"),
        (header((-2, -4, 3)) + b"x" * 24, "not a readable npz file"),
        (header((2,), "|O") + b"x" * 16, "'x_test.npy' holds pickled objects"),
        (b"not an array", "not a readable npz file: the magic string is not correct"),
        (b"", "not a readable npz file: EOF"),
        (b"\x93NUMPY\x07\0" + b"x" * 99, "not a readable npz file"),
        (b"\x93NUMPY\x01\0\x10\0__import__('os')", "not a readable npz file"),
    ],
)
def test_false_headers_are_refused(member: bytes, problem: str, tmp_path: Path) -> None:
    path = npz(tmp_path, small(x_test=None))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x_test.npy", member)
    with pytest.raises(BadInput, match=problem):
        arrays(path)


def test_size_that_no_file_can_hold_is_refused_before_it_is_allocated(tmp_path: Path) -> None:
    path = npz(tmp_path, small(x_test=None))
    member = header((1 << 40,)) + b"x"
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x_test.npy", member)
        archive.getinfo("x_test.npy").file_size = len(member) - 1 + (1 << 40)  # in the index
    with pytest.raises(BadInput, match=r"promises 1,099,511,62\d,\d+ bytes, far more"):
        arrays(path)


def test_entry_given_twice_is_refused(tmp_path: Path) -> None:
    path = npz(tmp_path, small())
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("x_test.npy", header((2, 4, 3)) + b"x" * 24)
    with pytest.raises(BadInput, match="holds two entries of one name"):
        arrays(path)
