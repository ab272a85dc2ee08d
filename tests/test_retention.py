"""Retention: the checkpoints that TensorFlow's own Saver would keep, and the best on top."""

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pydantic
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.checkpoints.ckpt import Ckpt
from pipeline.checkpoints.retention import Best, KeepBest, Memory, Policy, after, start
from pipeline.checkpoints.store import CheckpointStore
from pipeline.runtime import start_tensorflow

BEGIN = 1_700_000_000.0  # seconds since the epoch, when the fake clock starts
NEVER = 10_000.0  # hours: Saver's own default


@pytest.fixture(scope="module", autouse=True)
def tensorflow() -> None:
    start_tensorflow(2)


@dataclass(frozen=True)
class Schedule:
    """What a run does: its policy, and the step, time and metrics of every save."""

    max_to_keep: int
    hours: float | None
    saves: list[tuple[int, float, dict[str, float]]]
    best: KeepBest | None = None

    @property
    def policy(self) -> Policy:
        return Policy(self.max_to_keep, self.hours, self.best)


@st.composite
def schedules(draw: st.DrawFn, best: KeepBest | None = None) -> Schedule:
    """Draw saves at growing steps; the clock may stand, creep, hit the hour exactly, or jump."""
    hours = draw(st.sampled_from([None, 0.001, 0.5, 0.7, 1, 1.0]))
    period = (hours or 1) * 3600
    pauses = st.one_of(
        st.sampled_from([0.0, period / 4, period / 2, period, 2 * period]),
        st.floats(0, 3 * period),
        st.floats(-5 * period, 20 * period),
        st.sampled_from([-1e6, 1e6]),
    )
    values = st.sampled_from([0.0, 0.25, 0.5, 1.0, math.nan, math.inf])
    metrics = st.fixed_dictionaries({}, optional={"test/accuracy": values, "test/loss": values})
    step, time, saves = 0, BEGIN, []
    for _ in range(draw(st.integers(1, 14))):
        step += draw(st.integers(1, 60))
        time += draw(pauses)
        saves.append((step, time, draw(metrics) if best else {}))
    return Schedule(draw(st.integers(0, 6)), hours, saves, best)


@contextlib.contextmanager
def saver_clock() -> Iterator[SimpleNamespace]:
    """Give TensorFlow's Saver a clock that shows `now` until it is set."""
    from tensorflow.python.training import saver

    clock = SimpleNamespace(now=BEGIN)
    with mock.patch.object(saver, "time", SimpleNamespace(time=lambda: clock.now)):
        yield clock


@contextlib.contextmanager
def saver_of(schedule: Schedule) -> Iterator[Any]:
    """Yield a function that saves a tiny variable with a real Saver: (folder, step, time)."""
    import tensorflow as tf

    v1 = tf.compat.v1
    hours = NEVER if schedule.hours is None else schedule.hours
    with saver_clock() as clock:
        with tf.Graph().as_default() as graph:
            variable = v1.Variable([1.0], name="weights")
            saver = v1.train.Saver(
                [variable],
                max_to_keep=schedule.max_to_keep,
                keep_checkpoint_every_n_hours=hours,
                save_relative_paths=True,
            )
        session = v1.Session(graph=graph)
        session.run(variable.initializer)

        def save(folder: Path, step: int, time: float) -> None:
            clock.now = time
            with graph.as_default():  # without one, Saver works eagerly
                saver.save(session, str(folder / "model_ckpt"), step, write_meta_graph=False)

        with contextlib.closing(session):
            yield save


def steps_in(folder: Path) -> set[int]:
    """Return the steps whose two files are in the folder; both are, or none is."""
    indices = {int(path.stem.rpartition("-")[2]) for path in folder.glob("*.index")}
    ends = [path.name.split(".")[0].rpartition("-")[2] for path in folder.glob("*.data-*")]
    assert indices == {int(end) for end in ends}
    return indices


def through_json(memory: Memory) -> Memory:
    """Write a memory and read it back, as a manifest does."""
    return pydantic.TypeAdapter(Memory).validate_python(json.loads(json.dumps(asdict(memory))))


