"""Measure the evaluation of the CNN on the test set: Waymark's, and all images at once.

    MNIST_NPZ=/path/to/mnist.npz python -m benchmarks.scoring

All at once is how the tutorial does it. Each time is that of a second evaluation in a process of
its own, the ways in turn; the memory is by how much its peak lies above what the process held
before.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.ways import Target, data_overrides, measure, report, spread, table

REPETITIONS = 5
WAYS = ("waymark", "all at once")


def waymark() -> Callable[[], object]:
    from waymark import api
    from waymark.evaluation.restore import load_data
    from waymark.training.loop import initial_state
    from waymark.training.runtime import start_tensorflow
    from waymark.training.score import make_scorer

    config = api.configure("model=cnn", *data_overrides())
    data = load_data(config)
    start_tensorflow(**vars(config.runtime))
    state, names, _ = initial_state(config, data.spec)
    scorer = make_scorer(config, data)
    return lambda: scorer({name: state[name] for name in names})


def all_at_once() -> Callable[[], object]:
    import tensorflow.compat.v1 as tf

    from benchmarks.peers import reference_tf1 as peer
    from benchmarks.peers import scaled

    _, _, x_test, y_test = peer.flat(scaled())
    with tf.Graph().as_default() as graph:
        inputs, labels, *_, accuracy = peer.build("cnn")
        initializer = tf.global_variables_initializer()
    session = tf.Session(graph=graph)
    session.run(initializer)
    return lambda: session.run(accuracy, {inputs: x_test, labels: y_test})


def measure_one(way: str) -> None:
    """Print seconds and megabytes of one way."""
    work = waymark() if way == "waymark" else all_at_once()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    work()
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps([seconds, (peak - pages * resource.getpagesize()) / 1e6]))


def main() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if sys.argv[1:]:
        return measure_one(sys.argv[1])
    found: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for _ in range(REPETITIONS):
        for way in WAYS:
            found[way].append(json.loads(measure(["-m", "benchmarks.scoring", way]).output))
    seconds, memory = ({way: [x[i] for x in found[way]] for way in WAYS} for i in (0, 1))
    own, whole = WAYS
    rows = [[way, spread(seconds[way]), spread(memory[way], 0)] for way in WAYS]
    targets = [
        Target("CNN evaluation: all at once / waymark", seconds[whole], seconds[own], least=2.5),
        Target(
            "CNN evaluation, memory: waymark / all at once", memory[own], memory[whole], most=0.2
        ),
    ]
    tables = [table(["evaluation of the CNN", "seconds", "megabytes"], rows)]
    return report("scoring", tables, targets, found)


if __name__ == "__main__":
    main()
