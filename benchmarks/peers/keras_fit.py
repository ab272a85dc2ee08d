"""Keras: model.fit with ModelCheckpoint, and MLflow's own callback logging every step.

The callback is the one that mlflow.tensorflow.autolog() puts in; autologging itself also writes
TensorBoard's files, and needs that package for them.
"""

from pathlib import Path

import mlflow
import numpy as np
import tensorflow as tf

from benchmarks.peers import (
    BATCH,
    EVAL_EVERY,
    KEEP,
    RATES,
    SAVE_EVERY,
    Job,
    job,
    mark,
    scaled,
    tracking_uri,
)


def build(model: str) -> tf.keras.Model:
    layers = tf.keras.layers
    if model == "softmax":
        middle = [layers.Flatten(), layers.Dense(10, use_bias=False)]
    else:
        middle = [
            layers.Reshape((28, 28, 1)),
            layers.Conv2D(32, 5, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 5, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(1024, activation="relu"),
            layers.Dense(10),
        ]
    built = tf.keras.Sequential([layers.Input((28, 28)), *middle])
    built.compile(
        tf.keras.optimizers.Adam(RATES[model]),
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return built


class Keep(tf.keras.callbacks.ModelCheckpoint):
    """ModelCheckpoint keeps all its files, or the last: this one keeps the last seven."""

    def _save_model(self, *arguments: object, **others: object) -> None:
        super()._save_model(*arguments, **others)
        for old in sorted(Path(self.filepath).parent.iterdir())[:-KEEP]:
            old.unlink()


def batches_of(x: np.ndarray, y: np.ndarray, seed: int, size: int) -> tf.data.Dataset:
    """Return batches for ever, drawn with replacement, the examples in memory."""
    images, labels = tf.constant(x), tf.constant(y)
    return (
        tf.data.Dataset.random(seed=seed)
        .batch(size, drop_remainder=True)
        .map(lambda numbers: numbers % len(x))
        .map(lambda picked: (tf.gather(images, picked), tf.gather(labels, picked)))
        .prefetch(tf.data.AUTOTUNE)
    )


def train(task: Job, arrays: list[np.ndarray], seed: int) -> None:
    x_train, y_train, x_test, y_test = arrays
    tf.keras.utils.set_random_seed(seed)
    folder = task.folder / f"keras-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    model = build(task.model)
    with mlflow.start_run(run_name=f"keras_fit {seed}"):
        mark("loop")
        model.fit(
            batches_of(x_train, y_train, seed, BATCH),
            steps_per_epoch=EVAL_EVERY,
            epochs=task.steps // EVAL_EVERY,
            validation_data=(x_test, y_test),
            validation_batch_size=1000,
            callbacks=[
                Keep(str(folder / "{epoch:02d}-{batch:04d}.keras"), save_freq=SAVE_EVERY),
                mlflow.tensorflow.MlflowCallback(log_every_epoch=False, log_every_n_steps=1),
            ],
            verbose=0,
        )
        mark("restore")
        newest = sorted(folder.iterdir())[-1]
        restored = tf.keras.models.load_model(newest)
        _, accuracy = restored.evaluate(x_test, y_test, batch_size=1000, verbose=0)
        mlflow.log_metric("restored_accuracy", accuracy)
    mark("leave")
    print("restored:", accuracy)


def main(task: Job) -> None:
    mlflow.set_tracking_uri(tracking_uri(task.folder))
    arrays = scaled()
    for seed in task.seeds:
        train(task, arrays, seed)


if __name__ == "__main__":
    main(job(__doc__))