ON_THE_HOUR = Schedule(1, 0.7, [(n, BEGIN + n * 0.7 * 3600, {}) for n in range(1, 6)])


@settings(max_examples=100, deadline=None)
@given(schedules())
@example(ON_THE_HOUR)  # Saver's hours are a float32, a little less than 0.7
def test_keeps_what_one_uninterrupted_saver_keeps(schedule: Schedule) -> None:
    memory, saved = start(BEGIN, schedule.policy), set()
    with TemporaryDirectory() as name, saver_of(schedule) as save:
        for step, time, metrics in schedule.saves:
            save(Path(name), step, time)
            saved.add(step)
            memory = after(memory, step, time, metrics, schedule.policy)
            kept = memory.kept()
            assert (saved if kept is None else kept) == steps_in(Path(name))


def test_a_step_saved_again_counts_once_as_with_saver() -> None:
    steps = (10, 20, 30, 30, 20, 40)
    schedule = Schedule(2, None, [(step, BEGIN + n, {}) for n, step in enumerate(steps)])
    memory = start(BEGIN, schedule.policy)
    with TemporaryDirectory() as name, saver_of(schedule) as save:
        for step, time, metrics in schedule.saves:
            save(Path(name), step, time)
            memory = after(memory, step, time, metrics, schedule.policy)
            assert memory.kept() == steps_in(Path(name))


@settings(max_examples=25, deadline=None)
@given(schedules())
def test_folder_and_state_file_are_those_of_saver(schedule: Schedule) -> None:
    import tensorflow as tf

    keep = {"max_to_keep": schedule.max_to_keep, "keep_every_n_hours": schedule.hours}
    ckpt = Ckpt(every=1, keep_best=None, asynchronous=False, meta_graph=False, **keep)
    memory = start(BEGIN, schedule.policy)
    with TemporaryDirectory() as name, saver_of(schedule) as save:
        ours, theirs = Path(name) / "ours", Path(name) / "theirs"
        ours.mkdir()
        theirs.mkdir()
        store = CheckpointStore(ours, ckpt)
        for step, time, metrics in schedule.saves:
            save(theirs, step, time)
            memory = store.publish(step, time, {"weights": np.ones(1, "f4")}, metrics, memory)
            manifests = {f"model_ckpt-{s}.json" for s in store.steps()}
            found = {path.name for path in ours.iterdir()} - manifests
            assert found == {path.name for path in theirs.iterdir()}
            states = [tf.train.get_checkpoint_state(str(folder)) for folder in (ours, theirs)]
            paths = [
                [path.removeprefix(str(folder)) for path in state.all_model_checkpoint_paths]
                for folder, state in zip((ours, theirs), states, strict=True)
            ]
            assert paths[0] == paths[1]
            assert (ours / "checkpoint").read_text() == (theirs / "checkpoint").read_text()


@settings(max_examples=200, deadline=None)
@given(
    schedules(best=KeepBest(metric="test/accuracy", mode="max")),
    st.lists(st.booleans(), min_size=15, max_size=15),
)
def test_a_memory_that_went_through_a_manifest_goes_on_the_same(
    schedule: Schedule, cuts: list[bool]
) -> None:
    whole = pieces = start(BEGIN, schedule.policy)
    for cut, (step, time, metrics) in zip(cuts, schedule.saves, strict=False):
        pieces = through_json(pieces) if cut else pieces
        assert pieces == whole
        whole = after(whole, step, time, metrics, schedule.policy)
        pieces = after(pieces, step, time, metrics, schedule.policy)
    assert through_json(pieces) == whole


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["test/accuracy", "test/loss"]).flatmap(
        lambda metric: st.sampled_from(["max", "min"]).flatmap(
            lambda mode: schedules(best=KeepBest(metric=metric, mode=mode))
        )
    )
)
def test_the_best_comes_on_top_of_what_is_kept_anyway(schedule: Schedule) -> None:
    rule = schedule.best
    assert rule is not None
    plain = Policy(schedule.max_to_keep, schedule.hours, None)
    memory, without = start(BEGIN, schedule.policy), start(BEGIN, plain)
    known: list[tuple[float, int]] = []
    for step, time, metrics in schedule.saves:
        memory = after(memory, step, time, metrics, schedule.policy)
        without = after(without, step, time, metrics, plain)
        value = metrics.get(rule.metric, math.nan)
        if not math.isnan(value):
            known.append((-value if rule.mode == "max" else value, step))
        best = {min(known)[1]} if known else set()
        kept = without.kept()
        assert memory.kept() == (None if kept is None else kept | best)
        assert ({memory.best.step} if memory.best else set()) == best


