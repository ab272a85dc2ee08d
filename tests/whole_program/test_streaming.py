"""Data larger than memory: folders of .npy files and sources of the user's own, as whole runs."""

import importlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waymark import api
from waymark.data.rows import NpyRows
from waymark.processes.signals import Interrupted
from waymark.training import loop, streaming
from waymark.training.loop import Trainer

from benchmarks import streaming as streaming_benchmark
from tests.support.data import pictures, write_folder
from tests.support.ends import End, local_end
from tests.support.processes import THREADS, Main, Open, StopAt, killed, readers

WORDS = ["steps=60", "save.every=20", "eval_every=20", "batch_size=10", THREADS, "progress=false"]
WORDS += ["data.validation=0.3"]

SOURCE = """
import numpy as np

arrays = np.load("mine.npz")


class Digits:
    fingerprint = None

    def __init__(self, part="train"):
        self.x, self.y = (arrays[f"{kind}_{part}"] for kind in "xy")

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        return {"image": self.x[index], "label": int(self.y[index])}


def test():
    return Digits("test")
"""
TRUST = "trusted_modules=[own_digits]"


@pytest.fixture
def words(place: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Return how the same data are named as an npz, a folder and a source; chunks are small."""
    shutil.copy(small, place / "mine.npz")
    folder = write_folder(place / "mine", {**np.load(small)})
    (place / "own_digits.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(place)
    monkeypatch.setattr(streaming, "CHUNK_BYTES", 5 * 10 * 64)  # five batches
    source = ["data=source", "data.train=own_digits.Digits", "data.test=own_digits.test"]
    return {
        "npz": ["data=arrays", f"data.path={place}/mine.npz"],
        "folder": ["data=arrays", f"data.path={folder}"],
        "source": [*source, "data.label=label", "data.features=image"],
    }


@pytest.fixture(autouse=True)
def no_reader_is_left() -> Iterator[None]:
    yield
    assert not readers()


def started(main: Main, *words: str) -> str:
    done = main("run", *words)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()[1]


def without_code(end: End) -> End:
    """Return how a run ended, but for the copy of the user's own code, of earlier tests as well."""
    return replace(end, files=[name for name in end.files if not name.startswith("own_code")])


def end_of(place: Path, run_id: str) -> End:
    return without_code(local_end(place, run_id))


CASES = [
    ("folder", "npz", []),
    ("source", "ckpt", []),
    *(
        pytest.param(kind, save, more, marks=pytest.mark.long)
        for kind in ("folder", "source")
        for save in ("npz", "ckpt")
        for more in (["model=cnn", "model.keep_prob=0.5"], ["data.sampling=replacement"])
    ),
]


@pytest.mark.parametrize(("kind", "save", "more"), CASES)
def test_a_run_is_that_of_data_in_memory_whatever_happens_to_it(
    place: Path, main: Main, words: dict[str, list[str]], undisturbed: Callable[..., End],
    kind: str, save: str, more: list[str],
) -> None:  # fmt: skip
    all_words = [*WORDS, f"save={save}", *more]
    known = without_code(undisturbed(*all_words))
    whole = started(main, *words[kind], *all_words)
    assert not end_of(place, whole).unlike(known)
    begun = killed(40, *words[kind], *all_words)
    trust = [TRUST] if kind == "source" else []
    done = main("resume", begun, *trust)
    assert (done.returncode, done.stderr) == (0, "")
    assert not end_of(place, begun).unlike(known)
    done = main("rerun", whole, *trust)
    assert done.returncode == 0 and "identical" in done.stdout
    done = main("evaluate", whole, *trust)
    assert done.returncode == 0
    accuracy = known.points["restored/accuracy"][0][1]
    assert f"accuracy {accuracy:.4f}, " in done.stdout


def test_a_run_goes_on_wherever_the_same_data_are(
    place: Path, main: Main, words: dict[str, list[str]], undisturbed: Callable[..., End]
) -> None:
    known = without_code(undisturbed(*WORDS, "save=ckpt"))
    begun = killed(20, *words["npz"], *WORDS)
    folder = f"data.path={place}/mine"
    assert main("resume", begun, folder).returncode == 0
    assert not end_of(place, begun).unlike(known)
    assert "identical" in main("rerun", begun, f"data.path={place}/mine.npz").stdout
    done = main("evaluate", begun, "--from", "meta", folder)
    accuracy = known.points["restored/accuracy"][0][1]
    assert done.returncode == 0 and f"accuracy {accuracy:.4f} " in done.stdout
    changed = np.load(place / "mine" / "x_test.npy")
    changed[-1, 0, 0] ^= 1
    np.save(place / "mine" / "x_test.npy", changed)
    done = main("evaluate", begun, folder)
    assert done.returncode == 2 and "is not the data that run" in done.stderr


@pytest.mark.long
def test_the_trials_of_a_sweep_share_what_is_compiled(
    place: Path, main: Main, client: Open, words: dict[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(loop, "_cached_trainer", {})
    made: list[Any] = []
    make = Trainer.__init__
    monkeypatch.setattr(Trainer, "__init__", lambda *a: (made.append(a), make(*a))[1])
    digests = {}
    for kind in ("npz", "folder"):
        done = main("run", "-m", *words[kind], *WORDS, "seed=1,2", f"experiment_name={kind}")
        assert (done.returncode, done.stderr) == (0, "")
        experiment = client(place).get_experiment_by_name(kind).experiment_id
        digests[kind] = {
            run.data.params["seed"]: run.data.tags["waymark.state_digest"]
            for run in client(place).search_runs([experiment])
            if "seed" in run.data.params and "waymark.state_digest" in run.data.tags
        }
    assert digests["folder"] == digests["npz"] and len(digests["npz"]) == 2
    assert len(made) == 2


def test_a_file_that_changes_ends_the_run_in_a_sentence(
    place: Path, main: Main, words: dict[str, list[str]], undisturbed: Callable[..., End],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path, run_steps = place / "mine" / "x_train.npy", Trainer.run_steps
    content = path.read_bytes()
    facts = path.stat()

    def cutting(trainer: Trainer, steps: int) -> Any:
        if trainer.step >= 20:
            os.truncate(path, 1000)
        return run_steps(trainer, steps)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_steps", cutting)
        done = main("run", *words["folder"], *WORDS)
    run_id = done.stdout.split()[1]
    assert done.returncode == 1
    assert done.stderr == (
        f"waymark: run {run_id} failed: {path} has changed since it was opened; "
        f"resume with: waymark resume {run_id}\n"
    )
    path.write_bytes(content)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert main("resume", run_id).returncode == 0
    known, end = undisturbed(*WORDS, "save=ckpt"), end_of(place, run_id)
    assert (end.digest, end.points) == (known.digest, known.points)


def test_an_example_that_fails_in_training_ends_the_run_in_a_sentence(
    place: Path, main: Main, words: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    digits: Any = importlib.import_module("own_digits").Digits
    real, run_steps = digits.__getitem__, Trainer.run_steps

    def failing(self: Any, index: int) -> Any:
        if index == 3:
            raise OSError("the server is gone")
        return real(self, index)

    def steps(trainer: Trainer, count: int) -> Any:
        monkeypatch.setattr(digits, "__getitem__", failing)
        return run_steps(trainer, count)

    monkeypatch.setattr(Trainer, "run_steps", steps)
    done = main("run", *words["source"], *WORDS, "eval_every=0", "save.every=60")
    assert done.returncode == 1
    said = (
        "failed: data.train=own_digits.Digits: example 3 is not read: OSError: the server is gone"
    )
    assert said in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("kind", ["folder", pytest.param("source", marks=pytest.mark.long)])
def test_a_signal_ends_a_run_that_can_go_on(
    place: Path, main: Main, words: dict[str, list[str]], undisturbed: Callable[..., End],
    kind: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr("waymark.execution.execute.make_progress", lambda *_: StopAt(23))
        with pytest.raises(Interrupted):
            api.run(*words[kind], *WORDS)
    assert not readers()
    trust = [TRUST] if kind == "source" else []
    done = main("resume", "latest", *trust)
    assert done.returncode == 0
    known = without_code(undisturbed(*WORDS, "save=ckpt"))
    assert end_of(place, done.stdout.split()[1]).digest == known.digest


def test_a_source_in_a_record_is_not_imported_unless_trusted(
    place: Path, main: Main, words: dict[str, list[str]]
) -> None:
    run_id = started(main, *words["source"], *WORDS)
    for name in ("own_digits", "own_forged"):
        sys.modules.pop(name, None)
    (place / "own_forged.py").write_text("open('trace', 'w').close()\ntrain = open\n")
    (record,) = place.glob(f"mlruns/artifacts/1/{run_id}/artifacts/config.yaml")
    honest = record.read_text()
    commands = [["evaluate", run_id], ["resume", run_id, "steps=80"], ["rerun", run_id],
                ["run", "--config-from", run_id]]  # fmt: skip
    for key in ("train: own_digits.Digits", "test: own_digits.test"):
        forged = f"{key.partition(' ')[0]} own_forged.train"
        for text in (honest, honest.replace(key, forged)):
            record.write_text(text)
            for command in commands:
                for trust in ([], ["trusted_modules=[own_other]"]):
                    done = main(*command, *trust)
                    assert (done.returncode, done.stdout) == (2, "")
                    assert "is not part of Waymark; if you trust its module" in done.stderr
        record.write_text(honest.replace(key, forged))
        done = main("evaluate", run_id, TRUST)
        assert done.returncode == 2 and "own_forged.train" in done.stderr
    assert not (place / "trace").exists() and "own_forged" not in sys.modules
    record.write_text(honest)
    assert main("evaluate", run_id, TRUST).returncode == 0


def test_what_would_be_read_is_shown(place: Path, main: Main, words: dict[str, list[str]]) -> None:
    shown = {
        kind: main("data", *words[kind], "data.validation=0.3").stdout.splitlines()
        for kind in words
    }
    assert shown["folder"][1:] == shown["npz"][1:] and shown["source"][2:] == shown["npz"][2:]
    assert shown["folder"][0] == f"arrays from {place}/mine"
    assert shown["source"][0] == "source from own_digits.Digits"


class Reading:
    """Notes of npy files what is the most that is read of one at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = 0
        read_raw = NpyRows.read_raw

        def noted(rows: NpyRows, picked: np.ndarray) -> np.ndarray:
            values = read_raw(rows, picked)
            self.most = max(self.most, values.nbytes)
            return values

        monkeypatch.setattr(NpyRows, "read_raw", noted)


def test_a_set_is_never_read_whole(
    place: Path, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(place / "mine", pictures(1000, 600))
    for name in ("waymark.data.rows.PIECE", "waymark.training.streaming.CHUNK_BYTES"):
        monkeypatch.setattr(name, 250 * 64)
    reading = Reading(monkeypatch)
    words = ["data=arrays", f"data.path={folder}"]
    run_id = started(main, *words, *WORDS)
    assert main("evaluate", run_id).returncode == 0
    assert main("data", *words).returncode == 0
    assert reading.most == 250 * 64


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_memory_does_not_grow_with_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the benchmark does it with 10 GB; were the whole in memory, it would be 180 MB more."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = []
    for size in (0.2, 0.02):
        folder = streaming_benchmark.generate(tmp_path / str(size), size)
        found.append(streaming_benchmark.inner("train", str(folder), str(tmp_path))[1])
    assert found[1] > 200 and found[0] - found[1] < 100
