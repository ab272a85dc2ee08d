"""Scoring: plain NumPy gives the same hits, the same accuracy, and the mean loss in float64."""

from functools import partial
from typing import Any

import numpy as np
import pytest
from waymark.data.randomness import INITIAL, random_key
from waymark.data.sources import Dataset
from waymark.models import forward
from waymark.models.cnn import Cnn
from waymark.models.softmax import Softmax
from waymark.tasks import report
from waymark.tasks.classification import Classification
from waymark.tasks.report import confusion
from waymark.training import score
from waymark.training.runtime import start_tensorflow
from waymark.training.score import Scorer

tf: Any = start_tensorflow(2)

TASK = Classification()
SOFTMAX = Softmax(init_stddev=0.5)
CNN = Cnn(init_stddev=0.1, init_bias=0.1, keep_prob=0.5)


def dataset(count: int, kind: str = "uint8", classes: int = 10) -> Dataset:
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, 6, 5, 1), np.uint8)
    x: np.ndarray = images if kind == "uint8" else images.astype(np.float32) / np.float32(255)
    y = rng.integers(0, classes, count).astype(np.int32)
    y[-1] = classes - 1
    return Dataset("random", "memory", x, y, x, y)


def numpy_score(weights: np.ndarray, data: Dataset) -> tuple[int, float]:
    """Return hits and mean loss of softmax regression, everything in float64."""
    pixels = data.x_test.reshape(len(data.x_test), -1).astype(np.float64)
    logits = pixels / (255 if data.x_test.dtype == np.uint8 else 1) @ weights.astype(np.float64)
    shifted = logits - logits.max(1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(logits)), data.y_test]
    return int((logits.argmax(1) == data.y_test).sum()), float(losses.mean())


@pytest.mark.parametrize("kind", ["uint8", "float32"])
@pytest.mark.parametrize("count", [1, 249, 250, 251, 777])
def test_softmax_scores_as_numpy_does(count: int, kind: str) -> None:
    data = dataset(count, kind)
    parameters = SOFTMAX.initial(data.spec, partial(random_key, 1, INITIAL))
    found = Scorer(SOFTMAX, "float32", data, task=TASK)(parameters)
    hits, loss = numpy_score(parameters["weights"].numpy(), data)
    assert found.judged == found.metrics["accuracy"] == hits / count
    assert found.metrics["loss"] == pytest.approx(loss, rel=1e-6)
    assert (found.predictions.dtype, len(found.predictions)) == (np.int64, count)
    assert hits == np.count_nonzero(found.predictions == data.y_test)


