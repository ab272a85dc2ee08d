"""Keras's Adam under its short name, and Waymark's in records that have it with a Keras model."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from waymark import api, optimizers

from tests.support.ends import local_end
from tests.support.processes import THREADS, Main, killed

MLP = ["model=mlp", "model.settings.hidden=[6]"]
SHORT = ["steps=12", "save.every=4", "eval_every=4", "batch_size=8", "progress=false", THREADS]


@pytest.fixture
def data(small: Path) -> list[str]:
    return ["data=arrays", f"data.path={small}"]


@pytest.mark.long
def test_an_older_record_with_waymark_s_adam_stays_what_it_was(
    place: Path, data: list[str], main: Main
) -> None:
    """So were all of Keras models that named no other optimizer."""
    config = api.configure(*MLP, *SHORT, *data, "save=npz")
    ours = optimizers.Adam(learning_rate=1e-3, beta1=0.8, beta2=0.999, epsilon=1e-8)
    older = replace(config, optimizer=ours)
    whole = api.run(config=older)
    record = yaml.safe_load((whole.folder / "config.yaml").read_text())
    assert record["choices"]["optimizer"] == "adam"
    assert record["optimizer"]["_target_"] == "waymark.optimizers.Adam"
    key = killed(6, config=older)
    assert main("resume", key, "optimizer=adam").returncode == 0
    assert local_end(place, key) == local_end(place, whole.run_id)
    assert api.rerun(key, "progress=false").identical
    assert api.evaluate(key).accuracy == whole.restored_accuracy
    assert api.run(fork=f"{key}@4").state_digest == whole.state_digest
    theirs = api.run("optimizer=adam", config_from=key)
    assert theirs.state_digest == api.run(config=config).state_digest != whole.state_digest
    assert "optimizer" in api.compare(key, theirs.run_id).keys


def test_one_optimizer_of_two_names_is_one_trial(
    place: Path, data: list[str], client: Callable[[Path], Any]
) -> None:
    words = [*MLP, *SHORT, *data, "optimizer.beta_1=0.7"]
    found = api.sweep("optimizer=adam,keras_adam", *words)
    (trial,) = found.trials
    params = client(place).get_run(trial.run_id).data.params
    assert (params["optimizer"], params["optimizer.beta_1"]) == ("keras_adam", "0.7")
    assert api.run(*words).state_digest == local_end(place, trial.run_id).digest


@pytest.mark.long
def test_models_are_swept_each_with_its_own(
    place: Path, data: list[str], client: Callable[[Path], Any]
) -> None:
    found = api.sweep("model=softmax,mlp", "optimizer=sgd,adam", *SHORT[:-1], *data, THREADS)
    runs = [client(place).get_run(trial.run_id).data.params for trial in found.trials]
    assert sorted((run["model"], run["optimizer"]) for run in runs) == [
        *(("mlp", "keras_adam"), ("mlp", "keras_sgd")),
        *(("softmax", "adam"), ("softmax", "sgd")),
    ]


def test_what_hydra_shows_is_what_is_trained(main: Main) -> None:
    for words, target in (
        (["model=mlp", "optimizer.beta_1=0.7"], "waymark.keras_optimizers.Adam"),
        (["optimizer=sgd", "model=mlp", "--resolve"], "waymark.keras_optimizers.SGD"),
        (["model=cnn"], "waymark.optimizers.Adam"),
        (["model=keras"], "waymark.optimizers.Adam"),  # whose function is still to be given
    ):
        shown = main("run", "--cfg", "job", *words)
        assert shown.returncode == 0, shown
        assert yaml.safe_load(shown.stdout)["optimizer"]["_target_"] == target
