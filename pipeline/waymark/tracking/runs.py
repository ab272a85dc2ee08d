"""A run as it is known here, and what is recorded of it as a whole."""

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from waymark.tracking import outbox

DELETING = ".deleting-"  # how the name of a spool begins that is being removed


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
        """Return the path of the run's outbox, whether it is there or not."""
        return self.folder.parent / outbox.NAME

    def recorded_tag(self, key: str) -> str | None:
        """Return a tag, or, if MLflow has lost it, that of the run's creation; None if unknown."""
        if key in self.tags:
            return self.tags[key]
        creation = outbox.read(self.outbox).creation
        return creation.tags.get(key) if creation else None


@dataclass(frozen=True)
class RunSummary:
    """What is known of a run as a whole, beside its record."""

    params: dict[str, str]
    metrics: dict[str, float]  # the last value of each
    end: float | None  # seconds since the epoch; None while it goes on


def mark_delivered(box: outbox.Outbox, record: RunRecord, status: str) -> None:
    """Note that MLflow has all; a finished run's spool is needed no longer."""
    with suppress(OSError):
        box.append("delivered", None)
    if record.remote and status == "FINISHED":
        delete_spool(record.folder.parent)


def delete_spool(home: Path) -> None:
    """Remove the spool of a run whose all is elsewhere; a kill leaves all of it or none."""
    os.rename(home, home.with_name(DELETING + home.name))
    remove_deleted_spools(home.parent)


def remove_deleted_spools(spool: Path) -> None:
    """Remove what `delete_spool` was kept from removing."""
    for path in spool.glob(f"{DELETING}*"):
        shutil.rmtree(path, ignore_errors=True)