@pytest.mark.parametrize("model", [SOFTMAX, CNN], ids=["softmax", "cnn"])
def test_the_batch_size_does_not_change_the_result(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = dataset(300)
    parameters = model.initial(data.spec, partial(random_key, 1, INITIAL))
    results = []
    for batch in (1, 7, 250, 299, 300, 10_000):
        monkeypatch.setattr(score, "IMAGES_PER_BATCH", batch)
        results.append(Scorer(model, "float32", data, task=TASK)(parameters))
    for result in results:
        assert np.array_equal(result.predictions, results[0].predictions)
        assert result.judged == results[0].judged
        assert result.metrics["loss"] == pytest.approx(results[0].metrics["loss"], rel=1e-6)


def test_nothing_is_dropped_in_scoring() -> None:
    data = dataset(100)
    parameters = CNN.initial(data.spec, partial(random_key, 1, INITIAL))
    scorer = Scorer(CNN, "float32", data, task=TASK)
    images = tf.constant(data.x_test.astype(np.float32) / np.float32(255))
    logits = forward(CNN, "float32", parameters, images).numpy()
    first, second = scorer(parameters), scorer(parameters)
    assert np.array_equal(first.predictions, logits.argmax(1))
    assert np.array_equal(first.predictions, second.predictions)
    assert first.metrics["loss"] == second.metrics["loss"]


def test_it_takes_variables_arrays_and_other_values_later() -> None:
    data = dataset(60)
    scorer = Scorer(SOFTMAX, "float32", data, task=TASK)
    values = [SOFTMAX.initial(data.spec, partial(random_key, seed, INITIAL)) for seed in (1, 2)]
    variable = tf.Variable(values[0]["weights"])
    first = scorer({"weights": variable})
    assert np.array_equal(first.predictions, scorer(values[0]).predictions)
    plain = scorer({"weights": values[0]["weights"].numpy()})
    assert np.array_equal(first.predictions, plain.predictions)
    variable.assign(values[1]["weights"])
    second = scorer({"weights": variable})
    assert np.array_equal(second.predictions, scorer(values[1]).predictions)
    assert not np.array_equal(first.predictions, second.predictions)


def test_two_and_many_classes() -> None:
    for classes in (2, 26, 300):
        data = dataset(400, classes=classes)
        parameters = SOFTMAX.initial(data.spec, partial(random_key, 1, INITIAL))
        hits, loss = numpy_score(parameters["weights"].numpy(), data)
        found = Scorer(SOFTMAX, "float32", data, task=TASK)(parameters)
        assert found.metrics == {"accuracy": hits / 400, "loss": pytest.approx(loss, rel=1e-6)}


def test_the_mean_is_taken_in_float64() -> None:
    """Score images that are all alike, so that every loss is one and the same float32."""
    x = np.full((100_000, 1), 255, np.uint8)
    y = np.zeros(len(x), np.int32)
    y[-1] = 1
    data = Dataset("alike", "memory", x, y, x, y)
    weights = np.array([[0.1, 0.4]], np.float32)
    found = Scorer(SOFTMAX, "float32", data, task=TASK)({"weights": weights})
    each = np.log1p(np.exp(np.array([0.3, -0.3])))  # of class 0 and of class 1
    assert found.metrics["loss"] == pytest.approx((each[0] * 99_999 + each[1]) / 100_000, rel=1e-7)
    assert found.judged == 1e-5
    assert found.metrics["loss"] != float(np.float32(found.metrics["loss"]))


def test_nan_parameters_give_a_nan_loss_and_a_number_of_hits() -> None:
    data = dataset(100)
    weights = np.full((30, 10), np.nan, np.float32)
    found = Scorer(SOFTMAX, "float32", data, task=TASK)({"weights": weights})
    assert np.isnan(found.metrics["loss"])
    assert 0 <= found.judged <= 1


def test_confusion_of_few_classes_is_whole() -> None:
    truth, predictions = np.array([0, 1, 1, 2]), np.array([0, 2, 2, 1])
    shown, counts = confusion(truth, predictions, 4)
    assert shown == [0, 1, 2, 3]
    assert counts.tolist() == [[1, 0, 0, 0], [0, 0, 2, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    shown, counts = confusion(truth, np.array([0, 1, 5, 2]), 3)  # a model with more outputs
    assert (shown, counts[1, 5], counts.sum()) == ([0, 1, 2, 3, 4, 5], 1, 4)


def test_confusion_of_many_classes_is_of_the_most_confused() -> None:
    rng = np.random.default_rng(3)
    truth = rng.integers(100, 65_000, 3000).astype(np.int32)
    predictions = truth.astype(np.int64)
    truth[:50], predictions[:50] = 7, 65_535
    truth[50:90], predictions[50:90] = 65_535, 7
    truth[90:120], predictions[90:120] = 64_000, 9
    truth[120:140] = 64_001  # and all of them right
    predictions[120:140] = 64_001
    shown, counts = confusion(truth, predictions, 65_536)
    assert len(shown) == len(counts) == report.MOST_CONFUSED
    assert {7, 9, 64_000, 64_001, 65_535} <= set(shown)
    at = {each: place for place, each in enumerate(shown)}
    assert (counts[at[7], at[65_535]], counts[at[65_535], at[7]]) == (50, 40)
    assert (counts[at[64_000], at[9]], counts[at[64_001], at[64_001]]) == (30, 20)


def test_confusion_of_many_classes_and_few_images() -> None:
    shown, counts = confusion(np.array([3, 900, 3]), np.array([3, 900, 3]), 1000)
    assert (shown, counts.tolist()) == ([3, 900], [[2, 0], [0, 1]])
