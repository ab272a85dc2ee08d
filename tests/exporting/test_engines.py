"""What is exported computes what `evaluate` does, by real clients in processes of their own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waymark import api
from waymark.errors import BadInput
from waymark.files import replacing

from tests.support import engines
from tests.support.exported import KINDS, TRUST, Arrays, evaluated, trained, write_data
from tests.support.packages import link_packages

pytestmark = pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")  # of Keras
# The largest difference of a logit, relative to the largest logit; the page on exports says so.
BOUNDS = {"savedmodel": 0.0, "keras": 1e-5, "onnx": 1e-5, "tflite": 1e-5}
SHORT = [*(("softmax", engine) for engine in BOUNDS), ("gaps", "savedmodel")]
ALL = [
    pytest.param(kind, engine, marks=() if (kind, engine) in SHORT else pytest.mark.long)
    for kind in KINDS
    for engine in BOUNDS
]
Known = tuple[str, Arrays, Arrays, np.ndarray]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Any:
    """Return what trains a run of a kind, once, and tells what it computes."""
    folder = tmp_path_factory.mktemp("exported")
    shutil.copytree(empty_store, folder / "mlruns")
    write_data(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)

        @cache
        def known(kind: str) -> Known:
            key = trained(kind)
            return key, *evaluated(key)

        yield known


def by_a_client(engine: str, model: Path, given: Arrays, python: str = sys.executable) -> Arrays:
    """Return what another process computes, which knows nothing of Waymark."""
    files = [model.parent / name for name in ("given.npz", "found.npz")]
    np.savez(files[0], **given)  # type: ignore[arg-type]
    command = [python, "-I", engines.__file__, engine, str(model), *map(str, files), "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(files[1]) as archive:
        return dict(archive)


@pytest.mark.parametrize(("kind", "engine"), ALL)
def test_the_same_numbers(
    kind: str, engine: str, known: Callable[[str], Known], tmp_path: Path
) -> None:
    key, features, raw, logits = known(kind)
    model = api.export(key, tmp_path / "out", TRUST, target=engine)  # type: ignore[arg-type]
    assert [path.name for path in (tmp_path / "out").iterdir()] == [model.name]
    found = by_a_client(engine, model, raw if engine == "savedmodel" else features)
    outputs = found.get("logits", found.get("predictions"))
    assert outputs is not None
    bound = BOUNDS[engine] * np.abs(logits).max()
    assert np.abs(outputs - logits).max() <= bound
    if "classes" in found:
        highest = np.sort(logits, 1)
        apart = highest[:, -1] - highest[:, -2] > 2 * bound
        assert apart.any()
        np.testing.assert_array_equal(found["classes"][apart], logits.argmax(1)[apart])
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        np.testing.assert_allclose(found["probabilities"], shares, rtol=1e-3, atol=1e-5)
    if "labels" in found:
        apart = np.abs(logits) > bound
        np.testing.assert_array_equal(found["labels"][apart], (logits > 0)[apart])
    fewer = found.get("fewer logits", found.get("fewer predictions"))  # of another size of batch
    assert fewer is not None and np.abs(fewer - logits[:3]).max() <= 1e-5 * np.abs(logits).max()


def test_what_else_bears_the_name_stays(known: Callable[[str], Known], tmp_path: Path) -> None:
    key = known("softmax")[0]

    def refused(target: Any, folder: Path, file: Path) -> None:
        file.parent.mkdir(exist_ok=True)
        file.write_text("my own")
        with pytest.raises(BadInput, match=rf"--to={target}: \S+ is "):
            api.export(key, folder, target=target)
        assert file.read_text() == "my own"
        assert not [*folder.glob(".waymark-*")]

    refused("savedmodel", tmp_path, tmp_path / "savedmodel" / "thesis.txt")
    refused("onnx", tmp_path, tmp_path / "model.onnx" / "thesis.txt")
    out = tmp_path / "out"
    (out / "savedmodel").mkdir(parents=True)
    for _ in ("an empty folder", "a SavedModel"):
        model = api.export(key, out, target="savedmodel")
        assert (model / "saved_model.pb").exists()
    refused("savedmodel", out, model / "variables" / "thesis.txt")


def test_what_was_there_comes_back_if_a_signal_comes_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, real = tmp_path / "savedmodel", os.replace
    target.mkdir()
    (target / "old").write_text("")

    def replace(source: Path, to: Path) -> None:
        if (source.name, to) == ("savedmodel", target):
            raise KeyboardInterrupt
        real(source, to)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt), replacing(target) as made:
        made.mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["savedmodel", "old"]


def test_a_missing_package_is_asked_for(
    known: Callable[[str], Known], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("waymark.exporting.onnx.find_spec", lambda name: None)
    with pytest.raises(BadInput, match="needs onnx and tf2onnx, which pip install onnx tf2onnx"):
        api.export(known("softmax")[0], tmp_path / "out", TRUST, target="onnx")
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_operations_that_tflite_has_not_are_named(
    known: Callable[[str], Known], tmp_path: Path
) -> None:
    """They would need the Flex delegate, which a plain interpreter has not."""
    known("softmax")  # the folder of the data
    words = ["model=keras", "model.build=two_inputs.rare", "data=arrays", "data.path=numbers.npz"]
    words += ["task=regression", "steps=1", "batch_size=20", "progress=false"]
    key = api.run(*words, "runtime.intra_op_threads=2").run_id
    said = "--to=tflite: TFLite has none of the model's operations Erfinv; --to=savedmodel takes"
    with pytest.raises(BadInput, match=said):
        api.export(key, tmp_path / "out", TRUST, target="tflite")
    assert not [*(tmp_path / "out").iterdir()]
    model = api.export(key, tmp_path / "out", TRUST, target="savedmodel")
    with np.load("numbers.npz") as data:
        assert by_a_client("savedmodel", model, {"inputs": data["x_test"]})


@pytest.mark.long
def test_a_record_without_a_signature_is_exported_by_its_data(
    known: Callable[[str], Known], tmp_path: Path
) -> None:
    key = known("gaps")[0]
    before = api.export(key, tmp_path / "before", TRUST, target="savedmodel")
    (path,) = Path().glob(f"mlruns/artifacts/*/{key}/artifacts/signature.json")
    content = path.read_bytes()
    path.unlink()
    try:
        after = api.export(key, tmp_path / "after", TRUST, target="savedmodel")
    finally:
        path.write_bytes(content)
    raw = known("gaps")[2]
    found = [by_a_client("savedmodel", model, raw) for model in (before, after)]
    for name in found[0]:
        np.testing.assert_array_equal(found[1][name], found[0][name])


# What a client needs beside Python, and what that needs.
NEEDED = {"onnx": "onnxruntime", "tflite": "ai-edge-litert"}
# It is run without the folder of the installed packages (-S), but with one of links to a few.
ALONE = "import runpy, sys; sys.path.append(sys.argv[1]); sys.argv[:2] = []; "
ALONE += "runpy.run_path(sys.argv[0], run_name='__main__')"


@pytest.mark.long
@pytest.mark.parametrize("engine", NEEDED)
def test_a_client_has_no_tensorflow(
    engine: str, known: Callable[[str], Known], tmp_path: Path
) -> None:
    key, features, *_ = known("softmax")
    model = api.export(key, tmp_path, TRUST, target=engine)  # type: ignore[arg-type]
    expected = by_a_client(engine, model, features)
    (tmp_path / "packages").mkdir()
    link_packages(tmp_path / "packages", NEEDED[engine], "numpy")
    assert not (tmp_path / "packages" / "tensorflow").exists()
    files = [str(tmp_path / name) for name in ("given.npz", "alone.npz")]
    program = ["-I", "-S", "-c", ALONE, str(tmp_path / "packages"), engines.__file__]
    command = [sys.executable, *program, engine, str(model), *files, "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(files[1]) as archive:
        assert {*archive} == {*expected}
        for name in archive:
            np.testing.assert_array_equal(archive[name], expected[name])
