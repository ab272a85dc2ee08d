"""Measure a Keras model's tracked run beside model.fit with MLflow's callback and ModelCheckpoint.

    python -m benchmarks.keras_models [dense] [resnet]

The same model, data, size of batches and optimizer, by both: `waymark run`, and what users of Keras
write (peers/keras_fit.py), as it is compiled by default and with jit_compile=False, whichever is
faster. Every loss is tracked, checkpoints are kept, the newest is restored and evaluated. Whole
processes, in turn; the loop is timed from the end of its first step, so that compiling is not in.
The dense net (256 and 128 units, batch normalisation) learns the digits; ResNet-20 has generated
pictures, 32x32x3.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from benchmarks.streaming import generate
from benchmarks.ways import Measurement, Target, measure, report, spread, table

REPETITIONS = 5
BATCH, SAVE_EVERY, EVALUATIONS = 100, 50, 5
STEPS = {"dense": 2000, "resnet": 60}
BUILD = {"dense": "mlp", "resnet": "resnet"}
RATE = 1e-3
WAYS = ("waymark", "fit", "fit, jit_compile=False")
AIMS = {"dense": 3, "resnet": 1}  # how many times faster at least


def arrays(data: str) -> dict[str, np.ndarray]:
    """Return what lies in a folder of .npy files, or the digits."""
    if data == "digits":
        from benchmarks.peers import digits

        return digits()
    return {path.stem: np.load(path) for path in Path(data).glob("*.npy")}


def waymark(model: str, data: str, folder: str) -> NoReturn:
    """Carry out `waymark run`, with marks."""
    from waymark.__main__ import program
    from waymark.execution import execute
    from waymark.training.loop import NoProgress

    from benchmarks.peers import mark
    from benchmarks.peers.waymark import watch
    from benchmarks.ways import data_overrides

    class FirstStep(NoProgress):
        def on_steps(self, step: int, loss: float) -> None:
            if step == 1:
                mark("on")

    execute.make_progress = lambda wish, *told: FirstStep(*told)
    watch()
    steps = STEPS[model]
    every = [f"steps={steps}", f"save.every={SAVE_EVERY}", f"eval_every={steps // EVALUATIONS}"]
    place = ["data=arrays", f"data.path={data}", "data.scale=255"]
    place = data_overrides() if data == "digits" else place
    uri = f"tracking.uri=sqlite:///{folder}/mlflow.db"
    how = [f"model={BUILD[model]}", f"optimizer.learning_rate={RATE}", f"batch_size={BATCH}"]
    sys.argv = ["waymark", "run", *how, *every, *place, uri]
    program()


def fit(model: str, data: str, folder: str, jit_compile: str) -> None:
    """Do the same by model.fit, with marks."""
    import mlflow
    import tensorflow as tf
    from waymark.models import mlp, resnet

    from benchmarks.peers import mark
    from benchmarks.peers.keras_fit import Keep, batches_of

    class FirstStep(tf.keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if not FirstStep.told:
                mark("on")
            FirstStep.told = True

        told = False

    given = arrays(data)
    x_train, x_test = (given[f"x_{part}"] / np.float32(255) for part in ("train", "test"))
    y_train, y_test = (given[f"y_{part}"].astype(np.int64) for part in ("train", "test"))
    if x_train.ndim == 3:
        x_train, x_test = x_train[..., None], x_test[..., None]
    tf.keras.utils.set_random_seed(0)
    built = {"dense": mlp, "resnet": resnet}[model].build(x_train.shape[1:], 10)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    how = "auto" if jit_compile == "auto" else False
    built.compile(tf.keras.optimizers.Adam(RATE), loss, metrics=["accuracy"], jit_compile=how)
    kept = Path(folder, "keras")
    kept.mkdir(exist_ok=True)
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    each = STEPS[model] // EVALUATIONS
    with mlflow.start_run():
        mark("loop")
        built.fit(
            batches_of(x_train, y_train, 0, BATCH),
            steps_per_epoch=each,
            epochs=EVALUATIONS,
            validation_data=(x_test, y_test),
            validation_batch_size=250,
            callbacks=[
                FirstStep(),
                Keep(str(kept / "{epoch:02d}-{batch:04d}.keras"), save_freq=SAVE_EVERY),
                mlflow.tensorflow.MlflowCallback(log_every_epoch=False, log_every_n_steps=1),
            ],
            verbose=0,
        )
        mark("restore")
        restored = tf.keras.models.load_model(sorted(kept.iterdir())[-1])
        _, accuracy = restored.evaluate(x_test, y_test, batch_size=250, verbose=0)
        mlflow.log_metric("restored_accuracy", accuracy)
    mark("leave")


def run(way: str, model: str, data: str, folder: Path) -> Measurement:
    name, _, option = way.partition(", ")
    place = folder / f"{model} {way}".replace(", ", "-")
    place.mkdir(exist_ok=True)
    more = ["False" if option else "auto"] if name == "fit" else []
    return measure(["-m", "benchmarks.keras_models", name, model, data, str(place), *more])


def step(job: Measurement, model: str) -> float:
    """Return milliseconds a step, from the end of the first on."""
    return 1000 * job.part("on") / (STEPS[model] - 1)


def aims(model: str, found: dict[str, list[Measurement]]) -> list[Target]:
    targets = []
    values: dict[str, Callable[[Measurement], float]] = {
        f"{model}, loop": lambda job: step(job, model),
        f"{model}, whole process": lambda job: job.wall,
    }
    for what, value in values.items():
        times = {way: [value(job) for job in jobs] for way, jobs in found.items()}
        other = min(WAYS[1:], key=lambda way: float(np.median(times[way])))
        name = f"Keras {what}: {other} / waymark"
        targets.append(Target(name, times[other], times["waymark"], least=AIMS[model]))
    return targets


def main() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if sys.argv[1:2] == ["waymark"]:
        waymark(*sys.argv[2:])
    elif sys.argv[1:2] == ["fit"]:
        fit(*sys.argv[2:])
        return
    models = [word for word in sys.argv[1:] if word in STEPS] or [*STEPS]
    rows, targets, numbers = [], [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = str(generate(folder / "pictures", 0.02))
        time.sleep(4)  # a file that was changed just now is not known by its times
        for model in models:
            data = "digits" if model == "dense" else pictures
            found: dict[str, list[Measurement]] = {way: [] for way in WAYS}
            for _ in range(REPETITIONS):
                for way in WAYS:
                    found[way].append(run(way, model, data, folder))
            for way, jobs in found.items():
                times = spread([step(job, model) for job in jobs])
                whole = [spread([getattr(job, key) for job in jobs]) for key in ("wall", "cpu")]
                rows.append([f"{model}, {STEPS[model]} steps: {way}", times, *whole])
            targets += aims(model, found)
            numbers[model] = {
                way: [[step(job, model), job.wall, job.cpu] for job in jobs]
                for way, jobs in found.items()
            }
    columns = ("Keras model", "loop, ms a step", "whole s", "CPU s")
    report("keras_models", [table(columns, rows)], targets, numbers)


if __name__ == "__main__":
    main()
