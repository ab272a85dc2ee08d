"""The same job, as users of other ways would write it: one program each.

The job: N steps with batches of 100 drawn with replacement, Adam, a checkpoint every 50 steps of
which 7 are kept, the test accuracy every 200, at the end the newest checkpoint restored into a
fresh model and evaluated; those that track log every loss to MLflow. A program takes

    python -m benchmarks.peers.NAME --folder FOLDER [--model cnn] [--steps 1000] [--seed 0]
        [--trials 1]

and prints, one line each as `mark NAME SECONDS`, when each part of the job began.
"""

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DIGITS = Path(__file__).parents[2] / "pipeline/waymark/data/mnist_5k.npz"
BATCH, SAVE_EVERY, KEEP, EVAL_EVERY = 100, 50, 7, 200
RATES = {"softmax": 1e-3, "cnn": 1e-4}


@dataclass
class Job:
    folder: Path  # for what it writes
    model: str
    steps: int
    seed: int  # of the first trial
    trials: int

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.trials)


def job(description: str | None) -> Job:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--model", choices=RATES, default="softmax")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=1)
    return Job(**vars(parser.parse_args()))


def mark(part: str) -> None:
    """Print that a part of the job begins now."""
    print("mark", part, time.time(), flush=True)


def digits() -> dict[str, np.ndarray]:
    """Return x_train, y_train, x_test, y_test as Keras's loader does: MNIST, or 5,000 of it."""
    with np.load(os.environ.get("MNIST_NPZ") or DIGITS) as arrays:
        return dict(arrays)


def scaled() -> list[np.ndarray]:
    """Return the digits as nearly every tutorial has them: float32 in [0, 1], labels int64."""
    data = digits()
    return [
        *((data["x_train"] / 255.0).astype(np.float32), data["y_train"].astype(np.int64)),
        *((data["x_test"] / 255.0).astype(np.float32), data["y_test"].astype(np.int64)),
    ]


def tracking_uri(folder: Path) -> str:
    """Return the address of a store in a folder, in MLflow's words."""
    return f"sqlite:///{(folder / 'mlflow.db').absolute()}"
