"""Sharing: what a process keeps from one run to the next changes no bit of the next one."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waymark.api import Failed, configure, run
from waymark.config.schema import settings
from waymark.digest import digest
from waymark.evaluation.restore import load_data
from waymark.execution.execute import Result
from waymark.optimizers import Sgd
from waymark.training import loop as module
from waymark.training.loop import Trainer, reuse_or_compile
from waymark.training.runtime import start_tensorflow

tf: Any = start_tensorflow(2)

SETTINGS = (
    *("progress=false", "record.changes=false", "save.every=0", "save.meta_graph=false"),
    *("steps=12", "eval_every=5", "batch_size=50", "runtime.intra_op_threads=2"),
)
SGD = ("optimizer=sgd", "optimizer.momentum=0.9")
CNN = ("model=cnn", "model.keep_prob=0.5", "steps=2")
# In this order: what follows the one before it shares with it what both have in common.
TRIALS: list[tuple[str, ...]] = [
    (),
    ("seed=5",),
    ("seed=9223372036854775807", "optimizer.learning_rate=0.0137"),
    ("steps=30", "optimizer.learning_rate=0.3"),
    ("optimizer.beta1=0.8",),
    ("data.sampling=epoch", "seed=3"),
    ("data.sampling=epoch", "seed=4"),
    ("precision=mixed_bfloat16", "seed=3"),
    ("precision=mixed_bfloat16", "seed=4"),
    (*SGD, "optimizer.learning_rate=0.013"),
    (*SGD, "optimizer.learning_rate=0.3", "seed=2"),
    (*CNN, "seed=2"),
    (*CNN, "seed=3", "optimizer.learning_rate=0.001"),
    ("model=cnn", "model.keep_prob=0.6", "steps=2", "seed=3"),
    ("seed=5",),
]
PROGRAM = """
import sys
from waymark.api import run
result = run(*sys.argv[1:])
print("=>", result.state_digest, result.training_accuracy, result.restored_accuracy)
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    module._cached_trainer.clear()
    yield tmp_path
    module._cached_trainer.clear()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Trainer]:
    """Return the trainers that are compiled from now on, as they come."""
    made: list[Trainer] = []
    real = Trainer.__init__

    def noted(self: Trainer, *arguments: Any) -> None:
        made.append(self)
        real(self, *arguments)

    monkeypatch.setattr(Trainer, "__init__", noted)
    return made


def small(path: Path, seed: int) -> Path:
    """Write a small data set of ten classes."""
    draw = np.random.default_rng(seed)
    sizes = {"train": 200, "test": 50}
    arrays = {f"x_{k}": draw.integers(0, 256, (n, 8, 8), np.uint8) for k, n in sizes.items()}
    arrays |= {f"y_{k}": np.arange(n) % 10 for k, n in sizes.items()}
    np.savez(path, **arrays)
    return path


def outcome(result: Result) -> tuple[str, float | None, float]:
    return result.state_digest, result.training_accuracy, result.restored_accuracy


def test_the_next_run_has_the_bits_of_a_fresh_process(home: Path, made: list[Trainer]) -> None:
    arguments = (*SETTINGS, "data=arrays", f"data.path={small(home / 'data.npz', 0)}")
    last = (*arguments, "seed=7", "steps=30", "optimizer.learning_rate=0.0137")
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *last, "tracking.uri=sqlite:///other/mlflow.db"],
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        run(*arguments)
        found = outcome(run(*last))
        told = other.communicate()[0]
    assert told.splitlines()[-1] == " ".join(map(str, ("=>", *found)))
    assert len(made) == 1


