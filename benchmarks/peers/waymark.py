"""Waymark itself, with the marks that the other programs print: one `waymark run`, or a sweep."""

import atexit
import sys
from typing import Any, NoReturn

from benchmarks.peers import Job, job, mark
from benchmarks.ways import data_overrides


def watch() -> None:
    """Print the marks as the parts of a run begin."""
    from waymark.execution import execute

    execution = execute.RunExecution
    train, train_and_save = execute.train, execution.train_and_save

    def marked(*arguments: Any) -> Any:
        mark("loop")
        return train(*arguments)

    def wholly(*arguments: Any) -> Any:
        score = train_and_save(*arguments)  # ends when the last loss and checkpoint are durable
        mark("restore")
        return score

    execute.train = marked
    execution.train_and_save = wholly


def main(task: Job) -> NoReturn:
    from waymark.__main__ import program

    watch()
    atexit.register(mark, "leave")
    seeds = ",".join(map(str, task.seeds))
    sweep = ["-m"] if task.trials > 1 else []
    uri = f"tracking.uri=sqlite:///{task.folder.absolute()}/mlflow.db"
    overrides = [f"model={task.model}", f"steps={task.steps}", f"seed={seeds}", uri]
    sys.argv = ["waymark", "run", *sweep, *overrides, *data_overrides(), "progress=false"]
    program()


if __name__ == "__main__":
    main(job(__doc__))
