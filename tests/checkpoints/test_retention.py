"""Retention: the checkpoints that TensorFlow's own Saver would keep, and the best on top."""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
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
from waymark.checkpoints.ckpt import Ckpt
from waymark.checkpoints.retention import (
    BestCheckpoint,
    KeepBest,
    Policy,
    RetentionState,
    Save,
    initial_retention,
    record_save,
    resume_retention,
)
from waymark.checkpoints.store import CheckpointStore
from waymark.training.runtime import start_tensorflow

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

        save.saver = saver  # type: ignore[attr-defined]
        with contextlib.closing(session):
            yield save


def steps_in(folder: Path) -> set[int]:
    """Return the steps whose two files are in the folder; both are, or none is."""
    indices = {int(path.stem.rpartition("-")[2]) for path in folder.glob("*.index")}
    ends = [path.name.split(".")[0].rpartition("-")[2] for path in folder.glob("*.data-*")]
    assert indices == {int(end) for end in ends}
    return indices


def through_json(retention: RetentionState) -> RetentionState:
    """Write a retention and read it back, as a manifest does."""
    return pydantic.TypeAdapter(RetentionState).validate_python(
        json.loads(json.dumps(asdict(retention)))
    )


ON_THE_HOUR = Schedule(1, 0.7, [(n, BEGIN + n * 0.7 * 3600, {}) for n in range(1, 6)])


@settings(max_examples=100, deadline=None)
@given(schedules())
@example(ON_THE_HOUR)  # Saver's hours are a float32, a little less than 0.7
def test_keeps_what_one_uninterrupted_saver_keeps(schedule: Schedule) -> None:
    retention, saved = initial_retention(BEGIN, schedule.policy), set()
    with TemporaryDirectory() as name, saver_of(schedule) as save:
        for step, time, metrics in schedule.saves:
            save(Path(name), step, time)
            saved.add(step)
            retention = record_save(retention, Save(step, time, metrics), schedule.policy)
            kept = retention.retained_steps()
            assert (saved if kept is None else kept) == steps_in(Path(name))


def test_a_step_saved_again_counts_once_as_with_saver() -> None:
    steps = (10, 20, 30, 30, 20, 40)
    schedule = Schedule(2, None, [(step, BEGIN + n, {}) for n, step in enumerate(steps)])
    retention = initial_retention(BEGIN, schedule.policy)
    with TemporaryDirectory() as name, saver_of(schedule) as save:
        for step, time, metrics in schedule.saves:
            save(Path(name), step, time)
            retention = record_save(retention, Save(step, time, metrics), schedule.policy)
            assert retention.retained_steps() == steps_in(Path(name))


@settings(max_examples=25, deadline=None)
@given(schedules())
def test_folder_and_state_file_are_those_of_saver(schedule: Schedule) -> None:
    import tensorflow as tf

    keep = {"max_to_keep": schedule.max_to_keep, "keep_every_n_hours": schedule.hours}
    ckpt = Ckpt(
        every=1, keep_best=None, asynchronous=False, log_model=False, meta_graph=False, **keep
    )
    with TemporaryDirectory() as name, saver_of(schedule) as save:
        ours, theirs = Path(name) / "ours", Path(name) / "theirs"
        ours.mkdir()
        theirs.mkdir()
        store = CheckpointStore(ours, ckpt)
        store.retention = initial_retention(BEGIN, store.policy)
        for step, time, metrics in schedule.saves:
            save(theirs, step, time)
            store.commit(Save(step, time, metrics), {"weights": np.ones(1, "f4")})
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
    whole = pieces = initial_retention(BEGIN, schedule.policy)
    for cut, (step, time, metrics) in zip(cuts, schedule.saves, strict=False):
        pieces = through_json(pieces) if cut else pieces
        assert pieces == whole
        whole = record_save(whole, Save(step, time, metrics), schedule.policy)
        pieces = record_save(pieces, Save(step, time, metrics), schedule.policy)
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
    retention, without = initial_retention(BEGIN, schedule.policy), initial_retention(BEGIN, plain)
    known: list[tuple[float, int]] = []
    for step, time, metrics in schedule.saves:
        retention = record_save(retention, Save(step, time, metrics), schedule.policy)
        without = record_save(without, Save(step, time, metrics), plain)
        value = metrics.get(rule.metric, math.nan)
        if not math.isnan(value):
            known.append((-value if rule.mode == "max" else value, step))
        best = {min(known)[1]} if known else set()
        kept = without.retained_steps()
        assert retention.retained_steps() == (None if kept is None else kept | best)
        assert ({retention.best.step} if retention.best else set()) == best


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
    retention = initial_retention(BEGIN, policy)
    for number, value in enumerate(values, 1):
        metrics = {"test/accuracy": number / 10}  # another metric does not matter
        metrics |= {} if value is None else {"test/loss": value}
        retention = record_save(retention, Save(10 * number, BEGIN, metrics), policy)
    assert (retention.best.step if retention.best else None) == best
    assert retention.retained_steps() == {10 * len(values)} | ({best} if best else set())


