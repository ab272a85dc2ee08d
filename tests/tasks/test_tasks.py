"""Tasks and metrics: NumPy, scikit-learn and Keras find the same losses, weights and numbers."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from sklearn.datasets import load_diabetes, load_digits
from sklearn.utils.class_weight import compute_class_weight
from waymark.comparison.runs import better_value, with_current_steps
from waymark.config.compose import compose_config
from waymark.data.dataset import Dataset, from_arrays
from waymark.data.randomness import INITIAL, random_key
from waymark.data.sources import batch_indices
from waymark.data.splits import hold_out
from waymark.errors import BadInput
from waymark.models.softmax import Softmax
from waymark.names import METRIC, VERSION
from waymark.tasks import AnswerNames, answers, training_truth
from waymark.tasks.classification import Classification
from waymark.tasks.metrics import TABLE, measured, modes, probabilities
from waymark.tasks.multilabel import Multilabel
from waymark.tasks.regression import Regression
from waymark.tasks.report import MAX_POINTS, class_table, target_report
from waymark.training.loop import Trainer
from waymark.training.runtime import start_tensorflow
from waymark.training.score import Scorer

from tests.support.comparisons import compared, made

tf: Any = start_tensorflow(2)

TASKS = {task.kind: task for task in (Classification(), Multilabel(), Regression())}


def examples(task: str, count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Return outputs float32 [N, 7], and labels of the task that have something to do with them."""
    draw = np.random.default_rng(5)
    outputs = draw.normal(0, 2, (count, 7)).astype(np.float32)
    noisy = outputs + draw.normal(0, 2, outputs.shape)
    labels = {"classification": noisy.argmax(1).astype(np.int32)}
    labels |= {"multilabel": (noisy > 1).astype(np.uint8), "regression": noisy.astype(np.float32)}
    return outputs, labels[task]


def loss_of(task: Any, labels: np.ndarray, outputs: np.ndarray, training: bool) -> np.ndarray:
    found: np.ndarray = task.losses(tf.constant(labels), tf.constant(outputs), training).numpy()
    assert (found.dtype, found.shape) == (np.float32, (len(labels),))
    return found


def test_losses_are_those_of_keras() -> None:
    from keras import losses

    outputs, labels = examples("classification")
    one_hot = np.eye(7, dtype=np.float32)[labels]
    for smoothing in (0.0, 0.1, 1.0):
        theirs = losses.CategoricalCrossentropy(True, smoothing, reduction=None)(one_hot, outputs)
        ours = loss_of(Classification(label_smoothing=smoothing), labels, outputs, True)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    plain = loss_of(Classification(), labels, outputs, True)
    assert np.array_equal(
        plain, loss_of(Classification(label_smoothing=0.3), labels, outputs, False)
    )
    outputs, labels = examples("multilabel")
    theirs = losses.BinaryCrossentropy(True, reduction=None)(labels, outputs)
    np.testing.assert_allclose(loss_of(Multilabel(), labels, outputs, True), theirs, rtol=1e-5)
    outputs, labels = examples("regression")
    kinds = {"mse": "MeanSquaredError", "mae": "MeanAbsoluteError", "huber": "Huber"}
    for name, kind in kinds.items():
        theirs = getattr(losses, kind)(reduction=None)(labels, outputs)
        ours = loss_of(Regression(loss=name), labels, outputs, True)  # type: ignore[arg-type]
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def theirs_of(task: str, labels: np.ndarray, outputs: np.ndarray) -> dict[str, float]:
    """Return what scikit-learn finds of every metric that there is."""
    sk: Any = sklearn.metrics
    wide = outputs.astype(np.float64)
    if task == "regression":
        return {
            "rmse": sk.root_mean_squared_error(labels.astype(np.float64), wide),
            "mae": sk.mean_absolute_error(labels.astype(np.float64), wide),
            "mse": sk.mean_squared_error(labels.astype(np.float64), wide),
            "r2": sk.r2_score(labels.astype(np.float64), wide),
            "median_absolute_error": sk.median_absolute_error(labels.astype(np.float64), wide),
        }
    multilabel = task == "multilabel"
    predictions = (outputs > 0) * 1 if multilabel else outputs.argmax(1)
    shares = (f"{name}_score" for name in ("f1", "precision", "recall"))
    f1, precision, recall = (
        getattr(sk, share)(labels, predictions, average="macro", zero_division=0)
        for share in shares
    )
    both = {"macro_f1": f1, "macro_precision": precision, "macro_recall": recall}
    if multilabel:
        return {
            **both,
            "binary_accuracy": 1 - sk.hamming_loss(labels, predictions),
            "subset_accuracy": sk.accuracy_score(labels, predictions),
            "roc_auc": sk.roc_auc_score(labels, wide, average="macro"),
        }
    shares_of = np.exp(wide) / np.exp(wide).sum(1, keepdims=True)
    return {
        **both,
        "accuracy": sk.accuracy_score(labels, predictions),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predictions),
        "top_5": sk.top_k_accuracy_score(labels, wide, k=5),
        "roc_auc": sk.roc_auc_score(labels, shares_of, multi_class="ovr"),
        "log_loss": sk.log_loss(labels, shares_of),
    }


