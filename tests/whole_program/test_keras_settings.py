"""Keras's own settings, those of keras.json: recorded, and set again where a home has others."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import pytest
from waymark import api
from waymark.errors import BadInput

from tests.support.ends import local_end
from tests.support.processes import THREADS, Main

TRUST = "trusted_modules=[tests]"
GIVEN = {"epsilon": 0.25, "image_data_format": "channels_first"}
WORDS = ["model=keras", "model.build=tests.support.keras_models.channels_first", "save=npz"]
WORDS += ["steps=12", "save.every=4", "eval_every=4", "batch_size=8", "progress=false", THREADS]
PROGRAM = """
import sys
from tests.support.processes import killed
from waymark import api
print(api.run(*sys.argv[1:]).run_id, killed(6, *sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def recorded(
    tmp_path_factory: pytest.TempPathFactory,
    empty_store: Path,
    environment: dict[str, str],
    small: Path,
) -> tuple[Path, list[str], str, str]:
    """Return the folder and settings of two runs of another home, one of them killed, and both."""
    folder = tmp_path_factory.mktemp("settings")
    shutil.copytree(empty_store, folder / "mlruns")
    (folder / "home").mkdir()
    (folder / "home" / "keras.json").write_text(json.dumps(GIVEN))
    words = [*WORDS, "data=arrays", f"data.path={small}"]
    command = [sys.executable, "-c", PROGRAM, *words]
    env = {**environment, "KERAS_HOME": str(folder / "home")}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done
    whole, half = done.stdout.splitlines()[-1].split()
    return folder, words, whole, half


@contextmanager
def keras_told(name: str, value: Any) -> Iterator[None]:
    """Let a setting of Keras have another value for a while."""
    before = getattr(keras.config, name)()
    getattr(keras.config, f"set_{name}")(value)
    try:
        yield
    finally:
        getattr(keras.config, f"set_{name}")(before)


def test_a_run_of_another_home_goes_on_with_its_settings_to_the_same_bits(
    recorded: tuple[Path, list[str], str, str], main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, words, whole, half = recorded
    monkeypatch.chdir(folder)
    facts = json.loads(next(folder.glob(f"mlruns/*/*/{whole}/*/environment.json")).read_bytes())
    assert facts["keras"] == {"version": keras.__version__, "floatx": "float32", **GIVEN}
    now = {name: getattr(keras.config, name)() for name in GIVEN}
    assert not set(now.values()) & set(GIVEN.values())
    resumed = main("resume", half, TRUST)
    assert resumed.returncode == 0, resumed
    for name, value in GIVEN.items():
        said = f"waymark: Keras's {name} is {value}, as recorded, and not {now[name]}\n"
        assert resumed.stderr.count(said) == 1
    # Which own modules are copied depends on what this process has imported before.
    ends = [replace(local_end(folder, run), files=[]) for run in (half, whole)]
    assert ends[0] == ends[1]
    assert api.rerun(half, TRUST, "progress=false").identical
    metrics = json.loads(next(folder.glob(f"mlruns/*/*/{whole}/*/*/metrics.json")).read_bytes())
    found = api.evaluate(whole, TRUST)
    assert (found.accuracy, found.loss) == (metrics["accuracy"], metrics["loss"])
    assert {name: getattr(keras.config, name)() for name in GIVEN} == now
    with keras_told("image_data_format", "channels_first"):  # and with this home's epsilon
        assert api.run(*words).state_digest != local_end(folder, whole).digest


def test_floatx_is_set_for_what_is_recorded_and_refused_of_what_is_new(
    recorded: tuple[Path, list[str], str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, words, whole, _ = recorded
    monkeypatch.chdir(folder)
    scored = api.evaluate(whole, TRUST)
    with keras_told("floatx", "float64"):
        assert api.evaluate(whole, TRUST) == scored
        assert keras.config.floatx() == "float64"
        with pytest.raises(BadInput, match=r"^Keras's floatx is 'float64': .* float32") as refused:
            api.run(*words)
        assert "\n" not in str(refused.value)
