"""Bad input: one line on stderr, exit status 2, no run, nothing written; early where possible."""

import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.tracking import MlflowClient
from waymark.config.compose import compose_config

from tests.support.processes import Done, Main

SMALL_RUN = ["steps=4", "save.every=2", "save.max_to_keep=2", "runtime.intra_op_threads=2"]

# What Hydra composes or pydantic checks; arguments of `waymark run` and words of the answer.
CONFIGURATION = {
    "stesp=3": ["stesp", "nearest is steps"],
    "save.evry=3": ["save.evry", "nearest is save.every"],
    "optimizer.lr=3": ["optimizer.lr", "nearest is optimizer.learning_rate"],
    "max_to_keep=3": ["max_to_keep", "nearest is save.max_to_keep"],
    "optimiser=sgd": ["optimiser", "nearest is optimizer"],
    "+foo=3": ["foo"],
    "+save.foo=3": ["save.foo"],
    "model.keep_prob=0.5": ["model.keep_prob"],  # softmax has none
    "save=npz save.meta_graph=true": ["save.meta_graph"],
    "data=arrays data.path=x stesp=3": ["stesp", "nearest is steps"],
    "hydra.foo=3": ["hydra.foo"],
    "tags.a=x": ["tags", "+tags.NAME"],
    "model=cn": ["model=cn", "(cnn, keras, linear, mlp, resnet, softmax)", "nearest is cnn"],
    "data=mnist5k": ["data=mnist5k", "nearest is mnist_5k"],
    "optimizer=adamm": ["optimizer=adamm", "nearest is adam"],
    "save=pickle": ["save=pickle", "ckpt, npz"],
    "+experiment=smok": ["experiment=smok", "nearest is smoke"],
    "model=3": ["override must be a string"],
    "model=null": ["override must be a string"],
    "model={a:1}": ["model"],
    "save=[ckpt,npz]": ["save."],
    "~model": ["optimizer.learning_rate", "missing"],  # which the model would have given
    "~steps": ["steps", "missing"],
    "~tracking": ["tracking", "missing"],
    "runtime=null": ["runtime"],
    "runtime=3": ["runtime"],
    "tracking=null": ["tracking"],
    "tags=[1]": ["tags"],
    "model._target_=os.system": ["model._target_", "os.system"],
    "model._target_=no.such.Thing": ["model._target_", "no.such.Thing"],
    "model._target_=waymark.optimizers.Adam": ["model._target_", "initial"],
    "model._target_=3": ["model", "_target_"],
    "objective.mode=best": ["objective.mode", "best"],
    "objective.metric=3": ["objective.metric", "3"],
    "prune=hyperband": ["prune", "hyperband", "median", "asha"],
    "rerun_finished=maybe": ["rerun_finished", "maybe"],
    "+model.inner._target_=waymark.optimizers.Adam": ["model.inner._target_"],
    "data=arrays": ["data.path", "missing"],
    "steps": ["steps", "key=value"],
    "a=b=c": ["a=b=c", "key=value"],
    "=": ["override"],
    "x=[": ["x=["],
    "'": ["'"],
    "${x}": ["${x}"],
    "steps=1,2": ["steps=1,2"],
    "steps=${nosuch}": ["nosuch"],
    "steps=${oc.env:NO_SUCH_VARIABLE}": ["NO_SUCH_VARIABLE"],
    "--no-such-flag": ["--no-such-flag"],
    "--cfg nothing": ["--cfg"],
    "--cfg": ["--cfg"],
    "--config-dir /no/such/folder": ["/no/such/folder"],
    "--config-name nosuch": ["nosuch"],
}

