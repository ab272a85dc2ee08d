"""A comparison as a table, CSV and JSON: the very numbers, and names that do no harm."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waymark.comparison.environment import parse_environment
from waymark.errors import BadInput
from waymark.names import DATA_DIGEST, STATE_DIGEST

from tests.support.comparisons import (
    HARM,
    QUICK,
    cells,
    compared,
    curves,
    identical,
    made,
    printable,
    strict_json,
)

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
    also_shown = ("run", "seeds", "loss", "state")  # the rest is the same in all rows
    assert columns.count(key) == 1 + (key in also_shown)
    for i, (row, shown, line) in enumerate(zip(found.rows, rows, lines, strict=True)):
        assert row.label in shown
        assert f"value-{i}" in shown
        assert f"value-{i}" in line
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
    metrics, others = ({"loss": {1: 1.0}, f"m {harm}": {1: x}} for x in (1.0, 2.0))
    tags = {STATE_DIGEST: harm, DATA_DIGEST: harm}
    facts = {"python": harm, "packages": {harm: harm}}
    runs = [
        made(0, {"lr": harm, f"p {harm}": "1"}, metrics, tags, harm, **facts),
        made(
            1,
            {"lr": "2", f"p {harm}": "2"},
            others,
            {**tags, DATA_DIGEST: "other"},
            harm,
            python="3",
        ),
        made(
            2,
            {"lr": "2", f"p {harm}": "2"},
            others,
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
        assert [line for line in text.splitlines() if line.startswith(f"m {plain}".strip())]
        assert plain in text.splitlines()[0]
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
    found = compared((replace(one[0], patches={"changes.patch": patch}), one[1]), two)
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
    assert [line.split()[0] for line in lines[1:101]] == [f"lr={99 - i}" for i in range(100)]
    assert lines[101] == ""
    assert max(map(len, lines[:101])) <= 120


@pytest.mark.parametrize("rows", [2, 5])
def test_as_many_metrics_as_there_are_stand_whole_where_no_terminal_limits_them(rows: int) -> None:
    names = [f"a/metric/number_{i}" for i in range(700)]
    runs = [made(i, {"lr": str(i)}, {n: {1: i + 0.5} for n in names}) for i in range(rows)]
    assert compared(*runs).table()[0] == ["run", "lr", names[0]]  # the others say the same
    runs = [
        made(i, {"lr": str(i)}, {n: {1: i * k + 0.5} for k, n in enumerate(names, 1)})
        for i in range(rows)
    ]
    columns, _ = compared(*runs).table()
    assert columns == ["run", "lr", *names]
    lines = compared(*runs).text().split("\n")
    if rows == 2:  # side by side
        assert [line.split()[0] for line in lines[:702]] == columns
    else:
        assert lines[0].split() == columns
        assert [len(line.split()) for line in lines[1:6]] == [2 + 1 + 700] * 5


@pytest.mark.parametrize("width", [30, 60, 80, 120])
@pytest.mark.parametrize("rows", [2, 4, 5, 40])
def test_a_table_is_no_wider_than_the_terminal(rows: int, width: int) -> None:
    runs = [
        made(
            i,
            {"lr": str(i / 7), "model": "m" * (i % 9), "seed": "0"},
            {"test/accuracy": {1: i / 50, 2: i / 100}, "train/loss": {1: 9.0 - i}},
            seconds=float(i),
            name="a-run-of-a-long-name",
        )
        for i in range(rows)
    ]
    found = compared(*runs)
    table = found.text(width).split("\n\n")[0].splitlines()
    assert max(map(len, table)) <= width
    if rows > 4 and width >= 60:
        # What the runs are judged by is there to the last, and the best run is the first.
        assert "test/accuracy" in table[0] and table[1].startswith(
            f"a-run-of-a-long-name {rows - 1:08x}"
        )
        assert "left out for the width: " in found.text(width) or width == 120


def test_rows_are_sorted_and_chosen() -> None:
    values = {"9": 0.5, "10": 0.7, "x": math.nan, "1": 0.6, "2": 0.1}
    runs = [
        made(i, {"lr": lr}, {"test/accuracy": {1: x}, "loss": {1: -x}})
        for i, (lr, x) in enumerate(values.items())
    ]
    found = compared(*runs)

    def order(*how: Any) -> list[str]:
        return [row.values["lr"] for row in found.arranged(*how).rows]

    assert order() == order("test/accuracy") == ["10", "1", "9", "2", "x"]
    assert order("loss") == ["10", "1", "9", "2", "x"]
    assert order("lr") == ["1", "2", "9", "10", "x"]
    assert order("lr", (), 2) == ["1", "2"]
    times = zip(found.rows, (3, 1, None, 2, 5), strict=True)
    took = [replace(row, seconds=time, steps_per_second=time) for row, time in times]
    found = replace(found, rows=took)
    assert order("duration") == ["10", "1", "9", "2", "x"]
    assert order("steps/s") == ["2", "9", "1", "10", "x"]
    assert found.arranged(None, ["loss"]).metrics == ["loss"]
    same = {"restored/loss": {1: 0.5}, "test/loss": {1: 0.5}, "restored/accuracy": {1: 0.5}}
    twice = compared(*(made(i, {"lr": str(i)}, same) for i in range(2)))
    assert twice.arranged("restored/loss").table()[0][:3] == ["run", "lr", "restored/loss"]
    best = found.arranged(top=1)  # of the other runs nothing is told
    assert best.keys == ["lr"] and len(best.curves) == 1 and "run-0" not in best.text()
    with pytest.raises(BadInput, match=r"--sort='acc': .* there are test/accuracy, loss, lr"):
        found.arranged("acc")
    with pytest.raises(BadInput, match="--metrics='lr': "):
        found.arranged(None, ["lr"])
