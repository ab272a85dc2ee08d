"""Files of Keras's through the program: begun from, resumed without, done again, handed on."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waymark import api, names
from waymark.config.compose import compose_config
from waymark.evaluation.restore import load_data

from tests.support.ends import local_end
from tests.support.processes import THREADS, Main, killed

pytestmark = pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")  # of Keras
TRUST = "trusted_modules=[fine_tuned]"
COMMON = ["optimizer=adamw", "batch_size=8", "steps=30", "save.every=10", "eval_every=10", THREADS]
COMMON += ["save=npz", "progress=false"]
MODULE = """
import keras
import numpy as np
from keras import layers


def net(input_shape, outputs):
    model = keras.Sequential([
        layers.Flatten(), layers.Dense(6), layers.BatchNormalization(), layers.Dropout(0.3),
        layers.Dense(outputs),
    ])
    model.build((None, *input_shape))
    with np.load("downloaded.npz") as archive:
        model.set_weights([archive[name] for name in archive.files])
    return model
"""


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a function that needs a file of weights, and a `.keras` file."""
    import keras
    from keras import layers

    folder = tmp_path_factory.mktemp("pretrained")
    keras.utils.set_random_seed(8)
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(6), layers.BatchNormalization(),
         layers.Dropout(0.3), layers.Dense(10)]
    )  # fmt: skip
    model.compile("adam", "mse")
    model.save(folder / "model.keras")
    np.savez(folder / "downloaded.npz", *model.get_weights())
    (folder / "fine_tuned.py").write_text(MODULE)
    return folder


BUILD_TOO = pytest.mark.parametrize(
    "run", ["file", pytest.param("build", marks=pytest.mark.long)], indirect=True
)
FILE_TOO = pytest.mark.parametrize(
    "run", ["build", pytest.param("file", marks=pytest.mark.long)], indirect=True
)
Run = tuple[Path, list[str], Path, str]


@pytest.fixture(scope="module")
def run(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    empty_store: Path,
    pretrained: Path,
    small: Path,
) -> Run:
    """Return folder and settings of a run, the file that brought its weights, and its id."""
    folder = tmp_path_factory.mktemp(request.param)
    shutil.copytree(empty_store, folder / "mlruns")
    shutil.copytree(pretrained, folder, dirs_exist_ok=True)
    file = {"build": "downloaded.npz", "file": "model.keras"}[request.param]
    model = {"build": "model.build=fine_tuned.net", "file": "model.file=model.keras"}[request.param]
    words = ["model=keras", model, "data=arrays", f"data.path={small}", *COMMON]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        return folder, words, folder / file, api.run(*words).run_id


