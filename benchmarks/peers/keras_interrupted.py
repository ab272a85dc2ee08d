"""Keras and MLflow by hand: what is left of a `fit` that was killed, or whose server went away.

    python -m benchmarks.peers.keras_interrupted

Trains softmax for 400 steps by `fit` with `BackupAndRestore` at every 50th step and MLflow's
callback: once whole; once killed after step 270 and started again; once with a tracking server
that ends after step 100. Prints what became of weights, losses and of the command.
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import mlflow
import numpy as np
import tensorflow as tf

from benchmarks.peers import BATCH, EVAL_EVERY, SAVE_EVERY, scaled, tracking_uri
from benchmarks.peers.keras_fit import batches_of, build
from tests.support.server import Server

STEPS, KILLED_AFTER, SERVER_UNTIL = 400, 270, 100


class At(tf.keras.callbacks.Callback):
    """Kill a process group, or this process, after a step, once in a folder's life."""

    def __init__(self, step: int, process: int | None, marker: Path) -> None:
        super().__init__()
        self.step, self.process, self.marker, self.seen = step, process, marker, 0

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        self.seen += 1
        if self.seen == self.step and not self.marker.exists():
            self.marker.touch()
            if self.process is None:
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                os.killpg(self.process, signal.SIGKILL)


def train(folder: Path, uri: str, *more: tf.keras.callbacks.Callback) -> None:
    """Train in a folder, from the backup that is there; write the weights."""
    x_train, y_train, *_ = scaled()
    tf.keras.utils.set_random_seed(0)
    mlflow.set_tracking_uri(uri)
    model = build("softmax")
    known = folder / "run"
    with mlflow.start_run(run_id=known.read_text() if known.exists() else None) as run:
        known.write_text(run.info.run_id)
        model.fit(
            batches_of(x_train, y_train, 0, BATCH),
            steps_per_epoch=EVAL_EVERY,
            epochs=STEPS // EVAL_EVERY,
            callbacks=[
                tf.keras.callbacks.BackupAndRestore(str(folder / "backup"), SAVE_EVERY),
                mlflow.tensorflow.MlflowCallback(log_every_epoch=False, log_every_n_steps=1),
                *more,
            ],
            verbose=0,
        )
    np.savez(folder / "weights.npz", *model.get_weights())
    (folder / "iterations").write_text(str(int(model.optimizer.iterations)))


def again(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run this program as another process that trains in a folder."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.peers.keras_interrupted", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def weights(folder: Path) -> list[np.ndarray]:
    with np.load(folder / "weights.npz") as arrays:
        return [arrays[name] for name in arrays.files]


def losses(folder: Path) -> list[int]:
    client = mlflow.MlflowClient(tracking_uri(folder))
    history = client.get_metric_history((folder / "run").read_text(), "loss")
    return [point.step for point in history]


def last_step(folder: Path) -> int:
    """Return how often the optimizer updated the weights."""
    return int((folder / "iterations").read_text())


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        whole, repeated, cut, served = (Path(name, each) for each in ("a", "b", "c", "d"))
        for folder in (whole, repeated):
            assert again(folder, tracking_uri(folder)).returncode == 0
        first = again(cut, tracking_uri(cut), str(KILLED_AFTER))
        assert first.returncode == -signal.SIGKILL, first.stderr
        second = again(cut, tracking_uri(cut))
        assert second.returncode == 0, second.stderr
        for what, folder in (("again from the start", repeated), ("killed and resumed", cut)):
            apart = max(
                float(np.abs(a - b).max())
                for a, b in zip(weights(whole), weights(folder), strict=True)
            )
            steps = [step for step in losses(folder) if step <= STEPS]
            print(
                f"{what}: {last_step(folder)} steps; weights at most {apart:.3g} from those of "
                f"the whole run; losses of {len(set(steps))} of {STEPS} steps in MLflow"
            )
        with Server(served) as server:
            assert server._process
            ended = again(served, server.uri, str(SERVER_UNTIL), str(server._process.pid))
        last = ended.stderr.strip().splitlines()[-1:] if ended.returncode else ["it went on"]
        print(f"server gone: exit status {ended.returncode}; {last[0][:160] if last else ''}")


if __name__ == "__main__":
    if sys.argv[1:]:
        where, uri, *event = sys.argv[1:]
        end = [int(each) for each in event]
        more = [At(end[0], end[1] if end[1:] else None, Path(where, "done"))] if end else []
        train(Path(where), uri, *more)
    else:
        main()
