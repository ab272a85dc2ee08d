"""A sweep over two Ray nodes that share nothing but a tracking server; one of them is killed."""

import json
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from tests.support.processes import Done, free_port, poll

STEPS = 12_000
SEEDS = range(6)
TRIALS = [f"steps={STEPS}", "save=npz", "save.every=500", "save.max_to_keep=2", "eval_every=4000"]
TRIALS += ["seed=0,1,2,3,4,5"]


class Node:
    """A Ray node with one core, in a folder of its own."""

    def __init__(self, folder: Path, env: dict[str, str], *options: str) -> None:
        folder.mkdir()
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--num-cpus=1", "--block"]
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                [*ray, "--node-ip-address=127.0.0.1", "--disable-usage-stats", *options],
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.folder = folder

    def processes(self) -> list[psutil.Process]:
        """Return its processes: Ray's own, and those that do the trials."""
        with suppress(psutil.NoSuchProcess):
            own = psutil.Process(self.process.pid)
            return [own, *own.children(recursive=True)]
        return []

    def has(self, run: Run) -> bool:
        pid = json.loads(run.data.tags["waymark.process"])["pid"]
        return pid in {each.pid for each in self.processes()}

    def kill(self) -> None:
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(60)


@pytest.fixture
def cluster(
    tmp_path: Path, environment: dict[str, str]
) -> Iterator[tuple[str, dict[str, str], Node, Node]]:
    """Start two nodes; yield the address, what a driver needs in its environment, and both."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    env, address = {**environment, **token}, f"127.0.0.1:{free_port()}"
    short = tempfile.mkdtemp(prefix="ray")  # sockets stand in it, whose names must be short
    nodes = []
    try:
        options = [f"--port={address.rpartition(':')[2]}", f"--temp-dir={short}"]
        nodes.append(Node(tmp_path / "head", env, "--head", "--include-dashboard=false", *options))
        poll(lambda: "Ray runtime started" in (tmp_path / "head" / "log").read_text())
        nodes.append(Node(tmp_path / "other", env, f"--address={address}"))
        poll(lambda: "Ray runtime started" in (tmp_path / "other" / "log").read_text())
        yield address, env, nodes[0], nodes[1]
    finally:
        for node in nodes:
            node.kill()
        shutil.rmtree(short, ignore_errors=True)


def runs(client: MlflowClient, experiment: str) -> tuple[list[Run], list[Run]]:
    """Return the parents and the children of an experiment, the oldest first."""
    known = client.get_experiment_by_name(experiment)
    ids = [known.experiment_id] if known else []
    found = client.search_runs(ids, order_by=["attributes.start_time ASC"]) if ids else []
    parents = [each for each in found if each.data.tags.get("waymark.kind") == "sweep"]
    return parents, [each for each in found if each not in parents]


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_a_node_is_killed_and_no_trial_is_lost_or_done_twice(
    cluster: tuple[str, dict[str, str], Node, Node],
    server: tuple[str, Path],
    tmp_path: Path,
    waymark: Callable[..., Done],
    start: Callable[..., "subprocess.Popen[str]"],
) -> None:
    address, env, head, other = cluster
    client, began = MlflowClient(server[0]), time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True)

    here = tmp_path / "here"
    here.mkdir()
    command = ["run", "-m", *TRIALS, f"tracking.uri={server[0]}", "experiment_name=cluster"]
    command += ["hydra/launcher=ray", f"hydra.launcher.ray.init.address={address}"]

    def training(node: Node) -> Run | None:
        """Return the run that a node is in the middle of, as the server knows."""
        assert process.poll() is None, process.communicate()
        for run in runs(client, "cluster")[1]:
            if run.info.status == "RUNNING" and node.has(run):
                steps = len(client.get_metric_history(run.info.run_id, "train/loss"))
                return run if STEPS // 6 < steps < STEPS else None
        return None

    with start(*command, cwd=here, env=env) as process:
        try:
            while not (lost := training(other)):  # pytest-timeout is the bound
                time.sleep(0.2)
            mine = [run for run in runs(client, "cluster")[1] if head.has(run)]
            points = len(client.get_metric_history(lost.info.run_id, "train/loss"))
            other.kill()
            say(f"{lost.info.run_name}: its node was killed, {points} losses had arrived;")
            say(f"on the head {', '.join(run.info.run_name or '' for run in mine)}")
            out, err = process.communicate(timeout=600)
        finally:
            process.kill()
    say(f"the command ended with status {process.returncode}")
    print(out, err, sep="\n")
    assert mine, "the head did nothing"
    states = [(run.info.run_name, run.info.status) for run in runs(client, "cluster")[1]]
    say(str(states))

    again = waymark(*command, cwd=here, env=env, bound=600)
    say(f"the same command again: status {again.returncode}")
    assert again.returncode == 0, again

    (parent,), children = runs(client, "cluster")
    assert parent.info.status == "FINISHED"
    assert [run.info.status for run in children] == ["FINISHED"] * len(SEEDS)
    assert sorted(run.info.run_name for run in children) == [f"seed={seed}" for seed in SEEDS]
    assert len({run.data.tags["waymark.trial"] for run in children}) == len(SEEDS)
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert lost.info.run_id in {run.info.run_id for run in children}  # it went on
    for run in children:
        steps = [p.step for p in client.get_metric_history(run.info.run_id, "train/loss")]
        assert sorted(steps) == list(range(1, STEPS + 1)), run.info.run_name
    best = max(children, key=lambda run: run.data.metrics["restored/accuracy"])
    accuracy = best.data.metrics["restored/accuracy"]
    tagged = next(r for r in children if r.info.run_id == parent.data.tags["waymark.best"])
    assert tagged.data.metrics["restored/accuracy"] == accuracy
    assert parent.data.metrics["best/restored/accuracy"] == accuracy
    say(f"{len(children)} trials of {STEPS} losses each; best {tagged.info.run_name}, {accuracy}")

    alone = tmp_path / "alone"
    alone.mkdir()
    threads = f"runtime.intra_op_threads={parent.data.tags['waymark.threads']}"
    done = waymark("run", "-m", *TRIALS, threads, "experiment_name=alone", cwd=alone, bound=600)
    assert done.returncode == 0, done
    _, undisturbed = runs(MlflowClient(f"sqlite:///{alone}/mlruns/mlflow.db"), "alone")
    expected = {run.info.run_name: run.data.tags["waymark.state_digest"] for run in undisturbed}
    digests = {run.info.run_name: run.data.tags["waymark.state_digest"] for run in children}
    assert digests == expected
    say("all have the bits of the same configuration run alone")
    assert not re.search(r"/artifacts/\d", str(list(here.rglob("*"))))
