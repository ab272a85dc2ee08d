"""A careful TF2 program: a tf.function step, CheckpointManager, mlflow.log_metric at each step.

With --batched the losses go to MLflow in one log_batch at each checkpoint.
"""

import sys
import time
from typing import Any

import mlflow
import numpy as np
import tensorflow as tf
from mlflow.entities import Metric

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

BATCHED = "--batched" in sys.argv and not sys.argv.remove("--batched")


class Softmax(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = tf.Variable(tf.random.truncated_normal([784, 10], stddev=0.01))

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        return tf.reshape(images, [-1, 784]) @ self.weights


class Cnn(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        shapes = ([5, 5, 1, 32], [5, 5, 32, 64], [3136, 1024], [1024, 10])
        self.w = [tf.Variable(tf.random.truncated_normal(s, stddev=0.1)) for s in shapes]
        self.b = [tf.Variable(tf.fill(s[-1:], 0.1)) for s in shapes]

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        x = tf.reshape(images, [-1, 28, 28, 1])
        for w, b in zip(self.w[:2], self.b[:2], strict=True):
            x = tf.nn.max_pool2d(tf.nn.relu(tf.nn.conv2d(x, w, 1, "SAME") + b), 2, 2, "SAME")
        x = tf.nn.relu(tf.reshape(x, [-1, 3136]) @ self.w[2] + self.b[2])
        return x @ self.w[3] + self.b[3]


MODELS: dict[str, Any] = {"softmax": Softmax, "cnn": Cnn}


def train(task: Job, arrays: list[np.ndarray], seed: int) -> None:
    x_train, y_train, x_test, y_test = arrays
    tf.random.set_seed(seed)
    model, optimizer = MODELS[task.model](), tf.keras.optimizers.Adam(RATES[task.model])
    optimizer.build(model.trainable_variables)

    @tf.function
    def step_of(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(labels, model(images))
            )
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    @tf.function
    def hits(scored: tf.Module, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.cast(tf.argmax(scored(images), 1) == labels, tf.int32))

    def accuracy(scored: tf.Module) -> float:
        parts = range(0, len(x_test), 1000)
        found = sum(int(hits(scored, x_test[i : i + 1000], y_test[i : i + 1000])) for i in parts)
        return found / len(x_test)

    folder = str(task.folder / f"handwritten-{seed}")
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)
    manager = tf.train.CheckpointManager(checkpoint, folder, KEEP, keep_checkpoint_every_n_hours=1)
    draw = np.random.default_rng(seed)
    client = mlflow.MlflowClient()
    with mlflow.start_run(run_name=f"handwritten {seed}") as run:
        mlflow.log_params({"model": task.model, "steps": task.steps, "seed": seed})
        mark("loop")
        waiting: list[Metric] = []
        for step in range(1, task.steps + 1):
            picked = draw.integers(0, len(x_train), BATCH)
            loss = float(step_of(x_train[picked], y_train[picked]))
            if BATCHED:
                waiting.append(Metric("loss", loss, int(time.time() * 1000), step))
            else:
                mlflow.log_metric("loss", loss, step)
            if step % EVAL_EVERY == 0:
                mlflow.log_metric("accuracy", accuracy(model), step)
            if step % SAVE_EVERY == 0:
                manager.save(checkpoint_number=step)
                client.log_batch(run.info.run_id, waiting)
                waiting = []
        mark("restore")
        fresh = MODELS[task.model]()
        restoring = tf.train.Checkpoint(model=fresh)
        restoring.restore(manager.latest_checkpoint).expect_partial()
        found = accuracy(fresh)
        mlflow.log_metric("restored_accuracy", found)
    mark("leave")
    print("restored:", found)


def main(task: Job) -> None:
    mlflow.set_tracking_uri(tracking_uri(task.folder))
    arrays = scaled()
    for seed in task.seeds:
        train(task, arrays, seed)


if __name__ == "__main__":
    main(job(__doc__))
