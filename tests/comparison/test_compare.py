"""Comparing and listing runs, Waymark's and others': the right numbers, whatever the runs hold."""

import csv
import html.parser
import io
import itertools
import json
import math
import re
import shutil
import sqlite3
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib.image
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from mlflow.entities import Metric as Point
from mlflow.entities import Param, RunTag
from mlflow.tracking import MlflowClient
from scipy import stats
from waymark import api, listing
from waymark.comparison.bits import Divergence
from waymark.comparison.environment import parse_environment
from waymark.comparison.recorded_run import RecordedRun, load_recorded_run
from waymark.comparison.report import Comparison, Metric, Row
from waymark.comparison.repository import CHECKOUT
from waymark.comparison.runs import compare_recorded, with_current_steps
from waymark.errors import BadInput
from waymark.names import DATA_DIGEST, STATE_DIGEST, VERSION
from waymark.tracking.finder import find
from waymark.tracking.history import History
from waymark.tracking.opening import open_store
from waymark.tracking.runs import RunRecord, RunSummary

from tests.support.processes import Done, Main, free_port, killed

Curve = Mapping[int, float]

BASE = ["runtime.intra_op_threads=2", "progress=false", "save.meta_graph=false", "steps=20"]
BASE += ["batch_size=10", "save.every=10", "eval_every=5"]
QUICK = settings(max_examples=40, deadline=None)
# What names, params and tags may hold to do harm on a terminal, in a page, a table or a picture.
HARM = [
    "\x1b[31mred\x07",
    "<script>alert(1)</script>",
    "a & b ]]> --> <!-- \"'",
    "[red]bold[/red] [/x] :smile:",
    "line\r\nbreak\ttab",
    "lone\rreturn",
    "comma, \"quote\" ; 'x'",
    "\u202egnp.exe\u2028\x9b2J",
    "cost $x_{$ \\frac{",
    "_hidden",
    "模型 \U0001f600",
    " ",
    "n" * 250,
]


# Recorded runs made here, with no store


def made(
    number: int,
    params: Mapping[str, str] | None = None,
    metrics: Mapping[str, Curve] | None = None,
    tags: Mapping[str, str] | None = None,
    name: str | None = None,
    seconds: float | None = 10.0,
    **facts: Any,
) -> tuple[RecordedRun, RunSummary]:
    """Return what a run recorded, as if it had been read from a store."""
    run = f"{number:08x}{0:024x}"  # as MLflow's, told apart by their beginnings
    name, tags = f"run-{number}" if name is None else name, dict(tags or {})
    record = RunRecord(run, run, name, "0", "FINISHED", 1000.0, tags, Path("none"), False)
    known = {key: dict(curve) for key, curve in (metrics or {}).items()}
    last = {key: curve[max(curve)] for key, curve in known.items() if curve}
    end = None if seconds is None else 1000.0 + seconds
    return RecordedRun(record, History(known), facts, None), RunSummary(
        dict(params or {}), last, end
    )


def compared(*runs: tuple[RecordedRun, RunSummary]) -> Comparison:
    return compare_recorded([run for run, _ in runs], [facts for _, facts in runs])


def number_of(run: str) -> int:
    return int(run[:8], 16)


def members(found: Comparison) -> list[list[int]]:
    return [[number_of(run) for run in row.runs] for row in found.rows]


def cells(found: Comparison) -> list[list[str]]:
    """Return the lines of the CSV; check that all are as long as the first."""
    lines = list(csv.reader(io.StringIO(found.to_csv(), newline=""), strict=True))
    assert {len(line) for line in lines} == {len(lines[0])}
    assert len(lines) == 1 + len(found.rows)
    return lines


def table(found: Comparison) -> list[dict[str, str]]:
    """Return the rows of the table as it is shown, by column."""
    columns, rows = found.table()
    assert {len(row) for row in rows} == {len(columns)}
    return [dict(zip(columns, row, strict=True)) for row in rows]


def strict_json(text: str) -> Any:
    """Read JSON; fail for what only Python takes for it."""

    def refuse(word: str) -> Any:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def printable(text: str) -> bool:
    """Tell whether a terminal does nothing but show a text, line by line."""
    text.encode()
    return all(line.isprintable() for line in text.split("\n"))


same = struct.Struct("<d").pack


def identical(a: float, b: float) -> bool:
    """Tell whether two numbers are the same bits; there is one NaN."""
    return (math.isnan(a) and math.isnan(b)) or same(a) == same(b)


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
    target = "optimizer._target_"
    adam = {"optimizer": "adam", target: "a.Adam", "optimizer.beta1": "0.9", "optimizer.lr": "1"}
    sgd = {"optimizer": "sgd", target: "a.Sgd", "optimizer.momentum": "0.9", "optimizer.lr": "2"}
    found = compared(made(0, adam), made(1, sgd))
    assert sorted(found.keys) == ["optimizer", "optimizer.lr"]
    other = {**sgd, "optimizer.momentum": "0.5"}  # of two of one kind it says more
    found = compared(made(0, adam), made(1, sgd), made(2, other))
    assert sorted(found.keys) == ["optimizer", "optimizer.lr", "optimizer.momentum"]


# Numbers: means, deviations, intervals, the best

FINITE = st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-6)
ANY = st.one_of(FINITE, st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0]))


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


@st.composite
def curves(draw: st.DrawFn) -> list[list[dict[int, float]]]:
    """Draw rows of runs, each with one metric's values by step."""
    few = st.sampled_from([0.0, -0.0, 0.25, 0.5, 1.0, math.nan, math.inf, -math.inf])
    values = draw(st.sampled_from([few, ANY, FINITE]))
    curve = st.dictionaries(st.integers(-2, 50), values, min_size=1, max_size=4)
    row = st.lists(curve, min_size=1, max_size=3)
    return draw(st.lists(row, min_size=2, max_size=5))


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

    def interval(metric: Metric) -> tuple[float, float]:
        if metric.low is None or metric.high is None:
            return metric.final, metric.final
        return metric.low, metric.high

    leaders = [interval(m) for m in found if m.final_leads]
    for metric in found:
        low, high = interval(metric)
        touched = any(low <= above and below <= high for below, above in leaders)
        assert metric.ties == (touched and not metric.final_leads)


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
    assert shown[0].startswith("0.7500 ±0.07071 [0.1147, 1.385]~ / 0.8500")
    assert shown[1:] == ["0.8750*", "0.1000 / 0.9500*", "nan"]
    assert [row["odd"] for row in table(found)] == ["1.000 (of 1)", "-", "-", "-"]
    assert "~ a tie" in found.notes()[0]


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
            words = compared(*runs).notes()[1]
            told = re.fullmatch(rf"train/loss parts at step {step}: (\S+) and (\S+)", words)
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
    assert "part" not in found.text()
    two = compared(*runs[:2])
    assert two.partings == {"train/loss": Divergence(1, 0.0, 1.0)}
    assert "train/loss parts at step 1: 0.0 and 1.0" in two.notes()


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
    others = [(replace(run, patch=patch), known) for run, known in others]
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
    assert told == ["run-1 00000001, run-2 00000002: packages.numpy: 1 in the first run, 2 here"]
    (code,) = [line for line in found.notes() if ": code: " in line]
    assert "only in the first run waymark.gone; only here waymark.new" in code
    assert "changed waymark.training.loop" in code
    assert compared(first, made(1, {"lr": "1"}, **old)).differences == {}


