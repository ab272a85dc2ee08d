"""The whole program through its command line, on real digits: what it prints, writes, records."""

import hashlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from PIL import Image
from waymark import __version__
from waymark.table import size
from waymark.tracking.outbox import is_delivered

from tests.support.processes import BOUND, REPO, THREADS, Done, Main, kept_checkpoints, poll

TUTORIAL_LINE = r"Step: (\d{4}), Loss: (\d+\.\d{5}), Test_Acc: ([01]\.\d{5})"

STEPS = {
    "softmax": ["steps=60", "save.every=20", "eval_every=20"],
    "cnn": ["steps=6", "save.every=2", "eval_every=2"],
}
COMBINATIONS = [("cnn", "ckpt"), ("softmax", "ckpt"), ("softmax", "npz")]
combinations = pytest.mark.parametrize("combination", COMBINATIONS, ids="-".join)


@dataclass(frozen=True)
class Recorded:
    """One run of the program, what a fresh process made of it, and its record."""

    done: Done
    evaluated: Done | None
    id: str
    record: Run
    client: MlflowClient
    folder: Path  # of its artifacts

    def history(self, key: str) -> list[tuple[int, float]]:
        points = self.client.get_metric_history(self.id, key)
        return sorted((point.step, point.value) for point in points)

    def state(self, step: int) -> dict[str, np.ndarray]:
        """Read a checkpoint as plain NumPy and plain TensorFlow do."""
        checkpoints = self.folder / "checkpoints"
        if self.record.data.params["save"] == "npz":
            return dict(np.load(checkpoints / f"weights-{step}.npz"))
        import tensorflow as tf

        reader = tf.train.load_checkpoint(str(checkpoints / f"model_ckpt-{step}"))
        return {
            name: np.asarray(reader.get_tensor(name)) for name in reader.get_variable_to_shape_map()
        }


def plain_digest(state: dict[str, np.ndarray]) -> str:
    """Compute a state's digest from the sentence in docs/how-it-works.md alone."""
    total = hashlib.sha256()
    for name, array in sorted(state.items()):
        total.update(f"{name}\n{array.dtype.name}\n{array.shape}\n".encode())
        total.update(array.astype(array.dtype.newbyteorder("<")).tobytes("C"))
    return total.hexdigest()


def run_id(done: Done) -> str:
    """Return the id on the line with which every run begins."""
    found = re.match(r"run ([0-9a-f]{32}) \(\S+\)(, resumed after step \d+)?\n", done.stdout)
    assert found, done
    return found[1]


@pytest.fixture(scope="module")
def made(
    shared_once: Callable[..., tuple[Path, Any]], waymark: Callable[..., Done]
) -> tuple[Path, tuple[list[Path], list[tuple[Done, Done | None]]]]:
    """Run each model, and each save format, two at a time, in one folder that was empty.

    Return the folder, what was in it and in its `mlruns` afterwards, and what was said.
    """

    def make(folder: Path) -> Any:
        def train(combination: tuple[str, str]) -> Done:
            model, save = combination
            choice = [f"model={model}", f"save={save}", *STEPS[model], "save.max_to_keep=2"]
            return waymark("run", *choice, THREADS, cwd=folder)

        with ThreadPoolExecutor(2) as pool:
            trained = list(pool.map(train, COMBINATIONS))
            found = sorted(p.relative_to(folder) for p in [*folder.iterdir(), *folder.glob("*/*")])
        one = waymark("evaluate", run_id(trained[-1]), "--json", cwd=folder)
        return found, [(done, one if done is trained[-1] else None) for done in trained]

    return shared_once("recorded", make)


@pytest.fixture(scope="module")
def workplace(made: tuple[Path, Any]) -> Path:
    return made[0]


@pytest.fixture(scope="module")
def recorded(
    made: tuple[Path, Any], client: Callable[[Path], MlflowClient]
) -> dict[tuple[str, str], Recorded]:
    workplace, (_, all_done) = made
    opened = client(workplace)
    found = {}
    for combination, (done, evaluated) in zip(COMBINATIONS, all_done, strict=True):
        key, root = run_id(done), workplace / "mlruns" / "artifacts" / "1"
        record = opened.get_run(key)
        found[combination] = Recorded(
            done, evaluated, key, record, opened, root / key / "artifacts"
        )
    return found


@pytest.fixture
def one(recorded: dict[tuple[str, str], Recorded], combination: tuple[str, str]) -> Recorded:
    return recorded[combination]


