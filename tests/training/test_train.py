"""Training: TensorFlow 1's numbers, the same bits in any pieces, the law of the loop's order."""

import inspect
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from waymark.checkpoints import State
from waymark.config.compose import compose_config
from waymark.data.sources import Dataset, batch_indices
from waymark.digest import digest
from waymark.training import loop as module
from waymark.training import steps as steps_module
from waymark.training.loop import (
    Diverged,
    DoesNotFit,
    Trainer,
    _steps_until,
    due,
    initial_state,
    train,
)
from waymark.training.runtime import start_tensorflow
from waymark.training.score import Score

from tests.support.data import pictures
from tests.support.processes import REPO
from tests.support.tutorial import tutorial_cnn

tf: Any = start_tensorflow(2)
v1: Any = tf.compat.v1

DROPOUT = ["model=cnn", "model.keep_prob=0.5"]
VARIANTS = {
    "softmax": [],
    "sgd": ["optimizer=sgd"],
    "epoch": ["data.sampling=epoch"],
    "bfloat16": ["precision=mixed_bfloat16"],
    "cnn": ["model=cnn"],
    "dropout": DROPOUT,
    "all": [*DROPOUT, "optimizer=sgd", "data.sampling=epoch", "precision=mixed_bfloat16"],
}
variants = pytest.mark.parametrize("variant", VARIANTS)


def config(*overrides: str) -> Any:
    fixed = ["batch_size=10", "runtime.intra_op_threads=2", "seed=11"]
    return compose_config([*fixed, *overrides]).config


@cache
def dataset(size: int = 8, count: int = 37) -> Dataset:
    """Return noisy pictures of ten things; `count` is no multiple of the batch size."""
    arrays = pictures(count, count, size)
    images = {name: arrays[name][..., np.newaxis] for name in ("x_train", "x_test")}
    labels = {name: arrays[name].astype(np.int32) for name in ("y_train", "y_test")}
    return Dataset("things", "memory", **images, **labels)


@cache
def prepared(variant: str) -> tuple[Trainer, State, np.ndarray, State]:
    """Return a trainer, its first state, the losses of one call of some steps, its last state."""
    fresh = Trainer(config(*VARIANTS[variant]), dataset())
    first, losses = fresh.state(), fresh.run_steps(steps_of(variant))
    return fresh, first, losses, fresh.state()


def trainer(variant: str) -> Trainer:
    return prepared(variant)[0]


def in_one_piece(variant: str) -> tuple[State, np.ndarray, State]:
    return prepared(variant)[1:]


def steps_of(variant: str) -> int:
    return 5 if "model=cnn" in VARIANTS[variant] else 14


