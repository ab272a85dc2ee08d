"""What MLflow's UI says of a run: how it went, and the command that does it again."""

import math
from collections.abc import Mapping

from waymark import names
from waymark.comparison.rerun_report import RerunReport
from waymark.config.schema import Config
from waymark.table import metric_value
from waymark.tasks.metrics import judged_by
from waymark.tracking.active_run import ActiveRun
from waymark.tracking.description import code, escaped, signed


def description(
    run: ActiveRun,
    config: Config,
    command: str,
    reason: str = "",
    verdict: RerunReport | None = None,
) -> dict[str, str]:
    """Return the tag that is a run's description, as far as it is known now.

    `command` is what may be typed to do it again, or to go on with it; `reason` why it ended before
    its last step; `verdict` that of a rerun.
    """
    lines = [*_results(run.points, config), *([escaped(reason)] if reason else [])]
    if verdict:
        lines.append(_sentence(verdict))
    listed = "\n".join(f"- {line}" for line in lines)
    return {names.DESCRIPTION: signed(listed, code(command))}


def best(values: Mapping[int, float], mode: str) -> tuple[int, float] | None:
    """Return step and value of the first of the best values, None if none is a number."""
    known = {step: value for step, value in sorted(values.items()) if not math.isnan(value)}
    step = (max if mode == "max" else min)(known, key=known.__getitem__, default=None)
    return None if step is None else (step, known[step])


def _results(points: Mapping[str, Mapping[int, float]], config: Config) -> list[str]:
    """Return what is known of the metric that a run is judged by."""
    name, mode = judged_by(config.task)
    lines = []
    if restored := points.get(f"{names.RESTORED}{name}"):
        value = metric_value(name, restored[max(restored)])
        lines.append(f"test {name} **{value}**, of the restored checkpoint")
    for part, word in ((names.VAL, "validation"), (names.TEST, "test")):
        if found := best(points.get(f"{part}{name}", {}), mode):
            value = metric_value(name, found[1])
            lines.append(f"best {word} {name} so far {value}, at step {found[0]}")
    return lines


def _sentence(verdict: RerunReport) -> str:
    """Say what came of a rerun; its lines on the terminal say more."""
    said = "identical to" if verdict.identical else "different from"
    lines = [f"rerun: **{said}** run {verdict.rerun_of}"]
    for key, at in verdict.partings.items():
        lines.append(f"{escaped(key)} first differs at step {at.step}")
    return "; ".join(lines[:4])
