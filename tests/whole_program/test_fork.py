"""Forks: they go on from a recorded checkpoint, with the same bits or what else was asked for."""

import json
import random
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mlflow.tracking import MlflowClient
from waymark import api
from waymark.checkpoints import SaveFormat
from waymark.checkpoints import store as checkpoint_store
from waymark.checkpoints.ckpt import Ckpt
from waymark.checkpoints.npz import Npz
from waymark.config.compose import compose_config
from waymark.config.record import from_record
from waymark.digest import digest
from waymark.errors import BadInput
from waymark.evaluation.restore import load_data
from waymark.execution import saver
from waymark.tracking.active_run import ActiveRun
from waymark.training.loop import Trainer
from waymark.training.runtime import start_tensorflow

from tests.support.ends import End, local_end
from tests.support.processes import BOUND, THREADS, Killed, Main, end_sending, killed, poll

SHORT = ["steps=40", "save.every=10", "eval_every=20", "batch_size=8", "progress=false", THREADS]
SOFTMAX = ["model=softmax", *SHORT]
KERAS = ["model=keras", "model.build=tests.support.keras_models.batch_norm", *SHORT]
KERAS += ["optimizer=adamw", "optimizer.use_ema=true"]
TRUST = "trusted_modules=[tests]"
BEGUN = 20  # the step at which most of these forks begin
ENDS = ("index", "data-00000-of-00001")


@pytest.fixture(scope="module")
def data(small: Path) -> list[str]:
    return ["data=arrays", f"data.path={small}"]


@pytest.fixture(scope="module")
def origins(
    shared_once: Callable[..., tuple[Path, Any]], empty_store: Path, data: list[str]
) -> tuple[Path, dict[str, str]]:
    """Return a folder with finished runs, and their ids by model and format."""

    def make(folder: Path) -> dict[str, str]:
        shutil.copytree(empty_store, folder / "mlruns")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            return {
                "softmax npz": api.run(*SOFTMAX, *data, "save=npz", "run_name=first").run_id,
                "keras ckpt": api.run(*KERAS, *data, "optimizer.schedule=cosine").run_id,
            }

    return shared_once("origins-of-forks", make)


