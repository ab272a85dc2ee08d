"""What a run recorded that tells whether another one is the same."""

import contextlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from waymark import names
from waymark.checkpoints import State
from waymark.checkpoints.external import read_parameters
from waymark.checkpoints.store import CorruptCheckpoint, read_manifest, refuse_links
from waymark.comparison.environment import Difference, differences, parse_environment
from waymark.comparison.own_code import CHANGES, RepositoryFacts, own_facts, patch_name
from waymark.comparison.repository import diffstat
from waymark.errors import BadInput
from waymark.tracking import artifacts
from waymark.tracking.history import History, history
from waymark.tracking.limits import store_errors
from waymark.tracking.runs import RunRecord
from waymark.tracking.store import RunStore

OTHER_WEIGHTS = "the initial weights differ"
# What is told of two runs by the tags that hold its digests.
DIGESTS = {
    "data": names.DATA_DIGEST,
    "init_from": names.INIT_DIGEST,
    "model.file": names.MODEL_DIGEST,
    OTHER_WEIGHTS: names.INITIAL_WEIGHTS,
}


@dataclass(frozen=True)
class RecordedRun:
    """What a run recorded that tells whether another one is the same."""

    record: RunRecord
    history: History
    facts: Mapping[str, Any]  # environment.json
    patches: Mapping[str, str] = field(default_factory=dict)  # by the names of their artifacts

    @property
    def metric(self) -> str:
        """Return the name of the metric by which the run is judged."""
        return names.judged_metric(self.record.tags)

    @property
    def evaluations(self) -> Mapping[int, float]:
        """Return the values of that metric in training, by step."""
        metrics = self.history.metrics
        found = (metrics.get(f"{part}{self.metric}") for part in names.EVALUATED)
        return next(filter(None, found), {})

    @property
    def judged(self) -> float | None:
        """Return the restored value of that metric, else the last one in training."""
        restored = self.history.metrics.get(f"{names.RESTORED}{self.metric}")
        known = restored or self.evaluations
        return known[max(known)] if known else None


def load_recorded_run(tracking: RunStore, record: RunRecord) -> RecordedRun:
    """Gather what a run of Waymark's recorded; raise BadInput if the store does not answer."""
    refuse_links(record.folder)
    facts = parse_environment(artifacts.read(tracking, record, "environment.json"))
    changes = [CHANGES] if facts.get("changes") != "none" else []
    wanted = [*own_facts(facts).patches(), *changes]
    found = {name: artifacts.read(tracking, record, name) for name in wanted}
    patches = {k: v.decode(errors="surrogateescape") for k, v in found.items() if v is not None}
    with store_errors(f"run {record.id}: cannot be read"):
        known = history(tracking, record)
    digests = dict(known.digests)  # some stand in manifests alone, and that of the final state
    for path in record.folder.glob("checkpoints/*-*.json"):
        with contextlib.suppress(CorruptCheckpoint, BadInput):
            manifest = read_manifest(path)
            digests.setdefault(manifest.step, manifest.digest)
    steps = record.tags.get(names.STOPPED) or record.tags.get(names.STEPS, "")
    if names.STATE_DIGEST in record.tags and record.status == "FINISHED" and steps.isdecimal():
        digests.setdefault(int(steps), record.tags[names.STATE_DIGEST])
    return RecordedRun(record, replace(known, digests=digests), facts, patches)


def all_differences(old: RecordedRun, new: RecordedRun) -> list[Difference]:
    """Return what differs between two runs beside their configuration, likely causes first."""
    found: list[Difference] = []
    for name, tag in DIGESTS.items():
        values = old.record.tags.get(tag), new.record.tags.get(tag)
        unknown = tag == names.INITIAL_WEIGHTS and None in values  # of older runs, and other models
        if values[0] != values[1] and not unknown:
            found.append((name, *values))
    found += differences(old.facts, new.facts)
    for (was, a), (now, b) in product(_repositories(old), _repositories(new)):
        if was.modules.keys().isdisjoint(now.modules):
            continue
        if was.commit != now.commit:
            found.append((f"commit of {was.name}", was.commit, now.commit))
        if None not in (was.changes, now.changes) and a != b:
            what = "uncommitted changes" + f" of {was.name}" * bool(was.name)
            found.append((what, diffstat(a, b), diffstat(b, a)))
    for run in (old, new):  # was it resumed somewhere else?
        when = f"before and after run {run.record.id} was resumed"
        for earlier in run.facts.get("earlier", []):
            found += [(f"{w}, {when}", a, b) for w, a, b in differences(earlier, run.facts)]
    return found


def _repositories(run: RecordedRun) -> list[tuple[RepositoryFacts, str]]:
    """Return what is recorded of each repository, and its patch; the code's checkout first.

    Two are the same one if a module comes from both. The checkout's commit and its modules are
    told with the rest of the environment, so it has only changes here.
    """
    checkout = RepositoryFacts("", "", run.facts.get("changes"), {"": ""})
    numbered = enumerate(own_facts(run.facts).repositories)
    own = [(each, run.patches.get(patch_name(number), "")) for number, each in numbered]
    return [(checkout, run.patches.get(CHANGES, "")), *own]


def load_parameters(
    tracking: RunStore, record: RunRecord, step: int, shapes: Mapping[str, Any]
) -> State:
    """Return the parameters that a run saved at a step; raise BadInput if it has them no more."""
    with tempfile.TemporaryDirectory() as scratch:
        copy, path = Path(scratch) / "run", _payload(record.folder, step)
        if path is None:
            for name in artifacts.checkpoints(tracking, record):
                if f"-{step}." in name:
                    artifacts.fetch(tracking, record, name, copy)
            path = _payload(copy, step)
        return read_parameters(path or copy / "none.npz", shapes, "checkpoint")


def _payload(run: Path, step: int) -> Path | None:
    """Return the file to read a run's checkpoint of a step by, None if there is none."""
    for path in sorted(run.glob(f"checkpoints/*-{step}.json")):
        with contextlib.suppress(CorruptCheckpoint, BadInput):
            manifest = read_manifest(path)
            for name in (f"{path.stem}.npz", f"{path.stem}.index"):
                if manifest.step == step and name in manifest.files:
                    return path.with_name(name)
    return None