@combinations
def test_what_a_run_prints(one: Recorded, combination: tuple[str, str], workplace: Path) -> None:
    steps = [20, 40, 60] if combination[0] == "softmax" else [2, 4, 6]
    assert (one.done.returncode, one.done.stderr) == (0, "")
    lines = one.done.stdout.splitlines()
    assert lines[0] == f"run {one.id} ({one.record.info.run_name})"
    sizes = "4,000 training, 1,000 test examples; divided by 255"
    assert lines[1] == f"data         mnist_5k: 28x28x1, 10 classes; {sizes}"
    state = one.state(steps[-1])  # with two slots of Adam's for each parameter
    numbers = sum(state[name].size for name in state if f"{name}/Adam" in state)
    assert lines[2] == f"model        {combination[0]}: {numbers:,} parameters"
    assert re.fullmatch(r"environment  2 threads, .+, float32", lines[3])
    found = [re.fullmatch(TUTORIAL_LINE, line) for line in lines[4:7]]
    losses, accuracies = dict(one.history("train/loss")), dict(one.history("test/accuracy"))
    said = [(int(m[1]), m[2], m[3]) if m else None for m in found]
    assert said == [(s, f"{losses[s]:.5f}", f"{accuracies[s]:.5f}") for s in steps]
    last, best = accuracies[steps[-1]], max(accuracies.values())
    best_step = min(step for step, value in accuracies.items() if value == best)
    folder = one.folder / "checkpoints"
    link = f"http://127.0.0.1:5000/#/experiments/1/runs/{one.id}?workflowType=machine_learning"
    took = lines[10].partition("  ")[2].strip()
    assert re.fullmatch(r"(\d+ min )?[\d.]+ s, [\d.]+ steps/s", took)
    told = size(sum(path.stat().st_size for path in folder.iterdir()))
    assert lines[7:] == [
        f"test accuracy, last step  {last:.4f}",
        f"test accuracy, restored   {last:.4f}",
        f"best test accuracy        {best:.4f} at step {best_step}",
        f"time                      {took}",
        f"checkpoints               {steps[-2]}, {steps[-1]} ({told})",
        f"folder                    {folder.relative_to(workplace)}",
        f"run                       {one.id}",
        f"in the UI                 waymark ui, then {link}",
        f"next                      waymark evaluate {one.id}",
        f"                          waymark resume {one.id} steps={2 * steps[-1]}",
    ]


