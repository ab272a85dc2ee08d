"""The commands as functions: the page on them is true, and a configuration may be an object."""

import ast
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import waymark
import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from waymark import BadInput, api, configure, evaluate, rerun, resume, run, runs, sweep, sync, ui
from waymark.config.compose import compose_config, from_config
from waymark.config.schema import GROUP_PROTOCOLS
from waymark.models.cnn import Cnn

from tests.support.processes import Main, Open, answers, free_port, poll

DOCS = Path(__file__).parent.parent / "docs"
PAGES = [DOCS / "library.md", DOCS / "library-models.md"]  # the second goes on from the first
SHORT = ["steps=4", "save.every=2", "runtime.intra_op_threads=2", "progress=false"]


def test_the_pages_are_true(place: Path, client: Open, capsys: pytest.CaptureFixture[str]) -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert set(waymark.__all__) - {"BadInput", "Failed"} <= set(names)
    assert (place / "curves.png").read_bytes().startswith(b"\x89PNG")
    rows = (place / "table.csv").read_text().splitlines()
    assert len(rows) == 1 + len(names["comparison"].rows) == 3  # two seeds of one configuration
    assert f"identical to run {names['second'].run_id}" in capsys.readouterr().out
    read = pd.read_csv(place / "table.csv", keep_default_na=False, na_values=[""])
    pd.testing.assert_frame_equal(names["frame"], read, check_dtype=False)
    longer, history = names["longer"], names["longer"].history
    assert [*history.index] == [*range(1, 81)], "of the life before the resume, too"
    for key in history:
        recorded = client(place).get_metric_history(longer.run_id, key)
        assert {point.step: point.value for point in recorded} == dict(history[key].dropna())
    for each in ("result", "comparison", "verdict"):
        assert names[each]._repr_html_().startswith("<table>")


@pytest.mark.parametrize("name", waymark.__all__)
def test_everything_the_package_offers_is_there(name: str) -> None:
    assert getattr(waymark, name) is getattr(api, name)
    assert getattr(waymark, name).__doc__