# Values of the wrong type or out of bounds: the key and the value must be named.
VALUES = {
    "steps": ["0", "-1", "1.5", "abc", "''", "[1]", "{a:1}"],
    "batch_size": ["0", "2.0"],
    "seed": ["-1", "9223372036854775808", "x"],
    "precision": ["float16"],
    "eval_every": ["-1"],
    "log_every": ["0"],
    "on_nan": ["maybe"],
    "init_from": ["3"],
    "data.sampling": ["sometimes"],
    "data.scale": ["256"],
    "data.test": ["1.5", "-1"],
    "data.validation": ["1.5", "-1"],
    "data.split": ["both"],
    "data.split_seed": ["-1", "0.5"],
    "data.group": ["3"],
    "epochs": ["0", "1.5"],
    "fork": ["3"],
    "stop": ["3"],
    "metrics": ["abc", "[3]"],
    "task.class_weights": ["3", "some", "[-1,1]"],
    "task.label_smoothing": ["-0.1", "1.5"],
    "model.init_stddev": ["0", "x"],
    "optimizer.learning_rate": ["0", "-1", "nan", "inf", "fast"],
    "optimizer.schedule": ["3", "slow"],
    "optimizer.weight_decay": ["-1", "nan"],
    "optimizer.clipnorm": ["0", "-1"],
    "optimizer.beta1": ["1", "-0.1"],
    "optimizer.beta2": ["1"],
    "optimizer.epsilon": ["0"],
    "save.every": ["-1"],
    "save.max_to_keep": ["-1"],
    "save.keep_every_n_hours": ["0", "-1"],
    "save.keep_best": ["best"],
    "save.asynchronous": ["3"],
    "save.meta_graph": ["1"],
    "save.log_model": ["3", "always"],
    "runtime.intra_op_threads": ["0", "two"],
    "runtime.deterministic": ["perhaps"],
    "tracking.uri": ["3"],
    "tracking.flush_seconds": ["0"],
    "tracking.system_metrics": ["perhaps"],
    "record.changes": ["perhaps"],
    "experiment_name": ["''"],
    "run_name": ["''"],
    "progress": ["maybe"],
    "trusted_modules": ["abc"],
}
NESTED = {
    "steps=null": ["steps=None"],
    "steps=true": ["steps=True"],
    "data.sampling=null": ["data.sampling=None"],
    "data.validation=null": ["data.validation=None"],
    "stop={metric:val/foo,mode:min,patience:1}": ["stop.metric", "val/foo"],
    "stop={metric:val/loss,mode:min}": ["stop.patience", "missing"],
    "fork={run:a,step:1}": ["fork.digest", "missing"],
    "fork={run:a,step:0,digest:b}": ["fork.step=0"],
    "stop={metric:val/loss,mode:min,patience:0}": ["stop.patience", "0"],
    "save.keep_best={metric:test/foo,mode:max}": ["save.keep_best.metric", "test/foo"],
    "save.keep_best={metric:test/loss,mode:up}": ["save.keep_best.mode", "up"],
    "save.keep_best={metric:test/loss}": ["save.keep_best.mode", "missing"],
    "+tags.a=[1]": ["tags.a"],
    "model=cnn model.keep_prob=0": ["model.keep_prob=0"],
    "model=cnn model.keep_prob=1.1": ["model.keep_prob=1.1"],
    "model=cnn model.init_bias=nan": ["model.init_bias=nan"],
    "optimizer=sgd optimizer.momentum=1": ["optimizer.momentum=1"],
}
BOUNDS = {
    f"{key}={value}": [f"{key}=", value if value.strip("-.").isalnum() else ""]
    for key, values in VALUES.items()
    for value in values
}
CONFIGURED = {**CONFIGURATION, **BOUNDS, **NESTED}

# What is found out when data are read or the store is opened.
LATER = {
    "batch_size=4001": ["batch_size=4001", "4000"],
    "data=mnist data.path=no.npz": ["no.npz", "does not exist"],
    "data=mnist data.path=text.npz": ["text.npz"],
    "data=mnist data.path=small.npz": ["small.npz", "digest"],
    "data=mnist data.path=.": ["folder"],
    "data=fashion_mnist data.path=.": ["train-images-idx3-ubyte.gz"],
    "data=arrays data.path=torn.npz": ["torn.npz"],
    "data=arrays data.path=flipped.npz": ["flipped.npz"],
    "data=arrays data.path=pickled.npz": ["pickled"],
    "data=arrays data.path=labels.npz": ["x_train", "y_train"],
    "data=arrays data.path=small.npz batch_size=201": ["batch_size=201", "200"],
    "model=cnn data=arrays data.path=flat.npz batch_size=2": ["[N,5]", "softmax"],
    "data.group=patient": ["data.group", "patient", "no groups"],
    "init_from=no.npz": ["init_from", "no.npz"],
    "init_from=text.npz": ["init_from", "text.npz"],
    "init_from=small.npz": ["init_from", "weights [784, 10]"],
    "tracking.uri=ftp://x/y": ["tracking.uri", "ftp://x/y"],
    "tracking.uri=./mlruns": ["tracking.uri", "./mlruns"],
    "tracking.uri=databricks": ["tracking.uri", "databricks"],
    "tracking.uri=sqlite:////proc/nothing/x.db": ["/proc/nothing"],
    "tracking.uri=http://127.0.0.1:99999": ["tracking.uri", "99999"],
}