def test_without_keep_best_nothing_is_best() -> None:
    policy = Policy(1, None, None)
    retention = record_save(
        initial_retention(BEGIN, policy), Save(10, BEGIN, {"test/accuracy": 1.0}), policy
    )
    assert retention.best is None


# Going on: pauses, and another policy


def going_on(
    retention: RetentionState, saved: Mapping[int, Save], now: float, policy: Policy
) -> tuple[RetentionState, dict[int, Save]]:
    """Do what a resume does: read the retention and what is there; return what stays there, too."""
    retention = resume_retention(through_json(retention), saved.values(), BEGIN, now, policy)
    return retention, left_of(retention, saved)


def left_of(retention: RetentionState, saved: Mapping[int, Save]) -> dict[int, Save]:
    """Return which of the saves a folder still holds; the newest one stays as a resume point."""
    kept, best = retention.retained_steps(), retention.best.step if retention.best else None
    newest = max(saved, default=None)
    return {
        step: save
        for step, save in saved.items()
        if step in (best, newest) or (save.on_schedule if kept is None else step in kept)
    }


@settings(max_examples=60, deadline=None)
@given(
    schedules(best=KeepBest(metric="test/accuracy", mode="max")),
    st.lists(st.sampled_from(["", "", "", "resume", "best"]), min_size=14, max_size=14),
    st.lists(st.floats(0, 70 * 3600), min_size=14, max_size=14),
)
def test_pauses_and_saves_for_the_best_alone_leave_the_rest_to_saver(
    schedule: Schedule, events: list[str], pauses: list[float]
) -> None:
    """With a pause Saver's clock is set by hand: its next time is the later of itself and now."""
    plain = Policy(schedule.max_to_keep, schedule.hours, None)
    retention, there, away, last = initial_retention(BEGIN, schedule.policy), {}, 0.0, BEGIN
    saved: set[int] = set()
    with TemporaryDirectory() as name, saver_of(schedule) as save:
        saver = save.saver
        for event, pause, (step, time, metrics) in zip(
            events, pauses, schedule.saves, strict=False
        ):
            if event == "resume":
                away += pause
                now = last + pause
                saver._next_checkpoint_time = max(saver._next_checkpoint_time, now)
                again, there = going_on(retention, there, now, schedule.policy)
                due = None if retention.next_hourly is None else max(retention.next_hourly, now)
                assert replace(again, resumed=()) == replace(retention, resumed=(), next_hourly=due)
                retention = again
            last = max(last, time + away)  # this clock never goes back
            made = Save(step, last, metrics, on_schedule=event != "best")
            retention = record_save(retention, made, schedule.policy)
            there = left_of(retention, {**there, step: made})
            if made.on_schedule:
                save(Path(name), step, last)
                saved.add(step)
            without = {s for s, each in there.items() if each.on_schedule}
            best = retention.best.step if retention.best else None
            assert without - {best} == steps_in(Path(name)) - {best}
            assert steps_in(Path(name)) <= set(there)
            assert plain.max_to_keep or saved == steps_in(Path(name))


def run_of(policy: Policy, times: Mapping[int, float]) -> tuple[RetentionState, dict[int, Save]]:
    """Save at steps and times, in hours since the start, as one process."""
    retention, there = initial_retention(BEGIN, policy), {}
    for step, hours in times.items():
        save = Save(step, BEGIN + hours * 3600)
        retention = record_save(retention, save, policy)
        there = left_of(retention, {**there, step: save})
    return retention, there


