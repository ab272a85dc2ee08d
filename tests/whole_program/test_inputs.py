"""A model of two inputs as whole runs: with the bits of the same model on one array of both."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.types.schema import Schema
from waymark import api
from waymark.training import streaming

from tests.support.data import pictures, write_folder
from tests.support.ends import End, local_end
from tests.support.processes import THREADS, Main, Open, killed, readers

WORDS = ["steps=60", "save.every=20", "eval_every=20", "batch_size=10", THREADS, "progress=false"]
WORDS += ["data.validation=0.3", "optimizer=adam", "optimizer.learning_rate=0.02"]
TRUST = "trusted_modules=[two_inputs]"
MODELS = """
from math import prod

import tensorflow as tf
from waymark.config.schema import settings


@settings
class Two:
    def initial(self, spec, key):
        shapes = {name: prod(shape) for name, shape in spec.shape.items()}
        return first_values(shapes, spec.outputs, key)

    def logits(self, parameters, inputs, dropout):
        assert list(inputs) == ["image", "meta"]
        hidden = [
            tf.nn.relu(tf.reshape(x, [-1, prod(x.shape[1:])]) @ parameters[name])
            for name, x in inputs.items()
        ]
        return tf.concat(hidden, 1) @ parameters["outputs"]


@settings
class Joined(Two):
    '''The same of one array [N, 64 + 3].'''

    def initial(self, spec, key):
        return first_values({"image": 64, "meta": spec.shape[0] - 64}, spec.outputs, key)

    def logits(self, parameters, rows, dropout):
        return super().logits(parameters, {"image": rows[:, :64], "meta": rows[:, 64:]}, dropout)


def first_values(shapes, outputs, key):
    sizes = {**{name: (size, 8) for name, size in shapes.items()}, "outputs": (16, outputs)}
    return {
        name: tf.random.stateless_truncated_normal(size, key(i), stddev=0.3, alg="philox")
        for i, (name, size) in enumerate(sizes.items())
    }
"""


def arrays() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return pictures with numbers of their own as two inputs, and as one array of floats."""
    two, one = {}, {}
    found, draw = pictures(200, 60), np.random.default_rng(6)
    for part in ("train", "test"):
        image, labels = found[f"x_{part}"], found[f"y_{part}"]
        meta = draw.normal(size=(len(labels), 3)) + labels[:, None]
        two |= {f"x_{part}.image": image, f"x_{part}.meta": meta, f"y_{part}": labels}
        flat = image.reshape(len(image), -1).astype(np.float32) / np.float32(255)
        both = np.concatenate([flat, meta.astype(np.float32)], axis=1)
        one |= {f"x_{part}": both, f"y_{part}": labels}
    return two, one


