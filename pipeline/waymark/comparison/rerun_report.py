"""Whether two runs are the same, bit for bit, and if not, where they part and what differs."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import pydantic

from waymark import names
from waymark.comparison import bits
from waymark.comparison.environment import Difference, format_difference
from waymark.comparison.recorded_run import RecordedRun, all_differences, load_parameters
from waymark.config.values import json_text
from waymark.errors import BadInput
from waymark.table import number
from waymark.tracking.store import RunStore

NAME = "rerun.json"


@dataclass(frozen=True)
class RerunReport:
    """What the comparison of a rerun with its original found."""

    identical: bool
    run_id: str
    rerun_of: str
    losses: int  # compared, at steps where both runs have one; likewise:
    evaluations: int
    checkpoints: int
    partings: dict[str, bits.Divergence]  # metric -> where it parts first; empty if none does
    checkpoint: int | None  # the first step at which the saved states differ
    weights: dict[str, bits.ArrayDifference]  # by parameter, at the last step saved by both
    accuracy: tuple[float | None, float | None]  # recorded, now
    differences: list[Difference] = field(default_factory=list)  # of data, code, environment

    def dump(self, indent: int | None = 1) -> str:
        """Return the text of rerun.json."""
        word = "identical" if self.identical else "different"
        return json_text({"verdict": word, **asdict(self)}, indent)

    def lines(self) -> list[str]:
        """Return the verdict as lines for a terminal."""
        if not (self.losses or self.checkpoints):
            return [f"nothing that run {self.rerun_of} recorded can be compared"]
        compared = f"{self.losses} losses, {self.evaluations} evaluations"
        head = "identical to" if self.identical else "different from"
        counts = f"({compared}, {self.checkpoints} checkpoints compared)"
        lines = [f"{head} run {self.rerun_of} {counts}"]
        if not self.identical:
            lines += self._partings()
        if self.differences:
            lines.append("although these differ:" if self.identical else "what differs:")
        elif not self.identical:
            lines.append("nothing that was recorded of data, code and environment differs")
        return [*lines, *(f"  {format_difference(each)}" for each in self.differences)]

    def _partings(self) -> list[str]:
        lines = []
        for key, at in self.partings.items():
            values = f"{bits.exact(at.recorded)} recorded, {bits.exact(at.now)} now"
            lines.append(f"{key} parts at step {at.step}: {values}")
        if names.TRAIN_LOSS not in self.partings:
            lines.append("no loss parts")
        if self.checkpoint is not None:
            lines.append(f"the state parts at the checkpoint of step {self.checkpoint}")
        for name, apart in self.weights.items():
            far = f"{number(apart.absolute)} apart, {number(apart.relative)} relative"
            lines.append(f"final {name}: at most {far}")
        accuracies = ["-" if value is None else f"{value:.4f}" for value in self.accuracy]
        lines.append(f"accuracy {accuracies[0]} recorded, {accuracies[1]} now")
        return lines


def load(text: str) -> RerunReport:
    """Return the verdict that `RerunReport.dump` wrote; raise ValueError for another text."""
    body = json.loads(text)
    del body["verdict"]
    return pydantic.TypeAdapter(RerunReport).validate_python(body)


def compare_rerun(
    tracking: RunStore, old: RecordedRun, new: RecordedRun, shapes: Mapping[str, Any]
) -> RerunReport:
    """Compare a rerun with its original: every value and digest that both have, by its bits.

    `shapes` names the model's parameters, whose final values are compared if anything differs.
    """
    parted, counts = bits.first_divergences(old.history, new.history)
    saved = sorted(old.history.digests.keys() & new.history.digests.keys())
    apart = [step for step in saved if old.history.digests[step] != new.history.digests[step]]
    different, weights = bool(parted or apart), {}
    if different and saved:
        with suppress(BadInput):  # one of the checkpoints is gone, or damaged
            was, now = (load_parameters(tracking, r.record, saved[-1], shapes) for r in (old, new))
            weights = {name: bits.array_difference(was[name], now[name]) for name in shapes}
    return RerunReport(
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