@pytest.mark.parametrize("kind", TASKS)
def test_metrics_are_those_of_scikit_learn(kind: str) -> None:
    task, asked = TASKS[kind], list(TABLE[kind])
    outputs, labels = examples(kind)
    x, identity = outputs, {"weights": np.eye(7, dtype=np.float32)}
    count = {"outputs": None if kind == "classification" else 7}
    data = Dataset("random", "memory", x, labels, x, labels, **count)  # type: ignore[arg-type]
    model = Softmax(init_stddev=1.0)  # whose outputs are the features
    found = Scorer(model, "float32", data, task=task, metrics=asked)(identity)
    theirs = theirs_of(kind, labels, outputs)
    loss = float(loss_of(task, labels, outputs, False).astype(np.float64).mean())
    assert found.metrics == pytest.approx({**theirs, "loss": loss}, rel=1e-6)
    assert list(found.metrics) == [*task.metrics(), "loss", *asked]
    without = Scorer(model, "float32", data, task=task)(identity)
    assert without.metrics == {name: found.metrics[name] for name in without.metrics}


def test_accuracy_is_a_count_of_hits() -> None:
    outputs, labels = examples("classification", 997)
    accuracy: Any = measured(Classification())["accuracy"]
    assert accuracy(labels, outputs.argmax(1)) == int((labels == outputs.argmax(1)).sum()) / 997


@pytest.mark.parametrize("kind", ["classification", "multilabel"])
def test_the_table_by_class_is_that_of_scikit_learn(kind: str) -> None:
    outputs, labels = examples(kind)
    labels = labels.copy()
    labels[labels == 5] = 4  # a class that does not occur
    if kind == "multilabel":
        labels[:, 5], outputs[:, 2] = 0, -1  # a label that does not occur, one never predicted
    predictions = (outputs > 0).astype(np.uint8) if kind == "multilabel" else outputs.argmax(1)
    data = Dataset("x", "memory", outputs, labels, outputs, labels, outputs=7)
    rows = TASKS[kind].per_class(data, predictions)
    theirs: Any = sklearn.metrics.precision_recall_fscore_support(
        labels, predictions, labels=range(7), zero_division=0
    )
    for place, column in enumerate(("precision", "recall", "f1", "support")):
        np.testing.assert_allclose([getattr(row, column) for row in rows], theirs[place])
    named = TASKS[kind].per_class(replace(data, class_names=tuple("abcdef,")), predictions)
    assert [row.name for row in named] == list("abcdef,")
    assert class_table(named).splitlines()[-1].startswith('",",')


