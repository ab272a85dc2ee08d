"""Recorded runs that tests rerun, and what a rerun says."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from waymark.comparison.rerun_report import RerunReport, load

from tests.support.processes import Done

BASE = ["runtime.intra_op_threads=2", "progress=false", "save.meta_graph=false"]
SOFTMAX = [*BASE, "steps=20", "batch_size=10", "save.every=5", "eval_every=5"]
CNN = [*BASE, "model=cnn", "steps=4", "batch_size=20", "save.every=2", "eval_every=2"]


def artifacts(run_id: str, folder: Path | None = None) -> Path:
    (found,) = (folder or Path.cwd()).glob(f"mlruns/artifacts/*/{run_id}/artifacts")
    return found


def store(folder: Path | None = None) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder or Path.cwd()}/mlruns/mlflow.db")


def runs(folder: Path | None = None) -> list[Any]:
    client = store(folder)
    experiments = [each.experiment_id for each in client.search_experiments()]
    return list(client.search_runs(experiments, order_by=["attributes.start_time DESC"]))


def verdict_of(done: Done, run_id: str, word: str, folder: Path | None = None) -> RerunReport:
    """Check that a rerun of a run said `word` in all places; return the verdict."""
    assert done.returncode == {"identical": 0, "different": 3}[word], done
    new = next(r for r in runs(folder) if r.info.run_id == done.stdout.split()[1])
    assert new.info.run_id != run_id
    assert new.data.tags["waymark.rerun_of"] == run_id
    assert new.data.tags["waymark.verdict"] == word
    text = (artifacts(new.info.run_id, folder) / "rerun.json").read_text()
    assert json.loads(text)["verdict"] == word
    verdict = load(text)
    assert verdict.identical is (word == "identical")
    assert (verdict.run_id, verdict.rerun_of) == (new.info.run_id, run_id)
    first = {"identical": "identical to", "different": "different from"}[word]
    counts = f"{verdict.losses} losses, {verdict.evaluations} evaluations"
    told = f"{first} run {run_id} ({counts}, {verdict.checkpoints} checkpoints compared)\n"
    assert told in done.stdout
    return verdict


def counts(verdict: RerunReport) -> tuple[int, int, int]:
    return verdict.losses, verdict.evaluations, verdict.checkpoints


def is_clean(verdict: RerunReport) -> bool:
    """Tell whether a verdict found nothing apart."""
    apart = (verdict.partings, verdict.checkpoint, verdict.weights, verdict.differences)
    return verdict.identical and apart == ({}, None, {}, [])


OWN = """
from waymark.models.softmax import Softmax

SCALE = 1.0


class Own(Softmax):
    def logits(self, parameters, images, dropout):
        return SCALE * super().logits(parameters, images, dropout)
"""


def own_model(name: str, text: str = OWN) -> list[str]:
    """Write a model class of the user's in the current folder; return the overrides."""
    Path(f"{name}.py").write_text(text)
    return ["model=softmax", f"model._target_={name}.Own"]


def forget(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a module be imported anew, as in a new process."""
    monkeypatch.delitem(sys.modules, name)
    shutil.rmtree("__pycache__", ignore_errors=True)


def record_fact(run_id: str, key: str, value: Any) -> None:
    """Change what the environment.json of a run says; a mapping is merged."""
    path = artifacts(run_id) / "environment.json"
    facts = json.loads(path.read_text())
    facts[key] = {**facts[key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(facts))
