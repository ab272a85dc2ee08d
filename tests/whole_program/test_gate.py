"""The gate by the command line: what it prints, when it exits 3, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waymark import api, evaluate, gate
from waymark.config.compose import compose_config
from waymark.execution.execute import run

from tests.support.data import pictures
from tests.support.processes import THREADS, Done, Main

SHORT = ["data=arrays", "progress=false", "save=npz", "save.every=0", "eval_every=0", THREADS]


def trained(name: str, *overrides: str) -> str:
    return run(compose_config([*SHORT, f"run_name={name}", *overrides])).run_id


@pytest.fixture(scope="module")
def made(
    shared_once: Callable[..., tuple[Path, Any]], empty_store: Path
) -> tuple[Path, dict[str, str]]:
    """Return a folder with runs: a good one, a bad one, and others on other files."""

    def make(folder: Path) -> dict[str, str]:
        shutil.copytree(empty_store, folder / "mlruns")
        whole = pictures(200, 60)
        half = {name: each[:100] if "train" in name else each for name, each in whole.items()}
        other = {**whole, "y_test": whole["y_test"][::-1]}
        for name, arrays in {"whole": whole, "half": half, "other": other}.items():
            np.savez(folder / f"{name}.npz", **arrays)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            cases = {"good": ("whole", 60), "bad": ("whole", 3), "half": ("half", 60)}
            cases["other"] = ("other", 3)
            return {
                name: trained(name, f"data.path={folder}/{file}.npz", f"steps={steps}")
                for name, (file, steps) in cases.items()
            }

    return shared_once("gated", make)


@pytest.fixture
def runs(made: tuple[Path, dict[str, str]], place: Path) -> dict[str, str]:
    """Be in a folder with a copy of the runs; return their ids."""
    shutil.rmtree(place / "mlruns")
    shutil.copytree(made[0] / "mlruns", place / "mlruns")
    return made[1]


def test_what_is_worse_by_more_exits_3(runs: dict[str, str], main: Main) -> None:
    values = {name: evaluate(runs[name]).metrics for name in ("good", "bad")}
    done = main("gate", "bad", "--against", "good")
    apart = values["bad"]["accuracy"] - values["good"]["accuracy"]
    assert done.returncode == 3 and apart < -0.3
    assert done.stdout.count("\n") == 1
    assert done.stdout.startswith("worse: accuracy ")
    assert done.stdout.endswith(", may be worse by 0\n")
    for name, found in values.items():
        assert f"{found['accuracy']:.4f} of {name} ({runs[name][:8]}, step " in done.stdout
    assert f"difference {apart:+.4g} (95 % interval -" in done.stdout
    assert main("gate", "good", "--against", "bad").returncode == 0
    allowed = ["--max-drop", f"accuracy={-apart}", "--max-drop", "macro_f1=1"]
    done = main("gate", "bad", "--against", "good", *allowed, "--markdown")
    assert done.returncode == 0
    head, line, *rows = [row.strip("| ").split(" | ") for row in done.stdout.splitlines()]
    assert line == ["---"] * len(head) and head[-2] == "may be worse by"
    assert [row[0] for row in rows] == ["accuracy (max)", "macro_f1 (max)"]
    assert {row[-1] for row in rows} == {"passed"} and {len(row) for row in rows} == {len(head)}


def test_the_same_test_set_under_other_training_data_is_shared(
    runs: dict[str, str], main: Main
) -> None:
    done = main("gate", "half", "--against", "good", "--max-drop", "loss=0", "--json")
    found = json.loads(done.stdout)
    (row,) = found["metrics"]
    assert (row["name"], row["mode"]) == ("loss", "min")
    assert (found["examples"], found["draws"]) == (60, 10_000)
    for name, value in (("half", row["value"]), ("good", row["against"])):
        assert value == evaluate(runs[name]).loss
    assert row["interval"][0] < row["difference"] == row["value"] - row["against"]
    assert done.returncode == (0 if found["passed"] else 3)
    assert found["passed"] is (row["difference"] <= 0)
    again = gate("half", against="good", max_drop={"loss": 0.0})
    assert json.loads(json.dumps(again.plain())) == found


def test_what_cannot_be_compared_exits_2(runs: dict[str, str], main: Main) -> None:
    def refused(*words: str) -> str:
        done = main("gate", *words)
        assert (done.returncode, done.stdout) == (2, "")
        return done.stderr

    both = ["good", "--against", "other"]
    said = f"gate: run {runs['good']} and run {runs['other']} do not share the test set: its labels"
    assert said in refused(*both)
    assert "there is no such run" in refused("good", "--against", "nobody")
    assert "has no such metric; there are accuracy, loss, bal" in refused(*both, "--max-drop=x=1")
    assert "roc_auc has no interval" in refused(*both, "--max-drop=roc_auc=1", "--significant")
    assert "must be METRIC=AMOUNT" in refused(*both, "--max-drop=accuracy")
    assert "names loss twice" in refused(*both, "--max-drop=loss=1", "--max-drop=loss=2")
    assert "one of the two" in refused(*both, "--json", "--markdown")
    assert "has the checkpoints [60], best, latest" in refused(*both, "--step=7")
    with pytest.raises(api.BadInput, match=r"must be a finite number"):
        gate("good", against="bad", max_drop={"loss": -1.0})


@pytest.mark.long
def test_runs_of_other_threads_are_scored_in_processes_of_their_own(
    runs: dict[str, str], made: tuple[Path, dict[str, str]], waymark: Callable[..., Done]
) -> None:
    there = ["data=arrays", f"data.path={made[0]}/whole.npz", "steps=60", "progress=false"]
    done = waymark("run", *there, "run_name=one", "runtime.intra_op_threads=1", cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
    done = waymark("gate", "one", "--against", "good", "--json", cwd=Path.cwd())
    assert done.returncode in (0, 3), done.stderr
    (row,) = json.loads(done.stdout)["metrics"]
    for name, key in (("one", "value"), ("good", "against")):
        alone = waymark("evaluate", name, "--json", cwd=Path.cwd())
        assert json.loads(alone.stdout)["accuracy"] == row[key]


def test_a_champion_is_replaced_by_a_challenger_that_passes(
    runs: dict[str, str], main: Main
) -> None:
    assert main("register", "bad", "digits", "--alias", "champion").returncode == 0
    champion = "models:/digits@champion"
    for challenger, against in (("good", "bad"), ("bad", "good")):
        done = main("gate", challenger, "--against", champion, "--json")
        found = json.loads(done.stdout)
        assert (found["against"]["run_id"], found["against"]["name"]) == (runs[against], champion)
        assert done.returncode == (0 if challenger == "good" else 3)
        if done.returncode == 0:
            assert main("register", challenger, "digits", "--alias", "champion").returncode == 0
    assert evaluate(champion).accuracy == evaluate(runs["good"]).accuracy
