"""Predictions are what `evaluate` scores, to the bit, however they are read and written."""

import csv
import io
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from waymark.api import evaluate, predict
from waymark.cli.models import cli
from waymark.data.picture_file import decode
from waymark.errors import BadInput
from waymark.evaluation.restore import find_checkpoint, load_data, score_state
from waymark.prediction import inputs, mistakes
from waymark.prediction.results import Predictions
from waymark.prediction.writing import writing
from waymark.processes.signals import Interrupted
from waymark.training.score import Score

from tests.support.processes import Main

seen: list[np.ndarray] = []  # the outputs that a metric was given


def outputs_seen(labels: np.ndarray, outputs: np.ndarray) -> float:
    """Stand for a metric of the user's own."""
    seen.append(outputs)
    return 0.0


def scored(run_id: str) -> tuple[Score, np.ndarray]:
    """Return what `evaluate` scores, and the outputs that it does by."""
    seen.clear()
    with find_checkpoint(run_id, "latest", {}) as found:
        config = replace(found.config, metrics=[f"{__name__}.outputs_seen"])
        score = score_state(config, load_data(config), found.store.read(found.step)[1])
    return score, seen[0]


INPUTS = {
    "cnn": ["data.npz", "data"],
    "texts": ["data.npz"],
    "table": ["test.csv", "test.parquet"],
    "pictures": ["pets/test"],
    "multilabel": ["data.npz"],
    "regression": ["data"],
}


LONG = pytest.param("multilabel", marks=pytest.mark.long)


