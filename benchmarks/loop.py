"""Measure what each part of a run's loop costs, beside Waymark's bare loop and the tutorial's.

    MNIST_NPZ=/path/to/mnist.npz python -m benchmarks.loop [softmax] [cnn] [OVERRIDES]

In one process, each way in turn: the compiled function alone; Waymark's loop around it; then with
what makes it a run, one part after the other: every loss recorded, a checkpoint every 50 steps,
the test accuracy (softmax: five times, CNN: once). A way ends when its last loss and checkpoint are
durable. The tutorial's loop, reference_tf1, runs in the same process and turn; it evaluates and
saves as well. For the CNN there is a floor, too: the multiply-adds at the rate at which this
machine multiplies large matrices, and Adam's bytes at the rate at which it adds large vectors.
"""

import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from waymark.comparison.environment import describe_environment, has_bfloat16
from waymark.tracking.active_run import create_run
from waymark.tracking.remote_store import connect
from waymark.training.loop import NoProgress

from benchmarks.ways import Target, data_overrides, report, spread, table

REPETITIONS = 5
STEPS = {"softmax": 1000, "cnn": 100}
MIXED = "bare_loop, mixed_bfloat16"
EVALUATIONS = {"softmax": 5, "cnn": 1}
SIZE, LENGTH = 2048, 32_000_000  # of the matrices, and of the vectors
# Of one step of the CNN, for 100 images: forward, and back to filters and inputs, where needed.
CONVOLUTIONS = 28 * 28 * 25 * 32 * 2 + 14 * 14 * 25 * 32 * 64 * 3
DENSE = 3136 * 1024 * 3 + 1024 * 10 * 3
OPERATIONS = 2 * 100 * (CONVOLUTIONS + DENSE)
PARAMETERS = 25 * 32 + 32 + 25 * 32 * 64 + 64 + 3136 * 1024 + 1024 + 1024 * 10 + 10
BYTES = 7 * 4 * PARAMETERS  # read: gradient, both moments, weights; written: the last three

Measured = dict[str, list[tuple[float, float]]]  # way -> (wall, CPU) milliseconds a step


class Silent(NoProgress):
    """Stands for what a way leaves out."""

    def __init__(self) -> None:
        super().__init__(0, 0)

    def record(self, steps: list[int], metrics: Mapping[str, list[float]]) -> None: ...
    def save(self, step: int, state: dict, metrics: dict, on_schedule: bool) -> None: ...


class Loop:
    """Waymark's loop with some of its parts, over and over, from a new run's start."""

    def __init__(self, model: str, folder: Path, *overrides: str) -> None:
        from waymark import api
        from waymark.config.compose import from_config
        from waymark.evaluation.restore import load_data
        from waymark.training.loop import Trainer
        from waymark.training.runtime import start_tensorflow

        uri = f"tracking.uri=sqlite:///{folder}/mlflow.db"
        every = [f"steps={STEPS[model]}", f"eval_every={STEPS[model] // EVALUATIONS[model]}"]
        own = [f"model={model}", uri, *every, *data_overrides(), *overrides]
        self.config = api.configure(*own)
        self.data = load_data(self.config)
        start_tensorflow(**vars(self.config.runtime))
        self.trainer = Trainer(self.config, self.data)
        self.score = self.trainer.score()
        self.tracking = connect(self.config.tracking.uri, create=True)
        self.described = from_config(self.config)

    def ready(self) -> None:
        """Put the trainer at a new run's start, its threads awake."""
        self.trainer.run_steps(10)
        self.trainer.reset(self.config, self.data)

    def bare(self) -> float:
        self.ready()
        began = time.perf_counter()
        self.trainer.run_steps(self.config.steps)
        return time.perf_counter() - began

    def train(
        self, losses: bool, checkpoints: bool, evaluation: bool, progress: Silent | None = None
    ) -> float:
        from waymark.checkpoints.store import CheckpointStore
        from waymark.execution.saver import Saver
        from waymark.training.loop import train

        trainer, silent = self.trainer, progress or Silent()
        tracked = create_run(self.tracking, self.described, {}, self.data)
        folder = tracked.info.folder / "checkpoints"
        folder.mkdir()
        store = CheckpointStore(folder, self.config.save, records=tracked.info.outbox)
        saver = Saver(store, tracked, None, lambda: None, newest=-1)
        if not evaluation:
            trainer.score = lambda: self.score
        time.sleep(0.5)  # until MLflow has been told of the run, as it has when a run trains
        self.ready()
        began = time.perf_counter()
        train(
            self.config,
            trainer,
            (tracked if losses else silent).record,
            saver.save if checkpoints else silent.save,
            silent,
            lambda step: None,
        )
        saver.wait()
        tracked.flush()
        seconds = time.perf_counter() - began
        vars(trainer).pop("score", None)
        tracked.finish("FINISHED")
        return seconds


