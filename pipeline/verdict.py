"""Whether two runs are the same, bit for bit, and if not, where they part and what differs."""

import contextlib
import json
import math
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydantic

from pipeline import names
from pipeline.checkpoints import State
from pipeline.checkpoints.external import read_parameters
from pipeline.checkpoints.store import CorruptCheckpoint, read_manifest, refuse_links
from pipeline.config import BadInput, json_text
from pipeline.environment import Difference, differences, diffstat, parse_environment
from pipeline.own_code import own_facts, patch_name
from pipeline.table import number
from pipeline.tracking import artifacts
from pipeline.tracking.history import History, history, is_timing
from pipeline.tracking.limits import reason_of
from pipeline.tracking.runs import RunRecord
from pipeline.tracking.store import RunStore

NAME = "rerun.json"


@dataclass(frozen=True)
class Evidence:
    """What a run recorded that tells whether another one is the same."""

    record: RunRecord
    history: History
    facts: Mapping[str, Any]  # environment.json
    patch: str | None  # changes.patch
    own: Mapping[str, str] = field(default_factory=dict)  # patches of the user's own code, by name

    @property
    def accuracy(self) -> float | None:
        """Return the restored accuracy, else the last one in training."""
        for key in (names.RESTORED_ACCURACY, names.TEST_ACCURACY):
            known = self.history.metrics.get(key)
            if known:
                return known[max(known)]
        return None


@dataclass(frozen=True)
class Parting:
    """The first step at which a metric's values are not the same bits."""

    step: int
    recorded: float
    now: float


@dataclass(frozen=True)
class Apart:
    """The largest difference between two arrays, absolute and relative to the larger value."""

    absolute: float
    relative: float


@dataclass(frozen=True)
class Verdict:
    """What the comparison of a rerun with its original found."""

    identical: bool
    run_id: str
    rerun_of: str
    losses: int  # compared, at steps where both runs have one; likewise:
    evaluations: int
    checkpoints: int
    partings: dict[str, Parting]  # metric -> where it parts first; empty if none does
    checkpoint: int | None  # the first step at which the saved states differ
    weights: dict[str, Apart]  # by parameter, at the last step both runs have a checkpoint of
    accuracy: tuple[float | None, float | None]  # recorded, now
    differences: list[Difference] = field(default_factory=list)  # of data, code, environment

    def dump(self, indent: int | None = 1) -> str:
        """Return the text of rerun.json."""
        word = "identical" if self.identical else "different"
        return json_text({"verdict": word, **asdict(self)}, indent)

    def lines(self) -> list[str]:
        """Return the verdict as lines for a terminal."""
        compared = (
            f"{self.losses} losses, {self.evaluations} evaluations, {self.checkpoints} checkpoints"
        )
        head = "identical to" if self.identical else "different from"
        lines = [f"{head} run {self.rerun_of} ({compared} compared)"]
        if not (self.losses or self.checkpoints):
            return [f"nothing that run {self.rerun_of} recorded can be compared"]
        if not self.identical:
            lines += self._partings()
        if self.differences:
            lines.append("although these differ:" if self.identical else "what differs:")
            lines += [f"  {told(each)}" for each in self.differences]
        elif not self.identical:
            lines.append("nothing that was recorded of data, code and environment differs")
        return lines

    def _partings(self) -> list[str]:
        lines = []
        for key, each in self.partings.items():
            values = f"{exact(each.recorded)} recorded, {exact(each.now)} now"
            lines.append(f"{key} parts at step {each.step}: {values}")
        if names.TRAIN_LOSS not in self.partings:
            lines.append("no loss parts")
        if self.checkpoint is not None:
            lines.append(f"the state parts at the checkpoint of step {self.checkpoint}")
        for name, apart in self.weights.items():
            far = f"at most {number(apart.absolute)} apart, {number(apart.relative)} relative"
            lines.append(f"final {name}: {far}")
        accuracies = ["-" if value is None else f"{value:.4f}" for value in self.accuracy]
        lines.append(f"accuracy {accuracies[0]} recorded, {accuracies[1]} now")
        return lines


VERDICT_FIELDS = pydantic.TypeAdapter(Verdict)


def load(text: str) -> Verdict:
    """Return the verdict that `Verdict.dump` wrote; raise ValueError for another text."""
    body = json.loads(text)
    del body["verdict"]
    return VERDICT_FIELDS.validate_python(body)


