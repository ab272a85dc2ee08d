"""Waymark's own compiled function over resident data, and nothing else: the limit of the loop."""

import numpy as np
from waymark import api
from waymark.evaluation.restore import load_data
from waymark.training.loop import Trainer
from waymark.training.runtime import start_tensorflow

from benchmarks.peers import Job, job, mark
from benchmarks.ways import data_overrides


def run_steps(trainer: Trainer, steps: int, chunk: int) -> np.ndarray:
    """Train in chunks."""
    return np.concatenate([trainer.run_steps(chunk) for _ in range(0, steps, chunk)])


def main(task: Job) -> None:
    config = api.configure(f"model={task.model}", *data_overrides())
    data = load_data(config)
    start_tensorflow(**vars(config.runtime))
    trainer = Trainer(config, data)
    trainer.run_steps(1)
    mark("loop")
    trainer.run_steps(task.steps - 1)
    mark("leave")


if __name__ == "__main__":
    main(job(__doc__))
