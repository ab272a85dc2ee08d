"""Twenty kinds of Keras models: killed, resumed, done again, each to the same bits.

Three die in one process, whose record of them ends where it is, and then of SIGKILL: each start of
TensorFlow takes seconds. Under `long` each of the twenty dies of SIGKILL, at a step that is drawn.
"""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waymark import api

from tests.support.data import pictures
from tests.support.processes import BOUND, THREADS, Done, Main, killed

MODELS, MORE = "tests.support.keras_models", "tests.support.keras_kinds"
STEPS = 9
RUN = [
    "model=keras",
    "data=arrays",
    "batch_size=8",
    f"steps={STEPS}",
    "save.every=3",
    "eval_every=4",
]
RUN += ["optimizer=adamw", "progress=false", THREADS]
TRUST = "trusted_modules=[tests]"
MIXED = "precision=mixed_bfloat16"
ACCUMULATED = "optimizer.gradient_accumulation_steps=4"  # of which a kill is in the middle

# kind -> the module of its function, its name, and what its run is told besides
TABLE: dict[str, tuple[str, ...]] = {
    "batch norm": (MODELS, "batch_norm"),
    "layer norm": (MODELS, "layer_norm"),
    "dropout": (MODELS, "dropout"),
    "attention": (MODELS, "attention", "optimizer.clipnorm=1"),
    "LSTM": (MODELS, "lstm"),
    "GRU": (MODELS, "gru", "optimizer=rmsprop"),
    "embedding": (MORE, "of_integers", "data.scale=none"),
    "shared layer": (MODELS, "shared"),
    "nested model": (MODELS, "nested"),
    "regularised": (MODELS, "regularised", "optimizer=sgd"),
    "frozen": (MODELS, "frozen"),
    "augmentation": (MODELS, "augmentation"),
    "multi-input": (MORE, "multi_input", "data.path=two.npz"),
    "own layer": (MODELS, "own_layer"),
    "own seed": (MODELS, "own_seed", "optimizer=lion"),
    "mixed precision": (MODELS, "batch_norm", MIXED),
    "lazily built": (MORE, "lazily_built", "optimizer=adam", ACCUMULATED),
    "add_loss": (MODELS, "add_loss"),
    "weight-normalised": (MORE, "weight_normalised", "optimizer=sgd"),
    "separable convolution": (MODELS, "separable"),
}
SHORT = ("frozen", "multi-input", "lazily built")


def overrides(kind: str, number: int, small: Path) -> list[str]:
    module, name, *more = TABLE[kind]
    save = f"save={('ckpt', 'npz')[number % 2]}"
    path = [f"data.path={small}"] if "data.path" not in str(more) else []
    return [f"model.build={module}.{name}", *RUN, *path, save, *more]


def write_two_inputs(folder: Path) -> None:
    parts = pictures(120, 40)
    rows = {f"x_{part}.row": parts[f"x_{part}"][:, 3] for part in ("train", "test")}
    images = {f"x_{part}.image": parts.pop(f"x_{part}") for part in ("train", "test")}
    np.savez(folder / "two.npz", **images, **rows, **parts)


