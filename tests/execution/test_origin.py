"""What a fork takes of a recorded state."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from waymark.checkpoints.retention import RetentionState
from waymark.checkpoints.store import Manifest
from waymark.config.compose import compose_config
from waymark.config.schema import Config, Fork
from waymark.data.dataset import Dataset
from waymark.errors import BadInput
from waymark.evaluation.restore import load_data
from waymark.execution.origin import Origin, first_values
from waymark.names import TRAIN_LOSS
from waymark.tracking.history import History, _is_up_to_date
from waymark.tracking.runs import RunSummary
from waymark.training.loop import Trainer
from waymark.training.runtime import start_tensorflow

from tests.support.processes import THREADS
from tests.support.tables import cars, written

BEGUN = Fork(run="a" * 32, step=5, digest="0" * 64)


def loaded(*words: str) -> tuple[Config, Dataset]:
    """Return a fork's configuration and data."""
    config = compose_config([THREADS, *words]).config
    return replace(config, fork=BEGUN), load_data(config)


def saved(*words: str) -> Origin:
    """Return a state after five steps, as a checkpoint of a run has it."""
    config, data = loaded(*words)
    start_tensorflow(2)
    trainer = Trainer(config, data)
    trainer.run_steps(5)
    facts = dict.fromkeys(("time", "metrics", "regular", "files", "graph"))
    names = list(trainer.shapes)
    manifest = Manifest(5, digest="0" * 64, memory=RetentionState(None), parameters=names, **facts)  # type: ignore[arg-type]
    return manifest, trainer.state()


def test_statistics_stay_those_that_the_weights_were_trained_with(tmp_path: Path) -> None:
    frame = cars()
    how = ["data=table", "data.target=price", "model=linear", "batch_size=4"]
    how += ["data.features=[id,size]"]
    some = written(tmp_path / "some.csv", frame)
    other = written(tmp_path / "other.csv", frame.assign(size=frame["size"] * 3 + 1))
    origin = saved(*how, f"data.path={some}")
    config, data = loaded(*how, f"data.path={other}")
    taken = first_values(config, data, origin)
    assert taken.keys() == origin[1].keys()
    for name in ("features/mean", "features/scale"):
        assert not np.array_equal(data.statistics[name], origin[1][name])
        assert taken[name] is origin[1][name]


SMALL = ["batch_size=4", "data=arrays"]
# Of an origin and of its fork: overrides, and what is said of the fork (None: it takes all).
MODELS: dict[str, tuple[list[str], list[str], str | None]] = {
    "the same": ([], [], None),
    "other slots": ([], ["optimizer=sgd"], None),
    "one parameter more": ([], ["model=linear"], "bias is missing there and float32[10] here"),
    "one parameter less": (
        ["model=linear"], [], "bias is float32[10] there and missing here"
    ),
    "another shape": (
        ["data.path=wide.npz"], [],
        "weights is float32[5, 10] there and float32[64, 10] here",
    ),
    "a file as well": ([], ["init_from=x.npz"], "init_from='x.npz'"),
    "nothing to train": ([], ["steps=5"], "steps=5"),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_what_fits_is_taken_and_a_model_of_other_parameters_refused(
    case: str,
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    arrays = dict(np.load(small))
    wide = {key: arrays[key].reshape(-1, 64)[:, :5] for key in ("x_train", "x_test")}
    np.savez("wide.npz", **(arrays | wide))
    there, here, said = MODELS[case]
    origin = saved(*SMALL, f"data.path={small}", *there)
    config, data = loaded(*SMALL, f"data.path={small}", *here)
    if said is not None:
        with pytest.raises(BadInput) as refused:
            first_values(config, data, origin)
        assert said in str(refused.value)
        return
    taken = first_values(config, data, origin)
    anew = "waymark: the optimizer begins anew: weights/Momentum is not kept\n"
    assert capsys.readouterr().err == ("" if case == "the same" else anew)
    assert taken.keys() == (origin[1].keys() if case == "the same" else {"step", "weights"})
    assert all(taken[name] is origin[1][name] for name in taken)


def test_a_forks_history_is_whole_though_it_begins_late() -> None:
    losses = dict.fromkeys(range(21, 31), 0.5)
    known, last = History({TRAIN_LOSS: losses}), {TRAIN_LOSS: 0.5}
    assert _is_up_to_date(known, RunSummary({"fork.step": "20"}, last, None))
    assert not _is_up_to_date(known, RunSummary({"fork": "None"}, last, None))
    assert not _is_up_to_date(known, RunSummary({"fork.step": "10"}, last, None))
