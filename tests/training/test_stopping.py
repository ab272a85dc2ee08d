"""Early stopping: as Keras counts, of what is recorded up to a step alone."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waymark.config.schema import Stop
from waymark.training.stopping import Stopped, early_stop

VALUES = st.lists(st.floats(-2, 2, allow_nan=False).map(lambda x: round(x, 1)), max_size=12)
NAN = float("nan")


def rule(patience: int, mode: Any = "min", min_delta: float = 0.0) -> Stop:
    return Stop(metric="val/loss", mode=mode, patience=patience, min_delta=min_delta)


def stop(values: list[float], *settings: Any) -> int | None:
    found = early_stop({10 * (i + 1): v for i, v in enumerate(values)}, rule(*settings), 10**6, 10)
    return found.step if found else None


@pytest.mark.parametrize(
    ("values", "words", "expected"),
    [
        ([], (1,), None),
        ([1.0], (1,), None),
        ([1.0, 1.0], (1,), 20),  # equal is no improvement
        ([1.0, 0.9, 0.9, 0.9], (2,), 40),
        ([1.0, 2.0, 0.5, 0.6], (2,), None),  # the count begins anew
        ([1.0, 2.0, 3.0, 0.1], (2,), 30),  # what comes later does not matter
        ([1.0, 0.95, 0.9], (2, "min", 0.1), 30),  # improvements below min_delta
        ([1.0, 0.95, 0.85], (2, "min", 0.1), None),  # they are counted from the best one
        ([0.1, 0.2, 0.2], (1, "max"), 30),
        ([NAN, NAN], (2,), 20),
        ([1.0, NAN, 0.5], (2,), None),
    ],
)
def test_when_training_stops(values: list[float], words: Any, expected: int | None) -> None:
    assert stop(values, *words) == expected


@settings(deadline=None)  # Keras takes seconds to import
@given(VALUES, st.integers(1, 4), st.sampled_from(["min", "max"]), st.sampled_from([0.0, 0.25]))
def test_it_stops_where_keras_does(
    values: list[float], patience: int, mode: str, min_delta: float
) -> None:
    from keras.callbacks import EarlyStopping
    from keras.models import Sequential

    callback = EarlyStopping("loss", min_delta, patience, mode=mode)
    callback.set_model(Sequential())
    callback.on_train_begin()
    callback.model.stop_training = False
    expected = None
    for epoch, value in enumerate(values):
        callback.on_epoch_end(epoch, {"loss": value})
        if callback.model.stop_training:
            expected = 10 * (epoch + 1)
            break
    assert stop(values, patience, mode, min_delta) == expected


def test_what_lies_behind_the_step_is_not_looked_at() -> None:
    values = {10: 1.0, 20: 2.0, 30: 3.0}
    assert early_stop(values, rule(2), 20, 10) is None
    found = early_stop(values, rule(2), 30, 10)
    assert found == Stopped(30, 10, "val/loss")
    assert found.reason == "stopped early at step 30: val/loss has not improved since step 10"


def test_an_evaluation_at_a_former_end_does_not_count() -> None:
    values = {20: 1.0, 30: 2.0, 40: 2.0}  # a run of 30 steps was made longer
    assert early_stop(values, rule(2), 40, 20) is None
    assert early_stop(values, rule(1), 40, 20) == Stopped(40, 20, "val/loss")