NAN = math.nan
BEST = [  # mode, value at steps 10, 20, ... (None: not evaluated), the best step
    ("max", [0.1, 0.3, 0.2], 20),
    ("min", [0.3, 0.1, 0.2], 20),
    ("max", [0.5, 0.5, 0.5], 10),  # the earlier of equals
    ("min", [0.2, 0.1, 0.1], 20),
    ("max", [NAN, 0.1], 20),  # NaN never wins: first,
    ("max", [0.1, NAN], 10),  # last,
    ("min", [0.3, NAN, 0.2], 30),  # or in the middle
    ("min", [NAN, NAN], None),  # or alone
    ("max", [None, 0.1, None], 20),  # what was not evaluated does not compete
    ("min", [None, 0.9, None], 20),
    ("max", [None, None], None),
    ("max", [0.0], 10),  # zero is a value
    ("max", [-0.0, 0.0], 10),
    ("max", [-math.inf], 10),
    ("min", [math.inf, 7.0], 20),
]


@pytest.mark.parametrize(("mode", "values", "best"), BEST)
def test_keep_best(mode: Any, values: list[float | None], best: int | None) -> None:
    policy = Policy(1, None, KeepBest(metric="test/loss", mode=mode))
    memory = start(BEGIN, policy)
    for number, value in enumerate(values, 1):
        metrics = {"test/accuracy": number / 10}  # another metric does not matter
        metrics |= {} if value is None else {"test/loss": value}
        memory = after(memory, 10 * number, BEGIN, metrics, policy)
    assert (memory.best.step if memory.best else None) == best
    assert memory.kept() == {10 * len(values)} | ({best} if best else set())


def test_without_keep_best_nothing_is_best() -> None:
    policy = Policy(1, None, None)
    memory = after(start(BEGIN, policy), 10, BEGIN, {"test/accuracy": 1.0}, policy)
    assert memory.best is None


def test_a_resume_may_ask_for_the_best_of_something_else() -> None:
    accuracy = Policy(1, None, KeepBest(metric="test/accuracy", mode="max"))
    loss = Policy(1, None, KeepBest(metric="test/loss", mode="min"))
    metrics = {"test/accuracy": 0.9, "test/loss": 0.9}
    memory = after(start(BEGIN, accuracy), 10, BEGIN, metrics, accuracy)
    assert memory.best == Best(10, 0.9, "test/accuracy", "max")
    memory = after(memory, 20, BEGIN, metrics, loss)
    assert memory.best == Best(20, 0.9, "test/loss", "min")
    assert memory.kept() == {20}


def test_a_resume_may_turn_the_hours_on() -> None:
    off, on = Policy(1, None, None), Policy(1, 1, None)
    memory = after(start(BEGIN, off), 10, BEGIN + 9e9, {}, off)
    memory = after(memory, 20, BEGIN + 9e9, {}, on)  # the clock starts here
    memory = after(memory, 30, BEGIN + 9e9 + 3601, {}, on)
    assert memory.kept() == {30}
    memory = after(memory, 40, BEGIN + 9e9 + 3602, {}, on)
    assert memory.kept() == {30, 40}


def test_a_resume_may_keep_fewer() -> None:
    many, few = Policy(5, None, None), Policy(2, None, None)
    memory = start(BEGIN, many)
    for step in (10, 20, 30, 40, 50):
        memory = after(memory, step, BEGIN, {}, many)
    assert after(memory, 60, BEGIN, {}, few).kept() == {50, 60}
