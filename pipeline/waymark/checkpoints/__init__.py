"""Checkpoints: arrays in files, committed whole or not at all.

A save format is a settings dataclass on top of `SaveFormat` with a `write` and a `read`.

    from pathlib import Path

    import numpy as np
    from waymark.config.compose import compose_config

    save = compose_config(["save=npz"]).config.save
    save.write(Path("weights-1"), {"weights": np.zeros([784, 10], np.float32)})
    print(save.read(Path("weights-1"))["weights"].shape)
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from waymark.checkpoints.retention import KeepBest
from waymark.config.schema import settings

State = dict[str, np.ndarray]


@settings
class SaveFormat(ABC):
    """When to save and what to keep, for every format."""

    stem: ClassVar[str]  # files are called <stem>-<step><ending>, with one of these endings:
    endings: ClassVar[tuple[str, ...]] = ()

    every: NonNegativeInt
    """steps between checkpoints; 0: only at the end"""
    max_to_keep: NonNegativeInt
    """newest checkpoints to keep (0 = all)"""
    keep_every_n_hours: PositiveFloat | PositiveInt | None
    """beside them one every so many hours, as `Saver` does; hours in which no process ran are not
    made up for; null: none"""
    keep_best: KeepBest | None
    """beside them the best of all evaluations: `{metric: test/accuracy, mode: max}`; an evaluation
    between two saves saves as well if it is the best, and that checkpoint counts for nothing else
    and goes when it is not"""
    asynchronous: bool
    """write while training goes on"""
    log_model: Literal["auto"] | bool
    """make the last checkpoint, and with `save.keep_best` the best, a model of MLflow's: `auto` (of
    a run of its own; of a sweep the best trial's, at its end), `true` (each trial's too) or
    `false`"""

    @abstractmethod
    def write(self, path: Path, state: State) -> list[Path]:
        """Write a state to files whose names are path's and an ending; return them."""

    @abstractmethod
    def read(self, path: Path) -> State:
        """Read back what `write` wrote for `path`."""

    @property
    def graph(self) -> str | None:
        """Return the name of the graph's file beside the checkpoints, if there is one."""
        return None

    def update_state_file(  # noqa: B027, most need none
        self, folder: Path, newest: int, recent: list[int]
    ) -> None:
        """Tell other programs the newest step, and the last steps as Saver would list them."""
