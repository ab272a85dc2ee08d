"""Keras's files: what they hold is made or given to a model only if all of it may be."""

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from waymark.checkpoints.external import read_parameters
from waymark.config.compose import compose_config
from waymark.data.sources import Dataset
from waymark.digest import digest
from waymark.errors import BadInput
from waymark.evaluation.restore import load_data, parameter_shapes
from waymark.keras_file import check_config, parse_config
from waymark.training.loop import Trainer
from waymark.training.runtime import start_tensorflow

from tests.support.processes import REPO

tf: Any = start_tensorflow(2)

import keras  # noqa: E402

from tests.support import keras_models  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")  # of Keras
SHAPE = (8, 8, 1)
FIXED = ["batch_size=8", "runtime.intra_op_threads=2", "seed=5"]


def config(*overrides: str) -> Any:
    return compose_config(["model=keras", *FIXED, *overrides]).config


def built(kind: str) -> str:
    return f"model.build=tests.support.keras_models.{kind}"


@pytest.fixture(scope="module")
def data(small: Path) -> Dataset:
    return load_data(compose_config(["data=arrays", f"data.path={small}"]).config)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a `.keras` file of a model that was compiled and trained for a step."""
    keras.utils.set_random_seed(3)
    model = keras_models.batch_norm(SHAPE, 10)
    model.compile("adamw", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.train_on_batch(np.ones((4, *SHAPE), np.float32), np.arange(4))
    folder = tmp_path_factory.mktemp("saved")
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    tf.train.Checkpoint(net=model, optimizer=model.optimizer).save(str(folder / "object"))
    np.savez(folder / "values.npz", *[v.numpy() for v in model.weights])
    return Path(folder / "model.keras")


def rewritten(file: Path, target: Path, edit: Callable[[dict[str, Any]], Any]) -> Path:
    """Write a `.keras` file again, with its config edited in place."""
    with zipfile.ZipFile(file) as before, zipfile.ZipFile(target, "w") as after:
        for name in before.namelist():
            content = before.read(name)
            if name == "config.json":
                body = json.loads(content)
                edit(body)
                content = json.dumps(body).encode()
            after.writestr(name, content)
    return target


def layer(name: str, module: str = "keras.layers", **settings: Any) -> dict[str, Any]:
    given = {"name": "evil", **settings}
    return {"module": module, "class_name": name, "config": given, "registered_name": None}


def function(name: str, module: str) -> dict[str, Any]:
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


MARSHALLED = {"class_name": "__lambda__", "config": {"code": "4wAA", "defaults": None}}
FORGED: dict[str, tuple[Any, str]] = {
    "Lambda": (layer("Lambda", function=MARSHALLED), "holds a"),
    "Lambda by its own module": (
        layer("Lambda", "keras.src.layers.core.lambda_layer", function="relu"),
        "holds a Lambda layer, which is code",
    ),
    "lambda": (MARSHALLED, "holds a lambda, which is code"),
    "os.system": (function("system", "os"), r"names os\.system, which is not part of Keras"),
    "a class of os": (layer("system", "os"), r"names os\.system"),
    "evaluated": (function("eval", "__builtin__"), "names __builtin__.eval"),
    "get_file": (function("get_file", "keras.utils"), "no part of a model"),
    "unsafe": (function("enable_unsafe_deserialization", "keras.config"), "no part of a model"),
    "load_model": (function("load_model", "keras.models"), "no part of a model"),
    "saving": (function("load_model", "keras.src.saving.saving_api"), "no part of a model"),
    "Python's own": (function("eval", "builtins"), "no part of a model"),
    "a class of callbacks": (layer("CSVLogger", "keras.callbacks"), "no part of a model"),
    "registered": (
        {**layer("Dense"), "registered_name": "mine>Evil"}, r"\(mine>Evil\), which is no part"
    ),
    "without a module": ({**layer("Evil"), "module": None}, "'Evil' without its module"),
    "no name": ({**layer("Evil"), "class_name": ["Evil"]}, "the place of a class"),
    "vocabulary": (layer("StringLookup", vocabulary="/etc/passwd"), "names another file"),
    "vocabulary from afar": (
        layer("TextVectorization", vocabulary="https://example.org/x"), "names another file"
    ),
    "SavedModel": (layer("TFSMLayer", filepath="/tmp/x"), r"a link to other|names another file"),
    "SavedModel's class": (layer("TFSMLayer"), "a link to other files"),
    "PyTorch": (layer("TorchModuleWrapper"), "a module of PyTorch"),
    "type": (
        {"class_name": "__typespec__", "spec_name": "x", "module": "os", "config": []},
        "holds a __typespec__",
    ),
    "own": (layer("Scaled", "my_layers"), r"if you trust its module, .*trusted_modules"),
    "a name that begins alike": (layer("Dense", "kerasx.layers"), "not part of Keras"),
}  # fmt: skip
PLACES: dict[str, Callable[[dict[str, Any], Any], Any]] = {
    "as a layer": lambda body, evil: body["config"]["layers"].append(evil),
    "as an activation": lambda body, evil: body["config"]["layers"][2]["config"].update(
        activation=evil
    ),
}


@pytest.mark.parametrize("what", FORGED)
def test_what_a_file_may_not_name(what: str, saved: Path, tmp_path: Path) -> None:
    evil, said = FORGED[what]
    for place in PLACES.values():
        path = rewritten(saved, tmp_path / "forged.keras", lambda body, put=place: put(body, evil))
        with pytest.raises(BadInput, match=said) as refused:
            config(f"model.file={path}")
        assert str(refused.value).startswith(f"model.file='{path}': ")
        assert "\n" not in str(refused.value)


def test_the_optimizer_in_a_file_is_not_made(saved: Path, tmp_path: Path, data: Dataset) -> None:
    evil = {"optimizer": function("system", "os"), "loss": MARSHALLED}
    path = rewritten(saved, tmp_path / "model.keras", lambda body: body.update(compile_config=evil))
    model = config(f"model.file={path}").model
    model.initial(data.spec, None)
    assert not model._model.compiled


BROKEN: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "text": (lambda whole: b"a model", "is not a .keras file"),
    "empty": (lambda whole: b"", "is not a .keras file"),
    "HDF5": (lambda whole: b"\x89HDF\r\n\x1a\n" + bytes(100), "is a HDF5 file"),
    "hidden behind text": (lambda whole: b"text" + whole, "is not a .keras file"),
    "cut": (lambda whole: whole[: len(whole) // 2], "is damaged"),
    "flipped": (lambda whole: whole.replace(b'"class_name"', b'"class_nbme"', 1), "is damaged"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_file_that_is_none(how: str, saved: Path, tmp_path: Path) -> None:
    spoil, said = BROKEN[how]
    path = tmp_path / "model.keras"
    path.write_bytes(spoil(saved.read_bytes()))
    with pytest.raises(BadInput, match=said):
        config(f"model.file={path}")


def test_an_archive_that_holds_what_keras_does_not_write(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    for name, content, said in (
        ("assets/layer/vocabulary.txt", b"a", "'assets/layer/vocabulary.txt' besides"),
        ("../evil", b"a", "'../evil' besides"),
    ):
        shutil.copy(saved, path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, content)
        with pytest.raises(BadInput, match=said):
            config(f"model.file={path}")
    shutil.copy(saved, path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("config.json", b"{}")
    with pytest.raises(BadInput, match="two entries of one name"):
        config(f"model.file={path}")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "[" * 100_000)
        archive.writestr("metadata.json", "{}")
    with pytest.raises(BadInput, match=r"holds no model\.weights\.h5"):
        config(f"model.file={path}")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model.weights.h5", b"")
    with pytest.raises(BadInput, match=r"its config\.json cannot be read"):
        config(f"model.file={path}")
    for folder in (tmp_path, tmp_path / "nowhere.keras"):
        with pytest.raises(BadInput, match=r"is a folder|no such file"):
            config(f"model.file={folder}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "model.build=None, model.file=None: give one"),
        (["model.file=x.keras", built("linear")], "give one of them"),
        (["model.file=x.keras", "+model.settings.width=3"], "a model.file takes none"),
        (["model.file=''"], "model.file=''"),
        (["model.file=3"], "model.file=3"),
    ],
)
def test_a_function_or_a_file(words: list[str], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        config(*words)


PROGRAM = """
import sys
from waymark.config.compose import compose_config
for path in sys.argv[1:]:
    try:
        compose_config(["model=keras", f"model.file={path}"])
    except Exception as error:
        print(type(error).__name__, error)