def same(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    return digest(one) == digest(other)


# Against TensorFlow 1


def tensorflow_1(
    given: Any, first: State, logits: Callable[[Any, list[Any]], Any], steps: int
) -> tuple[np.ndarray, State]:
    """Train as the TF1 tutorial does, with placeholders and a feed; return losses and variables."""
    data = dataset()
    pixels = data.x_train.reshape(len(data.x_train), -1).astype(np.float32) / np.float32(255)
    onehot = np.eye(10, dtype=np.float32)[data.y_train]
    names = initial_state(given, data.spec)[1]
    batches = [
        batch_indices(given.data.sampling, given.seed, at, given.batch_size, len(pixels)).numpy()
        for at in tf.range(1, steps + 1, dtype=tf.int64)
    ]
    losses = []
    with tf.Graph().as_default(), v1.Session() as session:
        inputs = v1.placeholder(tf.float32, [None, pixels.shape[1]], name="inputs")
        labels = v1.placeholder(tf.float32, [None, 10], name="labels")
        scores = logits(inputs, [v1.Variable(first[name], name=name) for name in names])
        entropy = v1.nn.softmax_cross_entropy_with_logits_v2(labels=labels, logits=scores)
        loss = tf.reduce_mean(entropy)
        step = v1.train.AdamOptimizer(given.optimizer.learning_rate).minimize(loss)
        session.run(v1.global_variables_initializer())
        for picked in batches:
            feed = {inputs: pixels[picked], labels: onehot[picked]}
            losses.append(session.run([loss, step], feed)[0])
        everything = {variable.op.name: variable for variable in v1.global_variables()}
        return np.array(losses), session.run(everything)


def tutorial_softmax(inputs: Any, w: list[Any]) -> Any:
    return tf.matmul(inputs, w[0])


def cnn(inputs: Any, w: list[Any]) -> Any:
    return tutorial_cnn(tf.reshape(inputs, [-1, 8, 8, 1]), w)


@pytest.mark.parametrize(
    ("overrides", "logits", "steps"),
    [
        ([], tutorial_softmax, 20),
        (["data.sampling=epoch", "seed=9223372036854775807"], tutorial_softmax, 20),
        (["model=cnn"], cnn, 5),
    ],
    ids=["softmax", "softmax by epochs", "cnn"],
)
def test_training_is_the_tutorials(overrides: list[str], logits: Any, steps: int) -> None:
    given = config(*overrides)
    ours = Trainer(given, dataset())
    first = ours.state()
    losses = ours.run_steps(steps)
    expected, variables = tensorflow_1(given, first, logits, steps)
    np.testing.assert_allclose(losses, expected, rtol=2e-6)
    state = ours.state()
    assert set(state) - {"step"} == set(variables)
    assert (state["step"].dtype, int(state["step"])) == (np.int64, steps)
    for name, value in variables.items():
        np.testing.assert_allclose(state[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
        if "/" not in name and "power" not in name:
            assert not np.array_equal(value, first[name])


def test_a_models_own_class_needs_two_methods() -> None:
    """Train a user's class; a parameter that the loss does not depend on stays as it is."""

    class Mine:
        def initial(self, spec: Any, key: Any) -> Any:
            return {"b": tf.zeros([10]), "a": tf.ones([64, 10]), "unused": tf.ones([3])}

        def logits(self, parameters: Any, images: Any, dropout: Any) -> Any:
            return tf.reshape(images, [-1, 64]) @ parameters["a"] + parameters["b"]

    ours = Trainer(replace(config(), model=Mine()), dataset())
    losses = ours.run_steps(30)
    assert losses[-1] < losses[0]
    state = ours.state()
    assert np.array_equal(state["unused"], np.ones(3, np.float32))
    assert list(ours.shapes) == ["b", "a", "unused"]


class Descent:
    """A user's own optimizer: gradient descent."""

    learning_rate = -0.25

    def slots(self, parameters: Any) -> Any:
        return {}

    def apply(self, parameters: Any, slots: Any, gradients: Any, learning_rate: Any) -> None:
        for name, variable in parameters.items():
            variable.assign_add(learning_rate * gradients[name])


class OfThreeArguments(Descent):
    learning_rate: Any = "read by nobody"

    def apply(self, parameters: Any, slots: Any, gradients: Any) -> None:  # type: ignore[override]
        super().apply(parameters, slots, gradients, tf.constant(-0.25))


@pytest.mark.parametrize("optimizer", [Descent(), OfThreeArguments()])
def test_a_users_optimizer_takes_the_learning_rate_or_does_not(optimizer: Any) -> None:
    plain = config("optimizer=sgd", "optimizer.momentum=0", "optimizer.learning_rate=0.25")
    ours = Trainer(replace(plain, optimizer=optimizer), dataset())
    assert np.array_equal(ours.run_steps(9), Trainer(plain, dataset()).run_steps(9))


# One state: the same bits in any pieces


@variants
def test_two_machines_are_alike(variant: str) -> None:
    first, losses, last = in_one_piece(variant)
    again = Trainer(config(*VARIANTS[variant]), dataset())
    assert same(again.state(), first)
    assert np.array_equal(again.run_steps(len(losses)), losses)
    assert same(again.state(), last)
    assert len(set(losses.tolist())) == len(losses)


@variants
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_pieces_make_no_difference(variant: str, data: Any) -> None:
    first, losses, last = in_one_piece(variant)
    ours = trainer(variant)
    ours.load(first)
    parts, left = [], len(losses)
    while left:
        size = data.draw(st.integers(1, left))
        state, left = ours.state(), left - size
        if data.draw(st.booleans()):  # leave, do something else, and come back
            ours.run_steps(1)
            ours.score()
            ours.load(state)
        parts.append(ours.run_steps(size))
        assert ours.step == len(losses) - left
    assert np.array_equal(np.concatenate(parts), losses)
    assert same(ours.state(), last)


@pytest.mark.parametrize(
    ("variant", "save"), [(name, ("npz", "ckpt")[i % 2]) for i, name in enumerate(VARIANTS)]
)
def test_saving_and_loading_in_between_makes_no_difference(
    variant: str, save: str, tmp_path: Path
) -> None:
    first, losses, last = in_one_piece(variant)
    given = config(*VARIANTS[variant], f"save={save}")
    ours = trainer(variant)
    ours.load(first)
    ours.run_steps(2)
    given.save.write(tmp_path / "file-2", ours.state())
    fresh = Trainer(given, dataset())
    fresh.load(given.save.read(tmp_path / "file-2"))
    assert np.array_equal(fresh.run_steps(len(losses) - 2), losses[2:])
    assert same(fresh.state(), last)


@variants
def test_the_state_is_float32_and_a_step(variant: str) -> None:
    first, losses, last = in_one_piece(variant)
    assert losses.dtype == np.float32
    for state in (first, last):
        kinds = {name: value.dtype.name for name, value in state.items()}
        assert kinds.pop("step") == "int64"
        assert set(kinds.values()) == {"float32"}
        assert all(np.isfinite(value).all() for value in state.values())


def test_a_copy_of_the_state_does_not_move_with_the_machine() -> None:
    ours = trainer("softmax")
    state = ours.state()
    before = digest(state)
    ours.run_steps(1)
    assert digest(state) == before != digest(ours.state())
    state["weights"][:] = 0
    assert ours.state()["weights"].any()


@pytest.mark.parametrize("changed", ["seed=12", "seed=4294967307", "data.sampling=epoch",
                                     "batch_size=11", "precision=mixed_bfloat16"])  # fmt: skip
def test_what_decides_a_step_changes_it(changed: str) -> None:
    other = Trainer(config(changed), dataset())
    other.run_steps(steps_of("softmax"))
    assert not same(other.state(), in_one_piece("softmax")[2])


def test_dropout_is_in_training_only() -> None:
    first, losses, _ = in_one_piece("dropout")
    without = in_one_piece("cnn")
    assert np.array_equal(first["weights"], without[0]["weights"])
    assert losses[0] != without[1][0]
    ours, plain = trainer("dropout"), trainer("cnn")
    ours.load(first)
    plain.load(first)
    assert ours.score().metrics == plain.score().metrics


def test_the_mask_moves_with_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train on one and the same batch at a rate of nothing: only the mask can change the loss."""
    monkeypatch.setattr(steps_module, "batch_indices", lambda *_: tf.range(37, dtype=tf.int64))
    given = config(*DROPOUT)
    given = replace(given, optimizer=replace(given.optimizer, learning_rate=1e-30))
    losses = [Trainer(given, dataset()).run_steps(4)]
    plain = replace(given, model=replace(given.model, keep_prob=1.0))
    losses.append(Trainer(plain, dataset()).run_steps(4))
    assert [len(set(values.tolist())) for values in losses] == [4, 1]


def results(path: str) -> list[str]:
    """Train on the arrays in a file; return what must be the same wherever this runs."""
    found = []
    for overrides, steps in (([], 30), (["model=cnn", "model.keep_prob=0.5"], 2)):
        arguments = ["data=arrays", f"data.path={path}", "seed=7", "batch_size=64", *overrides]
        given = compose_config(arguments).config
        ours = Trainer(given, given.data.load())
        losses = ours.run_steps(steps)
        found.append(f"{digest({**ours.state(), 'losses': losses})} {ours.score().metrics!r}")
    return found


PROGRAM = f"""
import sys
from waymark.config.compose import compose_config
from waymark.digest import digest
from waymark.training.runtime import start_tensorflow
from waymark.training.loop import Trainer
{inspect.getsource(results)}
start_tensorflow(2)
print(*results(sys.argv[1]), sep="\\n")
"""


@pytest.mark.long
def test_processes_and_cores_make_no_difference(tmp_path: Path) -> None:
    """Run the same here and in a new process, confined to one core; with two threads each."""
    data, path = dataset(28, 200), str(tmp_path / "things.npz")
    names = ("x_train", "y_train", "x_test", "y_test")
    np.savez(path, **{name: getattr(data, name) for name in names})  # type: ignore[arg-type]
    program = [sys.executable, "-c", PROGRAM, path]
    taskset = shutil.which("taskset")
    if taskset and hasattr(os, "sched_getaffinity"):
        program = [taskset, "-c", str(min(os.sched_getaffinity(0))), *program]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(program, cwd=REPO, text=True, **pipes) as process:
        expected = results(path)
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert output.splitlines() == expected


# Strict restoring


def broken(state: State, name: str, how: str) -> tuple[State, str]:
    """Return a state with one thing wrong, and what the refusal must name."""
    value = state[name]
    changes: dict[str, Any] = {
        "shape": value.reshape(*value.shape, 1),
        "dtype": value.astype(np.float64 if value.dtype == np.float32 else np.int32),
        "half": value.astype(np.float16),
        "object": value.astype(object),
    }
    if how == "missing":
        return {n: v for n, v in state.items() if n != name}, f"no entry {name!r}"
    if how == "unknown":
        return {**state, f"{name}/Other": value}, f"unknown entry '{name}/Other'"
    return {**state, name: changes[how]}, f"entry {name!r} is "


@pytest.mark.parametrize("variant", ["softmax", "sgd", "cnn"])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_loading_is_all_or_nothing(variant: str, data: Any) -> None:
    ours = trainer(variant)
    before = ours.state()
    other = {n: np.asarray(v + v.dtype.type(1)) for n, v in before.items()}
    name = data.draw(st.sampled_from(sorted(before)))
    how = data.draw(st.sampled_from(["missing", "unknown", "shape", "dtype", "half", "object"]))
    state, named = broken(other, name, how)
    with pytest.raises(DoesNotFit) as error:
        ours.load(state)
    assert named in str(error.value)
    assert same(ours.state(), before)


@pytest.mark.parametrize(("saved", "into"), [("softmax", "sgd"), ("cnn", "softmax"),
                                             ("softmax", "cnn")])  # fmt: skip
def test_another_models_or_optimizers_state_does_not_fit(saved: str, into: str) -> None:
    before = trainer(into).state()
    with pytest.raises(DoesNotFit):
        trainer(into).load(trainer(saved).state())
    assert same(trainer(into).state(), before)


def test_the_refusal_says_what_was_found_and_what_was_expected() -> None:
    state = trainer("softmax").state()
    state["weights"] = state["weights"].T.astype(np.float64)
    with pytest.raises(DoesNotFit, match=r"'weights' is float64\[10, 64\], not float32\[64, 10\]"):
        trainer("softmax").load(state)


def test_byte_order_and_memory_order_do_not_matter() -> None:
    first, _, last = in_one_piece("softmax")
    ours = trainer("softmax")
    ours.load(first)
    foreign = {n: np.array(v, v.dtype.newbyteorder(">"), order="F") for n, v in last.items()}
    ours.load(foreign)
    assert same(ours.state(), last)


def test_replacing_parameters_leaves_the_rest() -> None:
    fresh = Trainer(config("model=cnn"), dataset())
    before = fresh.state()
    fresh.assign({"bias_1": before["bias_1"] + 1})
    after = fresh.state()
    assert np.array_equal(after.pop("bias_1"), before.pop("bias_1") + 1)
    assert same(after, before)


# When


@pytest.mark.parametrize(
    ("every", "steps"),
    [
        (0, [20]),
        (1, list(range(1, 21))),
        (7, [7, 14, 20]),
        (10, [10, 20]),
        (20, [20]),
        (21, [20]),
        (10**9, [20]),
    ],
)
def test_due(every: int, steps: list[int]) -> None:
    assert [step for step in range(1, 21) if due(step, every, 20)] == steps


@pytest.mark.parametrize(
    ("step", "every", "last", "steps"),
    [
        (0, 50, 1000, 50),
        (1, 50, 1000, 49),
        (49, 50, 1000, 1),
        (50, 50, 1000, 50),
        (990, 50, 1000, 10),
        (990, 7, 1000, 4),
        (999, 50, 1000, 1),
        (0, 0, 1000, 1000),
        (999, 0, 1000, 1),
        (3, 5000, 1000, 997),
    ],
)
def test_until(step: int, every: int, last: int, steps: int) -> None:
    assert _steps_until(step, every, last) == steps


@given(last=st.integers(1, 300), every=st.integers(0, 320), start=st.integers(0, 299))
def test_going_from_event_to_event_meets_all_that_is_due(last: int, every: int, start: int) -> None:
    assume(start < last)
    step, met = start, []
    while step < last:
        step += _steps_until(step, every, last)
        met.append(step)
    assert met == [s for s in range(start + 1, last + 1) if due(s, every, last)]


# The law of the order, with a trainer that computes nothing


class Fake:
    """Trainer, recorder, saver and progress reporter in one; notes what it is asked, in order."""

    def __init__(self, step: int = 0, losses: Mapping[int, float] | None = None) -> None:
        self.step, self.losses, self.events = step, losses or {}, []  # type: ignore[var-annotated]
        self.recorded: dict[str, dict[int, float]] = {}
        self.seconds_per_step, self.now = 0.0, 0.0

    def loss(self, step: int) -> float:
        return float(np.float32(self.losses.get(step, 1 / step)))

    def run_steps(self, steps: int) -> np.ndarray:
        assert steps >= 1
        first, self.step = self.step + 1, self.step + steps
        self.events.append(("run_steps", self.step, steps))
        self.now += 1e-4 + steps * self.seconds_per_step
        return np.array([self.loss(s) for s in range(first, self.step + 1)], np.float32)

    evaluated = "test"
    learning_rate = 0.5

    def score(self) -> Score:
        self.events.append(("score", self.step))
        return Score(np.zeros(4), {"accuracy": self.step % 5 / 4, "loss": float(self.step)})

    def state(self) -> State:
        self.events.append(("state", self.step))
        return {"step": np.array(self.step)}

    def record(self, steps: list[int], metrics: Mapping[str, list[float]]) -> None:
        for key, values in metrics.items():
            self.events.append((key, *steps))
            for step, value in zip(steps, values, strict=True):
                assert type(step) is int
                assert type(value) is float
                assert step not in self.recorded.setdefault(key, {}), "recorded twice"
                self.recorded[key][step] = value

    def save(self, step: int, state: State, metrics: dict[str, float], on_schedule: bool) -> None:
        self.events.append(("save" if on_schedule else "save as the best", step, metrics))
        assert int(state["step"]) == step

    def on_steps(self, step: int, loss: float) -> None:
        self.events.append(("shown", step))
        assert loss == self.loss(step) or math.isnan(loss)

    def on_evaluation(self, step: int, loss: float, accuracy: float) -> None:
        self.events.append(("shown evaluated", step, accuracy))

    def stopping(self, step: int) -> None:
        self.events.append(("asked", step))

    def train(self, stopping: Callable[[int], Any] | None = None, **given: Any) -> Score | None:
        values = {"steps": 20, "save_every": 0, "eval_every": 0, "log_every": 1, "on_nan": "stop"}
        values |= given
        save = {"every": values.pop("save_every"), "keep_best": values.pop("keep_best", None)}
        settings = SimpleNamespace(save=SimpleNamespace(**save), **values)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module.time, "perf_counter", lambda: self.now)
            fake: Any = self
            stop = stopping or self.stopping
            score, _ = train(settings, fake, self.record, self.save, fake, stop)  # type: ignore[arg-type]
            return score

    def at(self, *names: str) -> list[int]:
        return [event[1] for event in self.events if event[0] in names]


cadences = given(
    start=st.integers(0, 120),
    more=st.integers(1, 250),
    save_every=st.integers(0, 130),
    eval_every=st.integers(0, 130),
    log_every=st.integers(1, 60),
    seconds=st.sampled_from([0.0, 1e-5, 1e-3, 0.1, 1.0]),
)


@settings(max_examples=150, deadline=None)
@cadences
def test_no_event_is_missed_and_none_comes_twice(
    start: int, more: int, save_every: int, eval_every: int, log_every: int, seconds: float
) -> None:
    last = start + more
    fake = Fake(start)
    fake.seconds_per_step = seconds
    result = fake.train(steps=last, save_every=save_every, eval_every=eval_every,
                        log_every=log_every)  # fmt: skip
    span = range(start + 1, last + 1)
    saves, evaluations, losses = (
        [s for s in span if due(s, every, last)] for every in (save_every, eval_every, log_every)
    )
    assert fake.at("save") == fake.at("state") == saves
    assert fake.at("score") == fake.at("shown evaluated") == evaluations
    assert fake.recorded["train/loss"] == {s: fake.loss(s) for s in losses}
    for key in ("test/accuracy", "test/loss", "train/steps_per_second", "train/learning_rate"):
        assert sorted(fake.recorded[key]) == evaluations
    assert saves[-1] == evaluations[-1] == losses[-1] == fake.step == last
    assert result is not None
    assert result.metrics["loss"] == last
    assert sum(event[2] for event in fake.events if event[0] == "run_steps") == more


@settings(max_examples=50, deadline=None)
@cadences
def test_the_order_at_a_step_is_record_evaluate_save(
    start: int, more: int, save_every: int, eval_every: int, log_every: int, seconds: float
) -> None:
    fake = Fake(start)
    fake.seconds_per_step = seconds
    fake.train(steps=start + more, save_every=save_every, eval_every=eval_every,
               log_every=log_every)  # fmt: skip
    order = ["run_steps", "train/loss", "shown", "score", "test/accuracy", "test/loss",
             "train/steps_per_second", "train/learning_rate", "shown evaluated", "state", "save",
             "asked"]  # fmt: skip
    places = []
    for event in fake.events:
        places.append(order.index(event[0]))
        if event[0] == "save":
            step, metrics = event[1], event[2]
            if due(step, eval_every, start + more):
                assert metrics == {"test/accuracy": step % 5 / 4, "test/loss": float(step)}
            else:
                assert metrics == {}
    asked, saved = order.index("asked"), order.index("save")
    assert (places[0], places[-1]) == (0, saved)
    for one, following in pairwise(places):
        assert following > one or (one, following) == (asked, 0)


def test_nothing_is_left_to_do() -> None:
    fake = Fake(20)
    assert fake.train(steps=20, save_every=5) is None
    assert fake.events == []


def test_one_step() -> None:
    fake = Fake()
    fake.train(steps=1, save_every=50, eval_every=200, log_every=100)
    assert [event[0] for event in fake.events] == [
        "run_steps", "train/loss", "shown", "score", "test/accuracy", "test/loss",
        "train/steps_per_second", "train/learning_rate", "shown evaluated", "state", "save",
    ]  # fmt: skip


def test_stopping_is_asked_after_every_piece_but_the_last() -> None:
    fake = Fake()
    fake.train(steps=100, save_every=10)
    ends = fake.at("run_steps")
    assert fake.at("asked") == ends[:-1]

    fake = Fake()
    fake.train(lambda step: step if step >= 30 else None, steps=100, save_every=10, eval_every=40)
    assert fake.step == 30
    assert (fake.at("save"), fake.at("score")) == ([10, 20, 30], [])


@pytest.mark.parametrize(("seconds", "low", "high"), [(1.0, 1, 1), (0.1, 1, 2), (1e-3, 200, 250)])
def test_a_call_takes_about_as_long_as_a_signal_may_wait(
    seconds: float, low: int, high: int
) -> None:
    fake = Fake()
    fake.seconds_per_step = seconds
    fake.train(steps=3000)
    sizes = [event[2] for event in fake.events if event[0] == "run_steps"]
    assert sizes[0] == 1
    assert all(size <= high for size in sizes)
    assert all(size >= low for size in sizes[6:-1])
    assert all(following <= 8 * size for size, following in pairwise(sizes))


def test_the_number_of_calls_does_not_grow_with_the_losses_recorded() -> None:
    calls = []
    for log_every in (1, 1000):
        fake = Fake()
        fake.seconds_per_step = 1e-6
        fake.train(steps=100_000, log_every=log_every)
        calls.append(len(fake.at("run_steps")))
    assert calls[0] == calls[1] < 20


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("broken", [1, 7, 20])
def test_a_loss_that_is_not_finite_stops(value: float, broken: int) -> None:
    fake = Fake(losses={broken: value, broken + 2: math.nan})
    with pytest.raises(Diverged, match=rf"^the loss at step {broken} is -?(nan|inf)$"):
        fake.train(save_every=5, eval_every=4)
    recorded = fake.recorded["train/loss"]
    assert list(recorded) == list(range(1, broken + 1))
    assert not math.isfinite(recorded[broken])
    assert all(step < broken for step in fake.at("save", "score"))


def test_a_loss_between_the_recorded_ones_stops_too() -> None:
    fake = Fake(losses={13: math.nan})
    with pytest.raises(Diverged, match="step 13"):
        fake.train(log_every=5)
    assert list(fake.recorded["train/loss"]) == [5, 10]


def test_a_loss_that_is_not_finite_may_go_on() -> None:
    fake = Fake(losses={3: math.nan, 20: math.inf})
    fake.train(save_every=5, eval_every=4, on_nan="continue")
    assert list(fake.recorded["train/loss"]) == list(range(1, 21))
    assert math.isnan(fake.recorded["train/loss"][3])
    assert (fake.at("save"), fake.at("score")) == ([5, 10, 15, 20], [4, 8, 12, 16, 20])


def test_training_that_really_diverges() -> None:
    given = config("optimizer=sgd", "optimizer.learning_rate=1e38", "steps=60", "save.every=10")
    fake = Fake()
    with pytest.raises(Diverged, match=r"^the loss at step \d+ is (nan|inf)$"):
        quiet = SimpleNamespace(on_steps=lambda *_: None, on_evaluation=lambda *_: None)
        train(
            given, Trainer(given, dataset()), fake.record, lambda *_: None, quiet, lambda step: None
        )
    values = list(fake.recorded["train/loss"].values())
    assert not math.isfinite(values[-1])
    assert all(map(math.isfinite, values[:-1]))


def test_training_with_the_real_machine() -> None:
    """Train to the end in the loop: every loss is the trainer's own, and it learns."""
    given = config("steps=60", "eval_every=25", "save.every=20", "optimizer.learning_rate=0.02")
    fake, saved = Fake(), {}
    quiet = SimpleNamespace(on_steps=lambda *_: None, on_evaluation=lambda *_: None)

    def save(step: int, state: State, metrics: dict[str, float], on_schedule: bool) -> None:
        assert on_schedule
        saved[step] = (digest(state), metrics)

    score, _ = train(given, Trainer(given, dataset()), fake.record, save, quiet, lambda step: None)
    other = Trainer(given, dataset())
    losses = other.run_steps(60)
    assert fake.recorded["train/loss"] == {i + 1: float(loss) for i, loss in enumerate(losses)}
    assert list(saved) == [20, 40, 60]
    assert score is not None
    assert score.metrics == other.score().metrics
    metrics = {f"test/{name}": value for name, value in score.metrics.items()}
    assert saved[60] == (digest(other.state()), metrics)
    assert sorted(fake.recorded["test/accuracy"]) == [25, 50, 60]
    assert score.judged > 20 / 37
