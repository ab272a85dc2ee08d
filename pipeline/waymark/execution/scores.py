"""What a run's restored checkpoint scored on the test set, written into the run's folder."""

from waymark.checkpoints.store import Manifest
from waymark.config.schema import Config
from waymark.config.values import json_text
from waymark.data.dataset import Dataset
from waymark.files import replace_file
from waymark.tasks import scores_of_classes
from waymark.tasks.report import class_table
from waymark.tracking.active_run import ActiveRun
from waymark.training.score import Score


def write_scores(
    run: ActiveRun, config: Config, data: Dataset, manifest: Manifest, score: Score
) -> None:
    """Write what the test set scored: the numbers, what pictures are drawn from, and by class."""
    folder, task, total = run.info.folder / "evaluation", config.task, len(score.predictions)
    folder.mkdir(exist_ok=True)
    accuracy = score.metrics.get("accuracy")
    body = {
        **score.metrics,
        "step": manifest.step,
        "state_digest": manifest.digest,
        **({} if accuracy is None else {"hits": round(accuracy * total)}),
        "total": total,
        "metric": next(iter(score.metrics)),
        **getattr(task, "report", lambda *_: {})(data, score.predictions),
    }
    if scores := scores_of_classes(task, data, score.predictions):
        replace_file(folder / "classes.csv", class_table(scores))
    replace_file(folder / "metrics.json", json_text(body))
    run.mark_artifacts_dirty()
