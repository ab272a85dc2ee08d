"""The gate's decisions: intervals, directions, edges, and what two runs must share."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from waymark.config.compose import compose_config
from waymark.errors import BadInput
from waymark.evaluation.gate import NOT_SURE, PASSED, WORSE, Candidate, Scored, allowed_drops, judge
from waymark.evaluation.intervals import DRAWS, paired_intervals
from waymark.tasks.classification import Classification
from waymark.tasks.multilabel import Multilabel
from waymark.tasks.regression import Regression
from waymark.tasks.resampled import mean
from waymark.training.score import Score

NAMES = tuple("abcdefghij")
LABELS = (np.arange(200) % 10).astype(np.int32)


def scored(right: int = 180, **changes: Any) -> Scored:
    """Return what a run scored on 200 digits, of which the first `right` are recognised."""
    predictions = np.where(np.arange(200) < right, LABELS, (LABELS + 1) % 10)
    losses = (predictions != LABELS).astype(np.float32)
    values = {"accuracy": right / 200, "loss": float(losses.mean())}
    known = Scored(
        candidate=Candidate("a" * 32, "it", 7),
        task=Classification(),
        metrics=[],
        modes={"accuracy": "max"},
        loader=compose_config([]).config.data,
        labels=LABELS,
        class_names=(),
        features="f" * 64,
        score=Score(predictions, values, losses),
    )
    return replace(known, **changes)


def test_the_interval_is_that_of_scipy_and_of_theory() -> None:
    draw = np.random.default_rng(2)
    a = draw.exponential(1, 400)
    b = a + draw.normal(0.1, 0.3, 400)  # paired: alone each varies three times as much
    ((low, high),) = paired_intervals([(mean(a), mean(b))], 400)  # type: ignore[misc]
    theirs = scipy.stats.bootstrap(
        (a, b),
        lambda x, y, axis: x.mean(axis) - y.mean(axis),
        paired=True,
        method="percentile",
        n_resamples=DRAWS,
        rng=np.random.default_rng(3),
    ).confidence_interval
    deviation = (a - b).std() / 400**0.5
    normal = (a - b).mean() + deviation * scipy.stats.norm.ppf([0.025, 0.975])
    # A percentile of 10,000 draws is known to about 0.04 deviations.
    for expected in (theirs, normal):
        np.testing.assert_allclose([low, high], expected, atol=0.2 * deviation)
    assert paired_intervals([(mean(a), mean(b))], 400) == [(low, high)]
    assert paired_intervals([(mean(a), mean(a * np.nan)), (mean(a), mean(a))], 400) == [
        None,
        (0.0, 0.0),
    ]


@pytest.mark.long
def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    draw, held = np.random.default_rng(4), 0
    for _ in range(60):
        a, b = draw.random((2, 150)) < [[0.9], [0.8]]
        ((low, high),) = paired_intervals([(mean(a), mean(b))], 150)  # type: ignore[misc]
        held += low <= 0.1 <= high
    assert held >= 51  # of 57 that are expected: fewer has a probability of 0.4 %


@pytest.mark.parametrize(
    ("value", "against", "mode", "allowed", "verdict"),
    [
        (0.952, 0.954, "max", 0.002, PASSED),  # although Python's difference is more
        (0.9519, 0.954, "max", 0.002, WORSE),
        (0.954, 0.952, "max", 0.0, PASSED),
        (0.9, 0.9, "max", 0.0, PASSED),
        (1.3, 1.2, "min", 0.1, PASSED),
        (1.3001, 1.2, "min", 0.1, WORSE),
        (1.2, 1.3, "min", 0.0, PASSED),
        (np.nan, 0.1, "max", 0.5, WORSE),
        (0.1, np.nan, "max", 0.5, PASSED),
        (np.nan, np.nan, "min", 0.5, WORSE),
    ],
)
def test_worse_is_by_the_direction_and_by_more(
    value: float, against: float, mode: Any, allowed: float, verdict: str
) -> None:
    one, other = (
        scored(modes={"m": mode}, score=Score(LABELS, {"m": each}), metrics=["mine.m"])
        for each in (value, against)
    )
    found = judge(one, other, {"m": allowed}, significant=False)
    assert [each.verdict for each in found.metrics] == [verdict]
    assert found.passed is (verdict == PASSED)
    assert found.metrics[0].interval is None  # of a function of one's own


def test_the_whole_interval_must_be_beyond_to_be_significant() -> None:
    one, other = scored(180), scored(186)  # six examples apart: 0.03, standard deviation 0.012
    found = judge(one, other, {}, significant=False)
    assert (found.passed, found.metrics[0].verdict) == (False, WORSE)
    low, high = found.metrics[0].interval or (0.0, 0.0)
    assert -0.06 < low < -0.03 < high < 0
    for allowed, verdict in ((0, WORSE), (-high - 1e-9, WORSE), (-high, NOT_SURE), (0.03, PASSED)):
        found = judge(one, other, {"accuracy": allowed}, significant=True)
        assert (found.metrics[0].verdict, found.passed) == (verdict, verdict != WORSE)
        assert found.metrics[0].interval == (low, high)
    losses = judge(
        replace(one, modes={"loss": "min"}),
        replace(other, modes={"loss": "min"}),
        {"loss": 0},
        significant=True,
    )
    assert losses.metrics[0].interval == pytest.approx((-high, -low)) and not losses.passed


@dataclass
class Own(Classification):
    floor: float = 0.0


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"task": Multilabel()}, r"the task \(classification and multilabel\)"),
    ({"task": Own()}, {"task": Own(floor=1.0)}, "the task .*, whose settings differ"),
    (
        {"task": Regression(), "modes": {"loss": "min"}},
        {"task": Regression(loss="mae")},
        r"the metric loss \(mse and mae\)",
    ),
    (
        {"modes": {"worst": "min"}, "metrics": ["a.worst"]},
        {"metrics": ["b.worst"]},
        r"the metric worst \(a.worst and b.worst\)",
    ),
    ({}, {"labels": LABELS[:60]}, "the test set: it has 200 and 60 examples"),
    ({}, {"labels": LABELS[::-1]}, "the test set: its labels differ"),
    (
        {"class_names": tuple("abcdefghij")},
        {"class_names": tuple("jihgfedcba")},
        "the test set: its labels",
    ),
    ({}, {"features": "0" * 64}, "the test set: its features differ. data.test=FILE"),
]


@pytest.mark.parametrize(("ours", "theirs", "said"), REFUSED, ids=[each[2] for each in REFUSED])
def test_what_two_runs_do_not_share_is_named(
    ours: dict[str, Any], theirs: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadInput, match=f"^gate: run a+ and run a+ do not share {said}"):
        judge(scored(**ours), scored(**theirs), {}, significant=False)


def test_settings_of_training_and_numbers_of_classes_may_differ() -> None:
    smooth = Classification(label_smoothing=0.1, class_weights="balanced")
    assert judge(scored(), scored(task=smooth), {}, False).passed
    other = scored(class_names=NAMES[::-1], labels=9 - LABELS)
    other = replace(other, score=replace(other.score, predictions=9 - other.score.predictions))
    found = judge(scored(class_names=NAMES), other, {}, False)
    assert found.metrics[0].interval == (0.0, 0.0)
    train = [scored(task=Regression(loss=loss), modes={}) for loss in ("mse", "huber")]  # type: ignore[arg-type]
    assert judge(*train, {}, False).passed


def test_a_table_of_the_same_file_has_the_same_test_set(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("a,b,y\n1,2,3\n")

    given = ["data=table", "data.target=y", f"data.path={file}", "task=regression"]
    loader = compose_config(given).config.data

    def shared(**settings: Any) -> bool:
        one, other = (
            scored(loader=each, features=str(place))
            for place, each in enumerate((loader, replace(loader, **settings)))
        )
        try:
            return judge(one, other, {}, False).passed
        except BadInput:
            return False

    assert shared(features=["a"]) and shared(missing="median")
    assert not shared(split_seed=1) and not shared(test=0.3)
    (tmp_path / "test.csv").write_text("a,b,y\n1,2,3\n")
    assert not shared(test=str(tmp_path / "test.csv"))
    file.unlink()
    assert not shared()


@pytest.mark.parametrize("amount", [-0.1, float("nan"), float("inf"), True, "0.1"])
def test_an_allowed_drop_is_a_number_from_0_up(amount: Any) -> None:
    with pytest.raises(BadInput, match=r"^--max-drop loss=.*: must be a finite number from 0 up"):
        allowed_drops({"loss": amount})