print(sorted(sys.modules.keys() & {"keras", "tensorflow", "my_layers", "h5py"}))
"""


def test_a_file_is_refused_before_anything_is_imported(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "my_layers.py").write_text("raise SystemExit(3)\n")
    put = PLACES["as a layer"]
    files = [
        rewritten(saved, tmp_path / f"{i}.keras", lambda body, evil=evil: put(body, evil))
        for i, evil in enumerate([FORGED["Lambda"][0], FORGED["own"][0]])
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, files)],
        cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(REPO / "pipeline")},
    )  # fmt: skip
    *lines, last = done.stdout.splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["BadInput"] * 2, done
    assert last == "[]"


OWN = """
import keras
from os import system


class Scaled(keras.layers.Layer):
    def call(self, x):
        return x * 2.0
"""


def test_classes_of_trusted_modules_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Dataset
) -> None:
    (tmp_path / "my_layers.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    import my_layers  # type: ignore[import-not-found]

    layers = keras.layers
    model = keras.Sequential(
        [keras.Input(SHAPE), layers.Flatten(), my_layers.Scaled(), layers.Dense(10)]
    )  # fmt: skip
    path = tmp_path / "model.keras"
    model.save(path)
    with pytest.raises(BadInput, match=r"names my_layers\.\w+, which is not part of Keras"):
        config(f"model.file={path}")
    trusting = config(f"model.file={path}", "trusted_modules=[my_layers]")
    given = trusting.model.initial(data.spec, None)
    kernel = next(value for name, value in given.items() if name.endswith("kernel"))
    np.testing.assert_array_equal(kernel, model.weights[0])
    assert trusting.model.modules == ["my_layers"]
    forged = rewritten(
        path,
        tmp_path / "forged.keras",
        lambda body: PLACES["as a layer"](body, function("system", "my_layers")),
    )
    with pytest.raises(BadInput, match=r"my_layers\.system is not a class of this module"):
        config(f"model.file={forged}", "trusted_modules=[my_layers]").model.initial(data.spec, None)


def test_what_others_registered_with_keras_is_not_made(
    saved: Path, tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(keras.saving.get_custom_objects(), "evil>run", exec)
    path = rewritten(
        saved, tmp_path / "f.keras", lambda body: PLACES["as an activation"](body, "evil>run")
    )
    with pytest.raises(BadInput, match="'evil>run', which is registered with Keras"):
        config(f"model.file={path}").model.initial(data.spec, None)


def test_a_file_brings_its_weights_and_the_seed_its_own_draws(saved: Path, data: Dataset) -> None:
    with np.load(saved.with_name("values.npz")) as archive:
        values = [archive[name] for name in archive.files]
    made = [config(f"model.file={saved}", f"seed={seed}").model for seed in (1, 2)]
    for seed, model in zip((1, 2), made, strict=True):
        model.initial(data.spec, None, seed=seed)
        for variable, value in zip(model._model.weights, values, strict=True):
            np.testing.assert_array_equal(variable, value)
    one, other = ([v.numpy() for v in m._model.variables if "seed" in v.path] for m in made)
    assert one and all(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_file_of_other_shapes_or_another_policy_is_refused(saved: Path, tmp_path: Path) -> None:
    from waymark.data.dataset import ImageSpec

    model = config(f"model.file={saved}").model
    with pytest.raises(BadInput, match=r"does not take features \[N, 9, 9, 1\]"):
        model.initial(ImageSpec((9, 9, 1), 10), None)
    with pytest.raises(BadInput, match="saved with Keras's policy float32; precision=mixed_bf"):
        model.initial(ImageSpec(SHAPE, 10), None, precision="mixed_bfloat16")


@pytest.mark.parametrize("form", ["model.keras", "model.weights.h5", "object-1"])
def test_weights_of_keras_and_of_checkpoints_are_matched_by_place(
    form: str, saved: Path, data: Dataset
) -> None:
    given = config(built("batch_norm"))
    shapes = parameter_shapes(given, data.spec)
    before = digest(dict(given.model.initial(data.spec, None)))
    path = saved.with_name(form)
    found = read_parameters(path, shapes, "init_from", model=given.model)
    with np.load(saved.with_name("values.npz")) as archive:
        wanted = sorted(digest({"": archive[name]}) for name in archive.files)
    assert sorted(digest({"": value}) for value in found.values()) == wanted
    model = keras_models.batch_norm(SHAPE, 10)
    for value, place in zip(found.values(), model.trainable_variables, strict=False):
        assert value.shape == place.shape
    assert digest(dict(given.model.initial(data.spec, None))) == before  # it is left as it was
    other = config(built("batch_norm"), "+model.settings.width=5")
    with pytest.raises(BadInput, match=r"init_from=.*(is \[|no entry fits|has no).*\[") as refused:
        read_parameters(
            saved.with_name(form),
            parameter_shapes(other, data.spec),
            "init_from",
            model=other.model,
        )
    assert "\n" not in str(refused.value)
    softmax = compose_config(["model=softmax"]).config
    with pytest.raises(BadInput, match="init_from="):
        read_parameters(
            saved.with_name(form), {"weights": (64, 10)}, "init_from", model=softmax.model
        )


def test_weights_files_that_are_refused(saved: Path, tmp_path: Path, data: Dataset) -> None:
    given = config(built("batch_norm"))
    shapes = parameter_shapes(given, data.spec)

    def refused(path: Path, said: str) -> None:
        with pytest.raises(BadInput, match=said) as error:
            read_parameters(path, shapes, "--checkpoint", model=given.model)
        assert "\n" not in str(error.value)

    whole = saved.with_name("model.weights.h5")
    linked = tmp_path / "linked.weights.h5"
    with h5py.File(whole) as file, h5py.File(linked, "w") as other:
        name = next(n for n in names_of(file) if n.endswith("vars/0"))
        for key in file:
            file.copy(key, other)
        del other[name]
        other[name] = h5py.ExternalLink(str(whole), name)
    refused(linked, f"it has no {name}")
    with h5py.File(linked, "a") as other:
        del other[name]
        layout = h5py.VirtualLayout((3, 3, 1, 4), "f4")
        layout[:] = h5py.VirtualSource(str(whole), name, (3, 3, 1, 4))
        other.create_virtual_dataset(name, layout)
    refused(linked, "link to another file")
    (tmp_path / "text.weights.h5").write_text("text")
    refused(tmp_path / "text.weights.h5", "is damaged")
    refused(tmp_path / "none.weights.h5", "no such file")
    shutil.copy(whole, tmp_path / "old.h5")
    refused(tmp_path / "old.h5", "older format")


def names_of(file: Any) -> list[str]:
    found: list[str] = []
    file.visit(found.append)
    return found


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[] if kind == "frozen" else pytest.mark.long)
        for kind in [*keras_models.KINDS, *keras_models.OTHERS]
    ],
)
def test_a_model_that_is_made_as_it_was_recorded_trains_to_the_same_bits(
    kind: str, data: Dataset
) -> None:
    """One of Keras's own classes: one with classes of the user's own is built by its function."""
    first = Trainer(given := config(built(kind)), data)
    text = given.model.architecture()
    assert (text is None) == (kind in ("own_layer", "own_seed", "add_loss"))
    if text is None:
        return
    assert text == given.model.architecture()
    again = config(built(kind))
    again.model.use_architecture(text, "recorded")
    again.model.build = "nowhere.function"  # which is not called
    second = Trainer(again, data)
    second.load(first.state())
    np.testing.assert_array_equal(first.run_steps(4), second.run_steps(4))
    assert digest(first.state()) == digest(second.state())
    assert again.model.architecture() == text
    assert keras.models.model_from_json(text.decode()).count_params()


def test_a_config_is_checked_without_keras() -> None:
    body = parse_config(b'{"class_name": "Sequential", "config": {}, "module": "keras"}', "it")
    assert check_config(body, [], "it") == []
    with pytest.raises(BadInput, match="it describes no model"):
        parse_config(b"[]", "it")
