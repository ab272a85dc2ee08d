"""A plan holds all that a run needs, and writes nothing."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from waymark.config.compose import compose_config
from waymark.errors import BadInput
from waymark.execution.execute import run
from waymark.execution.plan import plan_new, plan_resume
from waymark.tracking.finder import find
from waymark.tracking.opening import open_store


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_plans_write_nothing(small: Path, place: Path) -> None:
    np.savez("start.npz", np.full((64, 10), 0.125, np.float32))
    words = ["data=arrays", f"data.path={small}", "save=npz", "steps=6", "save.every=3"]
    resolved = compose_config([*words, f"init_from={place}/start.npz", "progress=false"])
    before = files(place)
    plan = plan_new(resolved, tags={"waymark.trial": "t"})
    assert files(place) == before
    assert (plan.step, plan.checkpoint, plan.original) == (0, None, None)
    assert list(plan.parameters) == ["weights"]
    assert {"waymark.trial", "waymark.init_digest", "waymark.data_digest"} <= plan.tags.keys()
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.trainer = None  # type: ignore[misc]

    store, run_id = open_store(None), run(resolved).run_id
    record = find(store, run_id)
    before = files(place)
    assert plan_resume(store, record, {}) is None  # nothing is left to do
    with pytest.raises(BadInput, match=r"^steps=5: run \w+ has already reached 6\.$"):
        plan_resume(store, record, {"steps": 5})
    longer = plan_resume(store, record, {"steps": 9})
    assert longer is not None and longer.checkpoint is not None
    assert (longer.step, longer.tags["waymark.steps"], longer.parameters) == (6, "9", {})
    assert longer.checkpoint[1]["step"] == 6
    assert files(place) == before