@pytest.fixture
def origin(
    origins: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """Be in a copy of the folder of the origins; return their ids."""
    shutil.copytree(origins[0] / "mlruns", tmp_path / "mlruns")
    monkeypatch.chdir(tmp_path)
    return origins[1]


def files(run_id: str) -> Path:
    (found,) = Path.cwd().glob(f"mlruns/artifacts/*/{run_id}/artifacts")
    return found


def end(run_id: str) -> End:
    return local_end(Path.cwd(), run_id)


def remove(run_id: str, client: Callable[[Path], Any]) -> None:
    """Delete a run in MLflow, and its files."""
    folder = files(run_id).parent
    client(Path.cwd()).delete_run(run_id)
    shutil.rmtree(folder)


def saved(run_id: str, step: int) -> dict[str, np.ndarray]:
    """Return a state that was saved as npz, as plain NumPy reads it."""
    with np.load(files(run_id) / "checkpoints" / f"weights-{step}.npz") as archive:
        return dict(archive)


def trained(state: dict[str, np.ndarray], *overrides: str) -> tuple[str, list[float]]:
    """Train a whole state to the last step, with no program around; return digest and losses."""
    start_tensorflow(2)
    config = compose_config([*dict.fromkeys(overrides)]).config
    trainer = Trainer(config, load_data(config))
    trainer.load(state)
    losses = trainer.run_steps(config.steps - trainer.step)
    return digest(trainer.state()), losses.tolist()


def assert_same_from(step: int, whole: End, fork: End) -> None:
    """Check that a fork recorded from a step on what its origin did, and nothing before."""
    assert (fork.status, fork.digest, fork.damaged) == (whole.status, whole.digest, [])
    assert fork.points.keys() == whole.points.keys()
    for key, points in whole.points.items():
        assert fork.points[key] == [each for each in points if each[0] > step], key
    assert fork.checkpoints == {at: d for at, d in whole.checkpoints.items() if at > step}


@pytest.mark.parametrize("which", ["softmax npz", "keras ckpt"])
def test_with_nothing_changed_a_fork_ends_as_its_origin(
    which: str, origin: dict[str, str], main: Main
) -> None:
    run_id = origin[which]
    whole = end(run_id)
    done = main("run", "--fork", f"{run_id}@{BEGUN}", TRUST)
    assert (done.returncode, done.stderr) == (0, ""), done
    fork_id = done.stdout.split()[1]
    assert f"begins at step {BEGUN} of run {run_id}" in done.stdout
    assert_same_from(BEGUN, whole, end(fork_id))
    record = yaml.safe_load((files(fork_id) / "config.yaml").read_text())
    assert record["fork"] == {"run": run_id, "step": BEGUN, "digest": whole.checkpoints[BEGUN]}


def test_a_fork_is_compared_and_done_again_without_its_origin(
    origin: dict[str, str], main: Main, client: Callable[[Path], Any]
) -> None:
    run_id = origin["softmax npz"]
    fork = api.run(fork=f"{run_id}@{BEGUN}")
    compared = api.compare(run_id, fork.run_id)
    assert compared.keys == ["fork"] and compared.partings == {}
    assert f"{run_id[:8]}@{BEGUN} {end(run_id).checkpoints[BEGUN][:8]}" in compared.text()
    assert compared.same_state == [[run_id, fork.run_id]]
    remove(run_id, client)
    again = main("rerun", fork.run_id)
    assert again.returncode == 0, again
    assert (
        f"identical to run {fork.run_id} (20 losses, 2 evaluations, 2 checkpoints" in again.stdout
    )
    assert api.evaluate(fork.run_id).accuracy == fork.restored_accuracy


LEARNING = [
    ("softmax npz", SOFTMAX, 0),
    pytest.param("keras npz", KERAS, 1, marks=pytest.mark.long),
]


@pytest.mark.parametrize(("which", "words", "rates"), LEARNING)
def test_another_learning_rate_holds_from_there_on(
    which: str, words: list[str], rates: int, origin: dict[str, str], data: list[str]
) -> None:
    """The oracle is the compiled loop alone, given the state that NumPy reads."""
    if which == "keras npz":
        origin = {which: api.run(*KERAS, *data, "save=npz").run_id}
    run_id = origin[which]
    whole, state = end(run_id).points["train/loss"], saved(run_id, BEGUN)
    result = api.run("optimizer.learning_rate=0.02", TRUST, fork=f"{run_id}@{BEGUN}")
    losses = end(result.run_id).points["train/loss"]
    assert [step for step, _ in losses] == list(range(BEGUN + 1, 41))
    assert losses[0] == whole[BEGUN], "which is before the first step that differs"
    assert losses[1] != whole[BEGUN + 1]
    variables = {name for name in state if name.endswith("/learning_rate")}
    assert len(variables) == rates
    expected = state | dict.fromkeys(variables, np.float32(0.02))
    found = trained(expected, *words, *data, "optimizer.learning_rate=0.02")
    assert (result.state_digest, [value for _, value in losses]) == found


def test_learning_rates_are_swept_from_a_checkpoint(
    origin: dict[str, str], data: list[str], client: Callable[[Path], Any]
) -> None:
    """Each trial has the bits of the compiled loop alone; the same command completes the sweep."""
    run_id, rates = origin["softmax npz"], ["0.02", "0.5"]
    words = f"optimizer.learning_rate={','.join(rates)}"
    first = api.sweep(words, fork=f"first@{BEGUN}")
    for trial, rate in zip(first.trials, rates, strict=True):
        assert trial.name == f"lr={rate}"
        expected = [*SOFTMAX, *data, f"optimizer.learning_rate={rate}"]
        assert end(trial.run_id).digest == trained(saved(run_id, BEGUN), *expected)[0]
        params = client(Path.cwd()).get_run(trial.run_id).data.params
        assert (params["fork.run"], params["fork.step"]) == (run_id, str(BEGUN))
    more = api.sweep(f"{words},0.1", fork=f"{run_id}@{BEGUN}")
    assert more.run_id == first.run_id
    assert [each.run_id for each in more.trials[:2]] == [each.run_id for each in first.trials]
    other = api.sweep(words, fork=f"{run_id}@30")
    assert other.run_id != first.run_id
    assert not {each.run_id for each in other.trials} & {each.run_id for each in more.trials}
    command = client(Path.cwd()).get_run(first.run_id).data.tags["waymark.command"]
    assert command.startswith(f"waymark run --fork {run_id}@{BEGUN} --multirun ")


@pytest.mark.long
def test_a_sweep_of_forks_in_other_processes_is_interrupted_and_completed(
    origin: dict[str, str],
    start: Callable[..., Any],
    waymark: Callable[..., Any],
    client: Callable[[Path], Any],
) -> None:
    """Of a Keras model, with other optimizers and schedules, in the origin's experiment."""
    run_id = origin["keras ckpt"]
    words = ["optimizer=adam,lion", "optimizer.schedule=cosine,null", "steps=4000", TRUST]
    command = ["run", "--fork", f"{run_id}@{BEGUN}", "-m", *words, "hydra/launcher=joblib"]
    with start(*command, cwd=Path.cwd()) as process:
        poll(lambda: list(Path.cwd().glob("mlruns/artifacts/*/*/artifacts/fork/*.json")))
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=BOUND)
    done = waymark(*command, cwd=Path.cwd(), bound=300)
    assert done.returncode == 0, done
    forks = [
        run
        for run in client(Path.cwd()).search_runs(["1"])
        if run.data.params.get("fork.run") == run_id
    ]
    assert len(forks) == 4
    alone = api.run("optimizer=adam", "optimizer.schedule=null", "steps=4000", TRUST,
                    fork=f"{run_id}@{BEGUN}")  # fmt: skip
    digests = [end(run.info.run_id).digest for run in forks]
    assert digests.count(alone.state_digest) == 1
    assert {run.data.params["optimizer"] for run in forks} == {"keras_adam", "lion"}


