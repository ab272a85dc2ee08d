"""Choosing and scoring checkpoints of a recorded run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from waymark.api import evaluate, rerun
from waymark.api import resume as resume_run
from waymark.checkpoints.store import CorruptCheckpoint
from waymark.config.compose import compose_config
from waymark.errors import BadInput
from waymark.evaluation.restore import evaluate_run
from waymark.execution.execute import Result, resume, run


@pytest.fixture
def result(place: Path) -> Result:
    """Return a run with checkpoints at 10, 20, 30 that were evaluated at 10, 20, 30."""
    settings = ["steps=30", "save.every=10", "eval_every=10", "save=npz", "progress=false"]
    return run(compose_config(settings))


def manifest(result: Result, step: int) -> Path:
    return result.folder / "checkpoints" / f"weights-{step}.json"


def test_best_is_the_highest_and_passes_over_damage(
    result: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {s: evaluate_run("latest", str(s), False, {}).accuracy for s in (10, 20, 30)}
    best = max(scores, key=lambda step: (scores[step], -step))
    assert evaluate_run("latest", "best", False, {}).step == best
    manifest(result, best).write_text("{")
    capsys.readouterr()
    del scores[best]
    second = max(scores, key=lambda step: (scores[step], -step))
    assert evaluate_run("latest", "best", False, {}).step == second
    assert f"checkpoint {best} is damaged" in capsys.readouterr().err


def test_a_named_checkpoint_that_is_damaged_is_not_replaced_by_another(result: Result) -> None:
    payload = result.folder / "checkpoints" / "weights-20.npz"
    body = bytearray(payload.read_bytes())
    body[len(body) // 2] ^= 1
    payload.write_bytes(body)
    with pytest.raises(CorruptCheckpoint, match=r"weights-20\.npz does not hold what was written"):
        evaluate_run("latest", "20", False, {})
    with pytest.raises(BadInput, match=r"\[10, 20, 30\], best, latest"):
        evaluate_run("latest", "25", False, {})


def test_a_stray_manifest_does_not_stop_a_resume(
    result: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest(result, 99999).write_text("{}")
    extended = resume(result.run_id, {"steps": 40})
    assert extended is not None
    assert extended.checkpoints == [10, 20, 30, 40]
    assert "checkpoint 99999 is damaged" in capsys.readouterr().err


def test_a_run_without_a_graph_says_so(result: Result) -> None:
    with pytest.raises(BadInput, match="saved no graph"):
        evaluate_run("latest", "latest", True, {})


def test_a_run_that_is_not_waymarks_is_called_so(place: Path, client: Callable[..., Any]) -> None:
    run_id = client(place).create_run("0").info.run_id
    for command in (evaluate, resume_run, rerun):
        with pytest.raises(BadInput, match=f"^run {run_id}: is not one that Waymark trained; "):
            command(run_id)


def test_a_run_whose_tags_were_deleted(result: Result, client: Callable[..., Any]) -> None:
    """What it was created with tells on what data it was trained; without that it is said so."""
    store = client(Path())
    for tag in store.get_run(result.run_id).data.tags:
        if tag != "mlflow.runName":
            store.delete_tag(result.run_id, tag)
    assert evaluate(result.run_id).accuracy == result.restored_accuracy
    (result.folder.parent / "outbox.jsonl").unlink()
    with pytest.raises(
        BadInput, match=r"its tag waymark\.data_digest is gone, .* to (\w{64})\.$"
    ) as e:
        evaluate(result.run_id)
    store.set_tag(result.run_id, "waymark.data_digest", str(e.value)[-65:-1])
    assert evaluate(result.run_id).accuracy == result.restored_accuracy
    (result.folder / "config.yaml").unlink()
    store.set_tag(result.run_id, "waymark.version", "1")
    with pytest.raises(BadInput, match=r"of a run: No such file or directory$") as missing:
        evaluate(result.run_id)
    assert str(missing.value).count("config.yaml") == 1
