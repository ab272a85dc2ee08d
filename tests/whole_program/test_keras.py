"""Keras models through the program: killed, resumed, done again, read by others, forged."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from waymark.config.compose import compose_config
from waymark.config.record import from_record
from waymark.errors import BadInput
from waymark.keras_import import import_keras

from tests.support.ends import End, local_end
from tests.support.processes import BOUND, THREADS, Done, Main, killed_and_resumed

BUILD = "model.build=tests.support.keras_models.batch_norm"
RUN = ["model=keras", BUILD, "optimizer=adamw", "batch_size=8", "save.max_to_keep=3", THREADS]
TRUST = "trusted_modules=[tests]"


@pytest.fixture(scope="module")
def data(small: Path) -> list[str]:
    return ["data=arrays", f"data.path={small}"]


@pytest.mark.long
def test_killed_in_its_process_resumed_and_done_again(
    place: Path,
    start: Callable[..., "subprocess.Popen[str]"],
    main: Main,
    data: list[str],
    undisturbed: Callable[..., End],
) -> None:
    words = [*RUN, "steps=300", "save.every=50", "eval_every=100"]
    with start("run", *words, *data, cwd=place) as process:
        assert process.stdout is not None
        key = process.stdout.readline().split()[1]
        assert any(line.startswith("Step: 0100") for line in process.stdout)
        process.kill()
        process.communicate(timeout=BOUND)
    assert process.returncode == -signal.SIGKILL
    done = main("resume", key, TRUST)
    assert done.returncode == 0, done
    assert local_end(place, key) == undisturbed(*words)
    again = main("rerun", key, TRUST)  # here, where other Keras models were built
    assert again.returncode == 0, again
    assert f"identical to run {key}" in again.stdout
    (told,) = re.findall(r"test accuracy, restored +(.*)", done.stdout)
    evaluated = main("evaluate", key, TRUST)
    assert f"accuracy {told}," in evaluated.stdout


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, empty_store: Path, data: list[str]
) -> tuple[Path, str]:
    """Return the folder of a run that was killed and resumed, saved as npz, and its id."""
    folder = tmp_path_factory.mktemp("keras")
    words = [*RUN, *data, "save=npz", "steps=40", "save.every=10", "eval_every=20"]
    return folder, killed_and_resumed(folder, empty_store, [*words, "progress=false"], TRUST)


def test_a_run_of_npz_files_ends_as_an_undisturbed_one(
    finished: tuple[Path, str], undisturbed: Callable[..., End]
) -> None:
    words = ["save=npz", "steps=40", "save.every=10", "eval_every=20"]
    assert local_end(*finished) == undisturbed(*RUN, *words)


def test_plain_numpy_and_keras_read_what_was_saved(finished: tuple[Path, str], small: Path) -> None:
    import keras

    from tests.support.keras_models import batch_norm

    folder, key = finished
    (run,) = folder.glob(f"mlruns/artifacts/*/{key}/artifacts")
    with np.load(run / "checkpoints" / "weights-40.npz") as archive:
        arrays = dict(archive)
    keras.utils.clear_session()
    model = batch_norm((8, 8, 1), 10)
    for variable in model.variables:
        variable.assign(arrays.pop(variable.path))
    assert {name for name in arrays if not name.startswith("adamw/")} == {"step"}
    with np.load(small) as given:
        pixels = given["x_test"][..., None].astype(np.float32) / np.float32(255)
        found = model.predict(pixels, verbose=0).argmax(1)
        right = float(np.mean(found == given["y_test"]))
    scores = yaml.safe_load((run / "evaluation" / "metrics.json").read_text())
    assert scores["accuracy"] == right


def test_weights_of_a_run_are_the_start_of_another(
    finished: tuple[Path, str], main: Main, data: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, key = finished
    monkeypatch.chdir(folder)
    (file,) = folder.glob(f"mlruns/artifacts/*/{key}/artifacts/checkpoints/weights-40.npz")
    words = [*RUN[:2], *data, "batch_size=8", THREADS]
    scored = main("evaluate", "--checkpoint", str(file), *words)
    assert scored.stdout.partition(",")[0] == main("evaluate", key, TRUST).stdout.partition(",")[0]


@pytest.mark.parametrize(
    "command", ["evaluate", "resume", "rerun", "run --config-from", "run --fork"]
)
def test_a_record_names_no_function_that_is_not_trusted(
    command: str, finished: tuple[Path, str], main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, key = finished
    monkeypatch.chdir(folder)
    done = main(*command.split(), key)
    assert (done.returncode, done.stdout) == (2, ""), done
    assert re.fullmatch(
        r"waymark: model\.build='tests.*trusted_modules=\[\.\.\.\]\.\n", done.stderr
    )


FORGED = [
    *("os.system", "antigravity.fly", "waymark.data.cache.clear", "waymark.files.replace_file"),
    *("waymark.models.mlp.Sequence", "waymark.models.keras.Keras", "waymark.models.mlp"),
    *("trusted.os.system", "trusted.system", "trusted", "", 3, None, "tests.x; import os"),
]


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_function_is_never_called(
    name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[Any] = []
    monkeypatch.setattr("os.system", called.append)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "trusted.py").write_text("import os\nfrom os import system\n")
    body = yaml.safe_load(compose_config(["model=mlp"]).record())
    body["model"] |= {"build": name, "settings": {}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(body))
    with pytest.raises(BadInput, match=r"^model\.build") as refused:
        from_record(path, {}, ["trusted"], ())
    assert "\n" not in str(refused.value)
    assert called == []
    assert "antigravity" not in sys.modules


def test_a_ready_made_model_of_a_record_needs_no_trust(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(compose_config(["model=mlp", "model.settings.hidden=[7]"]).record())
    assert from_record(path, {}, [], ()).config.model.settings["hidden"] == [7]


NEVER = """
import sys
from waymark import api
from waymark.processes import process_state
process_state.command_line = True
api.run("model=cnn", "batch_size=8", *sys.argv[1:])
print("keras" in sys.modules, "keras.src" in sys.modules)
"""


def test_without_a_keras_model_keras_is_never_imported(
    place: Path, data: list[str], environment: dict[str, str]
) -> None:
    words = [*data, "steps=2", "progress=false", THREADS, "optimizer.schedule=cosine"]
    done = subprocess.run([sys.executable, "-c", NEVER, *words], cwd=place, env=environment,
                          capture_output=True, text=True)  # fmt: skip
    assert done.stdout.splitlines()[-1] == "False False", done


@pytest.mark.parametrize("by", ["environment", "file"])
def test_another_backend_is_refused(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keras.json").write_text('{"backend": "jax"}')
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    variable = {"environment": ("KERAS_BACKEND", "jax"), "file": ("KERAS_HOME", str(tmp_path))}
    monkeypatch.setenv(*variable[by])
    if by == "file":
        monkeypatch.delenv("KERAS_BACKEND", raising=False)
    with pytest.raises(BadInput, match=r"^Keras's backend is 'jax'.*tensorflow"):
        import_keras()
    assert os.environ[variable[by][0]] == variable[by][1]


COMPUTES = """
import tensorflow as tf