def test_type_checkers_and_completion_know_what_the_package_offers() -> None:
    tree = ast.parse(Path(waymark.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = [alias.name for node in block.body if isinstance(node, ast.ImportFrom)
            for alias in node.names]  # fmt: skip
    assert sorted(seen) == sorted(waymark.__all__) and {*waymark.__all__} <= {*dir(waymark)}


@pytest.mark.long
def test_a_script_is_checked_by_its_types(tmp_path: Path) -> None:
    """Its author has the wheel, whose types count because of a file in it."""
    script = """
        from waymark import compare, run
        import waymark
        result = run("steps=20", config=3)
        reveal_type(result.restored_accuracy)
        reveal_type(compare(result.run_id).keys)
        waymark.sweeep("steps=20")
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", "mypy", "script.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    wrong, accuracy, keys, unknown, _ = done.stdout.splitlines()
    assert wrong.startswith('script.py:4: error: Argument "config" to "run" has incompatible')
    assert accuracy.endswith('"float | None"') and keys.endswith('"list[str]"')
    assert unknown.startswith('script.py:7: error: Module has no attribute "sweeep"')


def test_what_the_package_does_not_offer_is_an_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        getattr(waymark, "runn")  # noqa: B009


def test_functions_stay_functions_whatever_is_imported() -> None:
    program = """
import importlib, pkgutil, waymark
for module in pkgutil.walk_packages(waymark.__path__, "waymark."):
    if module.name != "waymark.__main__":
        importlib.import_module(module.name)
for name in waymark.__all__:
    assert callable(getattr(waymark, name)), name
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=DOCS.parent)


@pytest.mark.parametrize(
    "overrides",
    [[], ["model=cnn", "save=npz"], ["save.keep_best={metric: test/loss, mode: min}"]],
    ids=" ".join,
)
def test_a_typed_configuration_is_recorded_as_its_overrides_are(overrides: list[str]) -> None:
    whole = compose_config(overrides)
    typed = from_config(configure(*overrides))
    assert yaml.safe_load(typed.record()) == yaml.safe_load(whole.record())
    assert typed.config == whole.config
    assert typed.params() == whole.params()


def test_a_typed_configuration_gives_the_same_bits(place: Path) -> None:
    by_words = run(*SHORT, "model=softmax", "seed=3", "optimizer.learning_rate=0.01")
    config = configure(*SHORT)
    optimizer = replace(config.optimizer, learning_rate=0.01)
    by_object = run(config=replace(config, seed=3, optimizer=optimizer))
    assert by_object.run_id != by_words.run_id
    assert by_object.state_digest == by_words.state_digest
    assert rerun(by_object.run_id).identical


class Mine(Cnn):  # type: ignore[misc]
    """A class of the user's own."""


def test_a_class_of_ones_own_is_named_after_itself(place: Path) -> None:
    config = configure(*SHORT)
    mine = Mine(init_stddev=0.1, init_bias=0.1, keep_prob=1.0)
    recorded = from_config(replace(config, model=mine))
    assert recorded.choices == {
        **dict.fromkeys(GROUP_PROTOCOLS, ""),
        **recorded.choices,
        "model": "mine",
    }
    assert recorded.values["model"]["_target_"] == f"{__name__}.Mine"
    assert recorded.values["model"]["keep_prob"] == 1.0


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: run("stesp=3"), "nearest is steps"),
    (lambda: run("steps=0"), "steps=0"),
    (lambda: run("steps=3", config_from="nothing"), "'nothing'"),
    (lambda: run(config=replace(configure(), batch_size=4001)), "batch_size=4001"),
    (lambda: configure("model=vgg"), "softmax"),
    (lambda: evaluate("nothing"), "'nothing'"),
    (lambda: evaluate(None, checkpoint="nothing.npz"), "nothing.npz"),
    (lambda: evaluate("nothing", checkpoint="nothing.npz"), "one of the two"),
    (lambda: evaluate(None), "one of the two"),
    (lambda: evaluate(None, checkpoint="nothing.npz", step="3"), "step=3"),
    (lambda: run("steps=3", config=configure()), "config="),
    (lambda: run(config=configure(), config_from="nothing"), "config="),
    (lambda: sweep("steps=0,-1"), "none of the 2 trials"),
    (lambda: sweep("stesp=3,4"), "stesp"),
    (lambda: sweep("seed=1,2", "--nonsense"), "--nonsense"),
    (lambda: runs(tracking_uri="sqlite:///nowhere/mlflow.db"), "nowhere"),
    (lambda: resume("nothing"), "'nothing'"),
    (lambda: rerun("nothing"), "'nothing'"),
    (lambda: api.compare("nothing", "none"), "'nothing'"),
    (lambda: api.compare(), "two runs or more"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_refusals_are_one_sentence(number: int, place: Path) -> None:
    work, words = REFUSED[number]
    with pytest.raises(BadInput) as refused:
        work()
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.long
def test_the_ui_is_opened_and_closed(place: Path) -> None:
    port = free_port()
    assert (runs(), sync()) == ([], [])
    with ui(port=port) as opened:
        assert opened.is_ours and opened.address.startswith(f"http://127.0.0.1:{port}/")
        page = poll(lambda: answers(opened.address.partition("#")[0]))
        assert b"MLflow" in page
        with pytest.raises(BadInput, match=f"--port={port}"):
            ui(port=port)
    assert answers(opened.address) is None


def test_a_sweep_is_the_commands_and_leaves_the_process_as_it_was(place: Path, main: Main) -> None:
    words = ["steps=2,4,-1", "save.every=2", "runtime.intra_op_threads=2", "progress=false"]
    before = dict(os.environ), list(sys.argv), list(sys.path)
    with initialize_config_dir(str(place), version_base="1.3"):  # the caller uses Hydra as well
        found = sweep(*words)
        assert GlobalHydra.instance().is_initialized()
    assert (dict(os.environ), list(sys.argv), list(sys.path)) == before
    assert [(each.name, each.status) for each in found.trials] == [
        ("steps=2", "FINISHED"),
        ("steps=4", "FINISHED"),
        ("steps=-1", "FAILED"),
    ]
    assert found.best and found.best.objective == max(each.objective or 0 for each in found.trials)
    assert (found.exit_status, found.run_id in [each.id for each in runs()]) == (1, True)
    again = main("run", "-m", *words)
    assert (again.returncode, "2 finished, 1 failed; " in again.stdout) == (1, False)
    assert "2 finished" in again.stdout
