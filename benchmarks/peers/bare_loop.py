"""Waymark's own compiled function over resident data, and nothing else: the limit of the loop."""

import numpy as np

from benchmarks.peers import Job, job, mark
from benchmarks.ways import data_overrides
from pipeline import library
from pipeline.evaluation import load_data
from pipeline.runtime import start_tensorflow
from pipeline.train import Trainer


def run_steps(trainer: Trainer, steps: int, chunk: int) -> np.ndarray:
    """Train in chunks."""
    return np.concatenate([trainer.run_steps(chunk) for _ in range(0, steps, chunk)])


def main(task: Job) -> None:
    config = library.configure(f"model={task.model}", *data_overrides())
    data = load_data(config)
    start_tensorflow(**vars(config.runtime))
    trainer = Trainer(config, data)
    trainer.run_steps(1)
    mark("loop")
    trainer.run_steps(task.steps - 1)
    mark("leave")


if __name__ == "__main__":
    main(job(__doc__))
