"""Sweeps whose trials are processes of their own: killed ones go on, and Slurm gets its script."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from tests.support.ends import End
from tests.support.processes import THREADS, Done, Open

SHORT = ["data=arrays", "save=npz", "save.every=5", "eval_every=20", "batch_size=10"]
OPTIMIZER = ["optimizer=sgd", "optimizer.learning_rate=0.1"]
OWN = [*OPTIMIZER, "optimizer._target_=own.Own"]

# A class of the user's, which a worker finds in the current folder; beside it lie files that say
# which trial gets a signal at step 23: <steps>.<signal>, and then .once or .always; the signal may
# be PARENT, SIGKILL for the process that started this one.
MODULE = """
import os, signal
from pathlib import Path
import waymark.execution.execute
from waymark.optimizers import Sgd
from waymark.training.progress import NoProgress

class Own(Sgd):
    pass

class Signalled(NoProgress):
    def on_steps(self, step, loss):
        for path in Path(__file__).parent.glob(f"{self.steps}.*") if step >= 23 else ():
            _, number, often = path.name.split(".")
            if often == "once":
                path.unlink()
            if number == "PARENT":
                os.kill(os.getppid(), signal.SIGKILL)
            else:
                os.kill(os.getpid(), signal.Signals[number])

waymark.execution.execute.make_progress = lambda wish, steps, done, *_: Signalled(steps, done)
"""


@pytest.fixture
def short(place: Path, small: Path) -> list[str]:
    """Return the overrides of short trials; put a class of the user's into the current folder."""
    (place / "own.py").write_text(MODULE)
    return [*SHORT, f"data.path={small}"]


def runs(client: MlflowClient) -> tuple[Run, dict[str, Run]]:
    """Return the only parent of a store, and its children by name; each name is there once."""
    found = client.search_runs(["1"])
    (parent,) = [each for each in found if each.data.tags.get("waymark.kind") == "sweep"]
    children = {each.info.run_name: each for each in found if each != parent}
    assert len(children) == len(found) - 1
    assert {each.data.tags["mlflow.parentRunId"] for each in children.values()} <= {
        parent.info.run_id
    }
    return parent, children


def check(client: MlflowClient, sweep: list[int], undisturbed: Callable[..., End]) -> None:
    """Check that a sweep over `steps` has all trials, whole, with the bits of runs of their own."""
    parent, children = runs(client)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["waymark.resume"] == ""
    assert parent.data.tags["waymark.best"] in {each.info.run_id for each in children.values()}
    assert sorted(children) == [f"steps={steps}" for steps in sweep]
    for steps, child in zip(sweep, (children[f"steps={n}"] for n in sweep), strict=True):
        assert child.info.status == "FINISHED"
        history = client.get_metric_history(child.info.run_id, "train/loss")
        assert sorted(point.step for point in history) == list(range(1, steps + 1))
        alone = undisturbed(*SHORT, *OPTIMIZER, f"steps={steps}", THREADS)
        assert child.data.tags["waymark.state_digest"] == alone.digest


SUBMITIT = ["hydra/launcher=submitit_local", "hydra.launcher.cpus_per_task=2"]


@pytest.mark.long
def test_what_is_killed_or_out_of_time_goes_on_by_submitit(
    place: Path,
    waymark: Callable[..., Done],
    client: Open,
    short: list[str],
    undisturbed: Callable[..., End],
) -> None:
    (place / "61.SIGKILL.once").touch()
    (place / "62.SIGUSR2.once").touch()  # as Slurm tells that a job's time is up
    done = waymark("run", "-m", "steps=60,61,62", *short, *OWN, *SUBMITIT, cwd=place, bound=240)
    assert done.returncode == 0, done
    assert {path.name for path in place.iterdir()} == {"mlruns", "own.py", "__pycache__"}
    assert runs(client(place))[0].data.tags["waymark.threads"] == "2"
    check(client(place), [60, 61, 62], undisturbed)


@pytest.mark.cluster
def test_what_kills_itself_each_time_spares_the_others(
    place: Path,
    waymark: Callable[..., Done],
    client: Open,
    short: list[str],
    undisturbed: Callable[..., End],
) -> None:
    command = ["run", "-m", "steps=60,61,62", *short, *OWN, *SUBMITIT]
    (place / "61.SIGKILL.always").touch()
    done = waymark(*command, cwd=place, bound=240)
    assert done.returncode == 1, done
    parent, children = runs(client(place))
    assert parent.info.status == "FAILED"
    states = {name: each.info.status for name, each in children.items()}
    assert states == {"steps=60": "FINISHED", "steps=61": "KILLED", "steps=62": "FINISHED"}
    (place / "61.SIGKILL.always").unlink()
    ids = {name: each.info.run_id for name, each in children.items()}
    done = waymark(*command, cwd=place, bound=240)
    assert done.returncode == 0, done
    assert {name: each.info.run_id for name, each in runs(client(place))[1].items()} == ids
    check(client(place), [60, 61, 62], undisturbed)