@pytest.mark.long
def test_another_optimizer_begins_anew_and_says_so(
    origin: dict[str, str], data: list[str], main: Main
) -> None:
    run_id = origin["softmax npz"]
    words = ["optimizer=sgd", "optimizer.learning_rate=0.1"]
    done = main("run", "--fork", f"{run_id}@{BEGUN}", *words)
    assert done.returncode == 0
    assert done.stderr == "waymark: the optimizer begins anew: weights/Momentum is not kept\n"
    state = {name: saved(run_id, BEGUN)[name] for name in ("step", "weights")}
    state["weights/Momentum"] = np.zeros_like(state["weights"])
    assert end(done.stdout.split()[1]).digest == trained(state, *SOFTMAX, *data, *words)[0]


def test_other_steps_data_and_a_fork_of_a_fork(
    origin: dict[str, str], data: list[str], small: Path, main: Main
) -> None:
    run_id = origin["softmax npz"]
    arrays = dict(np.load(small))
    np.savez("other.npz", **(arrays | {"x_train": arrays["x_train"][::-1]}))
    words = ["data.path=other.npz", "epochs=3"]  # of 25 batches each
    first = main("run", "--fork", run_id, *words, "run_name=other").stdout.split()[1]
    fork = end(first)
    assert [step for step, _ in fork.points["train/loss"]] == list(range(41, 76))
    expected = [*SOFTMAX, *data, "data.path=other.npz", "steps=75"]
    assert fork.digest == trained(saved(run_id, 40), *expected)[0]
    again = api.run("steps=76", fork=f"other@{40}")  # which the fork keeps
    assert again.checkpoints == [50, 60, 70, 76]
    assert end(again.run_id).points["train/loss"][:35] == fork.points["train/loss"]
    copy = main("run", "--config-from", first).stdout.split()[1]  # the same fork again
    assert end(copy).digest == fork.digest
    assert api.compare(first, copy).keys == []


@contextmanager
def dying_in(owner: Any, name: str, half: Callable[..., Any] | None = None) -> Iterator[list[Any]]:
    """Let the first call of a function die, in place of its work or after half of it."""
    started: list[ActiveRun] = []
    hold, real = ActiveRun.__init__, getattr(owner, name)

    def held(run: ActiveRun, *arguments: Any, **named: Any) -> None:
        hold(run, *arguments, **named)
        started.append(run)

    def dying(*arguments: Any, **named: Any) -> Any:
        if half:
            half(real, *arguments, **named)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ActiveRun, "__init__", held)
        patch.setattr(owner, name, dying)
        with pytest.raises(Killed):
            yield started
    end_sending(started[0])


