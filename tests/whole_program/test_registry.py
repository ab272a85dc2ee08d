"""A checkpoint as a model of MLflow's: logged by its run, registered, resolved, served."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from waymark import BadInput, api
from waymark.comparison.own_code import own_files
from waymark.execution.execute import Result
from waymark.execution.mlflow_model import to_serve

from tests.support import engines
from tests.support.data import pictures, write_pictures
from tests.support.packages import link_packages
from tests.support.processes import BOUND, THREADS, Done, Main, Open, answers, free_port, poll

SHORT = ["data=arrays", "save=npz", "steps=20", "save.every=5", "eval_every=5", "progress=false"]
SHORT += ["batch_size=10", "save.max_to_keep=2", "save.log_model=true", THREADS]
BEST = "save.keep_best={metric: test/accuracy, mode: max}"

# A program that cannot import Waymark, and prints what a model says of some pictures.
STRANGER = """
import sys, json
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "waymark":
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import numpy as np, mlflow.pyfunc, mlflow.tensorflow
images = np.load(sys.argv[1])
for folder in sys.argv[2:]:
    model = mlflow.pyfunc.load_model(folder)
    (name,) = model.metadata.get_input_schema().input_names()
    found = model.predict({name: images})
    raw = mlflow.tensorflow.load_model(folder)(**{name: images})
    assert found == {key: x.numpy().tolist() for key, x in raw.items()}
    print(json.dumps(found))
"""


class Logged:
    """A folder with a run whose last and best checkpoints are models of MLflow's."""

    def __init__(self, folder: Path, result: Result, images: np.ndarray) -> None:
        self.folder, self.result, self.images = folder, result, images
        self.run_id = result.run_id

    def logits(self, step: int) -> np.ndarray:
        """Return what NumPy computes of the pictures, by a checkpoint's file."""
        with np.load(self.result.folder / f"checkpoints/weights-{step}.npz") as state:
            pixels = self.images.reshape(len(self.images), -1).astype(np.float32) / np.float32(255)
            return np.asarray(pixels @ state["weights"])


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Logged:
    folder = tmp_path_factory.mktemp("logged")
    shutil.copytree(empty_store, folder / "mlruns")
    data = write_pictures(folder / "small.npz", 200, 60)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = api.run(*SHORT, f"data.path={data}", BEST, "optimizer.learning_rate=0.3")
    return Logged(folder, result, pictures(200, 60)["x_test"][..., np.newaxis])