@pytest.fixture
def words(place: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Return how the two inputs are named as an npz and as a folder; chunks are small."""
    two, one = arrays()
    np.savez(place / "two.npz", **two)
    np.savez(place / "one.npz", **one)
    write_folder(place / "two", two)
    (place / "two_inputs.py").write_text(MODELS)
    monkeypatch.syspath_prepend(place)
    monkeypatch.setattr(streaming, "CHUNK_BYTES", 5 * 10 * (64 + 3 * 4))  # five batches
    model = ["data=arrays", "model._target_=two_inputs.Two", "~model.init_stddev"]
    found = {kind: [*model, f"data.path={place}/{kind}"] for kind in ("two.npz", "two")}
    one_input = model[1].replace("Two", "Joined")
    return {**found, "one": ["data=arrays", one_input, model[2], f"data.path={place}/one.npz"]}


@pytest.fixture
def known(place: Path, words: dict[str, list[str]]) -> Callable[[str], End]:
    """Return what trains on the one array; it tells how that ended, but for the names of files."""

    def known(save: str) -> End:
        run_id = api.run(*words["one"], *WORDS, f"save={save}").run_id
        return replace(local_end(place, run_id), files=[])

    return known


@pytest.mark.parametrize(
    ("kind", "save"), [("two.npz", "ckpt"), pytest.param("two", "npz", marks=pytest.mark.long)]
)
def test_a_run_has_the_bits_of_one_array_whatever_happens_to_it(
    place: Path, main: Main, client: Open, words: dict[str, list[str]],
    known: Callable[[str], End], kind: str, save: str,
) -> None:  # fmt: skip
    end, all_words = known(save), [*words[kind], *WORDS, f"save={save}"]
    assert end.points["restored/accuracy"][0][1] > 0.5  # it learns
    done = main("run", *all_words)
    assert (done.returncode, done.stderr) == (0, "")
    whole = done.stdout.split()[1]
    assert "60 test examples; image divided by 255, meta float32 as it is" in done.stdout
    begun = killed(40, *all_words)
    other = f"data.path={place}/{'two' if kind == 'two.npz' else 'two.npz'}"
    done = main("resume", begun, TRUST, other)  # the same data, in memory or not
    assert (done.returncode, done.stderr) == (0, "")
    for run_id in (whole, begun):
        found = local_end(place, run_id)
        assert not replace(found, files=[]).unlike(end)
        assert not [name for name in found.files if name.endswith(".meta")]
    done = main("rerun", whole, TRUST)
    assert done.returncode == 0 and "identical" in done.stdout
    done = main("evaluate", begun, TRUST)
    assert done.returncode == 0
    assert f"accuracy {end.points['restored/accuracy'][0][1]:.4f}, " in done.stdout
    done = main("evaluate", begun, TRUST, "--from", "meta")
    assert done.returncode == 2
    assert done.stderr == (
        "waymark: --from meta: a graph takes one input, and this data has image and meta.\n"
    )
    (dataset,) = client(place).get_run(whole).inputs.dataset_inputs
    schema = json.loads(dataset.dataset.schema)["mlflow_tensorspec"]
    features = Schema.from_json(schema["features"])
    assert [(each.name, each.shape) for each in features.inputs] == [
        ("image", (-1, 8, 8, 1)), ("meta", (-1, 3)),
    ]  # fmt: skip
    assert json.loads(dataset.dataset.profile)["x_val.meta"] == [60, 3]
    assert not readers()


@pytest.mark.long
def test_a_sweep_trains_on_them(place: Path, main: Main, words: dict[str, list[str]]) -> None:
    done = main("run", "-m", *words["two"], *WORDS, "steps=10", "save=npz", "seed=0,1")
    assert done.returncode == 0, done.stderr
    ends = [
        json.loads(path.read_text())["digest"]
        for path in place.glob("mlruns/artifacts/*/*/artifacts/checkpoints/*-10.json")
    ]
    assert len(set(ends)) == 2


def test_what_would_be_read_is_shown_by_input(
    place: Path, main: Main, words: dict[str, list[str]]
) -> None:
    two, _ = arrays()
    two["x_test.image"][:9], two["x_test.meta"][:9] = two["x_train.image"][:9], 0.0
    two["x_test.image"][9:12] = two["x_train.image"][9:12]
    two["x_test.meta"][9:12] = two["x_train.meta"][9:12]  # these examples alone are the same
    np.savez(place / "two.npz", **two)
    asked = ["data", "data=arrays", words["two.npz"][-1]]
    found: dict[str, Any] = json.loads(main(*asked, "--json").stdout)["parts"]["test"]
    assert found["shape"] == {"image": [8, 8, 1], "meta": [3]} and found["in_train"] == 3
    assert found["dtype"] == {"image": "uint8", "meta": "float32"}
    for end in ("lowest", "highest"):
        of = np.min if end == "lowest" else np.max
        values = {name: float(of(two[f"x_test.{name}"].astype("f4"))) for name in found[end]}
        assert found[end] == values
    text = main(*asked).stdout
    lines = [line.split()[:2] for line in text.splitlines() if line.startswith("t")]
    assert lines == [["train.image", "200"], ["train.meta", "200"],
                     ["test.image", "60"], ["test.meta", "60"]]  # fmt: skip
    done = main(*asked, "--pictures", "sheet.png")
    assert done.returncode == 2 and "has several inputs; drawn are pictures, of" in done.stderr


@pytest.mark.parametrize("model", ["softmax", "linear", "cnn"])
def test_models_of_one_input_refuse_them(
    place: Path, main: Main, words: dict[str, list[str]], model: str
) -> None:
    done = main("run", f"model={model}", "data=arrays", words["two"][-1])
    assert done.returncode == 2
    assert not list(place.glob("mlruns/artifacts/*/*"))
    assert f"model={model} takes one input, and this data has image and meta;" in done.stderr
