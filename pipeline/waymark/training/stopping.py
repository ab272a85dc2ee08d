"""Early stopping: training ends where a metric has not improved for several evaluations.

As Keras's EarlyStopping counts (Prechelt, "Early Stopping - But When?", 1998, 2.2): a pure function
of the recorded evaluations, so that a run that was killed and resumed stops at the same step.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from waymark.config.schema import Stop


@dataclass(frozen=True)
class Stopped:
    """That training ended before its last step, and why."""

    step: int
    best: int | None  # the step of the best evaluation, None if none was a number
    metric: str

    @property
    def reason(self) -> str:
        """Say it."""
        since = "ever" if self.best is None else f"since step {self.best}"
        return f"stopped early at step {self.step}: {self.metric} has not improved {since}"


def early_stop(values: Mapping[int, float], rule: Stop, step: int, every: int) -> Stopped | None:
    """Return where training stops by a metric's values up to `step`; None if it goes on.

    Of the values only those at every so many steps count: a run that was made longer has one at
    its former end as well.

    A value is an improvement if it is better than the best one by more than `min_delta`; one that
    is not a number never is.
    """
    best, waited = None, 0
    sign = 1 if rule.mode == "max" else -1
    for at in sorted(at for at in values if at <= step and at % every == 0):
        better = best is None or sign * (values[at] - values[best]) > rule.min_delta
        if better and not math.isnan(values[at]):
            best, waited = at, 0
            continue
        waited += 1
        if waited == rule.patience:
            return Stopped(at, best, rule.metric)
    return None