def exact(value: float) -> str:
    """Return a metric's value, short but telling it from all other float32 values."""
    with np.errstate(over="ignore"):
        rounded = np.float32(value)
    same = float(rounded) == value or math.isnan(value)
    return str(rounded) if same else repr(value)


def told(difference: Difference, sides: tuple[str, str] = ("recorded", "now")) -> str:
    """Say in one line what differs; `sides` are the words for its two sides."""
    what, recorded, now = difference
    if isinstance(recorded, list) and isinstance(now, list):
        gone, new = ([x for x in a if x not in b] for a, b in ((recorded, now), (now, recorded)))
        words = [(f"only {sides[0]}", gone), (f"only {sides[1]}", new)]
        words += [("changed", [x for x in recorded if x in now])]
        return f"{what}: " + "; ".join(f"{w} {', '.join(items)}" for w, items in words if items)
    texts = ["not set" if value is None else str(value) for value in (recorded, now)]
    return f"{what}: {texts[0]} {sides[0]}, {texts[1]} {sides[1]}"


def evidence(tracking: RunStore, record: RunRecord) -> Evidence:
    """Gather what a run of Waymark's recorded; raise BadInput if the store does not answer."""
    refuse_links(record.folder)
    facts = parse_environment(artifacts.read(tracking, record, "environment.json"))
    names = own_facts(facts).patches()
    names += ["changes.patch"] if facts.get("changes") != "none" else []
    found = {name: artifacts.read(tracking, record, name) for name in names}
    own = {k: v.decode(errors="surrogateescape") for k, v in found.items() if v is not None}
    patch = own.pop("changes.patch", None)
    try:
        known = history(tracking, record)
    except Exception as error:  # of MLflow, the network
        raise BadInput(f"run {record.id}: cannot be read ({reason_of(error)}).") from None
    return Evidence(record, _with_manifests(known, record), facts, patch, own)


def _with_manifests(known: History, record: RunRecord) -> History:
    """Add the digests that stand in manifests alone, and that of the final state."""
    digests = dict(known.digests)
    for path in record.folder.glob("checkpoints/*-*.json"):
        with contextlib.suppress(CorruptCheckpoint, BadInput):
            manifest = read_manifest(path)
            digests.setdefault(manifest.step, manifest.digest)
    steps = record.tags.get(names.STEPS, "")
    if names.STATE_DIGEST in record.tags and record.status == "FINISHED" and steps.isdecimal():
        digests.setdefault(int(steps), record.tags[names.STATE_DIGEST])
    return History(known.metrics, digests)


def judge(tracking: RunStore, old: Evidence, new: Evidence, shapes: Mapping[str, Any]) -> Verdict:
    """Compare a rerun with its original: every value and digest that both have, by its bits.

    `shapes` names the model's parameters, whose final values are compared if anything differs.
    """
    parted, counts = partings(old.history, new.history)
    saved = sorted(old.history.digests.keys() & new.history.digests.keys())
    apart = [step for step in saved if old.history.digests[step] != new.history.digests[step]]
    different = bool(parted or apart)
    weights = _weights(tracking, old, new, max(saved, default=None), shapes) if different else {}
    return Verdict(
        identical=not different and bool(counts.get(names.TRAIN_LOSS) or saved),
        run_id=new.record.id,
        rerun_of=old.record.id,
        losses=counts.pop(names.TRAIN_LOSS, 0),
        evaluations=sum(count for key, count in counts.items() if key.endswith("/accuracy")),
        checkpoints=len(saved),
        partings=parted,
        checkpoint=apart[0] if apart else None,
        weights=weights,
        accuracy=(old.accuracy, new.accuracy),
        differences=all_differences(old, new),
    )


def partings(old: History, new: History) -> tuple[dict[str, Parting], dict[str, int]]:
    """Return where metrics part, the loss first, and how many values of each were compared.

    A metric that measures the machine is left out.
    """
    found, counts = {}, {}
    keys = [key for key in old.metrics if key in new.metrics and not is_timing(key)]
    for key in sorted(keys, key=lambda key: key != names.TRAIN_LOSS):
        recorded, now = old.metrics[key], new.metrics[key]
        steps = sorted(recorded.keys() & now.keys())
        counts[key] = len(steps)
        apart = [step for step in steps if _bits(recorded[step]) != _bits(now[step])]
        if apart:
            found[key] = Parting(apart[0], recorded[apart[0]], now[apart[0]])
    return found, counts