@pytest.fixture
def here(logged: Logged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder of this test, with a copy of the run."""
    shutil.copytree(logged.folder, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def models(client: Any, run_id: str) -> dict[int, Any]:
    """Return the models that MLflow has of a run, by step."""
    experiment = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models([experiment], f"source_run_id = '{run_id}'")
    return {int(model.tags["waymark.step"]): model for model in found}


def agree(logged: Logged, found: dict[str, Any], step: int) -> None:
    """A model's answers are those of the checkpoint, of which NumPy is the oracle."""
    expected = logged.logits(step)
    np.testing.assert_allclose(np.float32(found["logits"]), expected, rtol=1e-4, atol=1e-4)
    apart = np.sort(expected, 1)[:, -1] - np.sort(expected, 1)[:, -2] > 1e-3
    assert apart.sum() > 50
    assert (np.array(found["classes"]) == expected.argmax(1))[apart].all()


def test_the_last_and_the_best_checkpoint_are_models_that_need_no_waymark(
    logged: Logged, client: Open, tmp_path: Path, environment: dict[str, str]
) -> None:
    mine = client(logged.folder)
    run, made = mine.get_run(logged.run_id), models(mine, logged.run_id)
    accuracies = {p.step: p.value for p in mine.get_metric_history(logged.run_id, "test/accuracy")}
    best = min(step for step, value in accuracies.items() if value == max(accuracies.values()))
    assert set(made) == {best, 20}
    shown = {output.model_id: output.step for output in run.outputs.model_outputs}
    assert shown == {model.model_id: step for step, model in made.items()}
    (data,) = [each.dataset for each in run.inputs.dataset_inputs]
    for step, model in made.items():
        assert (model.name, model.status, model.source_run_id) == (
            f"step-{step}",
            "READY",
            logged.run_id,
        )
        linked = {metric.key: metric for metric in model.metrics}
        assert linked["test/accuracy"].value == accuracies[step]
        assert ("restored/accuracy" in linked) == (step == 20)
        for metric in linked.values():
            assert (metric.dataset_name, metric.dataset_digest) == (data.name, data.digest)
            assert (metric.run_id, metric.step) == (logged.run_id, step)
    folder = Path(made[20].artifact_location)
    described = mlflow.models.Model.load(str(folder))
    assert described.model_id == made[20].model_id and described.run_id == logged.run_id
    assert described.signature.inputs.inputs[0].shape[0] == -1
    assert {spec.name for spec in described.signature.outputs} >= {"logits", "classes"}
    required = (folder / "requirements.txt").read_text().split()
    assert {line.partition("==")[0] for line in required} >= {"mlflow", "tensorflow", "numpy"}
    assert all("==" in line for line in required)
    assert len(described.metadata["class_names"]) == 10
    np.save(tmp_path / "images.npy", logged.images)
    program = [sys.executable, "-I", "-c", STRANGER, str(tmp_path / "images.npy")]
    places = [model.artifact_location for model in made.values()]
    done = subprocess.run([*program, *places], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for step, line in zip(made, done.stdout.splitlines(), strict=True):
        agree(logged, json.loads(line), step)
    assert not list(logged.folder.glob("mlruns/artifacts/*/*/models/*/savedmodel"))  # delivered
    generated = [name for name in sys.modules if name.startswith("__autograph_generated")]
    assert not {*generated} & {*own_files()}  # the next run would record TensorFlow's own code


def test_a_checkpoint_is_registered_once_and_is_what_its_address_means(
    logged: Logged, here: Path, client: Open, main: Main
) -> None:
    done = main("register", logged.run_id, "digits", "--alias", "champion")
    assert done.returncode == 0, done
    assert done.stdout.splitlines() == [
        f"version 1 of digits: step 20 of run {logged.run_id}",
        "models:/digits@champion",
    ]
    again = api.register(logged.run_id[:8], "digits", alias="challenger")
    assert (again.version, again.new, again.address) == (1, False, "models:/digits@challenger")
    mine = client(here)
    other = api.register(logged.run_id, "digits", alias="champion", step="15")  # no model yet
    assert (other.version, other.step) == (2, 15)
    aliases = mine.get_registered_model("digits").aliases
    assert aliases == {"champion": 2, "challenger": 1}
    assert {version.version for version in mine.search_model_versions("name = 'digits'")} == {1, 2}
    assert mine.get_model_version("digits", 2).tags["waymark.step"] == "15"
    assert set(models(mine, logged.run_id)) >= {15, 20}

    for address, step in [("models:/digits@challenger", 20), ("models:/digits/2", 15)]:
        found, same = api.evaluate(address), api.evaluate(logged.run_id, step=str(step))
        assert (found.step, found.accuracy) == (step, same.accuracy)
    by_id = f"models:/{models(mine, logged.run_id)[20].model_id}"
    assert api.evaluate(by_id).step == 20
    fork = mine.get_run(api.run("steps=21", fork="models:/digits/2").run_id)
    assert (fork.data.params["fork.run"], fork.data.params["fork.step"]) == (logged.run_id, "15")
    for words, said in {
        ("resume", "models:/digits@champion"): "takes the run",
        ("rerun", "models:/digits/1"): "takes the run",
        ("evaluate", "models:/digits@best"): "champion (version 2)",
        ("run", "--fork", "models:/digits/9"): "versions 2, 1",
        ("run", "--fork", "latest@last"): "'last' is no number, best or latest",
        ("evaluate", "models:/digits/9"): "versions 2, 1",
        ("evaluate", "models:/letters@champion"): "those are: digits",
        ("evaluate", "models:/digits"): "is no address",
        ("evaluate", "models:/digits/1", "--step", "15"): "--step=15",
        ("register", "nothing", "digits"): "there is no such run",
        ("register", logged.run_id, "a/b"): "'a/b'",
        ("register", logged.run_id, "digits", "--alias", "latest"): "reserved",
        ("register", logged.run_id, "digits", "--alias", "v1"): "reserved",
        ("register", logged.run_id, "digits", "--step", "1"): "has the checkpoints",
    }.items():
        done = main(*words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done
        assert said in done.stderr, done
    mine.create_registered_model("foreign")
    mine.create_model_version("foreign", str(here))
    with pytest.raises(BadInput, match="is not of Waymark's making"):
        api.evaluate("models:/foreign/1")


@pytest.mark.filterwarnings("ignore")  # of MLflow, as it is imported
def test_retention_and_the_end_of_the_run_leave_what_is_registered(
    logged: Logged, here: Path, client: Open, tmp_path: Path
) -> None:
    """The store is a copy in another folder, so that the models' places moved as well."""
    mine, before = client(here), models(client(logged.folder), logged.run_id)
    (best,) = set(before) - {20}
    api.register(logged.run_id, "digits", alias="champion", step="20")
    api.resume(logged.run_id, "steps=40", "save.keep_best=null", "save.max_to_keep=1")
    after = models(mine, logged.run_id)
    assert set(after) == {20, 40}  # one of a checkpoint that retention has removed went with it
    assert not Path(before[best].artifact_location.replace(str(logged.folder), str(here))).exists()
    version = mine.get_model_version_by_alias("digits", "champion")
    assert version.source.startswith(str(here))
    assert api.evaluate("models:/digits@champion").step == 20  # its checkpoint stays as well
    for path in next(
        here.glob(f"mlruns/artifacts/*/{logged.run_id}/artifacts/checkpoints")
    ).iterdir():
        path.unlink() if "-20." in path.name else None
    with pytest.raises(BadInput, match="is not kept any more; waymark serve and MLflow still load"):
        api.evaluate("models:/digits@champion")
    mine.delete_run(logged.run_id)
    with pytest.raises(BadInput, match=r"is not there .* waymark serve and MLflow still load"):
        api.evaluate("models:/digits@champion")
    moved = here.rename(tmp_path / "moved")
    os.chdir(moved)
    api.runs()  # whatever opens the store says where it lies now
    folder = client(moved).get_model_version_download_uri("digits", version.version)
    assert Path(folder).is_relative_to(moved)
    assert to_serve("models:/digits@champion", "latest", {}, tmp_path) == Path(folder)
    found = mlflow.pyfunc.load_model(folder).predict(logged.images)
    agree(logged, found, 20)


@pytest.mark.long
def test_mlflows_garbage_collection_leaves_what_is_registered(
    logged: Logged, here: Path, client: Open, environment: dict[str, str]
) -> None:
    mine = client(here)
    api.register(logged.run_id, "digits", alias="champion")
    mine.delete_run(logged.run_id)
    uri = f"sqlite:///{here}/mlruns/mlflow.db"
    program = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", uri]
    done = subprocess.run(program, env={**environment, "MLFLOW_TRACKING_URI": uri}, cwd=here)
    assert done.returncode == 0
    assert not list(here.glob(f"mlruns/artifacts/*/{logged.run_id}/artifacts/*"))
    found = client(here).get_model_version_by_alias("digits", "champion")
    assert sorted(path.name for path in Path(found.source).iterdir()) == sorted(
        path.name for path in Path(models_of_first(logged, client).artifact_location).iterdir()
    )


def models_of_first(logged: Logged, client: Open) -> Any:
    """Return the model of the last checkpoint as the run has left it."""
    return models(client(logged.folder), logged.run_id)[20]


@pytest.mark.long
def test_a_bare_environment_is_enough(
    logged: Logged, client: Open, tmp_path: Path, environment: dict[str, str]
) -> None:
    packages, images = tmp_path / "packages", tmp_path / "images.npy"
    packages.mkdir()
    link_packages(packages, "mlflow", "tensorflow")
    np.save(images, logged.images)
    program = f"""
import sys
sys.path.append({str(packages)!r})
import importlib.util
assert not any(map(importlib.util.find_spec, ["waymark", "hydra", "omegaconf", "pytest"]))
{STRANGER}"""
    words = [str(images), models_of_first(logged, client).artifact_location]
    command = [sys.executable, "-I", "-S", "-c", program, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    agree(logged, json.loads(done.stdout), 20)


def ask(address: str, body: object, kind: str = "application/json") -> tuple[int, str]:
    """Return status and text of the answer to a request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=BOUND) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture
def served(
    here: Path, logged: Logged, start: Callable[..., "subprocess.Popen[str]"]
) -> Iterator[tuple["subprocess.Popen[str]", str, str]]:
    """Serve the run's best checkpoint; yield the process, the address and the curl line."""
    said = here / "said"
    with said.open("w") as out, (here / "log").open("w") as log:
        words = ["serve", logged.run_id, "--step", "20", "--port", str(free_port())]
        process = start(*words, cwd=here, stdout=out, stderr=log)
    try:
        poll(lambda: said.read_text().count("\n") == 2 or process.poll() is not None, 120)
        address, curl = said.read_text().splitlines()
        yield process, address, curl
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
            process.wait(BOUND)


def test_mlflows_server_answers_as_evaluate_does_and_refuses_what_is_no_input(
    served: tuple["subprocess.Popen[str]", str, str], logged: Logged, main: Main
) -> None:
    process, address, curl = served
    name = mlflow.models.Model.load(str(example_of(curl).parent)).signature.inputs.input_names()[0]
    rows = logged.images.tolist()
    flat = logged.images.reshape(len(rows), -1).tolist()
    forms = {
        "inputs": {name: rows},
        "instances": [{name: row} for row in rows],
        "dataframe_split": {"columns": [name], "data": [[row] for row in flat]},
        "dataframe_records": [{name: row} for row in flat],
    }
    answered = {form: ask(address, {form: body}) for form, body in forms.items()}
    assert {status for status, _ in answered.values()} == {200}, answered
    first, *others = [json.loads(text)["predictions"] for _, text in answered.values()]
    assert all(other == first for other in others)
    agree(logged, first, 20)
    accuracy = float(np.mean(np.array(first["classes"]) == pictures(200, 60)["y_test"]))
    assert accuracy == api.evaluate(logged.run_id, step="20").accuracy

    wrong: dict[str, object] = {
        "another shape": {"inputs": {name: [[1, 2, 3]]}},
        "a text": {"inputs": {name: [["one"]]}},
        "no number": b'{"inputs": {"%s": [[NaN]]}}' % name.encode(),
        "too large a number": {"inputs": {name: (logged.images[:1].astype(int) + 999).tolist()}},
        "another name": {"inputs": {"nothing": rows}},
        "no input": {"rows": 10**9},
        "a pickle": b"\x80\x04\x95",
    }
    for what, body in wrong.items():
        status, text = ask(address, body)
        assert (what, status) == (what, 400), text
    assert "(-1, 8, 8" in ask(address, wrong["another shape"])[1]
    assert ask(address, b"x", "application/octet-stream")[0] == 415

    done = subprocess.run(shlex.split(curl), capture_output=True, text=True)
    assert len(json.loads(done.stdout)["predictions"]["classes"]) == 1
    port = address.rpartition(":")[2].partition("/")[0]
    done = main("serve", logged.run_id, "--port", port)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and f"--port={port}" in done.stderr
    process.send_signal(signal.SIGTERM)
    assert process.wait(BOUND) == 128 + signal.SIGTERM
    assert answers(address.replace("invocations", "ping")) is None


def example_of(curl: str) -> Path:
    """Return the file that a curl line sends."""
    return Path(next(word for word in shlex.split(curl) if word.startswith("@")).removeprefix("@"))


@pytest.mark.long
def test_what_is_on_a_server_is_used_where_nothing_of_it_is(
    server: tuple[str, Path],
    logged: Logged,
    main: Main,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server hands the artifacts on; each command is given in a folder of its own."""
    uri, data = f"tracking.uri={server[0]}", logged.folder / "small.npz"
    name = tmp_path.name

    def there(*words: str, status: int = 0) -> Done:
        folder = tmp_path / str(len([*tmp_path.iterdir()]))
        folder.mkdir()
        monkeypatch.chdir(folder)
        done = main(*words, uri)
        assert done.returncode == status, done
        return done

    for run, rate in (("good", "0.3"), ("bad", "1e-6")):
        words = [*SHORT, f"data.path={data}", f"optimizer.learning_rate={rate}"]
        there("run", *words, f"run_name={name}-{run}", f"experiment_name={name}")
    good, bad = f"{name}-good", f"{name}-bad"
    there("register", good, name, "--alias", "champion")
    champion = f"models:/{name}@champion"
    logits = {}
    for which in (good, champion):
        scored = json.loads(there("evaluate", which, "--json").stdout)
        out = tmp_path / f"{which.rpartition('@')[2]}.npz"
        told = there("predict", which, str(data), "-o", str(out)).stdout
        assert told.startswith(f"accuracy {scored['accuracy']:.4f}")
        model = tmp_path / "exported" / which.rpartition("@")[2]
        there("export", which, str(model), "--to", "savedmodel")
        program = [sys.executable, "-I", engines.__file__, "savedmodel", str(model / "savedmodel")]
        given, found = tmp_path / "given.npz", tmp_path / "found.npz"
        np.savez(given, inputs=logged.images)
        subprocess.run([*program, str(given), str(found), "2"], check=True)
        with np.load(out) as predicted, np.load(found) as served:
            np.testing.assert_array_equal(predicted["logits"], served["logits"])
            logits[which] = predicted["logits"]
    np.testing.assert_array_equal(logits[good], logits[champion])
    assert "passed" in there("gate", good, "--against", champion).stdout
    assert "worse" in there("gate", bad, "--against", champion, status=3).stdout