@pytest.mark.long
def test_a_machine_that_was_used_is_as_good_as_new(home: Path, made: list[Trainer]) -> None:
    arguments = (*SETTINGS, "data=arrays", f"data.path={small(home / 'data.npz', 0)}")
    found = []
    for trial in TRIALS:
        config = configure(*arguments, *trial)
        data, results = load_data(config), []
        with reuse_or_compile(config, data) as used:
            for trainer in (used, Trainer(config, data)):
                losses, steps = trainer.run_steps(config.steps), config.steps
                facts = trainer.state() | {"losses": losses}
                results.append((digest(facts), trainer.score().metrics["loss"], steps))
        assert results[0] == results[1], trial
        found.append(results[0])
    assert found[-1] == found[1]
    assert len(set(found)) == len(found) - 1
    # Softmax, beta1, by epochs, bfloat16, SGD, two CNNs, and softmax again.
    assert len(made) == 8 + len(TRIALS)


def test_a_changed_file_is_noticed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace a data set's file, and write another one over it, as long as the first."""
    path = small(home / "data.npz", 0)
    arguments = (*SETTINGS, "data=arrays", f"data.path={path}")
    loader = configure(*arguments).data
    assert loader.load() is not loader.load()  # the file is too young to tell
    monkeypatch.setattr("waymark.data.sources.SETTLED", -1)
    assert loader.load() is loader.load()
    digests = [run(*arguments).state_digest]
    small(home / "new.npz", 1).replace(path)
    digests.append(run(*arguments).state_digest)
    path.write_bytes(small(home / "new.npz", 2).read_bytes())
    digests.append(run(*arguments).state_digest)
    small(home / "new.npz", 0).replace(path)
    digests.append(run(*arguments).state_digest)
    assert digests[3] == digests[0]
    assert len(set(digests)) == 3


def test_a_failed_run_leaves_nothing(home: Path, made: list[Trainer]) -> None:
    arguments = (*SETTINGS, "data=arrays", f"data.path={small(home / 'data.npz', 0)}", *SGD)
    expected = outcome(run(*arguments))
    with pytest.raises(Failed, match="the loss at step"):
        run(*arguments, "optimizer.learning_rate=1e38", "seed=1")
    assert outcome(run(*arguments)) == expected
    assert len(made) == 2
    run(*arguments, "optimizer.learning_rate=1e38", "on_nan=continue")  # all NaN, but not failed
    assert outcome(run(*arguments)) == expected
    assert len(made) == 2


def test_runs_of_two_threads_follow_one_another(home: Path, made: list[Trainer]) -> None:
    arguments = (*SETTINGS, "data=arrays", f"data.path={small(home / 'data.npz', 0)}", "steps=30")
    configs = [configure(*arguments, f"seed={seed}") for seed in range(4)]
    expected = [outcome(run(config=config)) for config in configs]
    found: dict[int, Any] = {}

    def work(*seeds: int) -> None:
        for seed in seeds:
            found[seed] = outcome(run(config=configs[seed]))

    threads = [threading.Thread(target=work, args=seeds) for seeds in ((0, 1), (2, 3))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found.get(seed) for seed in range(4)] == expected
    assert len(made) == 1


@settings
class Fading(Sgd):
    """An optimizer whose arithmetic on its learning rate is Python's, with a setting of its own."""

    power: int

    def apply(self, parameters: Any, slots: Any, gradients: Any) -> None:
        rate = float(self.learning_rate) ** self.power
        fixed = Sgd(learning_rate=rate, momentum=self.momentum)
        fixed.apply(parameters, slots, gradients)


def test_a_users_own_optimizer_is_never_shared(home: Path, made: list[Trainer]) -> None:
    data = small(home / "data.npz", 0)
    arguments = (*SETTINGS, "data=arrays", f"data.path={data}", *SGD)
    config = configure(*arguments)
    digests = []
    for power, rate in ((1, 0.25), (2, 0.25), (2, 0.5), (1, 0.25)):
        config.optimizer = Fading(learning_rate=rate, momentum=0.9, power=power)
        digests.append(run(config=config).state_digest)
    assert len(made) == 4
    plain = [run(*arguments, f"optimizer.learning_rate={r}").state_digest for r in (0.25, 0.0625)]
    assert digests == [plain[0], plain[1], digests[0], digests[0]]