@pytest.mark.parametrize("name", ["cnn", "texts", "table", "pictures", "regression", LONG])
def test_predictions_are_those_of_evaluate(
    name: str, within: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = within(name)
    score, outputs = scored(run_id)
    metrics = dict(evaluate(run_id).metrics)
    for given in INPUTS[name]:
        for size in (2**23, 1):  # all in one part, and a batch in each
            monkeypatch.setattr(inputs, "PART_BYTES", size)
            found = predict(run_id, given)
            assert found.outputs.dtype == outputs.dtype == np.float32
            assert np.array_equal(found.outputs, outputs)
            assert np.array_equal(found.predicted, score.predictions)
            assert dict(found.metrics) == metrics
            assert found.total == len(outputs) == len(found.to_frame())


def test_the_data_are_not_needed_but_of_a_run_that_recorded_no_signature(
    within: Callable[[str], str],
) -> None:
    run_id = within("table")
    with find_checkpoint(run_id, "latest", {}) as found:
        signature = found.folder / "signature.json"
    first = predict(run_id, "test.csv", step="3")
    signature.rename("kept.json")
    without = predict(run_id, "test.csv", step="3")
    Path("kept.json").rename(signature)
    Path("train.csv").unlink()
    third = predict(run_id, "test.csv", step="3")
    assert first.step == without.step == third.step == 3
    for other in (without, third):
        assert np.array_equal(other.outputs, first.outputs)
        assert other.to_frame().equals(first.to_frame())


def read(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    return pd.read_csv(path, dtype={"true": str, "predicted": str})


@pytest.mark.parametrize("name", ["cnn", "pictures", "regression", LONG])
def test_files_hold_what_the_function_returns(name: str, within: Callable[[str], str]) -> None:
    run_id, given = within(name), INPUTS[name][0]
    kept, frame = predict(run_id, given), predict(run_id, given).to_frame()
    for file in ("found.csv", "found.parquet", "found.npz"):
        written = predict(run_id, given, output=file)
        assert (written.written, written.metrics) == (Path(file), kept.metrics)
        with pytest.raises(ValueError, match=file):
            written.to_frame()
        if file != "found.npz":
            found = read(Path(file))
            assert list(found) == list(frame)
            for column in frame:  # a float32 is written with as many digits as tell it
                assert (found[column].astype(frame[column].dtype) == frame[column]).all()
    names = {"cnn": "classes", "pictures": "classes", "multilabel": "labels"}
    with np.load("found.npz") as arrays:
        assert np.array_equal(arrays[names.get(name, "predictions")], kept.predicted)
        assert np.array_equal(arrays["true"], kept.truth)
        if kept.probabilities is not None:
            assert np.array_equal(arrays["logits"], kept.outputs)
            assert np.array_equal(arrays["probabilities"], kept.probabilities)
        assert ("files" in arrays) == (name == "pictures")
    assert {path.name for path in Path().iterdir()} >= {"found.csv", "found.parquet", "found.npz"}
    assert not list(Path().glob(".waymark-*"))


def test_columns(within: Callable[[str], str]) -> None:
    run_id = within("texts")
    frame = predict(run_id, "data.npz").to_frame()
    names = list("abcdefghij")
    assert list(frame) == ["row", "true", "predicted", "probability", *(f"p_{n}" for n in names)]
    p = frame[[f"p_{n}" for n in names]].to_numpy()
    assert np.allclose(p.sum(axis=1), 1, atol=1e-6)
    assert [names[i] for i in p.argmax(axis=1)] == list(frame["predicted"])
    assert (p.max(axis=1) == frame["probability"]).all()
    top = predict(run_id, "data.npz", top=3).to_frame()
    best = np.sort(p, axis=1)[:, ::-1]
    for place, ending in enumerate(("", "_2", "_3")):
        assert (top[f"probability{ending}"] == best[:, place]).all()
        assert (top["row"] == np.arange(len(p))).all()
        at = [names.index(name) for name in top[f"predicted{ending}"]]
        assert (p[np.arange(len(p)), at] == best[:, place]).all()
    assert len(top.columns) == 8


def test_the_order_of_examples_decides_nothing(
    within: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """In an order that is drawn, and in parts of sizes that are drawn, each has its answer."""
    run_id, draw = within("cnn"), np.random.default_rng(seed)
    with np.load("data.npz") as data:
        x, y = data["x_test"], data["y_test"]
    whole = predict(run_id, "data.npz")
    gaps = np.sort(whole.outputs, axis=1)
    clear = gaps[:, -1] - gaps[:, -2] > 1e-4
    for _ in range(4):
        order = draw.permutation(len(x))[: draw.integers(1, len(x))]
        np.savez_compressed("some.npz", x=np.asfortranarray(x[order]), y=y[order])
        monkeypatch.setattr(inputs, "PART_BYTES", int(draw.integers(1, 2**16)))
        some = predict(run_id, "some.npz")
        assert np.allclose(some.outputs, whole.outputs[order], rtol=0, atol=1e-5)
        sure = clear[order]
        assert (some.predicted[sure] == whole.predicted[order][sure]).all()


# Pictures


@pytest.fixture
def spoiled(within: Callable[[str], str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield a run, and what is wrong with some pictures in pets/test, by their names."""
    run_id = within("pictures")
    folder = Path("pets/test")
    cut, other, small, bomb = (folder / "cat" / f"{i:03}.png" for i in range(4))
    cut.write_bytes(cut.read_bytes()[:60])
    other.write_text("no picture")
    Image.new("RGB", (5, 4)).save(small)
    Image.new("1", (20_000, 20_000)).save(bomb)
    said = {
        cut: "truncated",
        other: "is not a picture",
        small: "4 x 5 pixels",
        bomb: "134,217,728",
    }
    yield run_id, {str(path): words for path, words in said.items()}


def test_wrong_pictures_are_named_and_the_others_predicted(
    spoiled: tuple[str, dict[str, str]], main: Main
) -> None:
    run_id, wrong = spoiled
    done = main("predict", run_id, "pets/test", "-o", "found.csv")
    assert done.returncode == 1
    for path, words in wrong.items():
        (line,) = (line for line in done.stderr.splitlines() if path in line)
        assert words in line
    found = read(Path("found.csv"))
    assert not set(found["file"]) & set(wrong)
    assert len(found) + len(wrong) == len(list(Path("pets/test").rglob("*.png")))
    assert {*found["true"]} == {"cat", "dog", "owl"}
    hits = int((found["true"] == found["predicted"]).sum())
    assert f"({hits} of {len(found)} examples)" in done.stdout


def test_resized_and_inverted_pictures_are_decoded_as_in_training(
    within: Callable[[str], str],
) -> None:
    run_id = within("pictures")
    draw = np.random.default_rng(1).integers(0, 256, (20, 31, 3)).astype(np.uint8)
    Image.fromarray(draw).save("big.png")
    content = Path("big.png").read_bytes()
    pixels = decode(content, (9, 12, 3))
    np.savez("same.npz", x=np.stack([pixels, 255 - pixels]))
    expected = predict(run_id, "same.npz").outputs
    refused = predict(run_id, ["big.png"])
    assert "--resize" in refused.wrong["big.png"] and refused.total == 0
    assert list(refused.to_frame())[:3] == ["file", "predicted", "probability"]
    for invert in (False, True):
        found = predict(run_id, "big.png", resize=True, invert=invert)
        assert np.allclose(found.outputs[0], expected[int(invert)], rtol=0, atol=1e-5)


def test_the_most_confident_mistakes_are_drawn(
    within: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    run_id, real = within("cnn"), mistakes.titled_pictures
    monkeypatch.setattr(
        mistakes, "titled_pictures", lambda path, found: (drawn.extend(found), real(path, found))
    )
    monkeypatch.setattr(inputs, "PART_BYTES", 1)
    found = predict(run_id, "data.npz", errors="errors.png")
    assert Path("errors.png").read_bytes().startswith(b"\x89PNG")
    frame = found.to_frame()
    wrong = frame[frame["true"] != frame["predicted"]]
    wrong = wrong.sort_values("probability", ascending=False, kind="stable")[:25]
    assert [text for text, _ in drawn] == [
        f"true: {row.true}\npredicted: {row.predicted}\n{row.probability:.4f}"
        for row in wrong.itertuples()
    ]
    with np.load("data.npz") as data:
        for (_, picture), row in zip(drawn, wrong["row"], strict=True):
            assert np.array_equal(picture[..., 0], data["x_test"][row])
    assert found.drawn == len(wrong) > 1
    with np.load("data.npz") as data:
        np.savez("right.npz", x=data["x_test"], y=found.predicted)
    assert predict(run_id, "right.npz", errors="errors.png").drawn == 0
    assert not Path("errors.png").exists()


def test_a_signal_leaves_nothing_behind(
    within: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = within("cnn")
    before = sorted(Path().iterdir())
    monkeypatch.setattr(
        mistakes, "titled_pictures", lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    )
    with pytest.raises(Interrupted) as stopped:
        cli.main(["predict", run_id, "data.npz", "--errors", "e.png"], standalone_mode=False)
    assert stopped.value.status == 128 + signal.SIGTERM  # type: ignore[attr-defined]
    assert sorted(Path().iterdir()) == before


def test_what_cannot_be_read_is_not_what_cannot_be_written(tmp_path: Path) -> None:
    layout: Any = None
    with pytest.raises(OSError, match="of an input"), writing(tmp_path / "a.csv", layout):
        raise OSError(5, "of an input")
    assert not [*tmp_path.iterdir()]


# The command


def test_csv_on_standard_output_and_words_beside_it(
    within: Callable[[str], str], main: Main
) -> None:
    run_id = within("texts")
    done = main("predict", run_id, "data.npz", "--top", "1")
    assert done.returncode == 0
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert len(rows) == 620 and {*rows[0]} == {"row", "true", "predicted", "probability"}
    assert "reads x_test [620, 8, 8] of data.npz, labels y_test" in done.stderr
    hits = sum(row["true"] == row["predicted"] for row in rows)
    assert f"({hits} of 620 examples)" in done.stderr
    written = main("predict", run_id, "data.npz", "-o", "found.csv")
    assert (written.returncode, "written: found.csv" in written.stdout) == (0, True)
    refused = main("predict", run_id, "no/lr=1.npz")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "no/lr=1.npz cannot be read: No such file" in refused.stderr


def test_a_file_is_whole_or_as_it_was(
    within: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong in a later part leaves nothing behind, and an earlier file alone."""
    run_id = within("table")
    lines = Path("test.csv").read_text().splitlines(keepends=True)
    bad = [*lines[:-1], "1,not a number,red,True,2,high\n"]
    Path("bad.csv").write_text("".join(bad))
    monkeypatch.setattr(inputs, "PART_BYTES", 1)
    for file in ("found.csv", "found.parquet", "found.npz"):
        Path(file).write_text("as it was")
        before = {path.name for path in Path().iterdir()}
        with pytest.raises(BadInput, match=rf"'not a number' in row {len(lines) - 2}"):
            predict(run_id, "bad.csv", output=file)
        assert Path(file).read_text() == "as it was"
        assert {path.name for path in Path().iterdir()} == before


def found_of(run_id: str, **arrays: np.ndarray) -> Predictions:
    np.savez("given.npz", **arrays)
    return predict(run_id, "given.npz")


def test_which_arrays_are_read(within: Callable[[str], str]) -> None:
    run_id = within("texts")
    with np.load("data.npz") as data:
        x, y = data["x_test"][:9], data["y_test"][:9]
    expected = predict(run_id, "data.npz").outputs[:9]
    assert found_of(run_id, x_test=x, x=x[:3], y=y[:3]).truth is None
    for arrays in ({"x": x, "y": y}, {"mine": x, "y": y}, {"x_test": x[..., None], "y_test": y}):
        found = found_of(run_id, **arrays)
        assert np.allclose(found.outputs, expected, rtol=0, atol=1e-5)
        assert found.truth is not None and found.truth.tolist() == [ord(n) - 97 for n in y]
    numbers = np.array([ord(n) - 97 for n in y])
    assert found_of(run_id, x=x, y=numbers).metrics == found_of(run_id, x=x, y=y).metrics
    with pytest.raises(BadInput, match="holds a, b; what is read is x_test, or x, or one array"):
        found_of(run_id, a=x, b=x)