def reference(model: str, folder: Path, steps: int, extras: bool = True) -> Callable[[], float]:
    """Return the tutorial's loop; without `extras` it trains only."""
    import numpy as np
    import tensorflow.compat.v1 as tf

    from benchmarks.peers import BATCH, KEEP, SAVE_EVERY, scaled
    from benchmarks.peers import reference_tf1 as peer

    x_train, y_train, x_test, y_test = peer.flat(scaled())
    path = str(folder / "saved_model" / "model_ckpt")
    graph = tf.Graph()
    with graph.as_default():
        inputs, labels, loss, train, accuracy = peer.build(model)
        for tensor in (inputs, labels, accuracy):
            tf.add_to_collection("train_var", tensor)
        initializer = tf.global_variables_initializer()
        saver = tf.train.Saver(max_to_keep=KEEP, keep_checkpoint_every_n_hours=1)
    session = tf.Session(graph=graph)
    session.run(initializer)
    session.run(train, {inputs: x_train[:BATCH], labels: y_train[:BATCH]})  # the slow first one

    def loop() -> float:
        with graph.as_default():
            session.run(initializer)
            began = time.perf_counter()
            for step in range(1, steps + 1):
                picked = np.random.randint(0, len(x_train), BATCH)
                session.run([loss, train], {inputs: x_train[picked], labels: y_train[picked]})
                if extras and step % (steps // EVALUATIONS[model]) == 0:
                    session.run(accuracy, {inputs: x_test, labels: y_test})
                if extras and step % SAVE_EVERY == 0:
                    saver.save(session, path, global_step=step, write_meta_graph=False)
                    saver.export_meta_graph(f"{path}.meta", collection_list=["train_var"])
            return time.perf_counter() - began

    return loop


def floor() -> Callable[[], float]:
    """Return what takes as long as as many steps of the CNN would at the machine's own rates."""
    import tensorflow as tf

    matrix = tf.random.stateless_uniform([SIZE, SIZE], [1, 2])
    vector = tf.Variable(tf.zeros([LENGTH]))
    ones = tf.ones([LENGTH])

    def seconds(work: Callable[[], object]) -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    def measured() -> float:
        per_operation = seconds(lambda: (matrix @ matrix).numpy()) / (2 * SIZE**3)
        per_byte = seconds(lambda: vector.assign_add(ones)) / (3 * 4 * LENGTH)
        return STEPS["cnn"] * (OPERATIONS * per_operation + BYTES * per_byte)

    return measured


def measure(model: str, folder: Path, overrides: list[str]) -> Measured:
    loop = Loop(model, folder, *overrides)
    ways: dict[str, Callable[[], float]] = {
        "bare_loop: one call": loop.bare,
        "in chunks, with the signal looked for": lambda: loop.train(False, False, False),
        "+ every loss recorded": lambda: loop.train(True, False, False),
        "+ checkpoints": lambda: loop.train(True, True, False),
        "+ evaluation: all of Waymark": lambda: loop.train(True, True, True),
        "reference_tf1, steps alone": reference(model, folder, STEPS[model], extras=False),
        "reference_tf1": reference(model, folder, STEPS[model]),
    }
    if model == "cnn":
        ways["the floor"] = floor()
        if has_bfloat16(describe_environment(1)):  # without it a step takes seconds
            mixed = Loop(model, folder, "precision=mixed_bfloat16", *overrides)
            ways[MIXED] = mixed.bare
        del ways["in chunks, with the signal looked for"], ways["+ every loss recorded"]
    found: Measured = {way: [] for way in ways}
    for _ in range(REPETITIONS):
        for way, work in ways.items():
            before = resource.getrusage(resource.RUSAGE_SELF)
            wall = work()
            after = resource.getrusage(resource.RUSAGE_SELF)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            found[way].append((1000 * wall / STEPS[model], 1000 * cpu / STEPS[model]))
    return found


def aims(model: str, found: Measured) -> list[Target]:
    wall = {way: [wall for wall, _ in pairs] for way, pairs in found.items()}
    whole, bare = wall["+ evaluation: all of Waymark"], wall["bare_loop: one call"]
    saved, steps = wall["+ checkpoints"], wall["reference_tf1, steps alone"]
    if model == "softmax":
        theirs = wall["reference_tf1"]
        return [
            Target("softmax loop: reference_tf1 / all of Waymark", theirs, whole, least=3.5),
            Target("softmax loop: losses, checkpoints / bare_loop", saved, bare, most=1.3),
            Target("softmax loop: all of Waymark / bare_loop", whole, bare, most=1.5),
        ]
    mixed = wall.get(MIXED)
    name = "CNN step, mixed_bfloat16: reference_tf1 / waymark"
    return [
        Target("CNN step, float32: reference_tf1 / waymark", steps, bare, least=1.1),
        *([Target(name, steps, mixed, least=1.6)] if mixed else []),
        Target("CNN loop: losses, checkpoints / bare_loop", saved, bare, most=1.05),
        Target("CNN step, float32: waymark / the floor", bare, wall["the floor"], most=1.3),
    ]


def main() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    models = [word for word in sys.argv[1:] if word in STEPS] or [*STEPS]
    overrides = [word for word in sys.argv[1:] if word not in STEPS]
    tables, targets, numbers = [], [], {}
    for model in models:
        with tempfile.TemporaryDirectory() as folder:
            found = numbers[model] = measure(model, Path(folder), overrides)
        bare = statistics.median(wall for wall, _ in found["bare_loop: one call"])
        rows = []
        for way, pairs in found.items():
            wall, cpu = ([pair[i] for pair in pairs] for i in (0, 1))
            ratio = f"{statistics.median(wall) / bare:.2f}"
            rows.append([way, spread(wall, 3), spread(cpu, 3) if way != "the floor" else "", ratio])
        title = " ".join([f"{model}, {STEPS[model]} steps", *overrides])
        tables.append(table([title, "wall ms a step", "CPU ms a step", "of the bare loop"], rows))
        targets += aims(model, found)
    name = "-".join(["loop", *(models if len(models) < len(STEPS) or overrides else [])])
    report(name, tables, targets, numbers)


if __name__ == "__main__":
    main()
