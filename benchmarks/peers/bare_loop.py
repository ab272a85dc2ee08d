"""Waymark's own compiled function over resident data, and nothing else: the limit of its speed.

TensorFlow is imported as `waymark run` does it, and the process is ended in the same way.
"""

from waymark import __main__ as command
from waymark.config.compose import compose_config
from waymark.evaluation.restore import load_data
from waymark.training.loop import Trainer
from waymark.training.runtime import start_tensorflow

from benchmarks.peers import Job, job, mark
from benchmarks.ways import data_overrides


def make_trainer(*overrides: str) -> Trainer:
    """Return the compiled function with its data and a new run's state, ready to train."""
    config = compose_config([*overrides, *data_overrides()]).typed()
    data = load_data(config)
    start_tensorflow(**vars(config.runtime))
    trainer = Trainer(config, data)
    trainer.run_steps(1)
    return trainer


def main(task: Job) -> int:
    trainer = make_trainer(f"model={task.model}")
    mark("loop")
    trainer.run_steps(task.steps - 1)
    mark("leave")
    return 0


if __name__ == "__main__":
    task = job(__doc__)
    command.main = lambda: main(task)
    command.program()