def one_line(done: Done, words: list[str]) -> None:
    """Check that a command was refused as every bad input is."""
    assert done.returncode == 2, done
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("waymark: ")
    assert not [word for word in words if word not in lines[0]], lines[0]


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Stand in an empty folder, which must be empty again when the test is over."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", CONFIGURED)
def test_a_bad_configuration_is_refused_in_one_line(nowhere: Path, main: Main, line: str) -> None:
    one_line(main("run", *line.split(" ")), CONFIGURED[line])


def test_every_bounded_key_has_a_row() -> None:
    """A key that is added to conf/ must be added to the table above."""
    from waymark.config.values import flatten

    keys = set()
    for choice in (["model=cnn"], ["optimizer=sgd"], ["save=npz"]):
        keys |= set(flatten(compose_config(choice).values))
    rows = " ".join(CONFIGURED)
    assert [k for k in keys if not k.endswith("_target_") and f"{k}=" not in rows] == []


@pytest.fixture
def files(tmp_path: Path, small: Path) -> Path:
    """Return a folder with data files that are damaged or wrong, each in its way."""
    whole = small.read_bytes()
    arrays = dict(np.load(small))
    (tmp_path / "small.npz").write_bytes(whole)
    (tmp_path / "torn.npz").write_bytes(whole[: len(whole) // 2])
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    (tmp_path / "flipped.npz").write_bytes(flipped)
    (tmp_path / "text.npz").write_text("not an archive")
    objects = arrays | {"y_train": np.array([None] * 200)}
    np.savez(tmp_path / "pickled.npz", allow_pickle=True, **objects)
    np.savez(tmp_path / "labels.npz", **(arrays | {"y_train": arrays["y_train"][:-1]}))
    flat = {key: value.reshape(len(value), -1)[:, :5] for key, value in arrays.items()}
    flat |= {key: arrays[key] for key in ("y_train", "y_test")}
    np.savez(tmp_path / "flat.npz", **flat)
    return tmp_path


@pytest.mark.parametrize("line", LATER)
def test_bad_data_and_bad_stores_are_refused_in_one_line(
    files: Path, main: Main, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.chdir(files)
    before = sorted(files.iterdir())
    one_line(main("run", *line.split(" "), "runtime.intra_op_threads=2"), LATER[line])
    assert sorted(files.iterdir()) == before


def test_a_server_that_refuses_the_connection(nowhere: Path, main: Main) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    uri = f"http://me:secret@127.0.0.1:{port}"
    for command in (["evaluate", "latest"], ["resume", "latest"]):  # a run goes on without it
        done = main(*command, f"tracking.uri={uri}")
        one_line(done, ["tracking.uri", f"http://me:***@127.0.0.1:{port}"])
        assert "secret" not in done.stderr


def test_the_tracking_uri_of_the_environment_is_named(
    nowhere: Path, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:///tmp/mlruns")
    one_line(main("run"), ["MLFLOW_TRACKING_URI", "file:///tmp/mlruns"])
    done = main("run", "tracking.uri=ftp://x/y")
    one_line(done, ["tracking.uri='ftp://x/y'"])
    assert "MLFLOW_TRACKING_URI" not in done.stderr


@pytest.mark.parametrize("value", ["", None])
def test_a_tracking_uri_of_the_environment_that_is_empty_is_not_named(
    tmp_path: Path, main: Main, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if value is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", value)
    (tmp_path / "mlruns" / "mlflow.db").mkdir(parents=True)
    done = main("run")
    one_line(done, ["tracking.uri='sqlite:///mlruns/mlflow.db'"])
    assert "MLFLOW_TRACKING_URI" not in done.stderr


@pytest.mark.parametrize("command", [["run"], ["evaluate", "latest"], ["resume", "latest"]])
def test_a_file_in_the_place_of_mlruns(
    tmp_path: Path, main: Main, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlruns").write_text("mine")
    one_line(main(*command), [str(tmp_path / "mlruns")])
    assert [path.name for path in tmp_path.iterdir()] == ["mlruns"]
    assert (tmp_path / "mlruns").read_text() == "mine"


COMMANDS = {
    "evaluate": ["RUN"],
    "evaluate model=cnn": ["RUN"],
    "evaluate latest": ["no runs"],
    "evaluate latest --from nothing": ["--from", "nothing"],
    "evaluate latest --no-such-flag": ["--no-such-flag"],
    "evaluate latest +steps=3": ["+steps=3"],
    "evaluate latest steps=1,2": ["steps=1,2"],
    "evaluate latest steps": ["steps"],
    "evaluate --checkpoint /no/such-7 model=softmax": ["--checkpoint", "/no/such-7"],
    "evaluate --checkpoint /no/such.npz stesp=1": ["stesp", "nearest is steps"],
    "resume": ["RUN"],
    "resume latest": ["no runs"],
    "ui stesp=3": ["no runs"],
    "ui --port many": ["--port"],
    "no_such_command": ["no_such_command"],
    "--no-such-flag": ["--no-such-flag"],
}


@pytest.mark.parametrize("line", COMMANDS)
def test_bad_commands_are_refused_in_one_line(nowhere: Path, main: Main, line: str) -> None:
    one_line(main(*line.split(" ")), COMMANDS[line])


@pytest.fixture(scope="module")
def two_runs(
    tmp_path_factory: pytest.TempPathFactory, empty_store: Path, small: Path
) -> tuple[Path, str]:
    """Return a folder with two finished runs of one name, and the id of the first."""
    from waymark.execution.execute import run

    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(empty_store, folder / "mlruns")
    arguments = [*SMALL_RUN, "data=arrays", f"data.path={small}", "batch_size=5", "eval_every=0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ids = [run(compose_config([*arguments, "run_name=twin"])).run_id for _ in range(2)]
    return folder, ids[0]


RECORDED = {
    "evaluate nosuch": ["RUN='nosuch'", "no such run"],
    "evaluate twin": ["RUN='twin'", "more than one"],
    "resume %": ["RUN='%'", "no such run"],
    "resume ____": ["RUN='____'", "no such run"],
    "evaluate ID --step 3": ["--step=3", "[2, 4]"],
    "evaluate ID --step -1": ["--step=-1"],
    "evaluate ID --step newest": ["--step=newest", "[2, 4]"],
    "evaluate ID stesp=3": ["stesp", "nearest is steps"],
    "evaluate ID batch_size=6": ["batch_size"],
    "evaluate ID data.path=/no/such.npz": ["/no/such.npz"],
    "resume ID seed=1": ["seed"],
    "resume ID model=cnn": ["model"],
    "resume ID data=mnist_5k": ["data"],
    "resume ID optimizer=sgd": ["optimizer"],
    "resume ID save=npz": ["save"],
    "resume ID batch_size=6 seed=1": ["batch_size", "seed"],
    "resume ID optimizer.learning_rate=1": ["optimizer.learning_rate"],
    "resume ID model.init_stddev=1": ["model.init_stddev"],
    "resume ID precision=mixed_bfloat16": ["precision"],
    "resume ID runtime.intra_op_threads=1": ["runtime.intra_op_threads"],
    "resume ID data.sampling=replacement": ["data.sampling"],
    "resume ID save.meta_graph=false": ["save.meta_graph"],
    "resume ID steps=3": ["steps=3", "4"],
    "resume ID steps=0": ["steps=0"],
    "resume ID steps=x": ["steps='x'"],
    "resume ID save.max_to_keep=-1": ["save.max_to_keep=-1"],
    "resume ID data.path=/no/such.npz": ["/no/such.npz"],
    "run --config-from ID seed=-1": ["seed=-1 (the command line)"],
    "run --fork ID batch_size=0": ["batch_size=0 (the command line)"],
    "run --config-from ID -m seed=1,2": ["--config-from", "-m"],
    "run --fork ID -m --summary seed=1,2": ["--summary", "-m"],
}


@pytest.mark.parametrize("line", RECORDED)
def test_bad_words_about_a_recorded_run(
    two_runs: tuple[Path, str], main: Main, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    folder, run_id = two_runs
    monkeypatch.chdir(folder)
    words = [run_id if word == "ID" else word for word in line.split(" ")]
    # Click takes a leading dash for a flag: the value is joined, as a user has to.
    joined = " ".join(words).replace("--step ", "--step=").split(" ")
    one_line(main(*joined), RECORDED[line])


def test_refusals_leave_a_recorded_run_as_it_was(
    two_runs: tuple[Path, str], main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, run_id = two_runs
    monkeypatch.chdir(folder)
    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")

    def contents() -> tuple[Any, dict[str, bytes]]:
        files = {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        kept = {name: body for name, body in files.items() if "mlflow.db" not in name}
        return client.get_run(run_id).to_dictionary(), kept

    before = contents()
    one_line(main("resume", run_id, "seed=1"), ["seed"])
    one_line(main("resume", run_id, "data.path=/no/such.npz"), ["/no/such.npz"])
    assert contents() == before
    assert len(client.search_runs(["1"])) == 2


@pytest.mark.parametrize(
    ("model", "words"),
    [("softmax", ["weights [784, 10]"]), ("cnn", ["no entry fits weights [5, 5, 1, 32]"])],
)
def test_a_checkpoint_that_does_not_fit_the_model(
    two_runs: tuple[Path, str],
    main: Main,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    words: list[str],
) -> None:
    folder, run_id = two_runs
    monkeypatch.chdir(folder)
    path = f"mlruns/artifacts/1/{run_id}/artifacts/checkpoints/model_ckpt-4"
    overrides = [f"model={model}", "runtime.intra_op_threads=2"]
    one_line(main("evaluate", "--checkpoint", path, *overrides), ["--checkpoint", path, *words])
    one_line(main("run", f"init_from={path}", *overrides), ["init_from", path, *words])
    assert len(MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db").search_runs(["1"])) == 2


def test_the_program_itself_refuses_in_one_line(
    tmp_path: Path, waymark: Callable[..., Done]
) -> None:
    one_line(waymark("run", "stesp=3", cwd=tmp_path), ["nearest is steps"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [["run", "steps=0"], ["run", "batch_size=4001"], ["evaluate", "latest"]]
)
def test_refusals_that_need_no_tensorflow_do_not_import_it(
    tmp_path: Path, environment: dict[str, str], arguments: list[str]
) -> None:
    driver = (
        "import sys; from waymark.__main__ import main; sys.argv = ['waymark', *sys.argv[1:]]; "
        "status = main(); print({'tensorflow', 'keras', 'mlflow', 'matplotlib'} & {*sys.modules});"
        "sys.exit(status)"
    )
    command = [sys.executable, "-c", driver, *arguments]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "set()\n")
    assert len(done.stderr.splitlines()) == 1


FLAGS = ["--help", "--resolve", "-c", "job", "all", "--info", "--hydra-help", "-h"]
KEYS = ["steps", "model", "save.every", "tags", "+tags.a", "~seed", "model@x", "+experiment", "x.y"]
TEXTS = ["0", "cnn", "[1,2]", "{a: b}", "${seed}", "'", '"', "range(3)", "glob(*)", "null", "é\n"]
pairs = st.builds("{}={}".format, st.sampled_from(KEYS) | st.text(max_size=4), st.text(max_size=6))
known = st.builds("{}={}".format, st.sampled_from(KEYS), st.sampled_from(TEXTS))
words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
strings = words | pairs | known | st.sampled_from(FLAGS)
strings = strings.filter(lambda word: not word.startswith("-p"))  # Hydra repeats what follows


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(arguments=st.lists(strings, min_size=1, max_size=3))
def test_any_words_at_all_are_understood_or_refused(
    nowhere: Path, main: Main, arguments: list[str]
) -> None:
    done = main("run", "--cfg", "job", "runtime.intra_op_threads=2", *arguments)
    assert done.returncode in (0, 2)
    assert "Traceback" not in done.stderr
    if done.returncode == 2:
        assert (done.stdout, len(done.stderr.splitlines())) == ("", 1)