TOGETHER = """
import json, os, signal, sys
from tests.support.processes import Killed
from waymark import api
from waymark.training.loop import Trainer

run_steps = Trainer.run_steps

def dying(trainer, steps):
    if trainer.step >= 5:
        raise Killed
    return run_steps(trainer, steps)

Trainer.run_steps = dying
for words in json.loads(sys.argv[1]):
    try:
        api.run(*words)
    except Killed:
        pass
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def dead(
    tmp_path_factory: pytest.TempPathFactory,
    empty_store: Path,
    small: Path,
    environment: dict[str, str],
) -> tuple[Path, dict[str, str]]:
    """Return a folder, and the runs in it of one process that died, by kind."""
    folder = tmp_path_factory.mktemp("kinds")
    shutil.copytree(empty_store, folder / "mlruns")
    write_two_inputs(folder)
    words = [overrides(kind, number, small) for number, kind in enumerate(SHORT)]
    command = [sys.executable, "-c", TOGETHER, json.dumps(words)]
    died = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=2 * BOUND
    )
    assert died.returncode == -signal.SIGKILL, died
    keys = re.findall(r"^run (\w+) ", died.stdout, re.M)
    return folder, dict(zip(SHORT, keys, strict=True))


@pytest.mark.parametrize("kind", SHORT)
def test_three_kinds_die_are_resumed_and_done_again(
    kind: str, dead: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, keys = dead
    monkeypatch.chdir(folder)
    resumed_and_done_again(keys[kind])


def resumed_and_done_again(key: str) -> None:
    result = api.resume(key, TRUST, "progress=false")
    assert result is not None
    again = api.rerun(key, TRUST)  # in one piece
    assert again.identical, again
    assert (again.losses, again.checkpoints) == (STEPS, 3)


DYING = """
import os, signal, sys
from waymark.training.loop import Trainer
from waymark.__main__ import program

last, run_steps = int(sys.argv.pop(1)), Trainer.run_steps

def dying(trainer, steps):
    losses = run_steps(trainer, steps)
    if trainer.step >= last:
        os.kill(os.getpid(), signal.SIGKILL)
    return losses

Trainer.run_steps = dying
program()
"""


@pytest.mark.long
@pytest.mark.parametrize("kind", TABLE)
def test_twenty_kinds_are_killed_resumed_and_done_again(
    kind: str, place: Path, small: Path, environment: dict[str, str], seed: int
) -> None:
    write_two_inputs(place)
    number = list(TABLE).index(kind)
    words = overrides(kind, number, small)
    step = random.Random(seed + number).randint(1, STEPS)
    print("killed when step", step, "was trained, and not yet recorded")
    command = [sys.executable, "-c", DYING, str(step), "run", *words]
    died = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=BOUND)
    assert died.returncode == -signal.SIGKILL, died
    resumed_and_done_again(died.stdout.split()[1])


@pytest.mark.long
def test_statistics_that_a_layer_adapted_to_are_in_the_state(
    place: Path, main: Main, small: Path
) -> None:
    """The file that they came from may change, or go: they are restored."""
    np.save(place / "seen.npy", np.array([0.1, 0.2, 0.6]))
    words = [f"model.build={MORE}.adapted", "+model.settings.file=seen.npy", *RUN]
    key = killed(5, *words, f"data.path={small}", "save=npz")
    np.save(place / "seen.npy", np.array([5.0, 6.0, 9.0]))
    result = api.resume(key, TRUST, "progress=false")
    assert result is not None
    told = main("evaluate", key, TRUST).stdout
    assert f"accuracy {result.restored_accuracy:.4f}," in told
    np.save(place / "seen.npy", np.array([0.1, 0.2, 0.6]))
    again = api.rerun(key, TRUST)
    assert again.identical, again


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["joblib", "ray"])
def test_a_trial_elsewhere_has_the_bits_of_a_run_alone(
    launcher: str,
    place: Path,
    waymark: Callable[..., Done],
    client: Callable[[Path], Any],
    small: Path,
) -> None:
    if launcher == "ray":
        pytest.importorskip("ray")
    words = overrides("batch norm", 1, small)
    sweep = ["seed=3,4", f"hydra/launcher={launcher}"]
    sweep += ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    done = waymark("run", "-m", *words, *sweep, cwd=place, bound=300)
    assert done.returncode == 0, done
    found = {
        run.data.params["seed"]: run.data.tags["waymark.state_digest"]
        for run in client(place).search_runs(["1"])
        if "seed" in run.data.params and "waymark.state_digest" in run.data.tags
    }
    alone = {seed: api.run(*words, f"seed={seed}").state_digest for seed in ("3", "4")}
    assert found == alone