def all_differences(old: Evidence, new: Evidence) -> list[Difference]:
    """Return what differs between two runs beside their configuration, likely causes first."""
    found: list[Difference] = []
    for name, tag in (("data", names.DATA_DIGEST), ("init_from", names.INIT_DIGEST)):
        was, now = old.record.tags.get(tag), new.record.tags.get(tag)
        if was != now:
            found.append((name, was, now))
    found += differences(old.facts, new.facts)
    recorded = all(run.facts.get("changes") is not None for run in (old, new))
    if recorded and (old.patch or "") != (new.patch or ""):
        was, now = diffstat(old.patch, new.patch), diffstat(new.patch, old.patch)
        found.append(("uncommitted changes", was, now))
    found += _own_differences(old, new)
    for run in (old, new):  # was it resumed somewhere else?
        for earlier in run.facts.get("earlier", []):
            for what, was, now in differences(earlier, run.facts):
                found.append(
                    (f"{what}, before and after run {run.record.id} was resumed", was, now)
                )
    return found


def _own_differences(old: Evidence, new: Evidence) -> list[Difference]:
    """Return how repositories of the user's, that both runs imported the same modules from, differ.

    Modules that differ are told with the rest of the code.
    """
    found: list[Difference] = []
    for i, was in enumerate(own_facts(old.facts).repositories):
        for j, now in enumerate(own_facts(new.facts).repositories):
            if not was.modules.keys() & now.modules.keys():
                continue
            if was.commit != now.commit:
                found.append((f"commit of {was.name}", was.commit, now.commit))
            a, b = old.own.get(patch_name(i), ""), new.own.get(patch_name(j), "")
            if None not in (was.changes, now.changes) and a != b:
                what = f"uncommitted changes of {was.name}"
                found.append((what, diffstat(a, b), diffstat(b, a)))
    return found


def _bits(value: float) -> bytes:
    """Return what two values have in common if they are the same: of NaNs there is one."""
    return b"nan" if math.isnan(value) else struct.pack("<d", value)


def _weights(
    tracking: RunStore, old: Evidence, new: Evidence, step: int | None, shapes: Mapping[str, Any]
) -> dict[str, Apart]:
    """Return how far the parameters are apart at a step, if both runs still have it."""
    if step is None:
        return {}
    try:
        was, now = (_parameters(tracking, run.record, step, shapes) for run in (old, new))
    except BadInput:  # one of the checkpoints is gone, or damaged
        return {}
    return {name: _apart(was[name], now[name]) for name in shapes}


def _apart(was: np.ndarray, now: np.ndarray) -> Apart:
    """Return the largest absolute and relative difference of two float32 arrays."""
    a, b = was.astype(np.float64), now.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        absolute = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0, np.abs(a - b))
        relative = np.where(absolute == 0, 0, absolute / np.maximum(np.abs(a), np.abs(b)))
    largest = (np.max(np.nan_to_num(x, nan=np.inf), initial=0) for x in (absolute, relative))
    return Apart(*map(float, largest))


def _parameters(
    tracking: RunStore, record: RunRecord, step: int, shapes: Mapping[str, Any]
) -> State:
    """Return the parameters that a run saved at a step; raise BadInput if it has them no more."""
    with tempfile.TemporaryDirectory() as scratch:
        run = record.folder
        path = _payload(run, step)
        if path is None:
            run = Path(scratch) / "run"
            for name in artifacts.checkpoints(tracking, record):
                if f"-{step}." in name:
                    artifacts.fetch(tracking, record, name, run)
            path = _payload(run, step)
        return read_parameters(path or run / "none.npz", shapes, "checkpoint")


def _payload(run: Path, step: int) -> Path | None:
    """Return the file to read a run's checkpoint of a step by, None if there is none."""
    for path in sorted(run.glob(f"checkpoints/*-{step}.json")):
        with contextlib.suppress(CorruptCheckpoint, BadInput):
            manifest = read_manifest(path)
            for name in manifest.files:
                if manifest.step == step and name in (f"{path.stem}.npz", f"{path.stem}.index"):
                    return path.with_name(name)
    return None