def test_odd_predictions_give_no_number_and_no_error() -> None:
    labels, nothing = np.zeros(4, np.int32), np.full((4, 7), np.nan, np.float32)
    for kind, table in TABLE.items():
        for name, metric in table.items():
            if metric.of_outputs or kind == "regression":
                truth = {"regression": nothing, "multilabel": np.zeros((4, 7), np.uint8)}
                assert np.isnan(metric(truth.get(kind, labels), nothing)), name
    one_class = TABLE["classification"]["roc_auc"](labels, np.ones((4, 7), np.float32))
    assert np.isnan(one_class)
    huge = np.array([[1e30, -1e30]], np.float32)
    assert probabilities(huge).tolist() == [[1, 0]]


def test_directions_are_those_that_names_tell() -> None:
    for kind, task in TASKS.items():
        for name, mode in modes(task, list(TABLE[kind])).items():
            better = better_value(f"val/{name}")
            assert better and better.__name__ == mode, name


def softmax_gradient(outputs: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    shares = np.exp(outputs - outputs.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    return -(truth * np.log(shares)).sum(1), shares - truth


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", TASKS)
def test_plain_numpy_trains_to_the_same_weights(kind: str, weighted: bool) -> None:
    digits = load_digits(return_X_y=True)
    x = (digits[0] / 16).astype(np.float32)
    y: Any = {"classification": digits[1], "multilabel": (digits[0][:, [3, 12, 60]] > 8) * 1}.get(
        kind
    )
    if kind == "regression":
        x, y = load_diabetes(return_X_y=True, scaled=False)
        x, y = ((each - each.mean(0)) / each.std(0) for each in (x, y))
    own = {"sample_weight": np.random.default_rng(6).uniform(0, 2, len(x))} if weighted else {}
    task: Any = {"class_weights": "balanced", "label_smoothing": 0.1} if weighted else {}
    task = Classification(**task) if kind == "classification" else TASKS[kind]
    rate = 0.05 if kind == "regression" else 0.3
    overrides = ["optimizer=sgd", "optimizer.momentum=0", f"optimizer.learning_rate={rate}"]
    made = compose_config([*overrides, "data=arrays", "data.path=x", "batch_size=50"]).config
    read = from_arrays("mine", "memory", {"x_train": x, "y_train": y, **own})
    data = hold_out(task.prepare(read), made.data)
    config = replace(made, task=task)
    trainer = Trainer(config, data)
    weights = trainer.state()["weights"].astype(np.float64)
    losses = trainer.run_steps(60)
    counts: Any = training_truth(task, data)[1] if weighted else np.ones(len(data.x_train))
    if weighted and kind == "classification":
        names = np.unique(data.y_train)
        each = compute_class_weight("balanced", classes=names, y=data.y_train)
        np.testing.assert_allclose(counts, data.sample_weight * each[data.y_train], rtol=1e-6)
    expected = []
    for step in range(1, 61):
        rows = batch_indices("epoch", 0, tf.constant(step, tf.int64), 50, len(counts)).numpy()
        images, labels = data.x_train[rows].astype(np.float64), data.y_train[rows]
        outputs, w = images @ weights, counts[rows].astype(np.float64)
        if kind == "classification":
            truth = np.eye(10)[labels]
            each, slopes = softmax_gradient(outputs, truth * 0.9 + 0.01 if weighted else truth)
        elif kind == "multilabel":
            each = np.logaddexp(0, outputs) - labels * outputs
            each, slopes = each.mean(1), (1 / (1 + np.exp(-outputs)) - labels) / 3
        else:
            each, slopes = np.square(outputs - labels)[:, 0], 2 * (outputs - labels)
        expected.append((w * each).sum() / w.sum())
        weights -= rate * images.T @ (slopes * w[:, None]) / w.sum()
    np.testing.assert_allclose(losses, expected, rtol=2e-4)
    np.testing.assert_allclose(trainer.state()["weights"], weights, atol=2e-4)


def test_weights_move_with_their_examples() -> None:
    x = np.arange(200, dtype=np.float32).reshape(100, 2)
    arrays = {"x_train": x, "y_train": np.arange(100.0), "sample_weight": x[:, 0]}
    loader = compose_config(["data=arrays", "data.path=x", "data.validation=0.3"]).config.data
    data = hold_out(Regression().prepare(from_arrays("mine", "memory", arrays)), loader)
    assert [len(data.x_train), len(data.x_val), len(data.x_test)] == [56, 24, 20]
    assert np.array_equal(data.sample_weight, data.x_train[:, 0])
    parts = np.concatenate([data.y_train, data.y_val, data.y_test])[:, 0]
    assert np.array_equal(np.sort(parts), np.arange(100))
    other = dict(arrays, sample_weight=x[:, 1])
    assert from_arrays("mine", "memory", other).digest != data.digest


def test_without_weights_nothing_is_weighted() -> None:
    outputs, labels = examples("classification")
    data = Dataset("random", "memory", outputs, labels, outputs, labels)
    assert len(training_truth(Classification(), data)) == 1
    assert len(training_truth(Classification(class_weights=[2.0] * 7), data)) == 2


GOOD = np.arange(12) % 3
X = np.zeros((12, 4), np.float32)
REFUSED: list[tuple[str, Any, str]] = [
    ("classification", GOOD / 2, "dtype float64; .*task=regression"),
    ("classification", np.ones((12, 3)), "row 0 is not one-hot; .*task=multilabel"),
    ("multilabel", GOOD, r"int64\[12\]; allowed are numbers \[N, K\]"),
    ("multilabel", np.column_stack([GOOD, GOOD]), "has the value 2 in row 2; allowed are 0 and 1"),
    ("multilabel", np.full((12, 2), np.nan), "has the value nan in row 0"),
    ("multilabel", np.array([["a", "b"]] * 12), "allowed are numbers"),
    ("regression", np.array(["a"] * 12), r"<U1\[12\]; allowed are numbers, \[N\] or \[N, T\]"),
    ("regression", np.zeros((12, 2, 2)), r"\[12, 2, 2\]; allowed are"),
    ("regression", np.where(GOOD == 2, 1e39, 0), "a value in row 2 that is not finite"),
]


@pytest.mark.parametrize(("kind", "labels", "said"), REFUSED)
def test_labels_of_another_form_are_refused(kind: str, labels: np.ndarray, said: str) -> None:
    data = from_arrays("mine", "mine.npz", {"x_train": X, "y_train": labels})
    with pytest.raises(BadInput, match=f"^mine.npz: y_train .*{said}"):
        TASKS[kind].prepare(data)


@pytest.mark.parametrize("kind", ["multilabel", "regression"])
def test_sets_with_other_columns_are_refused(kind: str) -> None:
    arrays = {"x_train": X, "y_train": np.zeros((12, 3)), "x_val": X, "y_val": np.zeros((12, 2))}
    with pytest.raises(BadInput, match=r"y_val has 2 .*, but y_train 3"):
        TASKS[kind].prepare(from_arrays("mine", "mine.npz", arrays))


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (np.ones(11), "float64[11]; allowed are 12 numbers"),
        (np.array(["1"] * 12), "<U1[12]; allowed are 12 numbers"),
        (np.where(np.arange(12) == 7, -1, 1), "is -1 in row 7; allowed are finite numbers"),
        (np.where(np.arange(12) == 7, np.inf, 1), "is inf in row 7; "),
        (np.zeros(12), "is 0 in every row"),
    ],
)
def test_weights_of_another_form_are_refused(weights: np.ndarray, said: str) -> None:
    arrays = {"x_train": X, "y_train": GOOD, "sample_weight": weights}
    with pytest.raises(BadInput) as caught:
        from_arrays("mine", "mine.npz", arrays)
    assert f"mine.npz: sample_weight {said}" in str(caught.value) or said in str(caught.value)