@pytest.fixture
def here(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(run[0])
    monkeypatch.syspath_prepend(run[0])
    return run


@contextmanager
def gone(file: Path) -> Iterator[None]:
    """Let a file be there no more for a while."""
    away = file.rename(f"{file}.away")
    try:
        yield
    finally:
        away.rename(file)


def files_of(folder: Path, key: str) -> Path:
    (found,) = folder.glob(f"mlruns/artifacts/*/{key}/artifacts")
    return found


@FILE_TOO
def test_resumed_without_what_the_weights_came_from_to_the_same_bits(
    here: Run, client: Callable[[Path], Any], main: Main
) -> None:
    folder, words, file, whole = here
    key = killed(17, *words)
    with gone(file):
        resumed = main("resume", key, TRUST, "progress=false")
        assert resumed.returncode == 0, resumed
        evaluated = main("evaluate", key, TRUST)
        assert evaluated.returncode == 0, evaluated
    (accuracy,) = re.findall(r"test accuracy, restored +(.*)", resumed.stdout)
    assert f"accuracy {accuracy}," in evaluated.stdout
    assert local_end(folder, key) == local_end(folder, whole)
    assert (files_of(folder, key) / "model.json").is_file()
    facts = [
        json.loads((files_of(folder, k) / "environment.json").read_text()) for k in (whole, key)
    ]
    assert facts[0]["own"] == facts[1]["own"] and facts[0]["code"] == facts[1]["code"]
    tags = [client(folder).get_run(each).data.tags for each in (whole, key)]
    assert tags[0][names.INITIAL_WEIGHTS] == tags[1][names.INITIAL_WEIGHTS]
    assert (names.MODEL_DIGEST in tags[0]) == (file.name == "model.keras")


@BUILD_TOO
def test_a_rerun_says_that_other_weights_came(here: Run, main: Main) -> None:
    import keras

    folder, _, file, whole = here
    by_file = file.name == "model.keras"
    model = keras.models.load_model(folder / "model.keras", compile=False)
    model.set_weights([2 * value for value in model.get_weights()])
    with gone(file):
        missing = main("rerun", whole, TRUST)
        assert (missing.returncode, len(missing.stderr.splitlines())) == (2, 1), missing
        assert file.name in missing.stderr
        model.save(file) if by_file else np.savez(file, *model.get_weights())
        done = main("rerun", whole, TRUST)
    assert done.returncode == 3, done
    assert "the initial weights differ: " in done.stdout
    assert ("model.file: " in done.stdout) == by_file


@pytest.mark.long
@BUILD_TOO
def test_without_a_checkpoint_the_same_weights_are_needed(here: Run, main: Main) -> None:
    import keras

    folder, words, file, _ = here
    model = keras.models.load_model(folder / "model.keras", compile=False)
    model.set_weights([2 * value for value in model.get_weights()])
    key = killed(1, *words)
    with gone(file):
        assert main("resume", key, TRUST).returncode == 2
        model.save(file) if file.name == "model.keras" else np.savez(file, *model.get_weights())
        other = main("resume", key, TRUST)
        assert (other.returncode, len(other.stderr.splitlines())) == (2, 1), other
        assert f"that run {key} started from" in other.stderr
    assert main("resume", key, TRUST).returncode == 0


LOADED = """
import sys
import numpy as np
import tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(2)
import keras
model = keras.models.load_model("exported/model.keras")
np.save("theirs.npy", model(np.load("batch.npy"), training=False))
print([name for name in sys.modules if name.startswith("waymark")])
"""


@BUILD_TOO
def test_what_is_exported_computes_the_same_bits(here: Run, main: Main, tmp_path: Path) -> None:
    import keras

    folder, words, file, whole = here
    with gone(file):
        done = main("export", whole, str(tmp_path / "exported"), "--to", "keras", TRUST)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert [path.name for path in (tmp_path / "exported").iterdir()] == ["model.keras"]
    config = compose_config([*words]).config
    data = load_data(config)
    raw = data.x_test[:50]
    batch = raw.astype(np.float32) / np.float32(255)
    with np.load(files_of(folder, whole) / "checkpoints" / "weights-30.npz") as archive:
        state = dict(archive)
    config.model.initial(data.spec, lambda i: None)
    ours = config.model.logits(state, batch, None)
    theirs = keras.models.load_model(tmp_path / "exported" / "model.keras")(raw, training=False)
    np.testing.assert_array_equal(theirs, ours)
    np.testing.assert_array_equal(plain_keras(tmp_path, raw), ours)


def test_of_averaged_weights_is_exported_what_evaluate_scores(
    main: Main, tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras

    monkeypatch.chdir(tmp_path)
    words = ["model=mlp", "model.settings.hidden=[6]", "data=arrays", f"data.path={small}", *COMMON]
    words += ["optimizer.use_ema=true", "optimizer.learning_rate=0.05"]
    key = api.run(*words).run_id
    done = main("export", key, "out", "--to", "keras")
    assert done.returncode == 0, done
    data = load_data(compose_config(words).config)
    model = keras.models.load_model(tmp_path / "out" / "model.keras")
    outputs = model(data.x_test, training=False)
    entropies = keras.losses.sparse_categorical_crossentropy(data.y_test, outputs, from_logits=True)
    scored = api.evaluate(key).loss
    np.testing.assert_allclose(np.mean(entropies), scored, rtol=1e-5)
    with np.load(files_of(tmp_path, key) / "checkpoints" / "weights-30.npz") as archive:
        raw = [archive[f"sequential/{each.path}"] for each in model.trainable_variables]
    assert not any(map(np.array_equal, raw, model.trainable_variables))


def plain_keras(folder: Path, batch: np.ndarray) -> np.ndarray:
    """Return what a process that knows nothing of Waymark computes by the file."""
    np.save(folder / "batch.npy", batch)
    own = {key: text for key, text in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-P", "-c", LOADED], cwd=folder, env=own,
                          capture_output=True, text=True)  # fmt: skip
    assert done.stdout.splitlines()[-1:] == ["[]"], done
    return np.asarray(np.load(folder / "theirs.npy"))


@BUILD_TOO
def test_a_checkpoint_is_chosen(here: Run, main: Main, tmp_path: Path) -> None:
    import keras

    folder, *_, whole = here
    target = str(tmp_path / "out")
    file = api.export(whole, target, TRUST, step="10")
    first = file.read_bytes()
    assert api.export(whole, target, TRUST, step="20").read_bytes() != first
    for word in ("best", "latest"):
        step = api.evaluate(whole, TRUST, step=word).step
        model = keras.models.load_model(api.export(whole, target, TRUST, step=word))
        with np.load(files_of(folder, whole) / f"checkpoints/weights-{step}.npz") as archive:
            saved = [archive[name] for name in archive.files if archive[name].shape == (64, 6)]
        assert any(np.array_equal(model.get_weights()[0], value) for value in saved), word
    refused = main("export", whole, target, "--to", "keras", "--step", "11", TRUST)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused
    (tmp_path / "file").write_text("")
    refused = main("export", whole, str(tmp_path / "file" / "x"), "--to", "keras", TRUST)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused
    assert [path.name for path in Path(target).iterdir()] == ["model.keras"]


@pytest.mark.parametrize(
    "run", ["file", pytest.param("build", marks=pytest.mark.long)], indirect=True
)
def test_a_model_of_the_other_kind_takes_the_place_of_a_recorded_one(
    here: Run, pretrained: Path
) -> None:
    _, words, file, whole = here
    other = {
        "model.keras": "model.build=fine_tuned.net",
        "downloaded.npz": "model.file=model.keras",
    }[file.name]
    assert (pretrained / file.name).is_file()
    result = api.run(other, "steps=4", TRUST, config_from=whole)
    expected = api.run(*words[:1], other, *words[2:], "steps=4")
    assert result.state_digest == expected.state_digest


EVIL = [
    {"class_name": "__lambda__", "config": {"code": "", "defaults": None, "closure": None}},
    {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"},
    {"module": "keras.layers", "class_name": "Lambda", "config": {"function": "x"}},
    {"module": "evil", "class_name": "Evil", "config": {}, "registered_name": "Evil"},
]


@pytest.mark.parametrize("command", ["evaluate", "resume", "export"])
@BUILD_TOO
def test_a_forged_architecture_is_refused_before_anything_is_imported(
    command: str, here: Run, main: Main, tmp_path: Path
) -> None:
    folder, *_, whole = here
    (folder / "evil.py").write_text("open('imported', 'w')\n")
    path = files_of(folder, whole) / "model.json"
    content = path.read_bytes()
    words = {"resume": ["steps=40"], "export": [str(tmp_path), "--to", "keras"]}.get(command, [])
    try:
        for evil in EVIL:
            body = json.loads(content)
            body["config"]["layers"][1]["config"]["activation"] = evil
            path.write_text(json.dumps(body))
            done = main(command, whole, *words, TRUST)
            assert (done.returncode, done.stdout) == (2, ""), done
            assert len(done.stderr.splitlines()) == 1, done
            assert "recorded in " in done.stderr
        path.write_text("{")
        assert main(command, whole, *words, TRUST).returncode == 2
    finally:
        path.write_bytes(content)
    assert not (folder / "imported").exists()
