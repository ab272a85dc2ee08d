"""Keras models: the same bits however they are trained, Keras's own numbers, what is refused."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waymark.checkpoints import State
from waymark.config.compose import compose_config
from waymark.data.dataset import ImageSpec, from_arrays
from waymark.data.sources import Dataset, batch_indices
from waymark.digest import digest
from waymark.errors import BadInput
from waymark.evaluation.restore import load_data, score_state
from waymark.models import WrongOutputs
from waymark.training.loop import Trainer, compilation_key, reuse_or_compile
from waymark.training.runtime import start_tensorflow

from tests.support.processes import REPO

tf: Any = start_tensorflow(2)

import keras  # noqa: E402

from tests.support import keras_models  # noqa: E402

STEPS, CUT = 6, 2


def config(kind: str, *overrides: str) -> Any:
    build = f"model.build=tests.support.keras_models.{kind}"
    fixed = ["model=keras", build, "batch_size=8", "runtime.intra_op_threads=2", "seed=5"]
    return compose_config([*fixed, *overrides]).config


@pytest.fixture(scope="module")
def data(small: Path) -> Dataset:
    return load_data(compose_config(["data=arrays", f"data.path={small}"]).config)


def written_and_read(state: State, save: str, folder: Path) -> State:
    form = config("linear", f"save={save}").save
    form.write(folder / "state-2", state)
    return form.read(folder / "state-2")


def in_pieces(data: Dataset, folder: Path, save: str, kind: str, *overrides: str) -> Trainer:
    """Train in one piece and in two; check that both are the same; return the trainer."""
    one = Trainer(config(kind, *overrides), data)
    first, losses = one.state(), one.run_steps(STEPS)
    whole = one.state()
    keras.layers.Dense(3)  # what was built before counts for nothing
    other = Trainer(config(kind, *overrides), data)
    assert digest(other.state()) == digest(first)
    pieces = [other.run_steps(CUT)]
    one.load(written_and_read(other.state(), save, folder))
    pieces.append(one.run_steps(STEPS - CUT))
    np.testing.assert_array_equal(np.concatenate(pieces), losses)
    assert digest(one.state()) == digest(whole)
    assert np.isfinite(losses).all()
    return one


@pytest.mark.parametrize(
    ("kind", "save"),
    [
        ("batch_norm", "ckpt"),  # six more in tests/whole_program/test_keras_kinds.py
        *(
            pytest.param(kind, ("npz", "ckpt")[i % 2], marks=pytest.mark.long)
            for i, kind in enumerate(keras_models.KINDS[1:])
        ),
        *(
            pytest.param(kind, save, marks=pytest.mark.long)
            for kind in keras_models.OTHERS
            for save in ("ckpt", "npz")
        ),
    ],
)
def test_cut_and_continued_in_a_new_model_to_the_same_bits(
    kind: str, save: str, data: Dataset, tmp_path: Path
) -> None:
    trainer = in_pieces(data, tmp_path, save, kind)
    fresh = score_state(config(kind), data, trainer.state())
    assert fresh.metrics == trainer.score().metrics  # a set for tests, no validation set


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["adamw", "lion", "rmsprop", "keras_sgd", "sgd"])
def test_the_same_bits_in_bfloat16_with_any_optimizer(
    optimizer: str, data: Dataset, tmp_path: Path
) -> None:
    how = ["precision=mixed_bfloat16", f"optimizer={optimizer}", "task.label_smoothing=0.1"]
    trainer = in_pieces(data, tmp_path, "npz", "batch_norm", *how)
    assert {v.dtype for v in trainer.parameters.values()} == {tf.float32}


def test_the_numbers_are_those_of_train_on_batch(data: Dataset) -> None:
    """With dropout, augmentation, batch normalisation and a regularizer: the seeds are Keras's."""
    how = ["optimizer=adamw", "optimizer.clipnorm=0.5", "optimizer.weight_decay=0.01"]
    given = config("batch_norm", *how)
    trainer = Trainer(given, data)
    first = trainer.state()
    keras.utils.set_random_seed(5)
    model = keras_models.batch_norm(data.spec.shape, data.spec.outputs)
    assert all(
        np.array_equal(variable, first[name])
        for variable, name in zip(model.trainable_variables, trainer.parameters, strict=True)
    )
    optimizer = keras.optimizers.AdamW(1e-3, weight_decay=0.01, clipnorm=0.5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, jit_compile=False)
    pixels, found = data.x_train.astype(np.float32) / np.float32(255), []
    for step in range(1, 31):
        picked = batch_indices("replacement", 5, tf.constant(step, tf.int64), 8, len(pixels))
        model.reset_metrics()
        found.append(float(model.train_on_batch(pixels[picked], data.y_train[picked])))
    np.testing.assert_allclose(trainer.run_steps(30), found, rtol=2e-5)
    state = trainer.state()
    kept = [name for name in trainer.shapes if name not in trainer.parameters]
    assert any(name.endswith("moving_mean") for name in kept)
    theirs = {v.path.rpartition("/")[2]: v for v in model.non_trainable_variables}
    for name in kept:
        mine = state[name]
        np.testing.assert_allclose(mine, theirs[name.rpartition("/")[2]], rtol=1e-4, atol=1e-6)
    for variable, name in zip(model.trainable_variables, trainer.parameters, strict=True):
        np.testing.assert_allclose(state[name], variable, rtol=1e-3, atol=2e-5)
    slots = [name for name in state if name.startswith("adamw/")]
    assert len(slots) == len(optimizer.variables)