def test_class_weights_of_another_number_are_refused() -> None:
    data = from_arrays("mine", "mine.npz", {"x_train": X, "y_train": GOOD})
    for given in ([1.0, 1.0], [0.0, 0.0, 0.0]):
        with pytest.raises(BadInput, match=r"must be 3 numbers, one a class of mine.npz"):
            Classification(class_weights=given).prepare(data)


class Ranking:
    """A task of the user's own."""

    answer_names = AnswerNames("ranks", "scores")

    def predict(self, outputs: Any) -> Any:
        return tf.argsort(outputs, 1)

    def probabilities(self, outputs: Any) -> Any:
        return tf.nn.sigmoid(outputs)


def test_a_task_names_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = tf.constant([[1.0, -1.0]])
    named = {kind: list(answers(task, outputs)) for kind, task in TASKS.items()}
    assert named == {
        "classification": ["logits", "probabilities", "classes"],
        "multilabel": ["logits", "probabilities", "labels"],
        "regression": ["predictions"],
    }
    found = answers(Ranking(), outputs)
    assert list(found) == ["scores", "probabilities", "ranks"]
    assert found["ranks"].numpy().tolist() == [[1, 0]]
    monkeypatch.delattr(Ranking, "answer_names")
    assert list(answers(Ranking(), outputs)) == ["outputs", "probabilities", "predictions"]


