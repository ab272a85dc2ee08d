"""What a rerun is compared by: the bits of its values and states."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from waymark.comparison.recorded_run import RecordedRun
from waymark.comparison.rerun_report import compare_rerun, load
from waymark.tracking.history import History


def known(record: Any = None, **metrics: dict[int, float]) -> RecordedRun:
    """Return a run that recorded these losses or other metrics."""
    values = {key.replace("_", "/"): steps for key, steps in metrics.items()}
    return RecordedRun(record or SimpleNamespace(id="a", tags={}), History(values), {})


@pytest.mark.parametrize(
    ("recorded", "now", "same"),
    [
        (math.nan, math.nan, True),
        (math.nan, -math.nan, True),
        (math.inf, math.inf, True),
        (math.inf, -math.inf, False),
        (math.inf, math.nan, False),
        (math.inf, sys.float_info.max, False),
        (0.0, -0.0, False),
        (1.0, math.nextafter(1.0, 2.0), False),
        (0.5, math.nan, False),
    ],
)
def test_values_are_compared_by_their_bits(recorded: float, now: float, same: bool) -> None:
    old = known(train_loss={1: 0.5, 2: 0.25, 3: recorded})
    verdict = compare_rerun(None, old, known(train_loss={1: 0.5, 3: now, 4: 1.0}), {})  # type: ignore[arg-type]
    assert verdict.identical is same
    assert verdict.losses == 2
    if not same:
        (parting,) = verdict.partings.values()
        assert parting.step == 3
        for value, expected in ((parting.recorded, recorded), (parting.now, now)):
            np.testing.assert_array_equal(value, expected)
    assert repr(load(verdict.dump())) == repr(verdict)
    json.loads(verdict.dump(), parse_constant=pytest.fail)


def test_speed_and_load_are_no_bits() -> None:
    old = known(train_loss={1: 1.0}, train_steps_per_second={1: 3.0}, system_cpu={1: 4.0})
    old = replace(old, history=History({k.replace("steps/per/", "steps_per_"): v
                                        for k, v in old.history.metrics.items()}))  # fmt: skip
    assert "train/steps_per_second" in old.history.metrics
    new = replace(old, history=History({k: {1: 1.0} for k in old.history.metrics}))
    assert compare_rerun(None, old, new, {}).identical  # type: ignore[arg-type]


def test_a_state_alone_can_be_apart() -> None:
    old, new = (known(train_loss={1: 1.0, 2: 1.0}) for _ in range(2))
    old.history.digests.update({1: "a", 2: "b", 3: "c"})  # type: ignore[attr-defined]
    new.history.digests.update({1: "a", 2: "x", 4: "d"})  # type: ignore[attr-defined]
    record = SimpleNamespace(id="a", tags={}, folder=Path("nowhere"), remote=False)
    tracking: Any = SimpleNamespace(answer=lambda *_: [])  # there is no remote home to ask
    verdict = compare_rerun(
        tracking, replace(old, record=record), replace(new, record=record), {"w": (1,)}
    )
    assert (verdict.identical, verdict.checkpoint, verdict.checkpoints) == (False, 2, 2)
    assert verdict.weights == {}  # the checkpoints are gone
    assert "no loss differs" in verdict.lines()
    assert "the state first differs at the checkpoint of step 2" in verdict.lines()
