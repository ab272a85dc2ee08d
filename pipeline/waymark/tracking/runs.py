"""A run as it is known here, and what is recorded of it as a whole."""

from dataclasses import dataclass
from pathlib import Path

from waymark.tracking import outbox


@dataclass(frozen=True)
class RunRecord:
    """What is recorded of a run; `folder` is where its artifacts lie on this machine."""

    id: str  # MLflow's, or the local one while MLflow knows nothing of the run
    local: str  # the name of the run's folder on the machines that train it
    name: str
    experiment_id: str  # "" while MLflow knows nothing of the run
    status: str
    start_time: float  # seconds since the epoch
    tags: dict[str, str]
    folder: Path
    remote: bool  # the artifacts' home is elsewhere; `folder` is a spool
    offline: bool = False  # what is here is all that can be had of it now

    @property
    def known(self) -> bool:
        """Tell whether MLflow has made the run."""
        return bool(self.experiment_id)

    @property
    def outbox(self) -> Path:
        return self.folder.parent / outbox.NAME

    def recorded_tag(self, key: str) -> str | None:
        """Return a tag; the one the run was created with, if its outbox is here and MLflow lost it.

        None if nothing tells.
        """
        if key in self.tags:
            return self.tags[key]
        birth = outbox.read(self.outbox).birth
        return birth.tags.get(key) if birth else None


@dataclass(frozen=True)
class RunSummary:
    """What is known of a run as a whole, beside its record."""

    params: dict[str, str]
    metrics: dict[str, float]  # the last value of each
    end: float | None  # seconds since the epoch; None while it goes on