one = tf.constant(1.0) + 0  # after which TensorFlow takes no other number of threads


def net(input_shape, outputs):
    import keras

    print("threads", tf.config.threading.get_intra_op_parallelism_threads())
    return keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(outputs)])
"""


@pytest.mark.long
def test_threads_are_set_before_a_model_s_module_is_imported(
    place: Path, data: list[str], waymark: Callable[..., Done]
) -> None:
    (place / "computes.py").write_text(COMPUTES)
    words = ["model=keras", "model.build=computes.net", *data, "steps=2", "save.every=2"]
    more = ["batch_size=8", "progress=false", "runtime.intra_op_threads=1"]
    done = waymark("run", *words, *more, cwd=place)
    assert done.returncode == 0, done
    assert "threads 1\n" in done.stdout


def test_a_refusal_comes_before_a_run(
    place: Path, main: Main, data: list[str], client: Callable[[Path], Any]
) -> None:
    for kind, said in (("own_step", "train_step"), ("few_outputs", "9 outputs")):
        build = f"model.build=tests.support.keras_models.{kind}"
        done: Done = main(
            "run", "model=keras", build, *data, "save.every=0", "batch_size=8", THREADS
        )
        assert (done.returncode, done.stdout) == (2, ""), done
        assert done.stderr.startswith(f"waymark: model.build='tests.support.keras_models.{kind}'")
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
    assert client(place).search_runs(["0", "1"]) == []
