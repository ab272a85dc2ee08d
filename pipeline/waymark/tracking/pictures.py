"""The pictures of a run that was evaluated, drawn from what stands in its folder."""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from waymark import names
from waymark.plots import curves, scores
from waymark.tracking import history


def draw(folder: Path) -> bool:
    """Draw what an evaluation, if there is one, lacks or has older; tell whether it did.

    Raises OSError for a full disk.
    """
    place = folder / "evaluation"
    try:
        found, known = (place / "metrics.json").read_bytes(), (folder / history.NAME).read_bytes()
        facts, at = json.loads(found), (place / "metrics.json").stat().st_mtime_ns
        recorded = history.load(known) or history.History({})
        drawings = {"loss.png": _curve(facts, recorded.metrics), **_of_predictions(facts)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    drawn = False
    for name, drawing in drawings.items():
        with suppress(FileNotFoundError):
            if (place / name).stat().st_mtime_ns >= at:
                continue
        new = place / f".{name}"  # a new file: a copy of the store may be of hard links
        try:
            drawing(new)
        except OSError:
            raise
        except Exception:  # what a task of the user's own reports may be no picture
            continue
        os.replace(new, place / name)
        drawn = True
    return drawn


def _curve(facts: Mapping[str, Any], recorded: Mapping[str, Any]) -> Callable[[Path], None]:
    """Return what draws the losses and the metric that the run is judged by."""
    metric = facts.get("metric", "accuracy")
    part = names.VAL if recorded.get(f"{names.VAL}{metric}") else names.TEST
    return partial(
        curves.loss_curve,
        losses=recorded.get(names.TRAIN_LOSS, {}),
        values=recorded.get(f"{part}{metric}", {}),
        metric=metric,
        part="validation" if part == names.VAL else "test",
        evaluated=recorded.get(f"{part}loss"),
    )


def _of_predictions(facts: Mapping[str, Any]) -> dict[str, Callable[[Path], None]]:
    """Return what draws the test set's predictions: those pictures for which there is something."""
    drawings: dict[str, Callable[[Path], None]] = {}
    if "confusion_matrix" in facts:
        counts = np.array(facts["confusion_matrix"])
        total = facts.get("total", int(counts.sum()))
        reached = f", accuracy {facts['accuracy']:.4f}" if "accuracy" in facts else ""
        drawings["confusion_matrix.png"] = partial(
            scores.confusion_matrix,
            counts=counts,
            classes=facts["confusion_classes"],
            names=facts.get("class_names", ()),
            title=f"Test set: {total:,} examples{reached}",
            among="" if counts.sum() == total else "the most confused ones",
        )
    if "label_f1" in facts:
        shares = {name: facts[f"label_{name}"] for name in ("precision", "recall", "f1")}
        drawings["labels.png"] = partial(
            scores.label_bars, names=facts["label_names"], shares=shares
        )
    if "predicted" in facts:
        truth, given = (np.array(facts[key], np.float64) for key in ("true", "predicted"))
        drawings["predicted.png"] = partial(scores.predictions, truth=truth, predicted=given)
        drawings["residuals.png"] = partial(scores.residuals, truth=truth, predicted=given)
    return drawings
