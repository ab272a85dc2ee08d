"""What differs between recorded runs: rows, numbers, where two of them part, code and data."""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats
from waymark.comparison.rerun_report import Divergence
from waymark.comparison.runs import with_current_steps
from waymark.names import DATA_DIGEST, STATE_DIGEST, VERSION

from tests.support.comparisons import (
    FINITE,
    QUICK,
    cells,
    compared,
    curves,
    identical,
    made,
    members,
    number_of,
    printable,
    strict_json,
    table,
)

# Rows: which runs are one


@st.composite
def parameters(draw: st.DrawFn) -> list[tuple[dict[str, str], str | None]]:
    """Draw the params of some runs and the digests of their data; many differ only by seed."""
    one = st.fixed_dictionaries(
        {"model": st.sampled_from(["cnn", "softmax"]), "seed": st.sampled_from("0123")},
        optional={"lr": st.sampled_from(["0.1", "0.2"]), "run_name": st.sampled_from("abc")},
    )
    data = st.sampled_from([None, "d" * 64, "e" * 64])
    return draw(st.lists(st.tuples(one, data), min_size=2, max_size=12))


@QUICK
@given(parameters())
@example([({"seed": "1"}, None)] * 3)
@example([({"seed": s, "lr": "1"}, d) for s in "01" for d in ("d" * 64, "e" * 64)])
def test_runs_that_differ_only_by_their_seeds_are_one_row(
    drawn: list[tuple[dict[str, str], str | None]],
) -> None:
    runs = [
        made(i, params, tags={DATA_DIGEST: data} if data else {})
        for i, (params, data) in enumerate(drawn)
    ]
    found = compared(*runs)
    # By hand: the n-th run of a seed and a configuration comes into its n-th row.
    expected: dict[Any, list[int]] = {}
    seen: list[Any] = []
    for index, (params, data) in enumerate(drawn):
        like = frozenset((k, v) for k, v in params.items() if k not in ("seed", "run_name"))
        seen.append((like, data, params["seed"]))
        expected.setdefault((like, data, seen.count(seen[-1])), []).append(index)
    assert sorted(members(found)) == sorted(expected.values())
    firsts = [row[0] for row in members(found)]
    assert firsts == sorted(firsts)  # the order in which they were named
    # The keys that are shown are those that differ between rows, and tell what they are.
    shown = [drawn[first][0] for first in firsts]
    assert "run_name" not in found.keys
    for key in ("model", "lr"):
        assert (key in found.keys) == (len({params.get(key) for params in shown}) > 1)
    for row, params in zip(found.rows, shown, strict=True):
        assert row.values == {key: params[key] for key in found.keys if key in params}
    labels = [row["run"] for row in table(found)]
    assert len(set(labels)) == len(labels)  # whoever reads the table can tell them apart
    if all(len(row.runs) > 1 for row in found.rows):
        assert [row["seeds"] for row in table(found)] == [str(len(r.runs)) for r in found.rows]


def test_what_is_for_show_is_no_difference() -> None:
    """Of Waymark's runs; of another program's nothing is known to be for show."""
    shows = [
        {"progress": "True", "tracking.uri": "None", "record.changes": "False"},
        {"progress": "auto", "tracking.flush_seconds": "3", "record.changes": "True"},
    ]
    for tags, keys in (({VERSION: "1"}, []), ({}, sorted({**shows[0], **shows[1]}))):
        runs = [made(i, {"seed": str(i), **show}, tags=tags) for i, show in enumerate(shows)]
        found = compared(*((run, with_current_steps(run.record, facts)) for run, facts in runs))
        assert sorted(set(found.keys) - {"seed"}) == keys
        assert members(found) == ([[0], [1]] if keys else [[0, 1]])


def test_runs_that_no_seed_tells_apart_stay_apart() -> None:
    """Nothing says that they are alike."""
    runs = [made(i, {}, {"loss": {1: float(i)}}) for i in range(3)]
    assert members(compared(*runs)) == [[0], [1], [2]]
    runs = [made(i, {"lr": "1", **({"seed": "4"} if i == 1 else {})}) for i in range(3)]
    assert members(compared(*runs)) == [[0], [1], [2]]  # nor of two without a seed