def test_a_large_regression_is_reported_in_part() -> None:
    truth = np.arange(10_001, dtype=np.float32)[:, None]
    found = target_report(truth, truth + 1)
    assert 1500 < len(found["true"]) == len(found["predicted"]) <= MAX_POINTS
    assert np.array_equal(np.array(found["predicted"]), np.array(found["true"]) + 1)


def test_initial_weights_have_a_column_for_each_output() -> None:
    data = Regression().prepare(from_arrays("m", "m", {"x_train": X, "y_train": np.zeros((12, 2))}))
    made = Softmax(init_stddev=1.0).initial(data.spec, partial(random_key, 0, INITIAL))
    assert tuple(made["weights"].shape) == (4, 2) and data.spec.classes == data.spec.outputs == 2


def test_older_runs_are_compared_as_what_they_did() -> None:
    now = {"task": "classification", "metrics": "[]", "task.class_weights": "None"}
    now |= {"task._target_": "waymark.tasks.classification.Classification"}
    now |= {"task.label_smoothing": "0.0", "steps": "1"}
    tags = {VERSION: "0"}
    older, newer, other = (
        made(i, params, tags=tags)
        for i, params in enumerate(({"steps": "1"}, now, {**now, "task.class_weights": "balanced"}))
    )
    regression = made(3, {"task": "regression", "metrics": "[]", "task.loss": "mse"}, tags=tags)
    as_done = [
        replace(facts, params=with_current_steps(run.record, facts).params)
        for run, facts in (older, newer, other, regression)
    ]
    assert as_done[0].params == as_done[1].params
    assert as_done[2].params["task.class_weights"] == "balanced"
    assert "task.class_weights" not in as_done[3].params


def test_a_comparison_names_the_metrics_that_runs_are_judged_by(tmp_path: Path) -> None:
    runs = [
        made(i, {"lr": str(i)}, {"val/rmse": {1: 2.0, 2: 1.0 + i}}, {METRIC: "rmse"})
        for i in range(2)
    ]
    found = compared(*runs)
    assert found.metric == "rmse" and [each[2] for each in found.curves] == [
        {1: 2.0, 2: 1.0},
        {1: 2.0, 2: 2.0},
    ]
    assert runs[0][0].judged == 1.0
    assert compared(runs[0], made(2, {"lr": "2"})).metric == "rmse, accuracy"
    found.plot(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000