# For programs


@QUICK
@given(curves(), st.sampled_from([None, 12.25]))
def test_csv_and_json_hold_the_very_numbers(
    drawn: list[list[dict[int, float]]], seconds: float | None
) -> None:
    runs = [
        made(
            10 * i + j,
            {"row": str(i), "seed": str(j)},
            {"loss": c, **({"odd,\n": c} if i else {})},
            {STATE_DIGEST: f"{i}{j}", DATA_DIGEST: "d"},
            seconds=seconds,
        )
        for i, row in enumerate(drawn)
        for j, c in enumerate(row)
    ]
    found = compared(*runs)
    body = strict_json(found.to_json())
    plain = asdict(found)
    assert plain.pop("curves") is not None
    assert agrees(body, plain)
    header, *lines = cells(found)
    assert len(set(header)) == len(header)
    for line, row in zip(lines, found.rows, strict=True):
        shown = dict(zip(header, line, strict=True))
        assert (shown["name"], shown["run_ids"].split()) == (row.name, row.runs)
        assert shown["seconds"] == ("" if seconds is None else "12.25")
        assert (shown["state_digests"].split(), shown["data_digest"]) == (row.states, "d")
        for key in found.metrics:
            metric = row.metrics.get(key)
            for part in ("final", "best", "std", "low", "high", "count"):
                value = getattr(metric, part, None)
                text = shown[f"{part} of metrics.{key}".removeprefix("final of ")]
                assert (text == "") if value is None else identical(float(text), value)


def agrees(read: Any, told: Any) -> bool:
    """Tell whether JSON holds just what an object does; NaN and infinities as texts."""
    if isinstance(told, float):
        if not math.isfinite(told):
            return bool(isinstance(read, str) and identical(float(read), told))
        return type(read) in (int, float) and identical(float(read), told)
    if isinstance(told, Mapping):
        return read.keys() == told.keys() and all(agrees(read[k], told[k]) for k in told)
    if isinstance(told, list | tuple):
        return len(read) == len(told) and all(map(agrees, read, told))
    return type(read) is type(told) and bool(read == told)


# Of params and metrics: names that the table, and those that the CSV has for columns of its own.
OWN = ["run", "seeds", "status", "duration", "steps/s", "state", "loss", "name", "run_ids"]
OWN += ["seconds", "steps_per_second", "state_digests", "data_digest", "metrics.loss", "params"]


@pytest.mark.parametrize("key", OWN)
def test_a_param_may_have_the_name_of_any_column(key: str) -> None:
    losses, tags = [{1: i + 0.125} for i in range(3)], {STATE_DIGEST: "s"}
    runs = [
        made(i, {key: f"value-{i // 2}", "seed": str(i % 2)}, {"loss": losses[i]}, tags)
        for i in range(3)
    ]
    found = compared(*runs)
    columns, rows = found.table()
    header, *lines = cells(found)
    assert len(set(header)) == len(header)
    assert columns.count(key) == 1 + (
        key in ("run", "seeds", "duration", "steps/s", "state", "loss")
    )
    for i, (row, shown, line) in enumerate(zip(found.rows, rows, lines, strict=True)):
        assert row.label in shown
        assert f"value-{i}" in shown
        assert f"value-{i}" in line
        assert "10.0 s" in shown
        assert [text for text in shown if text.startswith(("0.6250", "2.125")[i])]


@pytest.mark.parametrize("key", ["loss.best", "best of metrics.loss", "best of loss", "loss/best"])
def test_a_metric_may_have_the_name_of_any_column(key: str) -> None:
    runs = [made(i, {"lr": str(i)}, {"loss": {1: 0.5, 2: i + 1.0}, key: {1: 7.0}}) for i in (0, 1)]
    header, *lines = cells(compared(*runs))
    assert len(set(header)) == len(header)
    assert [line.count("7.0") for line in lines] == [2, 2]


# What a stranger's names do


@pytest.mark.parametrize("harm", HARM)
def test_names_do_nothing_to_a_terminal_or_a_table(harm: str) -> None:
    metrics = {"loss": {1: 1.0}, f"m {harm}": {1: 1.0}}
    tags = {STATE_DIGEST: harm, DATA_DIGEST: harm}
    facts = {"python": harm, "packages": {harm: harm}}
    runs = [
        made(0, {"lr": harm, f"p {harm}": "1"}, metrics, tags, harm, **facts),
        made(
            1,
            {"lr": "2", f"p {harm}": "2"},
            metrics,
            {**tags, DATA_DIGEST: "other"},
            harm,
            python="3",
        ),
        made(
            2,
            {"lr": "2", f"p {harm}": "2"},
            metrics,
            {**tags, DATA_DIGEST: "other"},
            "",
            python="3",
        ),
    ]
    for found in (compared(*runs), compared(*runs[:2])):
        for width in (None, 40, 100):
            assert printable(found.text(width))
        text = found.text()
        plain = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in harm).strip()
        assert f"m {plain}".strip() in text.splitlines()[0]
        assert plain in text.splitlines()[1]
        header, first, *_ = cells(found)
        assert first[0] == harm
        assert first[header.index("params.lr")] == harm
        body = strict_json(found.to_json())
        assert body["rows"][0]["values"]["lr"] == harm
        assert body["rows"][0]["name"] == harm


@QUICK
@given(*[st.text(st.characters(exclude_categories=["Cs"]), max_size=20)] * 4)
def test_any_text_can_be_shown_and_read_again(name: str, key: str, value: str, fact: str) -> None:
    runs = [
        made(0, {key: value, "lr": "1"}, {key: {1: 1.0}}, {STATE_DIGEST: value}, name, python=fact),
        made(1, {"lr": "2"}, {"loss": {1: 1.0}}, {STATE_DIGEST: value}, name, python=f"{fact}!"),
    ]
    found = compared(*runs)
    assert printable(found.text())
    assert cells(found)[1][0] == name
    assert strict_json(found.to_json())["rows"][0]["name"] == name