def test_the_seed_is_shown_where_each_run_is_a_row() -> None:
    found = compared(made(0, {"seed": "3", "lr": "1"}), made(1, {"seed": "4", "lr": "2"}))
    assert found.keys == ["seed", "lr"]
    assert [row.values["seed"] for row in found.rows] == ["3", "4"]
    found = compared(*[made(i, {"seed": str(i), "lr": str(i // 2)}) for i in range(3)])
    assert found.keys == ["lr"]  # a row of two has no seed


def test_what_only_says_the_group_again_is_left_out() -> None:
    target = "optimizer.class"
    adam = {"optimizer": "adam", target: "a.Adam", "optimizer.beta1": "0.9", "optimizer.lr": "1"}
    sgd = {"optimizer": "sgd", target: "a.Sgd", "optimizer.momentum": "0.9", "optimizer.lr": "2"}
    found = compared(made(0, adam), made(1, sgd))
    assert sorted(found.keys) == ["optimizer", "optimizer.lr"]
    other = {**sgd, "optimizer.momentum": "0.5"}  # of two of one kind it says more
    found = compared(made(0, adam), made(1, sgd), made(2, other))
    assert sorted(found.keys) == ["optimizer", "optimizer.lr", "optimizer.momentum"]


# Numbers: means, deviations, intervals, the best


@QUICK
@given(st.lists(FINITE, min_size=1, max_size=7))
@example([0.25])
@example([0.1] * 3)
def test_mean_deviation_and_interval(finals: list[float]) -> None:
    runs = [
        made(i, {"seed": str(i), "lr": "1"}, {"loss": {1: final + 1, 2: final}})
        for i, final in enumerate(finals)
    ]
    other = made(99, {"seed": "0", "lr": "2"}, {"loss": {2: 0.0}})
    row, single = compared(*runs, other).rows
    found = row.metrics["loss"]
    assert len(row.runs) == len(finals)
    assert found.final == pytest.approx(np.mean(finals), rel=1e-9, abs=1e-9)
    assert found.best == found.final
    assert (single.metrics["loss"].std, single.metrics["loss"].low) == (None, None)
    if len(finals) == 1:
        assert found.final == finals[0]
        assert (found.std, found.low, found.high) == (None, None, None)
        return
    assert found.std == pytest.approx(np.std(finals, ddof=1), rel=1e-6, abs=1e-9)
    assert found.low is not None and found.high is not None
    if len(set(finals)) == 1:
        assert found.low == found.high == pytest.approx(finals[0])
        return
    wide = stats.ttest_1samp(finals, 0).confidence_interval(0.95)
    size = max(map(abs, finals))
    assert found.low == pytest.approx(wide.low, rel=1e-6, abs=1e-9 * size)
    assert found.high == pytest.approx(wide.high, rel=1e-6, abs=1e-9 * size)


def test_an_interval_by_a_table() -> None:
    """The factor of the 95 % interval of two values is 12.7062 / sqrt(2), of five 2.7764/sqrt 5."""
    for values, factor in (([1.0, 3.0], 12.7062047), ([1.0, 2.0, 3.0, 4.0, 5.0], 2.7764451)):
        runs = [made(i, {"seed": str(i)}, {"loss": {1: v}}) for i, v in enumerate(values)]
        (row,) = compared(*runs).rows
        found, std = row.metrics["loss"], float(np.std(values, ddof=1))
        half = factor * std / math.sqrt(len(values))
        assert found.final == np.mean(values)
        assert (found.low, found.high) == pytest.approx(
            (found.final - half, found.final + half), rel=1e-7
        )


@pytest.mark.parametrize(
    "values",
    [
        (math.inf, -math.inf),
        (math.nan, 1.0),
        (math.inf, 1.0),
        (math.nan, math.inf),
        (1.7e308, 1.7e308),
        (1.7e308, -1.7e308),
    ],
    ids=str,
)
def test_seeds_whose_numbers_have_no_mean(values: tuple[float, float]) -> None:
    runs = [made(i, {"seed": str(i), "lr": "1"}, {"loss": {1: v}}) for i, v in enumerate(values)]
    found = compared(*runs, made(9, {"seed": "0", "lr": "2"}, {"loss": {1: 0.5}}))
    metric = found.rows[0].metrics["loss"]
    with np.errstate(all="ignore"):
        expected = float(np.mean(values))
    if all(map(math.isfinite, values)):
        assert metric.final in (expected, sum(v / 2 for v in values))
    else:
        assert identical(metric.final, expected)
        assert (metric.std, metric.low, metric.high) == (None, None, None)
    if math.isinf(values[0] + values[1]) or math.isnan(values[0]):
        assert found.rows[1].metrics["loss"].final_leads
    strict_json(found.to_json())
    cells(found)
    assert printable(found.text())


# Of a metric's name: which way is better; None: it does not tell.
DIRECTIONS = {
    "test/accuracy": max,
    "val_acc": max,
    "AUC": max,
    "f1": max,
    "val/f1_score": max,
    "r2": max,
    "train/loss": min,
    "val_loss": min,
    "rmse": min,
    "error": min,
    "top1_error": min,
    "layer2/loss": min,
    "encoder2_loss": min,
    "accumulated_loss": min,
    "score_error": min,
    "learning_rate": None,
    "epoch": None,
}


@pytest.mark.parametrize("key", DIRECTIONS)
def test_which_way_is_better(key: str) -> None:
    curves = [{1: 0.5, 2: 0.4}, {1: 0.1, 2: 0.2}, {1: 0.9, 2: 0.3}]
    rows = compared(*[made(i, {"lr": str(i)}, {key: c}) for i, c in enumerate(curves)]).rows
    better = DIRECTIONS[key]
    found = [row.metrics[key] for row in rows]
    assert [m.final for m in found] == [0.4, 0.2, 0.3]
    assert [m.best for m in found] == [better(c.values()) if better else c[2] for c in curves]
    assert [m.final_leads for m in found] == [better is max, better is min, False]
    assert [m.best_leads for m in found] == [False, better is min, better is max]


@QUICK
@given(curves(), st.sampled_from(["train/loss", "test/accuracy", "something"]))
@example([[{1: 0.1, 2: 0.5}], [{1: 0.3, 2: 0.5}]], "train/loss")  # the same end, another way
@example([[{1: 0.5}], [{1: 0.5}], [{1: 0.5}, {1: 0.6}]], "test/accuracy")
@example([[{1: math.nan}], [{1: math.nan, 2: 0.5}]], "train/loss")
# Two rows lead, only one of whose intervals reaches the third.
@example([[{1: 0.5}], [{1: 0.0}, {1: 1.0}], [{1: 0.4}, {1: 0.4}]], "test/accuracy")
def test_the_best_and_its_ties(drawn: list[list[dict[int, float]]], key: str) -> None:
    runs = [
        made(10 * i + j, {"row": str(i), "seed": str(j)}, {key: curve})
        for i, row in enumerate(drawn)
        for j, curve in enumerate(row)
    ]
    found = [row.metrics[key] for row in compared(*runs).rows]
    assert len(found) == len(drawn)
    sign = {"train/loss": -1, "test/accuracy": 1}.get(key)
    for metric, row in zip(found, drawn, strict=True):
        if len(row) == 1:  # its numbers are those that were recorded
            (curve,) = row
            assert identical(metric.final, curve[max(curve)])
            numbers = [v for v in curve.values() if not math.isnan(v)]
            if sign and numbers:
                assert metric.best == sign * max(sign * v for v in numbers)
            else:
                assert identical(metric.best, metric.final)
    finals = leading([m.final for m in found], sign)
    assert [m.final_leads for m in found] == finals
    bests = leading([m.best for m in found], sign)
    if any(bests):  # where nothing can be chosen, a mark does no harm
        assert [m.best_leads for m in found] == bests

    ends = [[curve[max(curve)] for curve in row] for row in drawn]
    leaders = [row for row, metric in zip(ends, found, strict=True) if metric.final_leads]
    for metric, row in zip(found, ends, strict=True):
        if metric.final_leads:
            assert not metric.ties
        elif leaders and math.isfinite(sum(row) + sum(map(sum, leaders))):
            told = [told_apart(row, leader) for leader in leaders]
            assert bool(metric.ties) == any(apart is False for apart in told)


def told_apart(one: list[float], other: list[float]) -> bool | None:
    """Ask SciPy whether two samples, with seeds from 0 up, differ at the 5 % level."""
    count = min(len(one), len(other))
    if count < 2:
        return None
    differences = np.subtract(one[:count], other[:count])
    if np.ptp(differences) < 1e-9 * np.abs(differences).max():  # SciPy warns of lost digits
        return bool(np.any(differences != 0))
    return bool(stats.ttest_rel(one[:count], other[:count]).pvalue < 0.05)


def test_other_seeds_are_compared_by_welchs_test() -> None:
    a, b = [0.8, 0.82, 0.79, 0.81], [0.78, 0.83, 0.8]
    for shift, apart in ((0.0, False), (0.1, True)):
        runs = [
            made(10 * i + j, {"row": str(i), "seed": str(10 * i + j)}, {"test/accuracy": {1: x}})
            for i, row in enumerate((a, [x - shift for x in b]))
            for j, x in enumerate(row)
        ]
        assert (stats.ttest_ind(a, np.subtract(b, shift), equal_var=False).pvalue < 0.05) == apart
        best, other = (row.metrics["test/accuracy"] for row in compared(*runs).rows)
        assert best.final_leads and other.ties == ("" if apart else "Welch's t test")


def leading(values: Sequence[float], sign: int | None) -> list[bool]:
    """Tell by trying all pairs which values are the best; none if there is nothing to choose."""
    pairs = itertools.pairwise(values)
    if sign is None or all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in pairs):
        return [False] * len(values)
    return [
        not math.isnan(a) and all(sign * a >= sign * b for b in values if not math.isnan(b))
        for a in values
    ]


def test_how_the_marks_are_shown() -> None:
    runs = [
        made(0, {"lr": "1", "seed": "0"}, {"test/accuracy": {1: 0.9, 2: 0.8}, "odd": {1: 1.0}}),
        made(1, {"lr": "1", "seed": "1"}, {"test/accuracy": {1: 0.8, 2: 0.7}}),
        made(2, {"lr": "2", "seed": "0"}, {"test/accuracy": {2: 0.875}}),
        made(3, {"lr": "3", "seed": "0"}, {"test/accuracy": {1: 0.95, 2: 0.1}}),
        made(4, {"lr": "4", "seed": "0"}, {"test/accuracy": {2: math.nan}}),
    ]
    found = compared(*runs)
    shown = [row["test/accuracy"] for row in table(found)]
    assert shown == ["0.7500", "0.8750*", "0.1000", "nan"]
    assert [row["best test/accuracy"] for row in table(found)] == [
        "0.8500", "0.8750", "0.9500*", "nan"
    ]  # fmt: skip
    assert [row["± test/accuracy"] for row in table(found)] == ["0.6353", "-", "-", "-"]
    assert [row["odd"] for row in table(found)] == ["1.000", "-", "-", "-"]
    assert found.notes()[0] == "* the best of all rows"


def test_the_machines_own_metrics_are_not_compared_but_its_pace_is_told() -> None:
    pace = "train/steps_per_second"
    fast = {pace: {5: 1.0, 10: 400.0}, "system/cpu": {1: 0.5}, "loss": {1: 1.0}}
    found = compared(
        made(0, {"lr": "1", "seed": "0"}, fast, seconds=10.0),
        made(1, {"lr": "1", "seed": "1"}, {**fast, pace: {10: 200.0}}, seconds=20.0),
        made(2, {"lr": "2", "seed": "1"}, {"loss": {1: 1.0}}, seconds=None),
    )
    assert found.metrics == ["loss"]
    assert [(row.seconds, row.steps_per_second) for row in found.rows] == [(15, 300), (None, None)]
    shown = [(row["duration"], row["steps/s"]) for row in table(found)]
    assert shown == [("15.0 s", "300"), ("-", "-")]


# Where two runs part


@QUICK
@given(
    *[
        st.dictionaries(
            st.integers(-1, 8),
            st.sampled_from([0.0, -0.0, math.nan, math.inf, 0.1, math.nextafter(0.1, 1)]),
            max_size=9,
        )
    ]
    * 2
)
@example({1: 0.0}, {1: -0.0})
@example({1: 0.1}, {1: math.nextafter(0.1, 1)})
@example({1: math.nan, 2: 1.0}, {1: math.nan, 2: 2.0})
@example({}, {})
def test_where_two_runs_part(one: dict[int, float], other: dict[int, float]) -> None:
    runs = [made(i, {"lr": str(i)}, {"train/loss": c}) for i, c in enumerate((one, other))]
    found = compared(*runs).partings
    assert found is not None
    for step in range(-1, 9):  # the first one of them all
        if step in one and step in other and not identical(one[step], other[step]):
            parting = found["train/loss"]
            assert parting.step == step
            assert identical(parting.recorded, one[step])
            assert identical(parting.now, other[step])
            words = "\n".join(compared(*runs).notes())
            values = r"(\S+) in run-0 0+, (\S+) in run-1 0+1"
            line = rf"(?m)^train/loss first differs at step {step}: {values}$"
            told = re.search(line, words)
            assert told and told[1] != told[2]
            for text, value in zip(told.groups(), (one[step], other[step]), strict=True):
                assert identical(np.float32(text), np.float32(value))
            break
    else:
        assert found == {}


def test_of_more_than_two_runs_no_parting_is_told() -> None:
    runs = [made(i, {"lr": str(i)}, {"train/loss": {1: float(i)}}) for i in range(3)]
    found = compared(*runs)
    assert found.partings is None
    assert "differs" not in found.text()
    two = compared(*runs[:2])
    assert two.partings == {"train/loss": Divergence(1, 0.0, 1.0)}
    assert (
        "train/loss first differs at step 1: 0.0 in run-0 00000000, 1.0 in run-1 00000001"
        in two.notes()
    )


# What else differs


def test_equal_states_are_grouped_and_data_told() -> None:
    tags = [{STATE_DIGEST: s * 64, DATA_DIGEST: d * 64} for s, d in ("ax", "bx", "ay", "by", "cy")]
    runs = [
        made(i, {"lr": str(i // 2), "seed": str(i % 2)}, tags=own) for i, own in enumerate(tags)
    ]
    found = compared(*runs)
    assert [[number_of(run) for run in runs] for runs in found.same_state] == [[0, 2], [1, 3]]
    assert {data[0]: [*map(number_of, runs)] for data, runs in found.data.items()} == {
        "x": [0, 1],
        "y": [2, 3, 4],
    }
    notes = found.notes()
    ids = [run.record.id[:8] for run, _ in runs]
    # Each run is called by its own name, in a row of several, too.
    assert f"the same final state: run-0 {ids[0]}, run-2 {ids[2]}" in notes
    assert f"the same final state: run-1 {ids[1]}, run-3 {ids[3]}" in notes
    assert f"data {'x' * 8}: run-0 {ids[0]}, run-1 {ids[1]}" in notes
    others = ", ".join(f"run-{i} {ids[i]}" for i in (2, 3, 4))
    assert f"data {'y' * 8}: {others}" in notes
    assert {*found.differences} == {run.record.id for run, _ in runs[2:]}


@pytest.mark.parametrize("order", [1, -1])
def test_data_known_of_one_run_only_is_told(order: int) -> None:
    """Another program records no digest."""
    runs = [made(0, {"lr": "1"}, tags={DATA_DIGEST: "x" * 64}), made(1, {"lr": "2"})][::order]
    assert [line for line in compared(*runs).notes() if "data" in line and "x" * 8 in line]


def test_code_and_environment_that_differ_are_told_once() -> None:
    facts = {"python": "3.11", "packages": {"numpy": "1", "same": "1"}, "git_commit": "aaa"}
    facts["changes"] = "recorded"
    old = {
        **facts,
        "code": {"waymark.training.loop": "1", "waymark.gone": "1", "waymark.same": "1"},
    }
    new = {**facts, "packages": {"numpy": "2", "same": "1"}, "git_commit": "bbb"}
    new["code"] = {"waymark.training.loop": "2", "waymark.new": "2", "waymark.same": "1"}
    patch = "diff --git a/x.py b/x.py\n--- a/x.py\n+++ b/x.py\n@@ -1 +1,2 @@\n-1\n+2\n+3\n"
    first = made(0, {"lr": "0"}, **old)
    others = [made(i, {"lr": str(i)}, **new) for i in (1, 2)]
    others = [(replace(run, patches={"changes.patch": patch}), known) for run, known in others]
    found = compared(first, *others)
    assert [*map(number_of, found.differences)] == [1, 2]
    expected = {
        "packages.numpy": ("1", "2"),
        "git_commit": ("aaa", "bbb"),
        "code": (
            ["waymark.gone", "waymark.training.loop"],
            ["waymark.new", "waymark.training.loop"],
        ),
        "uncommitted changes": ("none", "x.py +2 -1"),
    }
    for differences in found.differences.values():
        assert {what: (a, b) for what, a, b in differences} == expected
    told = [line for line in found.notes() if "numpy" in line]
    assert told == ["run-1 00000001, run-2 00000002: packages.numpy: 1 in run-0 00000000, 2 here"]
    (code,) = [line for line in found.notes() if ": code: " in line]
    assert "only in run-0 00000000 waymark.gone; only here waymark.new" in code
    assert "changed waymark.training.loop" in code
    assert compared(first, made(1, {"lr": "1"}, **old)).differences == {}
