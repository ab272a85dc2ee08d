"""Early stopping of hopeless trials: by what the sweep's other trials recorded at the same step.

`median` is the median stopping rule (Golovin et al., "Google Vizier", KDD 2017, 3.2.1): a trial
ends if its best value so far is worse than the median of the others' values at this step.
`asha` is asynchronous successive halving (Li et al., "A System for Massively Parallel
Hyperparameter Tuning", MLSys 2020) with a factor of three: a trial goes on behind a rung if it
is among the best third of those that have come there.
"""

import itertools
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

N_STARTUP_TRIALS = 5  # median: others that must have come to a step before it is judged there
REDUCTION_FACTOR = 3  # asha: of so many one goes on; a rung is so many times as far as the last
MAX_JUDGED_STEPS = 50  # median: judged at so many evaluations of a trial at most

Values = Mapping[int, float]  # step -> value


def pruning_steps(rule: str, steps: int, every: int) -> list[int]:
    """Return the steps below `steps`, all of them evaluations, at which trials are judged."""
    evaluations = range(every, steps, every) if every else range(0)
    if rule == "median":
        return list(evaluations)[:: max(1, -(-len(evaluations) // MAX_JUDGED_STEPS))]
    powers = (every * REDUCTION_FACTOR**rung for rung in range(len(evaluations)))
    return list(itertools.takewhile(lambda step: step in evaluations, powers))


def should_prune(rule: str, step: int, own: Values, others: Sequence[Values]) -> bool:
    """Tell whether a trial should end at a step; a higher value is a better one."""
    there = [values[step] for values in others if step in values]
    if rule == "median":
        best = max(value for at, value in own.items() if at <= step)
        return len(there) >= N_STARTUP_TRIALS and best < statistics.median(there)
    rank = sum(value > own[step] for value in there)  # how many are better
    count = len(there) + 1
    return count >= REDUCTION_FACTOR and rank >= count // REDUCTION_FACTOR


@dataclass(frozen=True)
class Pruner:
    """Judge one trial: publish its values, and read the others'."""

    rule: str
    metric: str  # of the evaluations in training
    sign: int  # 1 if a higher value is better, else -1
    steps: Sequence[int]  # at which it is judged, in order
    other_trials: Callable[[], Sequence[Values]]

    def values(self, recorded: Values) -> dict[int, float]:
        """Return what other trials need to know of this one: its value at each step judged."""
        return {step: recorded[step] for step in self.steps if step in recorded}

    def __call__(self, step: int, recorded: Values) -> bool:
        """Tell whether the trial is to end at this step, given its metric's values by step."""
        own, *others = map(self._to_maximize, (self.values(recorded), *self.other_trials()))
        return should_prune(self.rule, step, own, others)

    def _to_maximize(self, values: Values) -> Values:
        """Return values of which a higher one is better; one that is not finite is the worst."""
        worst = -sys.float_info.max
        return {s: self.sign * v if math.isfinite(v) else worst for s, v in values.items()}
