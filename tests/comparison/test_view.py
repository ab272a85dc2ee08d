"""Which columns the view has that `waymark ui` opens."""

from dataclasses import replace
from typing import Any

from waymark.comparison.runs import with_current_steps
from waymark.comparison.view import view_of

from tests.support.comparisons import made

OWN = {"waymark.version": "1"}
PARENT = {**OWN, "waymark.kind": "sweep", "waymark.varied": '["optimizer.learning_rate", "seed"]'}
TRIAL = {**OWN, "waymark.trial": "x"}


def run(number: int, params: dict[str, str], tags: dict[str, str]) -> Any:
    each, facts = made(number, params, tags=tags)
    return replace(each.record, tags=tags), facts


def test_objectives_and_varied_keys_are_columns_and_no_tags() -> None:
    params = {"objective.metric": "val/loss", "objective.mode": "min", "save.every": "1"}
    found = [
        run(4, {}, {}),  # another program's
        run(3, {"seed": "0", "batch_size": "50", "run_name": "a", "save.every": "5"}, OWN),
        run(2, {**params, "seed": "1", "batch_size": "100", "run_name": "b"}, TRIAL),
        run(1, {**params, "seed": "0", "batch_size": "100", "run_name": "c"}, TRIAL),
        run(0, {}, PARENT),
    ]
    view = view_of(found)
    assert [*view.metrics] == ["restored/accuracy", "val/loss"]
    assert [*view.params] == ["optimizer.learning_rate", "seed", "batch_size"]
    state = view.state()
    assert state["selectedColumns"][0] == "metrics.`restored/accuracy`"
    assert not any("tags" in column for column in state["selectedColumns"])
    assert "searchFilter" not in state
    of_sweep = view_of(found[2:4], found[-1][0])
    assert [*of_sweep.params] == ["optimizer.learning_rate", "seed"]
    state = of_sweep.state()
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`val/loss`", True)
    assert found[-1][0].id in state["searchFilter"]
    assert view_of([]).state()["selectedColumns"] == []


def test_classes_of_waymark_are_no_difference_to_older_runs_and_others_are() -> None:
    def known(**params: str) -> dict[str, str]:
        return with_current_steps(*run(0, {"model": "softmax", **params}, OWN)).params

    now = known()
    for old in ("waymark.models.softmax.Softmax", "pipeline.models.softmax.Softmax"):
        assert known(**{"model._target_": old}) == now
    own = known(**{"model._target_": "mine.Net"})
    assert own == known(**{"model.class": "mine.Net"}) == {**now, "model.class": "mine.Net"}