@combinations
def test_one_accuracy_in_training_restored_and_from_the_graph(
    one: Recorded,
    combination: tuple[str, str],
    workplace: Path,
    main: Main,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The processes that evaluate are others than those that trained."""
    monkeypatch.chdir(workplace)
    step, trained = one.history("test/accuracy")[-1]
    assert one.history("restored/accuracy") == [(step, trained)]
    assert one.history("restored/loss") == one.history("test/loss")[-1:]
    done = one.evaluated or main("evaluate", one.id, "--json")
    evaluated = json.loads(done.stdout)
    # As the TF1 tutorial's program prints what it loads.
    assert (done.returncode, done.stderr) == (0, "")
    assert (evaluated["step"], evaluated["total"]) == (step, 1000)
    assert evaluated["accuracy"] == trained == evaluated["hits"] / 1000
    assert [(step, evaluated["loss"])] == one.history("restored/loss")
    written = json.loads((one.folder / "evaluation" / "metrics.json").read_text())
    assert (written["accuracy"], written["hits"]) == (trained, evaluated["hits"])
    counts = np.array(written["confusion_matrix"])
    assert (counts.sum(1) == 100).all()  # the test set has a hundred of each digit
    assert counts.trace() == evaluated["hits"]
    if combination[1] == "ckpt":
        meta = main("evaluate", one.id, "--json", "--from", "meta")
        assert (meta.returncode, meta.stderr) == (0, "")
        assert json.loads(meta.stdout)["accuracy"] == trained


@combinations
def test_the_files_of_a_run(one: Recorded, combination: tuple[str, str]) -> None:
    steps = [40, 60] if combination[0] == "softmax" else [4, 6]
    if combination[1] == "ckpt":
        ends = [".index", ".data-00000-of-00001", ".json"]
        names = [f"model_ckpt-{step}{end}" for step in steps for end in ends]
        names += ["checkpoint", "model_ckpt.meta"]
    else:
        names = [f"weights-{step}{end}" for step in steps for end in (".npz", ".json")]
    expected = {"config.yaml", "environment.json", "history.json", "signature.json"}
    expected |= {f"checkpoints/{name}" for name in names}
    pictures = {"evaluation/loss.png", "evaluation/confusion_matrix.png"}
    expected |= pictures | {"evaluation/metrics.json", "evaluation/classes.csv"}
    found = {str(p.relative_to(one.folder)) for p in one.folder.rglob("*") if p.is_file()}
    # changes.patch is there when Waymark's own checkout holds uncommitted changes.
    assert found - {"changes.patch"} == expected
    for name in pictures:
        with Image.open(one.folder / name) as picture:
            assert picture.format == "PNG"
            picture.load()  # raises for a damaged one
            assert picture.width > 400
            assert len(np.unique(np.asarray(picture.convert("L")))) > 10
    listed = {file.path for file in one.client.list_artifacts(one.id)}
    below = {f.path for d in listed for f in one.client.list_artifacts(one.id, d) if "." not in d}
    assert {*listed, *below} - {"changes.patch", "checkpoints", "evaluation"} == expected


def test_a_run_writes_only_mlruns(
    made: tuple[Path, Any], recorded: dict[tuple[str, str], Recorded], workplace: Path
) -> None:
    inside = [Path("mlruns", name) for name in ("artifacts", "mlflow.db", "mlflow.lock")]
    assert made[1][0] == [Path("mlruns"), *inside]
    boxes = list(workplace.glob("mlruns/artifacts/*/*/outbox.jsonl"))
    assert len(boxes) == len(recorded)
    assert all(is_delivered(box) for box in boxes)


@combinations
def test_what_mlflow_holds(one: Recorded, combination: tuple[str, str]) -> None:
    data, (model, save) = one.record.data, combination
    assert one.record.info.status == "FINISHED"
    config = yaml.safe_load((one.folder / "config.yaml").read_text())

    def leaves(value: Any, key: str) -> dict[str, str]:
        if not isinstance(value, dict):
            return {key: str(value)}
        return {
            k: v for name, part in value.items() for k, v in leaves(part, f"{key}.{name}").items()
        }

    left_out = ("format", "choices", "tags", "run_name")
    kept = leaves({key: value for key, value in config.items() if key not in left_out}, "")
    kept = {k.removeprefix("."): v for k, v in kept.items() if not k.endswith("._target_")}
    chosen = {"model": model, "data": "mnist_5k", "optimizer": "adam", "save": save}
    chosen |= {"task": "classification"}
    assert config["choices"] == chosen
    assert data.params == kept | chosen
    assert data.params["optimizer.learning_rate"] == {"softmax": "0.001", "cnn": "0.0001"}[model]
    assert data.params["runtime.intra_op_threads"] == "2"

    last = int(data.params["steps"])
    evaluated = [last // 3, last // 3 * 2, last]
    assert [step for step, _ in one.history("train/loss")] == list(range(1, last + 1))
    for key in ("test/accuracy", "test/loss", "train/steps_per_second", "train/learning_rate"):
        assert [step for step, _ in one.history(key)] == evaluated
    assert min(value for _, value in one.history("train/steps_per_second")) > 0
    rates = {value for _, value in one.history("train/learning_rate")}
    assert rates == {float(np.float32(data.params["optimizer.learning_rate"]))}
    names = {"train/loss", "train/steps_per_second", "train/learning_rate", "test/accuracy"}
    assert set(data.metrics) == names | {"test/loss", "restored/accuracy", "restored/loss"}

    assert data.tags["waymark.state_digest"] == plain_digest(one.state(last))
    manifest = "weights" if save == "npz" else "model_ckpt"
    described = json.loads((one.folder / "checkpoints" / f"{manifest}-{last}.json").read_text())
    assert described["digest"] == data.tags["waymark.state_digest"]
    assert data.tags["waymark.version"] == __version__
    assert data.tags["waymark.save_format"] == save
    assert data.tags["waymark.steps"] == str(last)
    commit = subprocess.run(
        ["git", "-C", REPO, "rev-parse", "HEAD"], capture_output=True, text=True
    )
    if commit.returncode == 0:
        assert data.tags["mlflow.source.git.commit"] == commit.stdout.strip()
    (entry,) = one.record.inputs.dataset_inputs
    assert entry.dataset.name == "mnist_5k"
    assert data.tags["waymark.data_digest"].startswith(entry.dataset.digest)
    assert len(entry.dataset.digest) == 8


def test_both_formats_hold_the_same_state(
    recorded: dict[tuple[str, str], Recorded],
    place: Path,
    main: Main,
    client: Callable[[Path], MlflowClient],
) -> None:
    done, opened = main("run", "model=cnn", "save=npz", *STEPS["cnn"], THREADS), client(place)
    key = run_id(done)
    folder = place / "mlruns" / "artifacts" / "1" / key / "artifacts"
    here = Recorded(done, None, key, opened.get_run(key), opened, folder)  # the others elsewhere
    for one, other, last in (
        (recorded["softmax", "npz"], recorded["softmax", "ckpt"], 60),
        (here, recorded["cnn", "ckpt"], 6),
    ):
        npz, ckpt = one.state(last), other.state(last)
        assert sorted(npz) == sorted(ckpt)
        assert plain_digest(npz) == plain_digest(ckpt)
        assert one.history("train/loss") == other.history("train/loss")


def test_evaluate_prints_an_accuracy_for_people(
    recorded: dict[tuple[str, str], Recorded],
    workplace: Path,
    main: Main,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = recorded["softmax", "npz"]
    monkeypatch.chdir(workplace)
    accuracies = dict(one.history("test/accuracy"))
    for step in (40, 60):
        done = main("evaluate", one.id[:8], "--step", str(step))
        assert (done.returncode, done.stderr) == (0, "")
        first, second = done.stdout.splitlines()
        assert first.startswith(f"accuracy {accuracies[step]:.4f}, loss ")
        assert second == f"restored from checkpoints/weights-{step} of run {one.id}"
    refused = main("evaluate", one.id, "--from", "meta")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert re.fullmatch("waymark: .*no graph.*\n", refused.stderr)
    best = json.loads(main("evaluate", one.id, "--step", "best", "--json").stdout)
    assert best["accuracy"] == max(accuracies[40], accuracies[60])
    assert one.client.get_run(one.id).to_dictionary() == one.record.to_dictionary()


@pytest.mark.parametrize("path", sorted(REPO.glob("conf/experiment/*.yaml")), ids=lambda p: p.stem)
def test_every_experiment_composes(place: Path, main: Main, path: Path) -> None:
    done = main("run", f"+experiment={path.stem}", "--cfg", "job")
    assert (done.returncode, done.stderr) == (0, "")
    own = yaml.safe_load(path.read_text())
    values = yaml.safe_load(done.stdout)
    model, data, save = values["model"], values["data"], values["save"]
    for group, target in (("model", model), ("data", data), ("save", save)):
        wanted = [d[f"override /{group}"] for d in own["defaults"] if f"override /{group}" in d]
        tail = str(target["_target_"]).rpartition(".")[2].lower()
        assert [tail] == [choice.replace("_", "") for choice in wanted] or not wanted


def test_the_smoke_experiment_runs(place: Path, main: Main) -> None:
    done = main("run", "+experiment=smoke", THREADS)
    assert (done.returncode, done.stderr) == (0, "")
    assert [m[1] for m in re.finditer(TUTORIAL_LINE, done.stdout)] == ["0010", "0020"]
    assert kept_checkpoints(done.stdout) == [10, 20]


def test_help_and_version(tmp_path: Path, main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    listing = main("--help")
    assert listing.returncode == 0
    bare = main()
    assert (bare.returncode, bare.stdout, bare.stderr) == (0, listing.stdout, "")
    for command in ("run", "evaluate", "resume", "ui"):
        assert re.search(rf"^  {command}  +\w", listing.stdout, re.M)
        assert main(command, "--help").returncode == 0
    assert main("--version").stdout == f"waymark, version {__version__}\n"
    about_run = main("run", "--help").stdout
    assert "optimizer: adadelta, adafactor, adagrad, adam, " in about_run
    assert "optimizer/schedule: cosine, exponential, none, " in about_run
    assert "steps: 1000" in about_run
    for command in ("evaluate", "resume"):
        assert "RUN [OVERRIDES]" in main(command, "--help").stdout
    assert list(tmp_path.iterdir()) == []


def test_the_defaults_are_the_tutorials(
    tmp_path: Path, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values = yaml.safe_load(main("run", "--cfg", "job").stdout)
    assert (values["steps"], values["batch_size"], values["eval_every"]) == (1000, 100, 200)
    saver = {"every": 50, "max_to_keep": 7, "keep_every_n_hours": 1}
    assert {key: values["save"][key] for key in saver} == saver
    adam = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
    assert {key: values["optimizer"][key] for key in adam} == adam
    assert values["model"]["init_stddev"] == 0.01
    cnn = yaml.safe_load(main("run", "--cfg", "job", "model=cnn").stdout)
    assert cnn["optimizer"]["learning_rate"] == 1e-4
    stated = {"init_stddev": 0.1, "init_bias": 0.1, "keep_prob": 1.0}
    assert {key: cnn["model"][key] for key in stated} == stated


def test_the_shell_completes(tmp_path: Path, environment: dict[str, str]) -> None:
    program = tmp_path / "waymark"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m waymark "$@"\n')
    program.chmod(0o755)
    script = textwrap.dedent("""
        eval "$(waymark -sc install=bash)"
        complete -p waymark
        complete_line() {
            COMP_LINE="$1"; COMP_POINT=${#1}; COMP_WORDS=($1); COMP_CWORD=$2
            hydra_bash_completion; echo "${COMPREPLY[*]}"
        }
        complete_line 'waymark ev' 1
        complete_line 'waymark run model=' 2
        complete_line 'waymark run steps=3 save.max' 3
    """)
    path = f"{tmp_path}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**environment, "PATH": path},
        capture_output=True,
        text=True,
        timeout=BOUND,
    )
    assert done.stderr == ""
    registered, command, models, key = done.stdout.splitlines()
    assert registered.endswith("-F hydra_bash_completion waymark")
    assert command == "evaluate"
    members = sorted(path.stem for path in (REPO / "conf" / "model").glob("*.yaml"))
    assert models == " ".join(f"model={name}" for name in members)
    assert key == "save.max_to_keep="


def test_a_terminal_gets_a_bar(
    place: Path, start: Callable[..., "subprocess.Popen[str]"], environment: dict[str, str]
) -> None:
    ours, theirs = pty.openpty()
    wide = {**environment, "COLUMNS": "160", "TERM": "xterm"}
    arguments = ["run", *STEPS["softmax"], THREADS]
    process = start(*arguments, cwd=place, stdout=theirs, stderr=theirs, env=wide)
    os.close(theirs)
    seen = b""
    with process, os.fdopen(ours, "rb", buffering=0) as terminal:
        try:
            while chunk := terminal.read(65536):
                seen += chunk
        except OSError:  # how Linux says that the other end is closed
            pass
    assert process.returncode == 0, seen
    plain = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", seen).decode()
    assert re.search(r"━+ 60/60 .*loss \d\.\d{3,4} acc 0\.\d{4} \d:\d\d:\d\d", plain)
    assert "Step: " not in plain
    assert "test accuracy, restored" in plain


def test_a_bar_can_be_asked_for_and_silence_too(place: Path, main: Main) -> None:
    loud = main("run", *STEPS["softmax"], THREADS, "progress=true")
    assert "60/60" in loud.stdout
    silent = main("run", *STEPS["softmax"], THREADS, "progress=false")
    assert "Step: " not in silent.stdout and "60/60" not in silent.stdout
    assert (silent.returncode, silent.stderr) == (0, "")


def test_system_metrics_on_request(
    place: Path,
    main: Main,
    client: Callable[[Path], MlflowClient],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    done = main("run", *STEPS["softmax"], THREADS, "tracking.system_metrics=true")
    assert done.returncode == 0, done
    metrics = client(place).get_run(run_id(done)).data.metrics
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= {
        *metrics
    }


ONLY_LAST = "waymark: save.every=50 is above steps={}: only the last step is saved.\n"


def test_saving_less_often_than_there_are_steps_only_warns(place: Path, main: Main) -> None:
    done = main("run", "steps=3", "eval_every=0", THREADS)
    assert done.returncode == 0
    assert done.stderr == ONLY_LAST.format(3)
    assert kept_checkpoints(done.stdout) == [3]
    assert main("resume", "latest", "steps=4").stderr == ONLY_LAST.format(4)


@pytest.mark.long
def test_a_sweep_tells_once_that_only_the_last_step_is_saved(place: Path, main: Main) -> None:
    short = ["run", "-m", "eval_every=0", "data.validation=10", THREADS]
    assert main(*short, "steps=3", "seed=1,2").stderr == ONLY_LAST.format(3)
    assert main(*short, "steps=2,60").stderr == ONLY_LAST.format(2)
    assert main("rerun", "latest", "save.every=500").stderr == ""


DIVERGING = ["optimizer=sgd", "optimizer.learning_rate=1e38", "steps=6"]


def test_a_run_that_diverges_fails_with_the_step(
    place: Path, main: Main, small: Path, client: Callable[[Path], MlflowClient]
) -> None:
    data = ["data=arrays", f"data.path={small}", "batch_size=20", THREADS]
    done = main("run", *DIVERGING, *data, "save.every=1")
    key = run_id(done)
    run = client(place).get_run(key)
    points = client(place).get_metric_history(key, "train/loss")
    last = max(points, key=lambda point: point.step)
    assert done.returncode == 1
    assert run.info.status == "FAILED"
    finite = [p.step for p in points if np.isfinite(p.value) and abs(p.value) < 1e308]
    assert finite == list(range(1, last.step))
    reason = run.data.tags["waymark.reason"]
    assert re.fullmatch(rf"the loss at step {last.step} is (nan|-?inf)", reason)
    assert done.stderr == f"waymark: run {key} failed: {reason}\n"


def test_a_run_that_diverges_goes_on_if_it_may(
    place: Path, main: Main, small: Path, client: Callable[[Path], MlflowClient]
) -> None:
    data = ["data=arrays", f"data.path={small}", "batch_size=20", THREADS]
    done = main("run", *DIVERGING, *data, "save.every=3", "on_nan=continue")
    assert (done.returncode, done.stderr) == (0, "")
    run = client(place).get_run(run_id(done))
    points = client(place).get_metric_history(run_id(done), "train/loss")
    assert run.info.status == "FINISHED"
    assert sorted(point.step for point in points) == [1, 2, 3, 4, 5, 6]


OWN_MODULE = '''
from dataclasses import dataclass
from typing import Literal

import numpy as np

from waymark.data.sources import Dataset


@dataclass
class Centred:
    """A plain class, not one of Waymark's: a bias and a matrix, from zeros."""

    init_stddev: float

    def initial(self, spec, key):
        import tensorflow as tf

        pixels, classes = int(np.prod(spec.shape)), spec.classes
        return {"bias": tf.zeros([classes]), "matrix": tf.zeros([pixels, classes])}

    def logits(self, parameters, images, dropout):
        import tensorflow as tf

        flat = tf.reshape(images, [-1, parameters["matrix"].shape[0]]) - 0.5
        return flat @ parameters["matrix"] + parameters["bias"]


@dataclass
class Stripes:
    """Pictures that are light on one side, and which side it is."""

    sampling: Literal["replacement", "epoch"]
    count: int = 40

    def load(self):
        labels = (np.arange(self.count) % 2).astype(np.int32)
        images = np.full((self.count, 4, 6, 1), 30, np.uint8)
        images[labels == 1, :, 3:] = 220
        return Dataset("stripes", "own module", images, labels, images[:10], labels[:10])
'''


def own_module(folder: Path, name: str) -> None:
    (folder / f"{name}.py").write_text(OWN_MODULE)
    model = (
        f"model: {{_target_: {name}.Centred, init_stddev: 1.0}}\noptimizer: {{learning_rate: 0.1}}"
    )
    for group, text in (("model", model), ("data", f"data: {{_target_: {name}.Stripes}}")):
        (folder / "mine" / group).mkdir(parents=True)
        path = folder / "mine" / group / f"own_{group}.yaml"
        path.write_text(f"# @package _global_\n{text}\n")


SHORT = ["steps=10", "save.every=5", "eval_every=5", "batch_size=8", THREADS]


def test_classes_outside_the_package_by_target(
    place: Path,
    main: Main,
    client: Callable[[Path], MlflowClient],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That a process finds one in its folder, the test of the second signal shows."""
    own_module(place, "stripes")
    monkeypatch.delitem(sys.modules, "stripes", raising=False)
    targets = ["model._target_=stripes.Centred", "data._target_=stripes.Stripes"]
    done = main("run", *targets, "optimizer.learning_rate=0.1", *SHORT)
    monkeypatch.delitem(sys.modules, "stripes")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search("test accuracy, restored +1.0000", done.stdout)
    run = client(place).get_run(run_id(done))
    assert run.data.params["model.class"] == "stripes.Centred"
    assert run.inputs.dataset_inputs[0].dataset.name == "stripes"


def test_what_is_registered_for_the_end_of_a_process_is_done(
    place: Path, waymark: Callable[..., Done]
) -> None:
    own_module(place, "stripes")
    module = place / "stripes.py"
    last = """
import atexit, threading
atexit.register(lambda: print("the end", flush=True))
threading.Thread(target=lambda: (threading.main_thread().join(), print("a thread's end"))).start()
"""
    module.write_text(module.read_text() + last)
    targets = ["model._target_=stripes.Centred", "data._target_=stripes.Stripes"]
    done = waymark("run", *targets, "optimizer.learning_rate=0.1", *SHORT, cwd=place)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-2:] == ["a thread's end", "the end"]


def test_classes_outside_the_package_by_a_folder_of_configurations(
    place: Path, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_module(place, "lines")
    monkeypatch.delitem(sys.modules, "lines", raising=False)
    choices = ["model=own_model", "data=own_data"]
    done = main("run", "--config-dir", "mine", *choices, *SHORT)
    missing = main("run", "--config-dir", "mine", "model=own_modl")
    assert (missing.returncode, "nearest is own_model" in missing.stderr) == (2, True)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search("test accuracy, restored +1.0000", done.stdout)
    key = run_id(done)

    monkeypatch.delitem(sys.modules, "lines")
    for command in (["evaluate", key], ["resume", key, "steps=12"]):
        refused = main(*command)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert re.fullmatch(r"waymark: .*lines\.\w+.*trusted_modules.*\n", refused.stderr)
        assert "lines" not in sys.modules
        trusted = main(*command, TRUST)
        assert trusted.returncode == 0, trusted
        monkeypatch.delitem(sys.modules, "lines")
    assert kept_checkpoints(trusted.stdout) == [5, 10, 12]

    own = ["--config-dir", "mine"]
    (place / "mine" / "save").mkdir()
    (place / "mine" / "save" / "own_save.yaml").write_text("_target_: waymark.checkpoints.npz.Npz")
    newest = next(place.glob("mlruns/artifacts/*/*/artifacts/checkpoints/*-12.index"))
    files = ["--checkpoint", str(newest.with_suffix("")), "batch_size=8", THREADS]
    for command in (["evaluate", *files, *own, *choices], ["evaluate", key, *own, TRUST],
                    ["run", "--config-from", key, *own, "save=own_save", TRUST],
                    ["rerun", key, *own, "save=own_save", TRUST]):  # fmt: skip
        done = main(*command)
        assert done.returncode == 0, done
        refused = main(*(word for word in command if word not in (*own, TRUST)))
        assert (refused.returncode, refused.stdout) == (2, ""), refused
        refused = main(*(word.replace("mine", "nowhere") for word in command))
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr == "waymark: --config-dir='nowhere': there is no such folder.\n"


TRUST = "trusted_modules=[lines]"
LONG = ["model=cnn", "steps=900", "save.every=50", "eval_every=50", "batch_size=10", THREADS]


def test_signals_stop_a_run_that_can_go_on(
    place: Path,
    start: Callable[..., "subprocess.Popen[str]"],
    main: Main,
    client: Callable[[Path], MlflowClient],
    small: Path,
) -> None:
    long = [*LONG, "data=arrays", f"data.path={small}"]
    before, key = 50, ""
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        with start(*(["resume", key] if key else ["run", *long]), cwd=place) as process:
            assert process.stdout is not None
            head = process.stdout.readline()
            while not head.splitlines()[-1].startswith("Step: "):  # till then it does not train
                head += process.stdout.readline()
            process.send_signal(number)
            out, err = process.communicate(timeout=BOUND)
        assert key in ("", run_id(Done([], 0, head)))
        assert (f", resumed after step {before - 1}\n" in head) == bool(key)
        key = run_id(Done([], 0, head))
        assert process.returncode == status
        assert "restored" not in out
        assert err.splitlines()[-1] == f"resume with: waymark resume {key}"
        run = client(place).get_run(key)
        assert run.info.status == "KILLED"
        assert run.data.tags["waymark.reason"] == f"stopped by {number.name}"
        reached = max(p.step for p in client(place).get_metric_history(key, "train/loss"))
        assert before <= reached < 900
        saved = place / f"mlruns/artifacts/1/{key}/artifacts/checkpoints"
        assert (saved / f"model_ckpt-{reached}.json").exists()  # no step is lost
        before = reached + 1

    done = main("resume", key)
    assert done.returncode == 0, done
    again = client(place).get_run(key)
    points = client(place).get_metric_history(key, "train/loss")
    assert again.info.status == "FINISHED"
    assert again.data.tags.get("waymark.reason", "") == ""
    # The resume point off the cadence went when the next regular checkpoint came.
    assert kept_checkpoints(done.stdout) == [600, 650, 700, 750, 800, 850, 900]
    # That they are those of a run in one piece is checked where resuming is.
    assert sorted(point.step for point in points) == [*range(1, 901)]


ENDLESS = """
import sys
from dataclasses import dataclass

from waymark.models.softmax import Softmax


@dataclass
class Endless(Softmax):
    def logits(self, parameters, images, dropout):
        import tensorflow as tf

        said = tf.print("inside a step", output_stream=sys.stdout)
        with tf.control_dependencies([said]):
            turns = tf.while_loop(lambda n: n < 2**62, lambda n: [n + 1], [tf.zeros([], tf.int64)])
        return super().logits(parameters, images, dropout) + tf.cast(turns[0], tf.float32)
"""


def test_a_second_signal_ends_at_once(
    place: Path,
    start: Callable[..., "subprocess.Popen[str]"],
    client: Callable[[Path], MlflowClient],
) -> None:
    """A step that never ends keeps the first signal from being obeyed, however fast it is."""
    (place / "endless.py").write_text(ENDLESS)
    with start("run", "model._target_=endless.Endless", "save=npz", THREADS, cwd=place) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            key = run_id(Done([], 0, process.stdout.readline()))
            while process.stdout.readline() != "inside a step\n":
                assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.stderr.readline() == "\n"
            assert "once more stops at once" in process.stderr.readline()
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=BOUND)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (143, "", "")  # it was not ended in good order
    # The delivery process says so: the run's own could not.
    poll(lambda: client(place).get_run(key).info.status == "KILLED")
    folder = place / f"mlruns/artifacts/1/{key}/artifacts/checkpoints"
    assert list(folder.iterdir()) == []  # what dies writes nothing


def test_training_starts_from_saved_parameters(
    place: Path, main: Main, client: Callable[[Path], MlflowClient]
) -> None:
    first = main("run", *STEPS["softmax"], "save=npz", THREADS)
    checkpoints = f"mlruns/artifacts/1/{run_id(first)}/artifacts/checkpoints"
    path = place / checkpoints / "weights-60.npz"
    quiet = ["steps=1", "save.every=1", "eval_every=0", "optimizer.learning_rate=1e-30"]
    second = main("run", *quiet, f"init_from={path}", "save=npz", "seed=7", THREADS)
    assert (second.returncode, second.stderr) == (0, "")
    run = client(place).get_run(run_id(second))
    before = dict(np.load(path))
    after = dict(
        np.load(str(path).replace(run_id(first), run_id(second)).replace("weights-60", "weights-1"))
    )
    np.testing.assert_array_equal(after["weights"], before["weights"])
    assert (before["step"], after["step"]) == (60, 1)
    digests = (run.data.tags["waymark.init_digest"], plain_digest({"weights": before["weights"]}))
    assert digests[0] == digests[1]
    assert run.data.params["init_from"] == str(path)


def test_a_users_modules_do_not_keep_the_program_from_starting(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    names = [path.stem for path in REPO.glob("pipeline/waymark/*")] + ["pipeline"]
    for name in {"data", "models", "tracking", *names} - {"__init__", "__main__"}:
        (tmp_path / f"{name}.py").write_text("raise ImportError('this is the user's')")
    script = "from waymark.__main__ import program; program()"  # as the console script has it
    done = subprocess.run(
        [sys.executable, "-c", script, "runs"],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("waymark: there are no runs here")


def test_the_wheel_works_outside_the_checkout(
    tmp_path: Path, environment: dict[str, str], waymark: Callable[..., Done], empty_store: Path
) -> None:
    built, unpacked, elsewhere = (tmp_path / name for name in ("built", "unpacked", "elsewhere"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    command = [*pip, "--no-deps", "--no-build-isolation", "-w", str(built), str(REPO)]
    subprocess.run(command, check=True, capture_output=True, timeout=BOUND)
    (wheel,) = built.glob("waymark_tf-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(unpacked)
    wanted = {str(path.relative_to(REPO)) for path in REPO.glob("conf/**/*.yaml")}
    assert {name.removeprefix("waymark/") for name in names if name.endswith(".yaml")} == wanted
    sources = {str(p.relative_to(REPO / "pipeline")) for p in REPO.glob("pipeline/**/*.py")}
    assert {name for name in names if name.endswith(".py")} == sources
    assert {"waymark/data/mnist_5k.npz", "waymark/data/mnist_5k.txt"} <= {*names}
    assert "waymark/py.typed" in names  # else type checkers pass over the package
    (entry,) = unpacked.glob("*.dist-info/entry_points.txt")
    assert "waymark = waymark.__main__:program" in entry.read_text()
    tops = {name.partition("/")[0] for name in names}
    assert {name for name in tops if not name.endswith(".dist-info")} == {
        "waymark",
        "hydra_plugins",
    }

    shutil.copytree(empty_store, elsewhere / "mlruns")
    outside = {**environment, "PYTHONPATH": str(unpacked)}
    asked = [sys.executable, "-c", "from waymark.package import CONF; print(CONF)"]
    found = subprocess.run(asked, cwd=elsewhere, env=outside, capture_output=True, text=True)
    assert found.stdout == f"{unpacked}/waymark/conf\n"
    done = waymark("run", "steps=20", "save.every=10", THREADS, cwd=elsewhere, env=outside)
    assert (done.returncode, done.stderr) == (0, "")
    assert kept_checkpoints(done.stdout) == [10, 20]
    assert [path.name for path in elsewhere.iterdir()] == ["mlruns"]