@pytest.mark.parametrize("text", ["\ud800", "x.py\udcff"])
def test_halves_of_characters_can_be_shown(text: str, tmp_path: Path) -> None:
    """A file of a stranger's may hold them, and the name of a file in a patch."""
    patch = f"diff --git a/{text} b/{text}\n+++ b/{text}\n+1\n"
    one, two = made(0, {"lr": "1"}, python=text), made(1, {"lr": "2"}, python="3")
    found = compared((replace(one[0], patch=patch), one[1]), two)
    assert printable(found.text())
    strict_json(found.to_json())
    found.plot(tmp_path / "x.html")
    assert "python" in (tmp_path / "x.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "body",
    [
        {"code": [1, 2]},
        {"code": "abc"},
        {"code": None},
        {"earlier": 5},
        {"earlier": [5]},
        {"earlier": {"a": 1}},
        {"earlier": [{"code": 5, "python": "2"}]},
        {"packages": ["a", 1]},
        {"cpu": [[1]], "gpus": {"a": {"b": None}}},
        {"python": {"a": 1}, "platform": 1e400, "waymark": [], "git_commit": True},
        [],
    ],
    ids=str,
)
def test_another_programs_environment_is_no_trouble(body: Any) -> None:
    usual = {"code": {"a": "1"}, "packages": {"x": "1"}, "cpu": {"a": [2]}, "python": "3"}
    other = {**usual, "gpus": [], "platform": "p", "waymark": "1", "git_commit": "c"}
    facts = parse_environment(json.dumps(body).encode())
    runs = [made(0, {"lr": "1"}, **facts), made(1, {"lr": "2"}, **other)]
    for pair in (runs, runs[::-1]):
        found = compared(*pair)
        assert printable(found.text())
        strict_json(found.to_json())


# On a terminal