def test_a_frozen_layer_stays_and_a_constraint_holds(data: Dataset) -> None:
    trainer = Trainer(config("frozen"), data)
    (name,) = [name for name in trainer.shapes if name.endswith("first/kernel")]
    assert name not in trainer.parameters
    before = trainer.state()
    trainer.run_steps(5)
    after = trainer.state()
    np.testing.assert_array_equal(before[name], after[name])
    bound = Trainer(config("regularised", "optimizer=sgd", "optimizer.learning_rate=5.0"), data)
    bound.run_steps(5)
    kernel = bound.state()[list(bound.parameters)[-2]]
    assert kernel.shape == (8, 10)
    assert np.linalg.norm(kernel, axis=0).max() < 2 + 1e-5  # Keras's MaxNorm


def test_the_probabilities_of_a_model_are_trained_as_the_logits_are(data: Dataset) -> None:
    """A model that ends in a softmax is recognised: its loss is computed from the logits."""
    logits, softmax = (Trainer(config(kind), data) for kind in ("linear", "softmax"))
    np.testing.assert_array_equal(logits.run_steps(9), softmax.run_steps(9))
    assert logits.score().metrics == softmax.score().metrics
    clipped = Trainer(config("sigmoid", "model.from_logits=false"), data)
    assert np.isfinite(clipped.run_steps(3)).all()
    as_they_are = Trainer(config("softmax", "model.from_logits=true"), data)
    assert as_they_are.run_steps(1)[0] == pytest.approx(np.log(10), abs=0.1)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_probabilities_that_no_softmax_ends_in_are_asked_for(precision: str, data: Dataset) -> None:
    def check(kind: str, *how: str) -> None:
        given = config(kind, *how, f"precision={precision}")
        given.model.check_logits(given.task, data, given.seed, precision)

    ensemble = "model.build=tests.support.keras_refused.mean_of_softmaxes"
    with pytest.raises(BadInput, match=r"sum to 1, .*; model\.from_logits=false if") as refused:
        check("linear", ensemble)
    assert "\n" not in str(refused.value)
    for kind in ("linear", "softmax", "batch_norm"):
        check(kind)
    for told in ("true", "false"):
        check("linear", ensemble, f"model.from_logits={told}")


def test_the_generators_of_the_caller_are_left_as_they_were(data: Dataset) -> None:
    def draw() -> list[Any]:
        return [random.random(), np.random.rand(), float(tf.random.normal([]))]

    def begin() -> None:
        random.seed(1)
        np.random.seed(1)
        tf.random.set_seed(1)
        draw()

    name = keras.layers.Dense(3).name  # whose initializer draws
    begin()
    expected = draw()
    begin()
    config("batch_norm").model.initial(data.spec, lambda i: None)
    assert draw() == expected
    number = int((name.partition("_")[2]) or 0)
    assert keras.layers.Dense(3).name == f"dense_{number + 1}"
    assert keras.config.dtype_policy().name == "float32"


