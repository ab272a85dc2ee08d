"""Tables: what is read of a file, how it becomes features, and what is refused."""

import datetime
import decimal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hydra.utils import get_class
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from waymark.config.compose import compose_config
from waymark.data.columns import MAX_CATEGORIES, Column, Encoder
from waymark.data.dataset import PARTS, Dataset
from waymark.errors import BadInput
from waymark.training.loop import compilation_key, initial_state

from tests.support.processes import REPO, THREADS, Main
from tests.support.tables import cars, defaults, loader, table, with_gaps, written

DOORS: dict[str, Any] = {"categories": ["doors"]}
HELD_OUT: dict[str, Any] = {"validation": 0.2, **DOORS}


def standardised(data: Dataset) -> dict[str, np.ndarray]:
    """Return what a model gets of each set."""
    mean, scale = data.statistics["features/mean"], data.statistics["features/scale"]
    sets = {part: data.examples(part)[0] for part in PARTS}
    return {part: (features - mean) / scale for part, features in sets.items() if len(features)}


def ids(data: Dataset, part: str) -> np.ndarray:
    place = data.feature_names.index("id")
    return data.examples(part)[0][:, place].astype(np.int64)


def test_the_group_file_gives_every_setting() -> None:
    shared = yaml.safe_load((REPO / "conf" / "config.yaml").read_text())["data"]
    values = yaml.safe_load((REPO / "conf" / "data" / "table.yaml").read_text())
    cls: Any = get_class(values.pop("_target_"))
    assert {*shared, *values} == set(cls.__dataclass_fields__)


# What is read


@pytest.mark.parametrize("frame", [cars(), with_gaps(cars())], ids=["whole", "with gaps"])
@pytest.mark.parametrize(
    "options",
    [{}, {"encoding": "utf-8-sig"}, {"sep": ";"}, {"sep": "\t"}, {"lineterminator": "\r\n"}],
    ids=str,
)
def test_csv_and_parquet_hold_the_same_table(
    tmp_path: Path, frame: pd.DataFrame, options: dict[str, str]
) -> None:
    first = table(written(tmp_path / "cars.parquet", frame), **HELD_OUT, missing="median")
    separator = options.get("sep", ",").replace("\t", "tab")
    path = written(tmp_path / "cars.csv", frame, **options)
    second = table(path, **HELD_OUT, missing="median", separator=separator)
    assert first.digest == second.digest and first.feature_names == second.feature_names
    for name, array in first.arrays.items():
        assert np.array_equal(array, second.arrays[name]), name
    assert first.statistics.keys() == {"features/mean", "features/scale"}
    for name, array in first.statistics.items():
        assert np.array_equal(array, second.statistics[name]), name


VALUES = {
    "int": st.integers(-(2**53), 2**53),
    "float": st.floats(width=64, allow_nan=False, min_value=-1e38, max_value=1e38),
    "bool": st.booleans(),
    "text": st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z", "N"]), min_size=3),
}


@settings(max_examples=40, deadline=None)
@given(drawn=st.data(), rows=st.integers(10, 20))
def test_any_csv_and_parquet_hold_the_same_table(
    tmp_path_factory: pytest.TempPathFactory, drawn: st.DataObject, rows: int
) -> None:
    folder = tmp_path_factory.mktemp("any")
    kinds = drawn.draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=4))
    frame = pd.DataFrame({"y": np.arange(rows) % 2})
    for place, kind in enumerate(kinds):
        column = drawn.draw(st.lists(VALUES[kind], min_size=rows, max_size=rows))
        frame[f"{kind} {place}"] = column
    how = {"unknown": "column", "split": "ordered", "missing": "most_frequent"}
    texts = [name for name in frame if "text" in name]  # which may look like dates
    paths = [written(folder / f"any.{ending}", frame) for ending in ("parquet", "csv")]
    try:
        first, second = (table(path, target="y", categories=texts, **how) for path in paths)
    except BadInput as refused:
        assert "of which float32 tells" in str(refused)
        reject()
    if not any((frame == text).to_numpy().any() for text in ("NaN", "nan", "null", "None", "NULL")):
        assert first.digest == second.digest
        assert np.array_equal(first.x_train, second.x_train)
    for place in np.flatnonzero(first.x_train.min(axis=0) == first.x_train.max(axis=0)):
        assert first.statistics.get("features/scale", np.ones(99))[place] == 1
    if first.statistics:
        assert np.isfinite(standardised(first)["train"]).all()