def test_a_table_of_many_rows_has_a_line_for_each() -> None:
    runs = [
        made(i, {"lr": str(i // 3), "seed": str(i % 3)}, {"test/accuracy": {9: i / 1000}})
        for i in range(300)
    ]
    found = compared(*runs)
    lines = found.text(120).splitlines()
    assert [line.split()[0] for line in lines[1:101]] == [f"lr={i}" for i in range(100)]
    assert lines[101] == ""
    assert max(map(len, lines[:101])) <= 120


def test_as_many_metrics_as_there_are_stand_whole_where_no_terminal_limits_them() -> None:
    metrics = {f"a/metric/number_{i}": {1: i + 0.5} for i in range(700)}
    head, *rows = compared(*[made(i, {"lr": str(i)}, metrics) for i in range(2)]).text().split("\n")
    assert head.split()[2:-3] == [*metrics]
    assert [len(line.split()) for line in rows[:3]] == [2 + 1 + 700 + 2 + 2] * 2 + [0]


# Pictures


class Page(html.parser.HTMLParser):
    """Take a page apart: tags, their attributes, the cells' texts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: dict[str, list[str]] = {"td": [], "th": [], "li": []}
        self.at = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(key, value or "") for key, value in attrs]
        self.at = tag
        if tag in self.texts:
            self.texts[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self.at = ""

    def handle_data(self, data: str) -> None:
        if self.at in self.texts:
            self.texts[self.at][-1] += data


@dataclass
class Drawn:
    """What a plot shows: of each of the two axes the lines, and the names in the legend."""

    lines: list[list[tuple[list[float], list[float], str]]]
    names: list[str]


def plotted(found: Comparison, path: Path) -> Drawn:
    """Plot a comparison; return what is in the picture, as Matplotlib has it."""
    figures: list[Figure] = []
    save = Figure.savefig

    def saved(figure: Figure, *arguments: Any, **named: Any) -> None:
        figures.append(figure)
        save(figure, *arguments, **named)

    with mock.patch.object(Figure, "savefig", saved):
        found.plot(path)
    (figure,) = figures
    lines = [
        [
            ([*line.get_xdata()], [*line.get_ydata()], to_hex(line.get_color()))
            for line in axes.lines
        ]
        for axes in figure.axes
    ]
    texts = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return Drawn(lines, texts)


def shown_in(path: Path) -> np.ndarray:
    """Return the pixels of a whole PNG."""
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.endswith(b"IEND\xaeB`\x82")
    return np.asarray(matplotlib.image.imread(path))


def test_a_plot_has_every_curve(tmp_path: Path) -> None:
    losses = [{step: 1 / (step + i) for step in range(1, 20 + i)} for i in range(4)]
    accuracies = [{10: 0.1 * i, 15: 0.2 * i} for i in range(4)]
    runs = [
        made(
            i,
            {"lr": str(i // 2), "seed": str(i)},
            {"train/loss": losses[i], "test/accuracy": accuracies[i]},
        )
        for i in range(4)
    ]
    found = compared(*runs)
    drawn = plotted(found, tmp_path / "x.png")
    for lines, known in zip(drawn.lines, (losses, accuracies), strict=True):
        points = [(x, y) for x, y, _ in lines]
        assert points == [([*curve], [*curve.values()]) for curve in known]
        colours = [colour for _, _, colour in lines]
        assert colours[0] == colours[1] != colours[2] == colours[3]  # a row, a colour
    assert [name.strip() for name in drawn.names] == [row.label for row in found.rows]
    picture = shown_in(tmp_path / "x.png")
    found.plot(tmp_path / "x.html")
    page = Page((tmp_path / "x.html").read_text(encoding="utf-8"))
    columns, rows = found.table()
    assert page.texts["th"] == columns
    assert page.texts["td"] == [text for row in rows for text in row]
    assert page.texts["li"] == found.notes()
    # Without one run's curves it is another picture.
    runs[3] = made(3, {"lr": "1", "seed": "3"}, {"train/loss": losses[3]})
    compared(*runs).plot(tmp_path / "y.png")
    other = shown_in(tmp_path / "y.png")
    assert picture.shape != other.shape or (picture != other).any()


def test_rows_have_colours_of_their_own_however_many(tmp_path: Path) -> None:
    for count in (9, 10, 25):
        runs = [made(i, {"lr": str(i)}, {"train/loss": {1: 1.0, 2: i + 1.0}}) for i in range(count)]
        drawn = plotted(compared(*runs), tmp_path / "x.png")
        assert [len(lines) for lines in drawn.lines] == [count, count]
        assert len({colour for _, _, colour in drawn.lines[0]}) == count
        assert [name.split()[0] for name in drawn.names] == [f"run-{i}" for i in range(count)]


def test_a_page_needs_nothing_else(tmp_path: Path) -> None:
    runs = [
        made(i, {"lr": str(i), "<b>": harm}, {"train/loss": {1: 1.0}}, {STATE_DIGEST: harm}, harm)
        for i, harm in enumerate(HARM)
        if len(harm) < 100
    ]
    found = compared(*runs)
    found.plot(tmp_path / "x.html")
    text = (tmp_path / "x.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "b", "img", "link", "iframe", "object", "image"} & set(page.tags)
    assert not [key for key, _ in page.attributes if key.startswith("on")]
    fetched = [v for k, v in page.attributes if k in ("href", "xlink:href", "src", "data")]
    assert not [value for value in fetched if not value.startswith("#")]
    for key, value in page.attributes:
        assert not value.startswith(("http", "//")) or key.startswith(("xmlns", "rdf:"))
    assert not re.search(r"@import|url\((?!#|'#|\"#)", text)
    assert "<script" not in text
    assert text.count("<svg") == 1
    assert all(map(str.isprintable, [t for texts in page.texts.values() for t in texts]))


@pytest.mark.parametrize("kind", ["png", "html"])
def test_every_name_stands_in_the_legend(kind: str, tmp_path: Path) -> None:
    curve = {"train/loss": {1: 1.0, 2: 0.5}, "test/accuracy": {2: 0.5}}
    runs = [made(i, {"lr": str(i)}, curve, name=harm) for i, harm in enumerate(HARM)]
    drawn = plotted(compared(*runs), tmp_path / f"x.{kind}")
    assert [len(lines) for lines in drawn.lines] == [len(HARM)] * 2
    assert len(drawn.names) == len(HARM)
    for i, (name, harm) in enumerate(zip(drawn.names, HARM, strict=True)):
        assert printable(name) and "\n" not in name
        plain = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in harm)
        assert name.strip()[:10] == f"{plain} {i:08x}".strip()[:10]
    if kind == "png":
        shown_in(tmp_path / "x.png")


def test_whatever_the_numbers_are_there_is_a_picture(tmp_path: Path) -> None:
    drawn_from: list[dict[int, float]] = [
        {},
        {1: math.nan},
        {1: math.inf, 2: -math.inf, 3: 1.0},
        {1: 1.7e308, 2: -1.7e308, 3: 3.4e38, 4: 1.0},
        {-5: 1.0, 2**62: 2.0},
        {0: 0.0, 1: -0.0},
    ]
    runs = [
        made(i, {"lr": str(i)}, {"train/loss": curve, "test/accuracy": curve})
        for i, curve in enumerate(drawn_from)
    ]
    for some in (runs, runs[2:4], runs[:2], runs[:1] + runs[-1:]):
        found = compared(*some)
        for name in ("x.png", "x.html") if some is runs else ("x.png",):
            drawn = plotted(found, tmp_path / name)
            assert [len(lines) for lines in drawn.lines] == [len(some)] * 2
        shown_in(tmp_path / "x.png")
    assert "parts at step 1: inf and 1.7e+308" in compared(*runs[2:4]).text()


# A store of other programs' runs


class Store:
    """A local store, and MLflow's own client, which makes runs in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = f"sqlite:///{folder}/mlflow.db"
        self.client = MlflowClient(self.uri)
        self.named = f"tracking.uri={self.uri}"

    def experiment(self, name: str) -> str:
        there = self.client.get_experiment_by_name(name)
        place = f"{self.folder}/artifacts/{name}"
        return str(there.experiment_id if there else self.client.create_experiment(name, place))

    def add(
        self,
        name: str,
        params: Mapping[str, str] | None = None,
        metrics: Mapping[str, Curve] | None = None,
        tags: Mapping[str, str] | None = None,
        status: str = "FINISHED",
        experiment: str = "foreign",
    ) -> str:
        made = self.client.create_run(self.experiment(experiment), run_name=name)
        run = str(made.info.run_id)
        points = [
            Point(key, value, 1000 + step, step)
            for key, curve in (metrics or {}).items()
            for step, value in curve.items()
        ]
        own = [RunTag(key, value) for key, value in (tags or {}).items()]
        texts = [Param(key, value) for key, value in (params or {}).items()]
        self.client.log_batch(run, points, texts, own)
        if status != "RUNNING":
            self.client.set_terminated(run, status)
        return run

    def change(self, statement: str, *values: Any) -> None:
        """Change the database itself, as no client can."""
        with closing(sqlite3.connect(self.folder / "mlflow.db")) as database, database:
            database.execute(statement, values)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Store:
    """Return a store with some runs that no Waymark made; no test adds to its experiments."""
    folder = tmp_path_factory.mktemp("foreign") / "mlruns"
    shutil.copytree(empty_store, folder)
    store = Store(folder)
    parent = store.add("parent")
    for i in range(4):
        loss = {step: 1 / (step + 1 + i) for step in range(5)}
        kind = {"model": "cnn" if i % 2 else "softmax", "depth": str(i)}
        child = {"mlflow.parentRunId": parent}
        accuracy = {"test/accuracy": {4: i / 4}}
        store.add(f"child-{i}", kind, {"train/loss": loss, **accuracy}, child)
    gone = store.add("gone", {"model": "cnn"}, {}, {"mlflow.parentRunId": parent})
    store.client.delete_run(gone)
    store.add("bare")
    store.add("running", {"model": "cnn"}, {"train/loss": {3: 1.5}}, status="RUNNING")
    broken = {"train/loss": {0: 1.0, 7: math.nan}, "test/accuracy": {7: math.inf}}
    store.add("failed", {"model": "x", "steps": "9"}, broken, status="FAILED")
    many = {f"metric/{i}": {0: float(i)} for i in range(200)}
    store.add("many", {"model": "many"}, many, experiment="other")
    return store


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> Store:
    """Return a store of this test alone."""
    shutil.copytree(empty_store, tmp_path / "own")
    return Store(tmp_path / "own")


def names(found: Comparison) -> list[str]:
    return sorted(row.name for row in found.rows)


CHILDREN = [f"child-{i}" for i in range(4)]
FOREIGN = sorted([*CHILDREN, "bare", "running", "failed", "parent"])
CHOSEN: list[tuple[list[str], dict[str, str], list[str]]] = [
    ([], {"sweep": "parent"}, CHILDREN),
    ([], {"experiment": "foreign"}, FOREIGN),
    ([], {"where": "params.model = 'cnn'"}, ["child-1", "child-3", "running"]),
    ([], {"where": "metrics.`test/accuracy` > 0.4"}, ["child-2", "child-3", "failed"]),
    ([], {"where": "attributes.status = 'FINISHED'", "sweep": "parent"}, CHILDREN),
    (["bare"], {"sweep": "parent", "where": "params.depth = '2'"}, ["bare", "child-2"]),
    (["child-1", "many"], {"sweep": "parent"}, sorted([*CHILDREN, "many"])),
    ([], {"where": "params.model != 'none'", "experiment": "foreign"},
     [*CHILDREN, "failed", "running"]),
    (["bare", "bare", "many"], {}, ["bare", "many"]),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(CHOSEN)))
def test_which_runs_are_compared(number: int, foreign: Store) -> None:
    named, conditions, expected = CHOSEN[number]
    found = api.compare(*named, tracking_uri=foreign.uri, **conditions)
    assert names(found) == expected


def test_the_order_is_that_of_naming_and_of_beginning(foreign: Store) -> None:
    found = api.compare("running", "child-2", "bare", tracking_uri=foreign.uri)
    assert [row.name for row in found.rows] == ["running", "child-2", "bare"]
    found = api.compare("child-3", sweep="parent", tracking_uri=foreign.uri)
    assert [row.name for row in found.rows] == ["child-3", "child-0", "child-1", "child-2"]


def test_a_trial_stands_for_its_sweep(store: Store) -> None:
    """`latest` is a trial when a sweep has ended."""
    parent = store.add("parent", tags={"waymark.kind": "sweep"})
    for i in range(2):
        child = {"mlflow.parentRunId": parent, "waymark.trial": str(i)}
        store.add(f"trial-{i}", {"seed": str(i)}, {"train/loss": {1: 1.0 + i}}, child)
    for run in ("parent", "trial-1"):
        found = api.compare(sweep=run, tracking_uri=store.uri)
        assert sum(len(row.runs) for row in found.rows) == 2


def test_other_programs_runs_are_compared_as_they_are(foreign: Store) -> None:
    found = api.compare(sweep="parent", tracking_uri=foreign.uri)
    assert found.keys == ["model", "depth"]
    for i, row in enumerate(found.rows):
        assert row.values == {"model": "cnn" if i % 2 else "softmax", "depth": str(i)}
        loss, accuracy = row.metrics["train/loss"], row.metrics["test/accuracy"]
        assert (loss.final, loss.best) == (1 / (5 + i), 1 / (5 + i))
        assert (loss.final_leads, loss.best_leads) == (i == 3, i == 3)
        assert (accuracy.final, accuracy.final_leads) == (i / 4, i == 3)
        run = foreign.client.get_run(row.runs[0]).info
        assert row.seconds == pytest.approx((run.end_time - run.start_time) / 1000, abs=1e-6)
        assert (row.steps_per_second, row.states, row.data) == (None, [], None)
        assert row.status == "FINISHED"
    assert [curve[1] for curve in found.curves] == [
        {step: 1 / (step + 1 + i) for step in range(5)} for i in range(4)
    ]


def test_runs_that_never_ended_or_hold_nothing(foreign: Store, tmp_path: Path) -> None:
    found = api.compare("failed", "running", "bare", "many", tracking_uri=foreign.uri)
    failed, running, bare, many = found.rows
    assert [row.status for row in found.rows] == ["FAILED", "RUNNING", "FINISHED", "FINISHED"]
    assert running.seconds is None
    assert math.isnan(failed.metrics["train/loss"].final)
    assert failed.metrics["train/loss"].best == 1.0
    assert failed.metrics["test/accuracy"].final == math.inf
    assert running.metrics["train/loss"].final_leads  # NaN is no better
    assert (bare.metrics, bare.values) == ({}, {})
    assert {key: m.final for key, m in many.metrics.items()} == {
        f"metric/{i}": float(i) for i in range(200)
    }
    assert printable(found.text(80))
    assert len(cells(found)[0]) == 3 + 2 + 6 * 202 + 4
    strict_json(found.to_json())
    found.plot(tmp_path / "x.png")
    shown_in(tmp_path / "x.png")


def test_a_metric_without_steps_has_the_last_value_and_the_best(store: Store) -> None:
    """Other programs leave the step out, which makes it 0 for every value."""
    runs = []
    for values in ([0.9, 0.5, 0.7], [0.3, 0.6, 0.65]):
        runs.append(store.add(f"run-{len(runs)}", {"lr": str(len(runs))}))
        points = [Point("acc", value, 1000 + i, 0) for i, value in enumerate(values)]
        store.client.log_batch(runs[-1], points)
    found = api.compare(*runs, tracking_uri=store.uri)
    assert [row.metrics["acc"].final for row in found.rows] == [0.7, 0.65]
    assert [row.metrics["acc"].best for row in found.rows] == [0.9, 0.65]


def test_a_strangers_database(store: Store, main: Main, tmp_path: Path) -> None:
    """Only SQL puts such keys and rows there; MLflow's client refuses them."""
    runs = [store.add(f"run-{i}", {"lr": str(i)}, {"loss": {1: float(i)}}) for i in range(2)]
    for key in ("\x1b[2Jlr", "[/red]lr", "l\nr", "[bold]lr"):
        store.change("UPDATE params SET key = ?", key)
        done = main("compare", *runs, store.named)
        assert (done.returncode, done.stderr) == (0, "")
        assert printable(done.stdout)
        assert key.replace("\x1b", "\\x1b").replace("\n", "\\n") in done.stdout
    place = tmp_path / "elsewhere"
    for column, value in (("end_time", 5), ("artifact_uri", "s3://x/y"), ("artifact_uri", place)):
        store.change(f"UPDATE runs SET {column} = ?", str(value))
        for arguments in (["runs"], ["compare", *runs]):
            done = main(*arguments, store.named)
            assert done.returncode == 0, done
            assert not re.search(r"-\d+\.\d s", done.stdout)  # no time is below nothing
    place.mkdir()
    (place / "environment.json").write_text('{"code": [1], "earlier": 7, "python": "\\u001b[2J"}')
    (place / "history.json").write_text('{"loss": [1, 2]}')  # Keras has such a file, too
    done = main("compare", *runs, store.named)
    assert done.returncode == 0, done
    assert printable(done.stdout)
    for run in runs:  # and whoever copies a tag of Waymark's may write anything
        store.client.set_tag(run, VERSION, "1")
    done = main("compare", *runs, store.named)
    assert done.returncode == 0, done
    assert printable(done.stdout)
    store.change("UPDATE runs SET start_time = NULL")
    for arguments in (["runs"], ["compare", *runs]):
        done = main(*arguments, store.named)
        assert done.returncode in (0, 2), done
        assert printable(done.stdout + done.stderr)


def test_three_hundred_runs(store: Store, main: Main) -> None:
    template = store.add("first", experiment="many")
    count, steps = 300, 10
    with closing(sqlite3.connect(store.folder / "mlflow.db")) as database, database:
        database.row_factory = sqlite3.Row
        row = dict(database.execute("SELECT * FROM runs").fetchone())
        ids = [f"{i:032x}" for i in range(1, count + 1)]
        for i, run in enumerate(ids):
            own = {**row, "run_uuid": run, "name": f"n{i}", "start_time": 1_700_000_000_000 + i}
            own |= {"end_time": own["start_time"] + 5000}
            marks = ",".join("?" * len(own))
            database.execute(f"INSERT INTO runs VALUES ({marks})", (*own.values(),))
            values = [("lr", str(i // 3), run), ("seed", str(i % 3), run)]
            database.executemany("INSERT INTO params VALUES (?, ?, ?)", values)
            for key in ("train/loss", "test/accuracy"):
                points = [(key, (i + 1) / (s + 1), s, run, s, 0) for s in range(steps)]
                database.executemany("INSERT INTO metrics VALUES (?, ?, ?, ?, ?, ?)", points)
                key, value, at, _, step, nan = points[-1]
                last = (key, value, at, step, nan, run)
                database.execute("INSERT INTO latest_metrics VALUES (?, ?, ?, ?, ?, ?)", last)
    store.client.delete_run(template)
    done = main("compare", "--experiment", "many", store.named)
    assert (done.returncode, done.stderr) == (0, "")
    rows = done.stdout.splitlines()[1:101]
    assert [line.split()[:2] for line in rows] == [[f"lr={i}", "3"] for i in range(100)]
    assert "0.2000 ±0.1000 [-0.04841, 0.4484]*" in rows[0]
    listed = listing.recent(store.uri, 250)
    assert [run.id for run in listed] == ids[::-1][:250]


# Waymark's own runs


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, empty_store: Path, small: Path
) -> Iterator[dict[str, Any]]:
    """Return a store of Waymark's runs: their ids, and the results of those that finished."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(empty_store, folder / "mlruns")
    found: dict[str, Any] = {"uri": f"sqlite:///{folder}/mlruns/mlflow.db"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_CEILING_DIRECTORIES", str(folder.parent))
        patch.setenv(CHECKOUT, str(folder))  # no checkout: asking git takes time
        base = [*BASE, "data=arrays", f"data.path={small}", f"tracking.uri={found['uri']}"]
        for seed in range(2):
            found[f"seed-{seed}"] = api.run(*base, f"seed={seed}", f"run_name=seed-{seed}")
        found["fast"] = api.run(*base, "optimizer.learning_rate=0.1", "run_name=fast")
        found["again"] = api.rerun("seed-0", f"tracking.uri={found['uri']}")
        found["dead"] = killed(10, *base, "run_name=dead", "batch_size=11")
        diverging = ["optimizer=sgd", "optimizer.learning_rate=1e38", "run_name=diverged"]
        with pytest.raises(api.Failed):
            api.run(*base, *diverging)
    # The process that trained the dead one is gone, as far as its tag says.
    client = MlflowClient(found["uri"])
    client.set_tag(found["dead"], "waymark.process", "{}")
    client.set_tag(found["dead"], "waymark.heartbeat", "0")
    yield found


def test_seeds_and_another_rate(trained: dict[str, Any]) -> None:
    results = [trained[f"seed-{seed}"] for seed in range(2)]
    found = api.compare(
        *[result.run_id for result in results],
        trained["fast"].run_id,
        trained["again"].run_id,
        tracking_uri=trained["uri"],
    )
    assert found.keys == ["optimizer.learning_rate"]
    seeds, fast, again = found.rows
    assert seeds.runs == [result.run_id for result in results]
    restored = seeds.metrics["restored/accuracy"]
    values = [result.restored_accuracy for result in results]
    wide = stats.t.interval(0.95, 1, loc=np.mean(values), scale=stats.sem(values))
    expected = (np.mean(values), np.std(values, ddof=1), *wide)
    assert (restored.final, restored.std, restored.low, restored.high) == pytest.approx(expected)
    assert fast.metrics["restored/accuracy"].final == trained["fast"].restored_accuracy
    assert seeds.states == [result.state_digest for result in results]
    # A rerun of a seed is no further sample; its state is the same.
    assert again.runs == [trained["again"].run_id]
    assert found.same_state == [[results[0].run_id, trained["again"].run_id]]
    assert len(found.data) == 1
    assert found.differences == {}
    # Duration and pace are there, and what the run's own files say is what is compared.
    for row in found.rows:
        assert row.seconds is not None and 0 < row.seconds < 600
        assert row.steps_per_second is not None and row.steps_per_second > 0
    client, points = MlflowClient(trained["uri"]), {}
    for run, (_, losses, accuracies) in zip(
        [*seeds.runs, *fast.runs, *again.runs], found.curves, strict=True
    ):
        points = {p.step: p.value for p in client.get_metric_history(run, "train/loss")}
        assert losses == points
        assert sorted(accuracies) == [5, 10, 15, 20]
    loss = fast.metrics["train/loss"]
    _, losses, _ = found.curves[2]
    assert (loss.final, loss.best) == (losses[20], min(losses.values()))


def test_a_rerun_parts_nowhere_and_another_seed_at_once(trained: dict[str, Any]) -> None:
    first, second = trained["seed-0"].run_id, trained["seed-1"].run_id
    uri = trained["uri"]
    same = api.compare(first, trained["again"].run_id, tracking_uri=uri)
    assert same.partings == {}
    assert "no loss and no evaluation parts" in same.text()
    other = api.compare(first, second, tracking_uri=uri)
    assert other.partings is not None
    assert other.partings["train/loss"].step == 1
    assert other.keys == []
    assert "train/loss parts at step 1: " in other.text()


def test_the_commands_say_what_the_functions_return(
    trained: dict[str, Any], main: Main, tmp_path: Path
) -> None:
    where = "params.`optimizer` = 'adam'"
    named = f"tracking.uri={trained['uri']}"
    found = api.compare(where=where, tracking_uri=trained["uri"])
    assert len(found.rows) == 4  # seeds, fast, again, dead
    path = tmp_path / "x.png"
    for flags, expected in (
        ([], f"{found.text()}\n"),
        (["--csv"], found.to_csv()),
        (["--json"], f"{found.to_json()}\n"),
        (["--json", "--plot", str(path)], f"{found.to_json()}\n"),
    ):
        done = main("compare", "--where", where, named, *flags)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == expected
    shown_in(path)
    done = main("compare", trained["seed-0"].run_id[:6], "fast", named)
    assert done.returncode == 0
    assert "train/loss parts at step 2: " in done.stdout


def listed(done: Done) -> dict[str, list[str]]:
    """Return the cells of the list of runs by name; check its heading."""
    assert (done.returncode, done.stderr) == (0, ""), done
    head, *lines = done.stdout.splitlines()
    assert head.split() == ["id", "name", "model", "status", "steps", "accuracy", "age", "can"]
    rows = [re.split(r"\s{2,}", line) for line in lines]
    return {row[1]: row for row in rows}


def test_the_list_of_waymarks_runs(trained: dict[str, Any], main: Main) -> None:
    named = f"tracking.uri={trained['uri']}"
    rows = listed(main("runs", named))
    order = ["diverged", "dead", "rerun of seed-0", "fast", "seed-1", "seed-0"]
    assert [*rows] == order
    for name in ("fast", "seed-0", "seed-1"):
        result = trained[name]
        run, _, model, status, steps, accuracy, _age, *can = rows[name]
        assert (run, model, status) == (result.run_id[:8], "softmax", "FINISHED")
        assert (steps, accuracy, can) == ("20", f"{result.restored_accuracy:.4f}", [])
    dead = rows["dead"]
    assert dead[3:5] == ["KILLED", "10 of 20"]
    assert dead[5] != "-"  # the evaluation at step 10
    assert dead[-1] == "resume"
    diverged = rows["diverged"]
    assert diverged[3] == "FAILED"
    assert re.fullmatch(r"[1-9] of 20", diverged[4])
    assert diverged[-1] != "resume"
    ages = [run.age for run in listing.recent(trained["uri"], 20)]
    assert ages == sorted(ages)
    assert 0 < ages[0] < 600
    assert [run.resumable for run in listing.recent(trained["uri"], 20)] == [
        name == "dead" for name in order
    ]


def test_a_longer_run_says_so(trained: dict[str, Any], tmp_path: Path, main: Main) -> None:
    """Resume in a copy of the store; MLflow's own param keeps the first number of steps."""
    shutil.copytree(Path(trained["uri"][10:]).parent, tmp_path / "mlruns")
    named = f"tracking.uri=sqlite:///{tmp_path}/mlruns/mlflow.db"
    dead = trained["dead"]
    assert main("resume", dead, named, "steps=15", "--allow-drift").returncode == 0
    rows = listed(main("runs", named))
    assert rows["dead"][3:5] == ["FINISHED", "15"]
    assert rows["dead"][-1] != "resume"
    done = main("compare", dead, "fast", named, "--json")
    steps = [row["values"]["steps"] for row in strict_json(done.stdout)["rows"]]
    assert steps == ["15", "20"]


def test_the_list_of_other_programs_runs(foreign: Store, main: Main) -> None:
    rows = listed(main("runs", foreign.named))
    assert [*rows] == ["many", "failed", "running", "bare", *CHILDREN[::-1], "parent"]
    assert rows["failed"][2:6] == ["x", "FAILED", "7 of 9", "inf"]
    assert rows["child-3"][2:6] == ["cnn", "FINISHED", "-", "0.7500"]
    assert rows["bare"][2:6] == ["-", "FINISHED", "-", "-"]
    assert not [row for row in rows.values() if row[-1] == "resume"]


def test_how_many_are_listed(store: Store, main: Main) -> None:
    assert main("runs", store.named).stdout == "there are no runs here yet\n"
    for i in range(25):
        made = store.client.create_run("0", start_time=1000 * (i + 1), run_name=f"run-{i}")
        store.client.set_terminated(made.info.run_id)
    order = [f"run-{i}" for i in reversed(range(25))]
    assert [*listed(main("runs", store.named))] == order[:20]
    assert [*listed(main("runs", store.named, "--limit", "3"))] == order[:3]
    assert [*listed(main("runs", store.named, "--limit", "999"))] == order
    store.client.delete_run(store.client.search_runs(["0"])[0].info.run_id)
    assert [*listed(main("runs", store.named, "--limit", "1"))] == ["run-23"]
    store.change(
        "INSERT INTO runs (run_uuid, name, status, start_time, lifecycle_stage, experiment_id,"
        " artifact_uri, user_id, source_type, source_name, entry_point_name, source_version)"
        " WITH RECURSIVE n(i) AS (SELECT 1 UNION SELECT i + 1 FROM n WHERE i < 1200)"
        " SELECT printf('%032x', i), 'x', 'FINISHED', i, 'active', 0, 'none',"
        " '', 'LOCAL', '', '', '' FROM n"
    )
    assert len(listing.recent(store.uri, 1001)) == 1001


def test_the_list_tells_how_far_a_pruned_trial_came(store: Store, main: Main) -> None:
    for name, step in (("pruned", "20"), ("trained on", "")):
        store.add(name, {"model": "m", "steps": "200"}, tags={"waymark.pruned": step})
    rows = listed(main("runs", store.named))
    assert [rows[name][4] for name in ("pruned", "trained on")] == ["20 of 200", "200"]


def test_the_list_escapes_names(store: Store, main: Main) -> None:
    for i, harm in enumerate(HARM):
        run = store.add(f"run-{i}", {"model": "m", "steps": "1"})
        name = "UPDATE tags SET value = ? WHERE key = 'mlflow.runName' AND run_uuid = ?"
        store.change(name, harm, run)
        store.change("UPDATE runs SET name = ? WHERE run_uuid = ?", harm, run)
        store.change("UPDATE params SET value = ? WHERE run_uuid = ?", harm, run)
    done = main("runs", store.named)
    assert (done.returncode, done.stderr) == (0, "")
    assert printable(done.stdout)
    assert len(done.stdout.splitlines()) == 1 + len(HARM)
    for harm, line in zip(reversed(HARM), done.stdout.splitlines()[1:], strict=True):
        plain = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in harm).strip()
        assert line.count(plain) >= 3 or not plain  # name, model, steps


# With a tracking server


def test_a_tracking_server(
    server: tuple[str, Path],
    trained: dict[str, Any],
    place: Path,
    small: Path,
    main: Main,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(CHECKOUT, str(place))
    uri, named = server[0], f"tracking.uri={server[0]}"
    base = [*BASE, "data=arrays", f"data.path={small}", named, "experiment_name=compared"]
    there = api.run(*base, "run_name=there")
    assert not [*place.glob("mlruns/spool/*")]  # the exact history is only with the server
    dead = killed(10, *base, "run_name=dead", "batch_size=11")
    found = api.compare("there", dead, tracking_uri=uri)
    assert found.keys == ["batch_size"]
    tracked = open_store(trained["uri"])  # where the same run was recorded in a file
    assert there.state_digest == trained["seed-0"].state_digest
    exact = load_recorded_run(tracked, find(tracked, "seed-0")).history.metrics
    (_, losses, accuracies), (_, others, _) = found.curves
    assert losses == exact["train/loss"]
    assert accuracies == exact["test/accuracy"]
    assert found.rows[0].metrics["restored/loss"].final == exact["restored/loss"][20]
    assert [*others] == [*range(1, 11)]
    assert found.partings is not None and found.partings["train/loss"].step == 1
    client = MlflowClient(uri)
    experiment = client.create_experiment("compared-foreign")
    for i in range(2):
        run = client.create_run(experiment, run_name=f"foreign-{i}").info.run_id
        points = [Point("train/loss", 1 / (step + 1 + i), step, step) for step in range(5)]
        client.log_batch(run, points, [Param("lr", str(i))])
        client.set_terminated(run)
    found = api.compare(experiment="compared-foreign", tracking_uri=uri)
    assert [row.name for row in found.rows] == ["foreign-0", "foreign-1"]
    assert [row.metrics["train/loss"].final for row in found.rows] == [1 / 5, 1 / 6]
    assert found.partings == {"train/loss": Divergence(0, 1.0, 0.5)}
    # The process of a dead run is gone: every command sees that it can go on.
    for arguments in (
        ["runs"],
        ["compare", "--experiment", "compared"],
        ["compare", "there", dead],
    ):
        client.update_run(dead, status="RUNNING")
        client.set_tag(dead, "waymark.resume", "")
        client.set_tag(dead, "waymark.process", "{}")
        client.set_tag(dead, "waymark.heartbeat", "0")
        done = main(*arguments, named)
        assert done.returncode == 0, done
        (line,) = [line for line in done.stdout.splitlines() if re.search(r"\bdead .*KILLED", line)]
        if arguments == ["runs"]:
            assert "10 of 20" in line and line.endswith("resume")


def test_a_server_that_is_down(place: Path, small: Path, main: Main, monkeypatch: Any) -> None:
    monkeypatch.setenv(CHECKOUT, str(place))
    uri = f"http://127.0.0.1:{free_port()}"
    named = f"tracking.uri={uri}"
    for arguments in (["runs"], ["compare", "a", "b"], ["compare", "--experiment", "x"]):
        done = main(*arguments, named)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"{named[:12]}='{uri}': cannot be used (Connection refused)" in done.stderr
    done = main("compare", "--where", "params.model = 'cnn'", named)
    assert done.returncode == 2
    assert uri in done.stderr  # it is not the filter that is wrong
    base = [*BASE, "data=arrays", f"data.path={small}", named, "tracking.flush_seconds=0.1"]
    results = [api.run(*base, f"batch_size={10 + i}", f"run_name=off-{i}") for i in range(2)]
    found = api.compare(*[result.run_id for result in results], tracking_uri=uri)
    assert found.keys == ["batch_size"]
    for row, result in zip(found.rows, results, strict=True):
        assert (row.name[:4], row.status) == ("off-", "FINISHED")
        assert row.metrics["restored/accuracy"].final == result.restored_accuracy
        assert row.states == [result.state_digest]
        assert row.seconds is not None and row.seconds > 0
    assert found.partings is not None and found.partings["train/loss"].step == 1
    assert threading.active_count() < 50


# Bad input

REFUSED: list[tuple[list[str], str]] = [
    ([], "found 0"),
    (["bare"], "found 1"),
    (["bare", "bare"], "found 1"),
    (["bare", "nothing"], "RUN='nothing': there is no such run"),
    (["bare", "gone"], "RUN='gone'"),
    (["bare", ""], "RUN=''"),
    (["bare", "\x1b[2J"], "RUN='\\x1b[2J'"),
    (["bare", "a'\"b"], "RUN="),
    (["--experiment", "nothing"], "--experiment='nothing'"),
    (["--experiment", ""], "--experiment=''"),
    (["--experiment", "\x1b[2J"], "--experiment='\\x1b[2J'"),
    (["--sweep", "nothing"], "'nothing'"),
    (["bare", "many", "--sweep", ""], "''"),
    (["--sweep", "bare"], "found 0"),
    (["--where", "params.model = cnn"], "--where='params.model = cnn'"),
    (["--where", "nonsense"], "--where='nonsense'"),
    (["--where", "'"], '--where="\'"'),
    (["--where", "params.model = 'cnn' OR params.model = 'x'"], "--where="),
    (["--where", "x\x1b\n"], "--where='x\\x1b\\n'"),
    (["--where", "attributes.start_time > 'x'"], "--where="),
    (["--where", "params.model = 'none'"], "found 0"),
    (["bare", "many", "--plot", "x.gif"], "--plot='x.gif': must end in .png or .html"),
    (["bare", "many", "--plot", "x" * 250 + ".png"], "x.png': File name too long."),
    (["bare", "many", "--plot", "png"], "--plot='png': must end in .png or .html"),
    (["bare", "many", "--plot", ""], "--plot=''"),
    (["bare", "many", "--plot", "no/x.png"], "--plot='no/x.png': there is no folder"),
    (["bare", "many", "--plot", "folder.png"], "--plot='folder.png'"),
    (["bare", "many", "--plot", "folder.html"], "--plot='folder.html'"),
    (["bare", "many", "--plot", "~nobody-here/x.png"], "--plot='~nobody-here/x.png'"),
    (["bare", "nothing", "--plot", "x.png"], "RUN='nothing'"),
    (["bare", "many", "--csv", "--json"], "--csv"),
    (["bare", "many", "--nonsense"], "--nonsense"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_cannot_be_compared_is_refused(
    number: int, foreign: Store, main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("folder.png", "folder.html"):
        Path(name).mkdir()
    arguments, words = REFUSED[number]
    done = main("compare", *arguments, foreign.named)
    assert (done.returncode, done.stdout) == (2, ""), done
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert printable(done.stderr)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder.html", "folder.png"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--limit", "0"], "0 is not in the range x>=1"),
        (["--limit", "-3"], "-3"),
        (["--limit", "x"], "'x'"),
        (["steps=3"], "the only one here is tracking.uri"),
        (["bare"], "bare: is not of the form key=value"),
        (["tracking.uri=nonsense"], "tracking.uri='nonsense'"),
        (["tracking.uri=sqlite:///none/mlflow.db"], "there are no runs here"),
    ],
    ids=str,
)
def test_what_cannot_be_listed_is_refused(
    arguments: list[str], words: str, main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = main("runs", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("name", ["x.png", "x.html"])
def test_a_plot_that_fails_leaves_what_was_there(name: str, tmp_path: Path) -> None:
    found = compared(*[made(i, {"lr": str(i)}, {"train/loss": {1: 1.0}}) for i in range(2)])
    path = tmp_path / name
    path.write_text("before")

    def full(figure: Figure, target: Any, **named: Any) -> None:
        """Write a part, as on a disk that is full then."""
        with open(target, "wb") if isinstance(target, str | Path) else target as file:
            file.write(b"<svg")
        raise OSError(28, "No space left on device")

    with mock.patch.object(Figure, "savefig", full), pytest.raises((OSError, BadInput)):
        found.plot(path)
    assert path.read_text() == "before"
    assert [*tmp_path.iterdir()] == [path]


def test_the_functions_refuse_as_the_commands_do(foreign: Store, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="two runs or more; found 1"):
        api.compare("bare", tracking_uri=foreign.uri)
    found = api.compare("bare", "many", tracking_uri=foreign.uri)
    assert isinstance(found.rows[0], Row)
    for name in ("x.gif", "none/x.png"):
        with pytest.raises(BadInput):
            found.plot(tmp_path / name)
    assert [*tmp_path.iterdir()] == []