REFUSED = {
    "own_step": r"OwnStep has its own train_step\(\).*keras_models.py, line",
    "calls_python": r"calls Python while it computes \(EagerPyFunc in .*/python",
    "draws": r"draws by a generator of TensorFlow's \(RandomStandardNormal in .*/drawing",
    "counts": r"uses the variable '.*of_all.*', whose value is in no checkpoint",
    "own_policy": r"sets Keras's policy, .* to mixed_float16; precision=float32",
    "eager_only": r"its model cannot be compiled: .*keras_models.py, line",
    "few_outputs": r"the data have labels up to 9, but the model has 9 outputs",
    "two_outputs": r"returns a list of 2; a task takes one tensor",
    "two_inputs": r"does not take features \[N, 8, 8, 1\]",
    "one_path": r"two variables of its model are called 'twins/same/kernel'",
    "raises": r"RuntimeError: the weights are elsewhere.*keras_models.py, line",
    "no_model": r"returns a list of 2, not a keras.Model",
    "nothing_trained": r"has no variable that is trained",
    "rescaling": r"data.scale=auto: .*holds the layer rescaling",
    "sigmoid": r"the model ends in a sigmoid, and task=classification in a softmax",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_keep_the_promises_is_refused(kind: str, data: Dataset) -> None:
    with pytest.raises((BadInput, WrongOutputs), match=REFUSED[kind]) as refused:
        Trainer(config(kind), data)
    assert "\n" not in str(refused.value)


def test_a_trainer_of_a_sweep_begins_each_trial_as_one_alone_does(data: Dataset) -> None:
    def trained(seed: int, alone: bool) -> tuple[str, Trainer]:
        how = ["model=mlp", "model.settings={hidden: [5], dropout: 0.5, batch_norm: true}"]
        rate = f"optimizer.learning_rate={0.01 * (seed + 1)}"
        fixed = ["runtime.intra_op_threads=2", "batch_size=8", "optimizer=adamw", f"seed={seed}"]
        given = compose_config([*how, *fixed, rate]).config
        if alone:
            trainer = Trainer(given, data)
            trainer.run_steps(3)
            return digest(trainer.state()), trainer
        with reuse_or_compile(given, data) as trainer:
            trainer.run_steps(3)
            return digest(trainer.state()), trainer

    (first, one), (second, same) = trained(0, alone=False), trained(1, alone=False)
    assert one is same
    assert first != second == trained(1, alone=True)[0]
    given = config("linear")
    assert compilation_key(given, data) is None  # a user's function may depend on anything


def test_the_ready_made_residual_network() -> None:
    from waymark.models.resnet import build

    model = build((32, 32, 3), 10)  # He and others tell 0.27 million parameters
    layers = [each for each in model.layers if each.__class__.__name__ in ("Conv2D", "Dense")]
    shortcuts = [each for each in layers if getattr(each, "kernel_size", None) == (1, 1)]
    assert (len(layers) - len(shortcuts), len(shortcuts)) == (20, 2)
    assert 270_000 < sum(np.prod(v.shape) for v in model.trainable_variables) < 275_000
    for settings, said in (("depth=21", "depth=21: must be"), ("width=0", "")):
        given = compose_config(["model=resnet", f"model.settings.{settings}"]).config
        with pytest.raises(
            BadInput, match=rf"^model.build='waymark.models.resnet.build': .*{said}"
        ):
            given.model.initial(ImageSpec((8, 8, 1), 10), lambda i: None)


def test_a_sigmoid_of_several_labels_is_trained_as_its_logits(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, (40, 3), np.uint8)
    features = (labels @ draw.normal(size=(3, 6))).astype(np.float32)
    np.savez(tmp_path / "labels.npz", x_train=features, y_train=labels)
    how = ["data=arrays", f"data.path={tmp_path / 'labels.npz'}", "task=multilabel"]
    given = [config(kind, *how) for kind in ("linear", "sigmoid")]
    read = load_data(given[0])
    losses = [Trainer(each, read).run_steps(5) for each in given]
    np.testing.assert_array_equal(*losses)
    with pytest.raises(BadInput, match="ends in a softmax, and task=multilabel in a sigmoid"):
        Trainer(config("softmax", *how), read)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.build=tests.support.keras_models.nothing"], "cannot be loaded: .*nothing"),
        (["model.build=nowhere.model"], "cannot be loaded: ModuleNotFoundError"),
        (["model.build=model"], "must be the dotted name of a function"),
        (["+model.settings.widht=3"], "it takes no widht; the nearest is width"),
        (["+model.settings.outputs=3"], "outputs is not a setting"),
        (["model.build=math.pi"], "is not a function"),
    ],
)
def test_a_function_and_its_settings_are_checked_before_data_are_read(
    overrides: list[str], said: str
) -> None:
    with pytest.raises(BadInput, match=said) as refused:
        config("batch_norm", *overrides)
    assert str(refused.value).startswith("model.build=")


PROGRAM = """
import sys
from waymark.config.compose import compose_config
for build, key in (("batch_norm", "width"), ("batch_norm", "widht"), ("nothing", "width")):
    try:
        compose_config(["model=keras", f"model.build=tests.support.keras_models.{build}",
                        f"+model.settings.{key}=2"])
    except Exception as error:
        print(error)
print(sorted(sys.modules.keys() & {"keras", "tensorflow", "tests.support.keras_models"}))
"""


def test_the_source_tells_the_arguments_without_an_import() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=REPO, capture_output=True, text=True, check=True
    )
    first, second, last = done.stdout.splitlines()
    assert "it takes no widht" in first
    assert "keras_models.py has no nothing" in second
    assert last == "[]"


def test_several_inputs_are_a_mapping_to_it(data: Dataset) -> None:
    def two(part: str) -> Any:
        pixels, labels = data.examples(part)
        return {f"x_{part}.image": pixels, f"x_{part}.row": pixels[:, 3, :, 0], f"y_{part}": labels}

    both = from_arrays("two", "test", {**two("train"), **two("test")})
    trainer = Trainer(config("named_inputs", "optimizer.learning_rate=0.1"), both)
    before = trainer.score().metrics["loss"]
    losses = trainer.run_steps(60)
    assert np.isfinite(losses).all() and trainer.score().metrics["loss"] < before
    with pytest.raises(BadInput, match=r"not take features image \[N, 8, 8, 1\], row \[N, 8\]: "):
        Trainer(config("one_of_two", "optimizer.learning_rate=0.1"), both)
