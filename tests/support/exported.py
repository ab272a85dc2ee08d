"""Runs of every kind whose models are exported, and what `evaluate` computes by them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from waymark import api
from waymark.data import splits
from waymark.data.columns import Column
from waymark.data.signature import Signature
from waymark.evaluation.restore import find_checkpoint, recorded_signature, scored_values
from waymark.models import as_logits, forward, scale

from tests.support.tables import cars, with_gaps

CARS = ["data=table", "data.target=price", "data.categories=[doors]", "model=mlp"]
KINDS: Mapping[str, list[str]] = {
    "softmax": ["model=softmax"],
    "cnn": ["model=cnn", "steps=5"],
    "linear": ["model=linear", "data=arrays", "data.path=numbers.npz", "task=regression"],
    "mlp": ["model=mlp", "optimizer=adamw", "optimizer.use_ema=true"],
    "resnet": ["model=resnet", "model.settings.depth=8", "batch_size=8", "steps=5"],
    "inputs": ["model=keras", "model.build=two_inputs.net", "data=arrays", "data.path=two.npz"],
    "cars": [*CARS, "data.path=cars.csv"],
    "gaps": [*CARS, "data.path=gaps.csv", "data.missing=mean", "data.unknown=column"],
    "numbers": ["model=softmax", "data=table", "data.target=price", "data.path=numbers.csv"],
    "multilabel": ["model=mlp", "data=arrays", "data.path=labels.npz", "task=multilabel"],
}
MODULE = """
import keras
from keras import layers


def net(input_shape, outputs):
    picture, rows = (keras.Input(input_shape[name], name=name) for name in ("picture", "rows"))
    seen = layers.Flatten()(layers.Conv2D(4, 3, activation="relu")(picture))
    both = layers.Dropout(0.2)(layers.BatchNormalization()(layers.concatenate([seen, rows])))
    return keras.Model({"picture": picture, "rows": rows}, layers.Dense(outputs)(both))


def rare(input_shape, outputs):
    rows = keras.Input(input_shape)
    seen = keras.ops.erfinv(keras.ops.tanh(layers.Dense(4)(rows)) / 2)
    return keras.Model(rows, layers.Dense(outputs)(seen))
"""
TRUST = "trusted_modules=[two_inputs]"
Arrays = dict[str, np.ndarray]


def write_data(folder: Path) -> None:
    """Write what the runs read."""
    cars().to_csv(folder / "cars.csv", index=False)
    with_gaps(cars()).to_csv(folder / "gaps.csv", index=False)
    cars()[["id", "size", "sold", "price"]].to_csv(folder / "numbers.csv", index=False)
    (folder / "two_inputs.py").write_text(MODULE)
    draw = np.random.default_rng(0)
    x = draw.normal(0, 30, (260, 6)).astype(np.float32)
    pictures = draw.integers(0, 256, (260, 8, 8, 1), np.uint8)
    sets = {"train": slice(0, 200), "test": slice(200, 260)}

    def write(name: str, labels: np.ndarray, features: Arrays) -> None:
        found = {}
        for part, rows in sets.items():
            found |= {f"x_{part}{end}": array[rows] for end, array in features.items()}
            found[f"y_{part}"] = labels[rows]
        np.savez(folder / name, **found)

    write("numbers.npz", x @ draw.normal(0, 1, (6, 2)) + 1, {"": x})
    write("labels.npz", (x[:, :3] > 0).astype(np.uint8), {"": x})
    write("two.npz", draw.integers(0, 4, 260), {".picture": pictures, ".rows": x})


def trained(kind: str) -> str:
    """Train a run of a kind in the current folder; return its id."""
    words = ["steps=20", "batch_size=20", "save.every=0", *KINDS[kind], "progress=false"]
    return api.run(*words, "runtime.intra_op_threads=2").run_id


def evaluated(key: str, count: int = 60) -> tuple[Arrays, Arrays, np.ndarray]:
    """Return what a client sends for some test examples, to Keras and to others, and the logits.

    Those are computed as training and `evaluate` do, in a compiled function.
    """
    import tensorflow as tf

    with find_checkpoint(key, "latest", {"trusted_modules": ["two_inputs"]}) as found:
        config, signature = found.config, recorded_signature(found)
        data = splits.load(config.data, config.task)
        state = found.store.read(found.step)[1]
        values = scored_values(config, data.spec, data.statistics, state)

        @tf.function(autograph=False)
        def compute(values: Any, features: Any) -> Any:
            statistics = {name: values[name] for name in data.statistics}
            parameters = {name: values[name] for name in values if name not in statistics}
            scaled = scale(features, data.divide, statistics)
            outputs = forward(config.model, config.precision, parameters, scaled)
            return as_logits(config.model, config.task, outputs)

        features: Any = data.x_test[:count]
        tensors = tf.nest.map_structure(tf.constant, (dict(values), features))
        logits = compute(*tensors).numpy()
        sent = {n: features[x.name] if x.name else features for n, x in signature.tensors.items()}
        if not signature.takes_columns:
            return sent, sent, logits
        rows = features[:, data.feature_names.index("id")].astype(np.int64)
        return sent, columns(data.columns, signature, rows), logits


def columns(read: Any, signature: Signature, rows: np.ndarray) -> Arrays:
    """Return some rows of a table's columns as a client sends them."""
    by_name: dict[str, Column] = {column.name: column for column in read}
    sent = {}
    for name, each in signature.inputs.items():
        column = by_name[each.name]
        if each.dtype == "string":
            texts = np.array([*column.categories, ""], np.str_)
            sent[name] = texts[column.values[rows]]
        else:
            sent[name] = column.values[rows].astype(np.float32)
    return sent
