"""Streamed training: the bits of data in memory, in any chunks; no thread outlives its run."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waymark.checkpoints import State
from waymark.config.compose import compose_config
from waymark.data.dataset import Dataset
from waymark.data.rows import ChosenRows, NpyRows, Rows
from waymark.data.sources import batch_indices
from waymark.digest import digest
from waymark.errors import BadInput
from waymark.training import streaming
from waymark.training.loop import Trainer, compilation_key, reuse_or_compile
from waymark.training.runtime import start_tensorflow
from waymark.training.score import Scorer
from waymark.training.streaming import ReadAhead

from tests.support.data import pictures
from tests.support.processes import readers

tf: Any = start_tensorflow(2)

VARIANTS = {
    "softmax": [],
    "epoch": ["data.sampling=epoch"],
    "cnn": ["model=cnn", "model.keep_prob=0.5", "data.sampling=epoch"],
    "batch_norm": ["model=mlp", "model.settings.hidden=[8]"],
}
STEPS = {"softmax": 14, "epoch": 14, "cnn": 5, "batch_norm": 14}
BATCH_BYTES = 10 * 64  # of features


@cache
def resident(test: int = 37) -> Dataset:
    arrays = pictures(37, test)
    images = {name: arrays[name][..., np.newaxis] for name in ("x_train", "x_test")}
    labels = {name: arrays[name].astype(np.int32) for name in ("y_train", "y_test")}
    return Dataset("things", "memory", **images, **labels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("streamed")


def streamed(folder: Path, data: Dataset) -> Dataset:
    """Return the same data set, read from files, the training set as one part of a file."""
    path = folder / f"{len(list(folder.iterdir()))}.npy"
    np.save(path, np.concatenate([data.x_test, data.x_train]))
    rows = NpyRows(path)
    tested = len(data.x_test)
    parts = [ChosenRows(rows, np.arange(*ends)) for ends in ((tested, len(rows)), (0, tested))]
    return replace(data, x_train=parts[0], x_test=parts[1], read_digest=data.digest)


def config(variant: str, *more: str) -> Any:
    fixed = ["batch_size=10", "runtime.intra_op_threads=2", "seed=11", "steps=20"]
    return compose_config([*fixed, *VARIANTS[variant], *more]).config


@pytest.fixture(scope="module")
def prepared(folder: Path) -> Any:
    """Return a trainer of streamed data, first state, losses and last state of a resident one."""
    data = streamed(folder, resident())

    @cache
    def prepared(variant: str) -> tuple[Trainer, Dataset, State, np.ndarray, State]:
        known = Trainer(config(variant), resident())
        first, losses = known.state(), known.run_steps(STEPS[variant])
        return Trainer(config(variant), data), data, first, losses, known.state()

    return prepared


@pytest.fixture(autouse=True)
def no_reader_is_left() -> Iterator[None]:
    yield
    assert not readers()


@pytest.mark.parametrize(
    "variant",
    ["softmax", "cnn", *(pytest.param(x, marks=pytest.mark.long) for x in ("epoch", "batch_norm"))],
)
@given(st.data())
@settings(max_examples=8, deadline=None)
def test_any_chunks_and_any_calls_have_the_bits_of_data_in_memory(
    prepared: Any, variant: str, data: Any
) -> None:
    trainer, read, first, losses, last = prepared(variant)
    bound = data.draw(st.sampled_from([1, BATCH_BYTES, 2 * BATCH_BYTES, 5 * BATCH_BYTES, 2**25]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "CHUNK_BYTES", bound)
        trainer.reset(config(variant), read)
        trainer.assign(first)
        found: list[np.ndarray] = []
        while (done := sum(map(len, found))) < len(losses):
            steps = data.draw(st.integers(1, len(losses) - done))
            if data.draw(st.booleans()):  # a kill and a resume
                state = trainer.state()
                trainer.assign(first)
                trainer.run_steps(data.draw(st.integers(1, 3)))
                trainer.load(state)
            found.append(trainer.run_steps(steps))
        trainer.close()
    assert np.concatenate(found).tobytes() == losses.tobytes()
    assert digest(trainer.state()) == digest(last)


@pytest.mark.parametrize("sampling", ["replacement", "epoch"])
def test_the_indices_are_those_of_each_step(folder: Path, sampling: str) -> None:
    given = config("softmax", f"data.sampling={sampling}", "seed=9223372036854775807")
    data = streamed(folder, resident())
    marked = replace(data, y_train=np.arange(37, dtype=np.int32))
    batches = streaming.Batches(given, marked)
    step, picked = 0, []
    while step < 20:
        chunk = batches.at(step)
        labels = chunk.tensors[2].numpy()
        assert np.array_equal(chunk.tensors[1].numpy(), data.x_train[labels.ravel()].reshape(
            *labels.shape, 8, 8, 1
        ))  # fmt: skip
        picked += list(labels)
        step = chunk.end
    expected = [
        batch_indices(sampling, given.seed, at, 10, 37).numpy()
        for at in tf.range(1, 21, dtype=tf.int64)
    ]
    assert np.array_equal(picked, expected)


def test_steps_after_the_last_one_can_be_run(prepared: Any) -> None:
    trainer, read, first, losses, _ = prepared("softmax")
    trainer.reset(config("softmax", "steps=3"), read)
    trainer.assign(first)
    assert np.array_equal(trainer.run_steps(14), losses)
    trainer.close()


@pytest.mark.parametrize(
    ("variant", "count"), [("softmax", 1), ("softmax", 250), ("softmax", 777), ("cnn", 251)]
)
def test_scores_are_those_of_data_in_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch, variant: str, count: int
) -> None:
    data, given = resident(count), config(variant)
    parameters = Trainer(given, resident()).parameters
    known = Scorer(given.model, "float32", data, task=given.task)(parameters)
    read = streamed(folder, data)
    for bound in (2**25, 250 * 64, 3 * 250 * 64, 1):
        monkeypatch.setattr(streaming, "CHUNK_BYTES", bound)
        scorer = Scorer(given.model, "float32", read, task=given.task)
        assert scorer._chunked == (count * 64 > bound)
        for _ in range(2):
            found = scorer(parameters)
            assert found.predictions.tobytes() == known.predictions.tobytes()
            assert found.metrics == known.metrics


def test_a_chunk_is_bounded_in_bytes_and_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(streaming.time, "perf_counter", lambda: now[0])

    def counts(seconds_each: float, left: int) -> list[int]:
        pace, found = streaming._Pace(2**20, 2**25), []
        while left:
            found.append(pace.begin(left))
            now[0] += seconds_each * found[-1]
            left -= found[-1]
            pace.end()
        return found

    assert counts(1e-9, 100) == [1, 8, 32, 32, 27]
    assert counts(0.25, 10) == [1, 4, 4, 1]
    assert counts(9.0, 3) == [1, 1, 1]


def test_the_next_item_is_made_while_one_is_in_use() -> None:
    made, wanted = [], threading.Event()

    def items() -> Iterator[int]:
        for number in range(3):
            made.append(number)
            if number == 1:
                wanted.set()
            yield number

    ahead = ReadAhead(items())
    assert next(ahead) == 0
    assert wanted.wait(60)  # though nobody has asked for the second one
    assert made == [0, 1]  # and none is made after it
    assert list(ahead) == [1, 2] and made == [0, 1, 2]


class Failing(Rows):
    """Rows of which one cannot be read."""

    def __init__(self, rows: Rows, bad: int) -> None:
        super().__init__("mine", rows.shape, rows.dtype)
        self._whole, self._bad = rows, bad

    def read_raw(self, rows: np.ndarray) -> np.ndarray:
        if (rows == self._bad).any():
            raise BadInput(f"mine: row {self._bad} cannot be read.")
        return self._whole.read(rows)


def test_what_the_thread_cannot_read_ends_the_call(folder: Path) -> None:
    data = streamed(folder, resident())
    assert isinstance(data.x_train, Rows)
    given = config("softmax", "data.sampling=epoch")
    picked = [
        batch_indices("epoch", 11, at, 10, 37).numpy() for at in tf.range(1, 5, dtype=tf.int64)
    ]
    bad = int(picked[3][9])  # in the last batch of the first epoch
    assert not any(bad in each for each in picked[:3])
    trainer = Trainer(given, replace(data, x_train=Failing(data.x_train, bad)))
    losses = Trainer(given, resident()).run_steps(3)
    with pytest.raises(BadInput, match=f"row {bad} cannot be read"):
        trainer.run_steps(4)
    trainer.close()
    trained = trainer.step  # in the chunks before
    assert 1 <= trained <= 3
    assert np.array_equal(Trainer(given, data).run_steps(trained), losses[:trained])


def test_the_thread_ends_with_the_run_whatever_ends_it(folder: Path) -> None:
    data = streamed(folder, resident())
    for error in (None, KeyError, KeyboardInterrupt):
        with suppress(KeyError, KeyboardInterrupt), reuse_or_compile(config("softmax"), data) as it:
            it.run_steps(2)
            assert it._batches and it._batches._ahead
            if error:
                raise error
        assert not readers()


def test_a_trainer_is_used_again_for_files_elsewhere(folder: Path) -> None:
    """Of the same digest: what it compiled is good for both, what it read is gone."""
    data, given = streamed(folder, resident()), config("softmax")
    with reuse_or_compile(given, data) as trainer:
        losses = trainer.run_steps(3)
    moved = streamed(folder, resident())
    for path in folder.iterdir():
        if path.name != f"{len(list(folder.iterdir())) - 1}.npy":
            path.write_bytes(b"")
    with reuse_or_compile(given, moved) as again:
        assert again is trainer
        assert np.array_equal(again.run_steps(3), losses)
        scores = (
            again.score(),
            Scorer(given.model, "float32", resident(), task=given.task)(again.parameters),
        )
        assert scores[0].metrics == scores[1].metrics
    assert compilation_key(given, moved) != compilation_key(given, resident())