def test_what_kills_a_worker_of_joblib_costs_no_trial(
    place: Path,
    waymark: Callable[..., Done],
    client: Open,
    short: list[str],
    undisturbed: Callable[..., End],
) -> None:
    command = ["run", "-m", "steps=60,61", *short, *OWN, THREADS, "hydra/launcher=joblib"]
    (place / "61.SIGKILL.once").touch()
    done = waymark(*command, "hydra.launcher.n_jobs=2", cwd=place, bound=240)
    assert done.returncode == 0, done
    assert not (place / "61.SIGKILL.once").exists()
    children = runs(client(place))[1].values()
    processes = {json.loads(each.data.tags["waymark.process"])["pid"] for each in children}
    assert len(processes) >= 2
    check(client(place), [60, 61], undisturbed)


@pytest.mark.long
def test_a_killed_sweep_of_joblib_is_completed_by_the_same_command(
    place: Path,
    waymark: Callable[..., Done],
    client: Open,
    short: list[str],
    undisturbed: Callable[..., End],
) -> None:
    """At once: its workers are still there, in the middle of trials."""
    command = ["run", "-m", "steps=60,61,62,63", *short, *OWN, THREADS]
    command += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    (place / "61.PARENT.once").touch()
    assert waymark(*command, cwd=place, stdout=subprocess.DEVNULL).returncode == -9
    done = waymark(*command, cwd=place)
    assert done.returncode == 0, done
    check(client(place), [60, 61, 62, 63], undisturbed)


# What Slurm's commands do, on this machine and at once.
SBATCH = """#!/bin/bash
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
for task in $(seq 0 "${last:-0}"); do
  (
    if [[ $last ]]; then export SLURM_ARRAY_JOB_ID=$$ SLURM_ARRAY_TASK_ID=$task; fi
    SLURM_JOB_ID=$$ bash "$1"
    echo "$$${last:+_$task}|COMPLETED|here" >> slurm.ended
  ) &> /dev/null &
done
echo "Submitted batch job $$"
"""
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do
  if [[ $1 != --unbuffered ]]; then shift; fi
  shift
done
exec "$@" &>> slurm.log
"""
SACCT = """#!/bin/bash
echo "JobID|State|NodeList"
if [[ -e slurm.ended ]]; then cat slurm.ended; fi
"""


def test_slurm_gets_an_array_of_jobs(
    place: Path,
    waymark: Callable[..., Done],
    client: Open,
    short: list[str],
    undisturbed: Callable[..., End],
    environment: dict[str, str],
) -> None:
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", SACCT)):
        (place / "bin").mkdir(exist_ok=True)
        (place / "bin" / name).write_text(text)
        (place / "bin" / name).chmod(0o755)
    command = ["run", "-m", "steps=60,61", *short, *OWN, "hydra/launcher=submitit_slurm"]
    command += ["hydra.launcher.cpus_per_task=2", "hydra.launcher.timeout_min=90"]
    command += ["hydra.launcher.array_parallelism=1", "hydra.launcher.partition=night"]
    path = f"{place / 'bin'}:{environment['PATH']}"
    done = waymark(*command, cwd=place, bound=240, env={**environment, "PATH": path})
    assert done.returncode == 0, (done, (place / "slurm.log").read_text())
    folder = place / "mlruns" / ".submitit"
    (script,) = [each.read_text() for each in folder.glob("*/*.sh")]  # none was lost
    flags = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", script, re.M))
    asked = {"cpus-per-task": "2", "time": "90", "array": "0-1%1", "partition": "night"}
    assert {key: flags[key] for key in asked} == asked
    assert flags["signal"] == "USR2@120"
    assert flags["output"] == f"{folder}/%A_%a/%A_%a_0_log.out"
    last = script.rstrip().splitlines()[-1]
    assert re.search(rf"^srun .* {re.escape(sys.executable)} -u -m submitit\.core\._submit ", last)
    check(client(place), [60, 61], undisturbed)
