"""What is shown: numbers keep their size, names and integers stay whole, nothing is cut in two."""

import json
import re
import xml.dom.minidom

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waymark.sweeps.configurations import Axis
from waymark.sweeps.trial import VARIED_KEYS, trial_name
from waymark.table import elided, html_table, number, setting, settings_apart

LONG = "1.2046852412034e-05"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (float(LONG), "1.205e-05"),
        (0.892, "0.8920"),
        (0.0, "0.000"),
        (1.0, "1.000"),
        (0.001234, "0.001234"),
        (5000.0, "5000"),
        (123456.789, "1.235e+05"),
        (3.4e38, "3.400e+38"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (123456789, "123456789"),
    ],
)
def test_a_measured_value(value: float, text: str) -> None:
    assert number(value) == text


def test_a_table_of_a_notebook_is_escaped_and_small() -> None:
    rows = [[f"<b>{i}", "\x1b[31m & more"] for i in range(30)]
    text = html_table(["run", "<i>"], rows, ["a < b"])
    parser = xml.dom.minidom.parseString(f"<p>{text}</p>")
    cells = [node.firstChild.data for node in parser.getElementsByTagName("td")]
    assert cells == [cell for i in range(20) for cell in (f"<b>{i}", "\\x1b[31m & more")]
    notes = [node.firstChild.data for node in parser.getElementsByTagName("div")]
    assert notes == ["and 10 more rows", "a < b"]


@given(st.floats(-1e308, 1e308, allow_subnormal=False))
def test_what_is_shown_is_the_value_to_four_digits(value: float) -> None:
    for text in (number(value), setting(repr(value))):
        assert len(text) <= 11
        assert float(text) == pytest.approx(value, rel=5.1e-4, abs=0)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (LONG, "1.205e-05"),
        (f"-{LONG}", "-1.205e-05"),
        ("0.30000000000000004", "0.3"),
        ("1234567.8", "1.235e+06"),
        (f"[{LONG}, 2, 0.123456]", "[1.205e-05, 2, 0.1235]"),
        ("{rate: 0.123456}", "{rate: 0.1235}"),
        *[(same, same) for same in (
            *("1e-09", "0.1", "1.10", "100.0", "9223372036854775807", "adam", "-", "", "True"),
            *("12e45678", "12345678e9012", "data/0.123456.npz", "v1.23456"),
            *("[a0.123456, 1.2.34567]",),
        )],
    ],
)  # fmt: skip
def test_a_setting(text: str, shown: str) -> None:
    assert setting(text) == shown


def test_different_settings_never_look_the_same() -> None:
    texts = ["0.1234567", "0.1234568", LONG, "adam"]
    shown = settings_apart(texts)
    assert len(set(shown.values())) == 4
    assert shown[LONG] == "1.204685e-05" and shown["adam"] == "adam"


def test_no_number_is_cut_where_room_is_short() -> None:
    name = "weight_decay=1.205e-05 learning_rate=0.001234"
    for most in range(24, 60):
        text = elided(name, most)
        assert len(text) <= most
        numbers = re.findall(r"=([^ …]*)", text)
        assert set(numbers) <= {"1.205e-05", "0.001234", ""} and numbers[0] == "1.205e-05"
    assert elided("a" * 30, 20) == "a" * 19 + "…"


def test_a_picture_and_a_trial_show_numbers_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    axis = Axis("optimizer.learning_rate", [LONG, "0.00031415926", "0.01"])
    assert [axis.shown[text] for text in axis.labels] == ["1.205e-05", "0.0003142", "0.01"]
    keys = [f"part.key{i}" for i in range(40)]
    monkeypatch.setenv(VARIED_KEYS, json.dumps(keys))
    words = trial_name([f"{key}={LONG}" for key in keys]).split()
    shown = [f"key{i}=1.205e-5" for i in range(len(words) - 1)]
    assert len(words) > 10 and words[:-1] == shown and words[-1].endswith("…")


@pytest.mark.parametrize(
    ("task", "name"),
    [
        (["optimizer.learning_rate=0.001", "+batch_size=50"], "lr=1e-3 bs=50"),
        (["optimizer.learning_rate=0.01", "seed=1"], "lr=0.01 seed=1"),
        (["a.rate=1e-05", "b.rate=100.0", "model=cnn"], "a.rate=1e-5 b.rate=100.0 model=cnn"),
        (["x.y=-0.00015", "z=0.0", "w=0.25"], "y=-1.5e-4 z=0.0 w=0.25"),
    ],
)
def test_a_trial_has_a_short_name(
    monkeypatch: pytest.MonkeyPatch, task: list[str], name: str
) -> None:
    keys = [word.lstrip("+").partition("=")[0] for word in task]
    monkeypatch.setenv(VARIED_KEYS, json.dumps(keys))
    assert trial_name([*task, "steps=1"]) == name
    for word in name.split():
        assert word.partition("=")[2] in ("cnn", "0.0") or float(word.partition("=")[2])
