"""The pictures of a run that was evaluated, drawn from what stands in its folder."""

import json
import os
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from waymark import names, plots
from waymark.tracking import history


def draw(folder: Path) -> bool:
    """Draw what an evaluation, if there is one, lacks or has older; tell whether it did.

    Raises OSError for a full disk.
    """
    place = folder / "evaluation"
    try:
        scores, known = (place / "metrics.json").read_bytes(), (folder / history.NAME).read_bytes()
        facts, at = json.loads(scores), (place / "metrics.json").stat().st_mtime_ns
        counts, classes = np.array(facts["confusion_matrix"]), facts["confusion_classes"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    recorded = history.load(known) or history.History({})
    losses = recorded.metrics.get(names.TRAIN_LOSS, {})
    part = "validation" if recorded.metrics.get(names.VAL_ACCURACY) else "test"
    key = names.VAL_ACCURACY if part == "validation" else names.TEST_ACCURACY
    accuracies = recorded.metrics.get(key, {})
    drawings = {
        "loss.png": partial(plots.loss_curve, losses=losses, accuracies=accuracies, part=part),
        "confusion_matrix.png": partial(
            plots.confusion_matrix,
            counts=counts,
            classes=classes,
            names=facts.get("class_names", ()),
        ),
    }
    drawn = False
    for name, drawing in drawings.items():
        with suppress(FileNotFoundError):
            if (place / name).stat().st_mtime_ns >= at:
                continue
        new = place / f".{name}"  # a new file: a copy of the store may be of hard links
        drawing(new)
        os.replace(new, place / name)
        drawn = True
    return drawn