def test_the_digest_is_of_what_is_used_in_its_order(tmp_path: Path) -> None:
    frame = cars()
    whole = table(written(tmp_path / "a.csv", frame), **DOORS)
    noted = written(tmp_path / "noted.csv", frame.assign(note="n"))
    features = [name for name in frame if name != "price"]
    assert table(noted, **DOORS, features=features).digest == whole.digest
    turned = written(tmp_path / "turned.csv", frame[frame.columns[::-1]])
    assert table(turned, **DOORS).digest != whole.digest
    for name, value in (("size", 9.0), ("colour", "red"), ("price", "low"), ("wheels", 5)):
        other = frame.copy()
        other.loc[other[other[name] != value].index[0], name] = value
        path = written(tmp_path / "other.csv", other)
        assert table(path, **DOORS).digest != whole.digest, name
    renamed = written(tmp_path / "renamed.csv", frame.rename(columns={"size": "length"}))
    assert table(renamed, **DOORS).digest != whole.digest
    config = defaults()
    keys = [
        compilation_key(replace(config, data=loader(noted, **DOORS, **more)), whole)
        for more in ({}, {"standardise": False}, {"unknown": "column"}, {"features": ["size"]})
    ]
    assert len(set(keys)) == len(keys) and None not in keys
    moved = replace(config, data=loader(turned, **DOORS))
    assert compilation_key(moved, whole) == keys[0]


def test_targets_of_each_kind(tmp_path: Path) -> None:
    frame = cars().assign(level=np.arange(120) % 3, half=np.arange(120) % 4 / 2)
    path = written(tmp_path / "cars.parquet", frame)

    def labels(target: str | list[str]) -> np.ndarray:
        return loader(path, target=target, **DOORS).load().y_train

    assert labels("price").tolist() == frame["price"].tolist()
    assert np.array_equal(labels("level"), frame["level"])
    assert np.array_equal(labels("half"), frame["half"])
    assert np.array_equal(labels("sold"), frame["sold"].astype(np.uint8))
    assert np.array_equal(labels(["half"]), frame[["half"]])
    assert np.array_equal(labels(["half", "sold"]), frame[["half", "sold"]].astype(np.float64))
    assert labels("doors").tolist() == frame["doors"].tolist()
    assert table(path, **DOORS).class_names == ("high", "low")


def test_a_group_is_no_feature_and_stays_on_one_side(tmp_path: Path) -> None:
    frame = cars().assign(owner=[f"2020-01-{1 + i % 20:02}" for i in range(120)])  # a date, even
    data = table(written(tmp_path / "cars.csv", frame), **HELD_OUT, group="owner")
    assert not any("owner" in name for name in data.feature_names)
    owners = [set(frame["owner"][ids(data, part)]) for part in PARTS]
    assert all(owners) and sum(map(len, owners)) == 20