def torn(write: Callable[..., list[Path]], *arguments: Any) -> None:
    for file in write(*arguments):
        file.write_bytes(file.read_bytes()[:100])


POINTS: dict[str, tuple[Any, str, Any]] = {
    "before its start is kept": (saver, "keep", None),
    "inside that": (SaveFormat, "write", torn),
    "before the manifest": (checkpoint_store, "replace_file", None),
    "after it": (saver, "keep", lambda keep, *arguments: keep(*arguments)),
    "in training": (Trainer, "run_steps", None),
}


KILLS = [("in training", "npz"), *(
    pytest.param(point, save, marks=pytest.mark.long)
    for point in POINTS for save in ("npz", "ckpt") if (point, save) != ("in training", "npz")
)]  # fmt: skip


@pytest.mark.parametrize(("point", "save"), KILLS)
def test_killed_before_its_first_checkpoint(
    point: str,
    save: str,
    origin: dict[str, str],
    data: list[str],
    main: Main,
    client: Callable[[Path], Any],
) -> None:
    run_id = origin["softmax npz"] if save == "npz" else api.run(*SOFTMAX, *data).run_id
    whole = end(run_id)
    owner, name, half = POINTS[point]
    owner = {"ckpt": Ckpt, "npz": Npz}[save] if owner is SaveFormat else owner
    with dying_in(owner, name, half) as started:
        api.run(fork=f"{run_id}@{BEGUN}")
    fork_id = started[0].info.id
    if point in ("after it", "in training"):
        remove(run_id, client)
    elif point == "before its start is kept":
        client(Path.cwd()).delete_run(run_id)
        gone = main("resume", fork_id)
        assert (gone.returncode, gone.stderr.count("\n")) == (2, 1)
        assert f"run {fork_id}: has not kept what it began with; RUN='{run_id}'" in gone.stderr
        client(Path.cwd()).restore_run(run_id)
    done = main("resume", fork_id)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert_same_from(BEGUN, whole, end(fork_id))
    kept = {path.name for path in (files(fork_id) / "fork").iterdir()}
    assert (
        kept
        == {
            "npz": {"weights-20.json", "weights-20.npz"},
            "ckpt": {"checkpoint", *(f"model_ckpt-20.{end}" for end in ("json", *ENDS))},
        }[save]
    )


@pytest.mark.long
def test_killed_in_training_and_resumed_without_its_origin(
    place: Path, data: list[str], main: Main, client: Callable[[Path], Any]
) -> None:
    run_id = api.run(*SOFTMAX, *data).run_id
    whole = end(run_id)
    fork_id = killed(25, fork=f"{run_id}@{BEGUN}")
    remove(run_id, client)
    assert main("resume", fork_id, "fork.step=10").returncode == 2
    assert main("resume", fork_id, "save.max_to_keep=1").returncode == 0
    fork = end(fork_id)
    assert (fork.digest, list(fork.checkpoints)) == (whole.digest, [40])
    assert fork.points["train/loss"] == whole.points["train/loss"][BEGUN:]
    assert main("rerun", fork_id).returncode == 0  # what it began with, retention left


def test_damage_and_another_state_are_named(origin: dict[str, str], main: Main) -> None:
    run_id = origin["softmax npz"]
    newest = files(run_id) / "checkpoints" / "weights-40.npz"
    newest.write_bytes(newest.read_bytes()[:-1])
    said = f"waymark: run {run_id}: checkpoint 40 in checkpoints is damaged: weights-40.npz does"
    named = main("run", "--fork", f"{run_id}@40", "steps=50")
    assert (named.returncode, named.stdout, named.stderr.count("\n")) == (2, "", 1)
    assert named.stderr.startswith(said)
    done = main("run", "--fork", run_id, "steps=45")
    assert done.returncode == 0 and done.stderr.startswith(said), done
    fork_id = done.stdout.split()[1]
    assert end(fork_id).points["train/loss"][0][0] == 31  # after the newest whole one

    def refused() -> str:
        again = main("rerun", fork_id)
        assert (again.returncode, again.stdout, again.stderr.count("\n")) == (2, "", 1), again
        return again.stderr

    kept = files(fork_id) / "fork" / "weights-30.npz"
    kept.write_bytes(kept.read_bytes()[:-1])
    assert f"run {fork_id}: checkpoint 30 in fork is damaged: weights-30.npz does" in refused()
    other = api.run("steps=31", "seed=5", fork=f"{run_id}@20").run_id
    for path in (files(other) / "checkpoints").glob("weights-30.*"):
        shutil.copy(path, kept.parent)
    assert f"run {fork_id}: its checkpoint 30 is not what the fork began with" in refused()


REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "{}@7": ([], ["@7: run {} has the checkpoints [10, 20, 30, 40], best, latest."]),
    "{}@20": (["steps=20"], ["steps=20", "begins at step 20"]),
    "{}": ([], ["steps=40", "begins at step 40"]),
    "{}@30": (["epochs=1"], ["steps=25", "begins at step 30"]),
    "first@10": (["stesp=3"], ["stesp", "nearest is steps"]),
    "nothing@10": ([], ["'nothing'"]),
    "{}@ten": ([], ["@ten"]),
    "{}@10": (["init_from=x.npz"], ["init_from", "--fork"]),
    "first@20": (["fork=null"], ["fork", "--fork"]),
    "{}@latest": (["-m", "seed=1,2"], ["steps=40", "begins at step 40"]),
    "first@30": (["-m", "+sweep=learning_rate"], ["+sweep", "key=value"]),
    "first@latest": (["-m", "seed=1,2", "stesp=3"], ["stesp", "nearest is steps"]),
    "{}@best": (["seed=1,2"], ["seed=1,2", "key=value"]),
    "first": (["--config-from", "first"], ["--fork", "--config-from"]),
    "first@40": (["model=linear", "steps=50"], ["bias", "missing there", "[10] here"]),
}


@pytest.mark.parametrize("text", REFUSED)
def test_refusals_are_one_line_and_leave_no_run(
    text: str, origins: tuple[Path, dict[str, str]], main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, ids = origins
    monkeypatch.chdir(folder)
    words, said = REFUSED[text]
    before = sorted(Path("mlruns/artifacts").glob("*/*"))
    done = main("run", "--fork", text.format(ids["softmax npz"]), *words)
    assert (done.returncode, done.stdout) == (2, ""), done
    assert done.stderr.startswith("waymark: ") and done.stderr.count("\n") == 1
    texts = [each.format(ids["softmax npz"]) for each in said]
    assert not [each for each in texts if each not in done.stderr], done.stderr
    assert sorted(Path("mlruns/artifacts").glob("*/*")) == before


@pytest.mark.long
def test_the_best_checkpoint_is_forked(origin: dict[str, str], main: Main) -> None:
    run_id = origin["softmax npz"]
    scored = json.loads(main("evaluate", run_id, "--step", "best", "--json").stdout)
    done = main("run", "--fork", f"{run_id}@best", "steps=41")
    assert f"begins at step {scored['step']} of run {run_id}" in done.stdout


NET = """
import keras
from keras import layers

def net(input_shape, outputs, trained):
    first = layers.Dense(4, trainable=trained, name="first")
    return keras.Sequential([layers.Flatten(), first, layers.Dense(outputs, name="last")])
"""


@pytest.mark.long
def test_layers_are_frozen_and_trained_again(
    place: Path, data: list[str], main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen layer's slots are left out; one that is trained anew has none to go on from."""
    Path("fork_net.py").write_text(NET)
    monkeypatch.syspath_prepend(str(place))
    words = ["model=keras", "model.build=fork_net.net", "+model.settings.trained=true"]
    run_id = api.run(*words, *SHORT, *data, "optimizer=lion", "save=npz").run_id
    trust = "trusted_modules=[fork_net]"
    frozen = main("run", "--fork", run_id, "model.settings.trained=false", "steps=50", trust)
    assert (frozen.returncode, frozen.stderr) == (0, ""), frozen
    was, now = saved(run_id, 40), saved(frozen.stdout.split()[1], 50)
    same = {name for name in was if np.array_equal(was[name], now.get(name))}
    assert {name for name in same if name.startswith("sequential")} == {
        name for name in was if "first" in name and name.startswith("sequential")
    }
    assert any("last_kernel" in name for name in now) and not any("first_kernel" in n for n in now)
    again = ["model.settings.trained=true", "steps=51", trust]
    thawed = main("run", "--fork", frozen.stdout.split()[1], *again)
    assert thawed.returncode == 0
    assert re.fullmatch(
        r"waymark: the optimizer begins anew: lion/\S*first_\S+ is not kept\n", thawed.stderr
    )


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")  # of Keras
def test_a_model_of_a_file_is_forked_without_the_file(
    place: Path, data: list[str], main: Main
) -> None:
    import keras

    layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    keras.Sequential(layers).save("given.keras")
    run_id = api.run("model=keras", "model.file=given.keras", *SHORT, *data).run_id
    Path("given.keras").unlink()
    done = main("run", "--fork", f"{run_id}@{BEGUN}")
    assert (done.returncode, done.stderr) == (0, ""), done
    fork_id = done.stdout.split()[1]
    assert_same_from(BEGUN, end(run_id), end(fork_id))
    assert main("rerun", fork_id).returncode == 0


@pytest.mark.long
def test_through_a_tracking_server(
    server: tuple[str, Path], place: Path, data: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command is given in another folder: what it needs comes from the server."""
    uri = f"tracking.uri={server[0]}"

    def elsewhere(name: str) -> None:
        (place / name).mkdir()
        monkeypatch.chdir(place / name)

    whole = api.run(*SOFTMAX, *data, uri, "save=npz", "run_name='to be forked'")
    elsewhere("second")
    forked = api.run(uri, fork=f"{whole.run_id}@{BEGUN}")
    assert forked.state_digest == whole.state_digest
    assert api.compare(whole.run_id, forked.run_id, tracking_uri=server[0]).partings == {}
    client = MlflowClient(server[0])
    ids = [each.experiment_id for each in client.search_experiments()]
    # The id in MLflow: a run begins under a local one where the server takes longer to answer.
    (origin,) = client.search_runs(ids, "attributes.run_name = 'to be forked'")
    client.delete_run(origin.info.run_id)
    elsewhere("third")
    verdict = api.rerun(forked.run_id, uri)
    assert verdict.identical and (verdict.losses, verdict.differences) == (20, [])


def test_a_forged_origin_is_only_looked_for(tmp_path: Path) -> None:
    """What a record says of a fork's origin is a text and a number, and decides no path."""
    path = tmp_path / "config.yaml"
    body = yaml.safe_load(compose_config([]).record())
    whole = {"run": "x", "step": 1, "digest": "0" * 64}
    for fork in ("x", {"run": "x", "step": 1}, *({**whole, key: []} for key in whole)):
        path.write_text(yaml.safe_dump(body | {"fork": fork}))
        with pytest.raises(BadInput, match=r"^fork"):
            from_record(path, {}, [], ())


@pytest.mark.long
@pytest.mark.parametrize("model", ["softmax", "cnn", "keras"])
def test_forks_of_forks_at_any_steps(
    model: str, place: Path, data: list[str], main: Main, seed: int
) -> None:
    """A chain of forks, each cut off somewhere and forked again in another format."""
    draw = random.Random(f"{seed} {model}")
    words = {"softmax": SOFTMAX, "cnn": ["model=cnn", *SHORT], "keras": KERAS}[model]
    every = ["save.every=1", "save.max_to_keep=0", "save.asynchronous=false"]
    whole = api.run(*words, *every, *data)
    losses, states = end(whole.run_id).points["train/loss"], end(whole.run_id).checkpoints
    kept = {whole.run_id: range(1, 40)}
    for _ in range(6):
        parent = draw.choice(sorted(kept))
        step = draw.choice(kept[parent])
        last, save = draw.randint(step + 1, 40), draw.choice(["npz", "ckpt"])
        fork = api.run(f"steps={last}", f"save={save}", TRUST, fork=f"{parent}@{step}")
        assert end(fork.run_id).points["train/loss"] == losses[step:last]
        assert end(fork.run_id).checkpoints[last] == states[last]
        assert main("rerun", fork.run_id, TRUST).returncode == 0
        kept[fork.run_id] = range(step, min(last, 39) + 1)
