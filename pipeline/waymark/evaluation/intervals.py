"""How sure a difference between two models is: a paired bootstrap over the test examples."""

from collections.abc import Sequence

import numpy as np

from waymark.tasks.resampled import Value

DRAWS, SEED = 10_000, 0
LEVEL = (2.5, 97.5)  # percentiles
COUNTS = 2_000_000  # at most, float64, that are held at a time, but for those of one draw


def paired_intervals(
    pairs: Sequence[tuple[Value, Value]], examples: int
) -> list[tuple[float, float] | None]:
    """Return the 95 % interval of the difference, first minus second, of each pair of metrics.

    Both of a pair, and all pairs, are of the same resamples: DRAWS times as many of the `examples`
    as there are, drawn with replacement from NumPy's generator of SEED. The interval lies between
    the percentiles LEVEL of the differences; it is None where one of them is no number.
    """
    draw = np.random.default_rng(SEED)
    at_once = max(1, min(DRAWS, COUNTS // examples))
    found = []
    for start in range(0, DRAWS, at_once):
        rows = [draw.integers(examples, size=examples) for _ in range(min(at_once, DRAWS - start))]
        counts = np.array([np.bincount(each, minlength=examples) for each in rows], np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append([first(counts) - second(counts) for first, second in pairs])
    differences = np.concatenate(found, axis=1) if pairs else np.empty((0, DRAWS))
    limits = np.percentile(differences, LEVEL, axis=1).T
    return [(float(low), float(high)) if low <= high else None for low, high in limits]