def test_a_test_set_of_its_own(tmp_path: Path) -> None:
    frame = cars().assign(owner=np.arange(120) // 4)
    path = written(tmp_path / "cars.csv", frame[:90])
    other = written(tmp_path / "later.parquet", frame[90:].drop(columns="owner"))
    data = table(path, **DOORS, group="owner", test=str(other), validation=20)
    assert ids(data, "test").tolist() == list(range(90, 120))
    assert {*ids(data, "train"), *ids(data, "val")} == set(range(90))
    assert data.digest != table(path, **DOORS, group="owner", validation=20).digest


@pytest.mark.parametrize("owner", [lambda i: i // 4, lambda i: f"o{i // 4}"], ids=["int", "text"])
def test_a_group_is_in_one_of_two_files(tmp_path: Path, owner: Any) -> None:
    frame = cars().assign(owner=[owner(i) for i in range(120)])
    how = {**DOORS, "group": "owner", "validation": 20}
    path = written(tmp_path / "cars.csv", frame[:88])
    data = table(path, test=str(written(tmp_path / "apart.csv", frame[88:])), **how)
    less = written(tmp_path / "less.csv", frame[88:].drop(columns="owner"))
    assert data.digest == table(path, test=str(less), **how).digest
    shared = written(tmp_path / "shared.parquet", frame[86:])
    with pytest.raises(BadInput) as refused:
        table(path, test=str(shared), **how)
    assert str(refused.value).startswith(
        f"data.group='owner': {owner(84)!r} stands in row 84 of {path} and in row 0 of {shared}; "
    )
    gap = frame[88:].assign(owner=[None, *frame["owner"][89:]])
    with pytest.raises(BadInput, match=r"gap\.parquet: column 'owner' has 1 missing value, the "):
        table(path, test=str(written(tmp_path / "gap.parquet", gap)), **how)
    kind = "number" if isinstance(owner(0), int) else "category"
    other = frame[88:].assign(owner=["new", "2"] * 16 if kind == "number" else 2)
    with pytest.raises(BadInput, match=rf"column 'owner' is a .*, in .* it is a {kind}; both"):
        table(path, test=str(written(tmp_path / "other.csv", other)), **how)


def test_weights_are_no_feature_and_stay_with_their_rows(tmp_path: Path) -> None:
    frame = cars().assign(worth=np.arange(120) % 7 / 2)
    path = written(tmp_path / "cars.csv", frame)
    data = table(path, **HELD_OUT, weight="worth")
    assert data.sample_weight.dtype == np.float32
    assert np.array_equal(data.sample_weight, frame["worth"][ids(data, "train")])
    assert not any("worth" in name for name in data.feature_names)
    frame.loc[119, "worth"] += 1
    other = written(tmp_path / "other.csv", frame)
    assert table(other, **HELD_OUT, weight="worth").digest != data.digest
    for columns in (["worth"], []):
        later = written(tmp_path / "later.csv", frame[90:].drop(columns=columns))
        first = written(tmp_path / "first.csv", frame[:90])
        data = table(first, **DOORS, weight="worth", test=str(later))
        assert np.array_equal(data.sample_weight, frame["worth"][:90])
        assert "worth" not in data.feature_names and len(data.x_test) == 30


@pytest.mark.long
def test_a_run_with_weights_is_that_on_arrays_with_them(place: Path, main: Main) -> None:
    frame = cars()[["size", "id", "price"]].assign(worth=np.arange(120) % 7 / 2.0)
    path = written(place / "cars.csv", frame)
    arrays = {"x_train": frame[["size", "id"]].to_numpy(np.float32)}
    arrays |= {"y_train": frame["price"].to_numpy(np.str_), "sample_weight": frame["worth"]}
    np.savez(place / "cars.npz", **arrays)
    rows = [f"data.path={path}", "data=table", "data.target=price", "data.standardise=false"]
    given = {
        "table": [*rows, "data.weight=worth"],
        "arrays": ["data=arrays", "data.path=cars.npz"],
        "no weights": [*rows, "data.features=[size,id]"],
    }
    found = {}
    for name, words in given.items():
        short = ["steps=20", "save=npz", "save.every=20", "eval_every=20", "batch_size=10"]
        done = main("run", *words, *short, THREADS, "progress=false")
        assert (done.returncode, done.stderr) == (0, "")
        (kept,) = place.glob(f"mlruns/artifacts/*/{done.stdout.split()[1]}/**/*-20.npz")
        found[name] = np.load(kept)["weights"]
    assert np.array_equal(found["table"], found["arrays"])
    assert not np.array_equal(found["table"], found["no weights"])


# How it becomes features


def oracle(frame: pd.DataFrame, train: np.ndarray, missing: str) -> np.ndarray:
    """Return the features of all rows by scikit-learn, fitted on some of them."""
    frame = frame.assign(sold=frame["sold"].astype(object))
    frame = frame.where(frame.notna(), np.nan)
    common = "most_frequent"
    numbers = make_pipeline(SimpleImputer(strategy=missing), StandardScaler())
    texts = make_pipeline(
        SimpleImputer(strategy=common),
        OneHotEncoder(handle_unknown="ignore", sparse_output=False),
    )
    chosen = ColumnTransformer(
        [
            ("numbers", numbers, ["id", "size"]),
            ("colour", texts, ["colour"]),
            ("sold", SimpleImputer(strategy=common), ["sold"]),
            ("doors", texts, ["doors"]),
            ("wheels", StandardScaler(), ["wheels"]),
        ]
    )
    return np.asarray(chosen.fit(frame.iloc[train]).transform(frame), np.float64)


@pytest.mark.parametrize("missing", ["refuse", "mean", "median", "most_frequent"])
def test_features_are_those_of_scikit_learn(tmp_path: Path, missing: str) -> None:
    frame = cars() if missing == "refuse" else with_gaps(cars())
    path = written(tmp_path / "cars.csv", frame)
    data = table(path, **HELD_OUT, missing=missing)
    expected = oracle(frame, ids(data, "train"), "mean" if missing == "refuse" else missing)
    sets = standardised(data)
    assert [len(sets[part]) for part in PARTS] == [77, 19, 24]
    for part, found in sets.items():
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[ids(data, part)], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("missing", ["mean", "median", "most_frequent"])
def test_only_the_training_set_decides(tmp_path: Path, missing: str) -> None:
    frame = with_gaps(cars())
    how = {**HELD_OUT, "missing": missing, "unknown": "column"}
    first = table(written(tmp_path / "cars.csv", frame), **how)
    held_out = [*ids(first, "val"), *ids(first, "test")]
    frame.loc[held_out, "size"] = np.arange(len(held_out)) * 1000.0
    frame.loc[held_out, "colour"] = "never seen"
    frame.loc[held_out, ["doors", "sold"]] = None
    second = table(written(tmp_path / "cars.csv", frame), **how)
    assert np.array_equal(ids(second, "test"), ids(first, "test"))
    assert second.feature_names == first.feature_names
    assert np.array_equal(second.x_train, first.x_train)
    for name, array in first.statistics.items():
        assert np.array_equal(array, second.statistics[name])
    unknown = second.feature_names.index("colour unknown")
    assert second.x_test[:, unknown].all() and not second.x_train[:, unknown].any()


def test_what_is_not_standardised(tmp_path: Path) -> None:
    path = written(tmp_path / "cars.csv", cars())
    data = table(path, **DOORS)
    facts = zip(data.feature_names, *data.statistics.values(), strict=True)
    same = {name for name, mean, scale in facts if (mean, scale) == (0, 1)}
    assert same == set(data.feature_names) - {"id", "size", "wheels"}
    assert data.statistics["features/scale"][data.feature_names.index("wheels")] == 1
    plain = table(path, **DOORS, standardise=False)
    assert not plain.statistics and np.array_equal(plain.x_train, data.x_train)
    assert "standardised" in data.summary and "float32 as it is" in plain.summary
    assert not table(path, features=["colour", "sold"]).statistics


def test_features_stand_in_the_order_that_was_asked_for(tmp_path: Path) -> None:
    frame = cars()
    data = table(written(tmp_path / "cars.csv", frame), features=["sold", "size", "colour"])
    names = [f"colour={text}" for text in sorted(set(frame["colour"]))]
    assert data.feature_names == ("sold", "size", *names)
    assert data.x_train.shape[1] == len(data.feature_names) == data.spec.shape[0]


def test_a_parameter_with_the_name_of_a_statistic_is_refused(tmp_path: Path) -> None:
    class Model:
        def initial(self, spec: Any, key: Any) -> dict[str, Any]:
            import tensorflow as tf

            return {"features/mean": tf.zeros([2])}

    data = table(written(tmp_path / "cars.csv", cars()), **DOORS)
    config = replace(defaults(), model=Model())
    with pytest.raises(BadInput, match="Model has a parameter 'features/mean'"):
        initial_state(config, data.spec, data.statistics)
    assert initial_state(config, data.spec)[1] == ["features/mean"]


def encoded(values: np.ndarray) -> np.ndarray:
    """Return a column's feature [N], of rows that are all the training set's."""
    encoder = Encoder([("t.csv", len(values))], "refuse", "refuse")
    rows = {"train": np.arange(len(values))}
    return encoder.encode(Column("a", "number", values), rows)[1]["train"][:, 0]


@settings(max_examples=200, deadline=None)
@given(
    drawn=st.data(), seed=st.integers(0, 999), power=st.floats(-9, 9), sign=st.sampled_from([1, -1])
)
def test_a_column_keeps_its_numbers_apart_or_is_refused(
    drawn: st.DataObject, seed: int, power: float, sign: int
) -> None:
    """Ordinary columns are never refused, and what is encoded is what float64 has."""
    share = drawn.draw(st.floats(-9, 3))
    uniform = np.random.default_rng(seed).uniform(0, 1, 200)
    values = sign * 10**power * (1 + 10**share * uniform)
    exact = (values - values.mean()) / values.std()
    try:
        found = encoded(values).astype(np.float64)
    except BadInput as refused:
        assert share < -4.9 and str(refused).startswith("t.csv: column 'a' has 200 numbers from ")
    else:
        assert share > -5.1
        np.testing.assert_allclose((found - values.mean()) / values.std(), exact, atol=0.03)


ORDINARY = {
    "zeros": np.zeros(9),
    "the same": np.full(9, 1.7e9 + 1),
    "rounded": np.array([0.3, 0.1 + 0.2] * 5) * 1e6,
    "large integers": np.array([2**53, 2**53] * 5),
    "integers": 2**24 - np.arange(100),
    "of both signs": np.array([-1e300, 1e300]) * 1e-270,
    "unsigned": np.array([0, 2**64 - 1], np.uint64),
    "years": np.arange(1900, 2030),
    "a day of seconds": 1_700_000_000 + np.arange(86_400),
    "float32": np.nextafter(np.float32(1e9), np.float32([0, 2e9])),
    "tiny": np.array([1e-40, 2e-40, 1e-60]),
}


@pytest.mark.parametrize("case", ORDINARY)
def test_no_ordinary_column_is_refused(case: str) -> None:
    assert np.array_equal(encoded(ORDINARY[case]), ORDINARY[case].astype(np.float32))


@pytest.mark.parametrize("start", [1_700_000_000, 1.7e9, -1.7e9])
def test_numbers_that_float32_does_not_tell_apart(tmp_path: Path, start: float) -> None:
    frame = FRAME.assign(when=start + np.arange(40))
    with pytest.raises(BadInput) as refused:
        table(written(tmp_path / "t.csv", frame), **DOORS, split="ordered")
    assert str(refused.value) == (
        f"{tmp_path}/t.csv: column 'when' has 32 numbers from {start} to {start + 31} in the "
        f"training set, of which float32 tells 1 apart; subtract a constant, such as {start}, from "
        f"the column."
    )
    frame["when"] -= start
    assert "when" in table(written(tmp_path / "t.csv", frame), **DOORS).feature_names


# What is refused

FRAME = cars(40)
LONG = pd.DataFrame({"code": [f"c{i}" for i in range(1500)] * 2, "price": [0, 1] * 1500})


def one(name: str, row: int, value: Any) -> pd.DataFrame:
    frame = FRAME.astype({name: object})
    frame.loc[row, name] = value
    return frame


CSV: dict[str, tuple[pd.DataFrame | str | bytes, dict[str, Any], str]] = {
    "empty": ("", {}, "t.csv is empty."),
    "blank": (" \n", {}, "t.csv is empty."),
    "no rows": ("a,price\n", {}, "t.csv names columns and has no rows."),
    "a picture": (b"\x89PNG\r\n\x1a\n\0\0", {}, "t.csv is not a readable CSV or Parquet file: it "),
    "UTF-16": ("a,price\n1,2\n".encode("utf-16"), {}, "t.csv is not a readable CSV or Parquet"),
    "Latin-1": ("a,price\né,2\n".encode("latin-1"), {}, "t.csv is not a readable CSV or Parquet "),
    "half a Parquet file": (b"PAR1 and no more", {}, "t.csv is not a readable CSV or Parquet "),
    "more values": ("a,price\n1,2,3\n1,2,3\n", {}, "t.csv is not a readable CSV or Parquet file: "
                    "its rows have more values than its first line has names (2)."),
    "one row more": ("a,price\n1,2\n1,2,3\n", {}, "t.csv is not a readable CSV or Parquet file: "),
    "twice": ("a,a,price\n1,2,0\n", {}, "t.csv: two columns are named 'a'; "),
    "no name": (",a,price\n0,2,0\n1,3,1\n", {}, "t.csv: column 0 has no name; "),
    "target": (FRAME, {"target": "prise"},
               "data.target='prise': t.csv has no such column; the nearest is price."),
    "separator": (FRAME.to_csv(sep=";", index=False), {},
                  "t.csv: names one column in its first line, 'id;size;"),
    "feature": (FRAME, {"features": ["colours"]},
                "data.features='colours': t.csv has no such column; the nearest is colour."),
    "feature twice": (FRAME, {"features": ["size", "size"]},
                      "data.features: names the column 'size' twice."),
    "target as feature": (FRAME, {"features": ["size", "price"]},
                          "data.features: names the column 'price', which is the target."),
    "group as target": (FRAME, {"group": "price"},
                        "data.group: names the column 'price', which is the target."),
    "group as feature": (FRAME, {"group": "id", "features": ["size", "id"]},
                         "data.features: names the column 'id', which is data.group."),
    "group": (FRAME, {"group": "owner"}, "data.group='owner': t.csv has no such column"),
    "categories": (FRAME, {"categories": ["door"]},
                   "data.categories='door': t.csv has no such column; the nearest is doors."),
    "nothing left": (FRAME[["price", "sold"]], {"target": ["price", "sold"]},
                     "t.csv: has no column beside price, sold: no feature."),
    "missing": (one("size", 7, None), {}, "t.csv: column 'size' has 1 missing value, the first in "
                "row 7; data.missing=mean, median or most_frequent fills "),
    "missing text": (one("colour", 7, ""), {}, "t.csv: column 'colour' has 1 missing value, the "),
    "missing target": (one("price", 3, None), {"missing": "mean"},
                       "t.csv: column 'price' has 1 missing value, the first in row 3."),
    "missing group": (one("id", 3, None), {"group": "id", "missing": "mean"},
                      "t.csv: column 'id' has 1 missing value, the first in row 3."),
    "never there": (FRAME.assign(size=None), {"missing": "mean"},
                    "t.csv: column 'size' has no value in the training set, by which data.missing"),
    "weight": (FRAME, {"weight": "sise"},
               "data.weight='sise': t.csv has no such column; the nearest is size."),
    "weight as target": (FRAME, {"weight": "price"},
                         "data.weight: names the column 'price', which is the target."),
    "weight as group": (FRAME, {"weight": "id", "group": "id"},
                        "data.group: names the column 'id', which is data.weight."),
    "weight as feature": (FRAME, {"weight": "id", "features": ["size", "id"]},
                          "data.features: names the column 'id', which is data.weight."),
    "texts as weights": (FRAME, {"weight": "colour"},
                         "t.csv: column 'colour', which is data.weight, has the text '"),
    "a stray weight": (one("size", 5, "?"), {"weight": "size"}, "t.csv: column 'size' is read as "
                       "texts, but '?' in row 5 is no number, "),
    "a negative weight": (one("size", 5, -0.5), {"weight": "size"}, "t.csv: column 'size', which "
                          "is data.weight, has -0.5 in row 5; allowed are finite numbers from 0 "),
    "an infinite weight": (one("size", 5, np.inf), {"weight": "size"},
                           "t.csv: column 'size' has inf in row 5, which is not finite"),
    "missing weight": (one("size", 5, None), {"weight": "size", "missing": "mean"},
                       "t.csv: column 'size' has 1 missing value, the first in row 5."),
    "infinite": (one("size", 5, np.inf), {}, "t.csv: column 'size' has inf in row 5, which is not"),
    "too large": (one("size", 5, 1e39), {}, "t.csv: column 'size' has 1e+39 in row 5, which is no"),
    "a stray text": (one("size", 9, "?"), {}, "t.csv: column 'size' is read as texts, but '?' in "
                     "row 9 is no number, as most others are; leave it empty if it is missing, "),
    "a stray number": (one("colour", 9, "7"), {}, "t.csv: column 'colour' is read as texts, but "
                       "'7' in row 9 is a number among texts, "),
    "after a gap": (one("size", 9, "?").assign(size=lambda f: f["size"].where(f.index > 0)), {},
                    "t.csv: column 'size' is read as texts, but '?' in row 9 is no number, "),
    "numbers and texts": (FRAME, {"categories": []},
                          "t.csv: column 'doors' is read as texts, but '"),
    "decimal comma": (FRAME.to_csv(sep=";", decimal=",", index=False), {"separator": ";"},
                      "t.csv: column 'size' is read as texts, but '"),
    "dates": (FRAME.assign(day="2020-01-31"), {}, "t.csv: column 'day' is read as texts, but "
              "'2020-01-31' in row 0 is a date; write it as a number, "),
    "too many": (LONG, {"split": "ordered"}, "t.csv: column 'code' has 1500 categories in the "
                 f"training set; allowed are {MAX_CATEGORIES}: "),
    "unknown": (one("colour", 39, "pink"), {"split": "ordered"}, "t.csv: column 'colour' has "
                "'pink' in row 39, of the test set, and in no row of the training set; "),
    "unknown in validation": (one("colour", 30, "pink"), {"split": "ordered", "validation": 4},
                              "t.csv: column 'colour' has 'pink' in row 30, of the validation "),
    "255": (FRAME, {"scale": 255}, "data.scale=255: is for pictures; "),
    "texts as targets": (FRAME, {"target": ["price", "sold"]},
                         "data.target: column 'price' holds texts; "),
    "validation": (FRAME, {"validation": 40}, "data.validation=40: holds out 40 of 32 "),
}  # fmt: skip


@pytest.mark.parametrize("case", CSV)
def test_what_is_refused_of_a_csv_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    held, how, said = CSV[case]
    monkeypatch.chdir(tmp_path)
    path = Path("t.csv")
    if isinstance(held, pd.DataFrame):
        written(path, held)
    else:
        path.write_bytes(held if isinstance(held, bytes) else held.encode())
    doors = DOORS if b"doors" in path.read_bytes() and case != "separator" else {}
    with pytest.raises(BadInput) as refused:
        table(path, **{**doors, **how})
    assert str(refused.value).startswith(said) and "\n" not in str(refused.value)


SETTINGS = {
    "data.target=3": "data.target=3 (the command line): ",
    "data.features=[]": "data.features=[] (the command line): ",
    "data.missing=zero": "data.missing='zero' (the command line): ",
    "data.separator=x": "data.separator='x' (the command line): ",
}


@pytest.mark.parametrize("word", SETTINGS)
def test_what_no_setting_may_be(word: str) -> None:
    with pytest.raises(BadInput) as refused:
        compose_config(["data=table", "data.path=t.csv", "data.target=price", word])
    assert str(refused.value).startswith(SETTINGS[word])


DAYS = pd.date_range("2020-01-01", periods=40)
PARQUET = {
    "dates": (DAYS, "holds dates or times; write them as numbers, "),
    "days": (DAYS.date, "holds dates or times; "),
    "with a zone": (DAYS.tz_localize("UTC"), "holds dates or times; "),
    "times": ([datetime.time(3)] * 40, "holds dates or times; "),
    "durations": (DAYS - DAYS[0], "holds dates or times; "),
    "lists": ([[1, 2]] * 40, "holds mixed values; allowed are numbers, "),
    "records": ([{"a": 1}] * 40, "holds mixed values; "),
    "bytes": ([b"a"] * 40, "holds bytes values; "),
    "decimals": ([decimal.Decimal("1.5")] * 40, "holds decimal values; "),
}


@pytest.mark.parametrize("case", PARQUET)
def test_what_is_refused_of_a_parquet_file(tmp_path: Path, case: str) -> None:
    values, said = PARQUET[case]
    path = written(tmp_path / "t.parquet", FRAME.assign(day=values))
    with pytest.raises(BadInput) as refused:
        table(path)
    assert str(refused.value).startswith(f"{path}: column 'day' {said}")


def test_parquet_types(tmp_path: Path) -> None:
    """What a file says of its columns is taken as it stands."""
    frame = pd.DataFrame(
        {
            "small": np.arange(40, dtype=np.int8),
            "unsigned": np.arange(40, dtype=np.uint64),
            "half": np.arange(40, dtype=np.float16),
            "nullable": pd.array([*range(39), 38], "Int64"),
            "true": pd.array([True, False] * 20, "boolean"),
            "digits": ["1", "x"] * 20,
            "levels": pd.Categorical(["v", "u"] * 20),
            "price": pd.Categorical(["b", "a"] * 20, categories=["z", "b", "a"]),
        }
    )
    data = table(written(tmp_path / "t.parquet", frame))
    names = ["small", "unsigned", "half", "nullable", "true", "digits=1", "digits=x"]
    assert data.feature_names == (*names, "levels=u", "levels=v")
    assert data.class_names == ("a", "b")
    frame.index = frame.index[::-1] + 5  # pandas stores it, and it is no column
    frame.sample(frac=1, random_state=0).to_parquet(tmp_path / "index.parquet")
    assert table(tmp_path / "index.parquet").feature_names == data.feature_names


OTHER = {
    "less": (FRAME.drop(columns="size"), "has no column 'size', as "),
    "another target": (FRAME.rename(columns={"price": "prize"}), "the nearest is prize."),
    "more": (FRAME.assign(note=1), "has a column 'note', which "),
    "another kind": (FRAME.assign(size="big"), "column 'size' is a category, in "),
    "missing": (one("size", 2, None), "column 'size' has 1 missing value, the first in row 2; "),
    "unknown": (one("colour", 2, "pink"), "column 'colour' has 'pink' in row 2, of the test set"),
    "a label": (one("price", 2, "free"), "label 'free' in row 2 is not among the 2 of y_train."),
    "empty": (FRAME[:0], "names columns and has no rows."),
}


@pytest.mark.parametrize("case", OTHER)
def test_what_is_refused_of_a_test_set(tmp_path: Path, case: str) -> None:
    frame, said = OTHER[case]
    path = written(tmp_path / "t.csv", FRAME)
    other = written(tmp_path / "other.csv", frame)
    with pytest.raises(BadInput) as refused:
        table(path, **DOORS, test=str(other))
    assert said in str(refused.value)
    assert str(other if case != "a label" else path) in str(refused.value)


def test_as_many_categories_as_are_allowed(tmp_path: Path) -> None:
    codes = [f"c{i}" for i in range(MAX_CATEGORIES)] * 2
    frame = pd.DataFrame({"code": codes, "price": [0, 1] * MAX_CATEGORIES})
    data = table(written(tmp_path / "t.parquet", frame), split="ordered")
    assert len(data.feature_names) == MAX_CATEGORIES
    assert (data.x_train.sum(axis=1) == 1).all()


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.csv does not exist"):
        table(tmp_path / "none.csv")
    with pytest.raises(BadInput, match="is a folder, not a file"):
        table(tmp_path)