def test_a_weekend_leaves_one_checkpoint_more_and_not_one_for_each_hour() -> None:
    policy = Policy(2, 1, None)
    friday = {n: n / 10 for n in range(1, 16)}  # every six minutes
    retention, there = run_of(policy, friday)
    assert retention.hourly == (11,)
    retention, there = going_on(retention, there, BEGIN + 72 * 3600, policy)
    for n in range(16, 16 + 25):
        save = Save(n, BEGIN + (72 + (n - 15) / 10) * 3600)
        retention = record_save(retention, save, policy)
        there = left_of(retention, {**there, n: save})
    assert sorted(there) == [11, 16, 26, 36, 39, 40]


HOURLY = {n: n / 4 for n in range(1, 41)}  # every quarter of an hour, ten hours
CHANGES = [  # the policy before and after, the steps kept at once, and after ten more saves
    ((2, 1, None), (2, 1, None), [5, 9, 13, 17, 21, 25, 29, 33, 37, 39, 40], [41, 45, 49, 50]),
    ((2, 1, None), (2, 2, None), [9, 17, 25, 33, 39, 40], [41, 49, 50]),
    ((2, 1, None), (2, None, None), [39, 40], [49, 50]),
    ((2, None, None), (2, 1, None), [39, 40], [41, 45, 49, 50]),
    ((4, None, None), (1, None, None), [40], [50]),
    ((1, None, None), (4, None, None), [40], [47, 48, 49, 50]),
    ((0, 1, None), (2, 1, None), [5, 9, 13, 17, 21, 25, 29, 33, 37, 39, 40], [41, 45, 49, 50]),
    ((0, None, None), (2, 3, None), [13, 25, 37, 39, 40], [49, 50]),
    ((2, 5, None), (0, 5, None), [21, 39, 40], list(range(41, 51))),
]


@pytest.mark.parametrize(("was", "now", "kept", "later"), CHANGES)
def test_a_resume_applies_its_policy_to_all_saves(
    was: Any, now: Any, kept: list[int], later: list[int]
) -> None:
    retention, there = run_of(Policy(*was), HOURLY)
    retention, there = going_on(retention, there, BEGIN + 10 * 3600, Policy(*now))
    assert sorted(there) == kept
    for step in range(41, 51):
        save = Save(step, BEGIN + step / 4 * 3600)
        retention = record_save(retention, save, Policy(*now))
        there = left_of(retention, {**there, step: save})
    assert [step for step in sorted(there) if step > 40] == later


ACCURACY = KeepBest(metric="test/accuracy", mode="max")
LOSS = KeepBest(metric="test/loss", mode="min")
LEAST = KeepBest(metric="test/accuracy", mode="min")


@pytest.mark.parametrize(
    ("was", "now", "best"),
    [
        (None, ACCURACY, 20),
        (None, LOSS, 30),
        (LOSS, ACCURACY, 20),
        (ACCURACY, LEAST, 40),
        (ACCURACY, ACCURACY, 10),
        (ACCURACY, None, None),
    ],
)
def test_a_resume_lets_all_that_is_there_compete(was: Any, now: Any, best: int | None) -> None:
    values = {10: (0.9, 0.5), 20: (0.8, 0.4), 30: (0.7, 0.1), 40: (0.6, 0.2), 50: (0.8, math.nan)}
    before, policy = Policy(4, None, was), Policy(1, None, now)
    retention, there = initial_retention(BEGIN, before), {}
    for step, (accuracy, loss) in values.items():
        save = Save(step, BEGIN, {"test/accuracy": accuracy, "test/loss": loss})
        retention = record_save(retention, save, before)
        there = left_of(retention, {**there, step: save})
    retention, there = going_on(retention, there, BEGIN, policy)
    assert (retention.best.step if retention.best else None) == best
    assert set(there) == {50, *([best] if best else [])}


def test_the_next_best_competes_where_the_best_is_lost() -> None:
    policy = Policy(1, None, ACCURACY)
    retention, there = initial_retention(BEGIN, policy), {}
    for step, value in {10: 0.5, 20: 0.9, 30: 0.7}.items():
        save = Save(step, BEGIN, {"test/accuracy": value})
        retention = record_save(retention, save, policy)
        there[step] = save
    del there[20]
    assert going_on(retention, there, BEGIN, policy)[0].best == BestCheckpoint(
        30, 0.7, "test/accuracy", "max"
    )
