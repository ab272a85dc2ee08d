"""Only the owner of a run writes to it: what others bring late adds what it lacks, and no more."""

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from mlflow.tracking import MlflowClient
from waymark.config.compose import compose_config
from waymark.errors import BadInput
from waymark.execution import execute
from waymark.tracking import active_run, liveness, outbox, ownership, remote_store
from waymark.tracking.active_run import ActiveRun, create_run, reopen_run
from waymark.tracking.delivery import Delivery
from waymark.tracking.finder import find
from waymark.tracking.liveness import this_process
from waymark.tracking.opening import open_store
from waymark.tracking.outbox import Content
from waymark.tracking.ownership import Lease
from waymark.tracking.questions import StoreError
from waymark.tracking.recovery import sync
from waymark.training.progress import NoProgress

from tests.support.data import POINTS
from tests.support.processes import (
    THREADS,
    Killed,
    delivers,
    end_sending,
    has_arrived,
    poll,
    remote,
)

pytestmark = pytest.mark.usefixtures("delivery_here")

# Whose a run is.

A, B, C = ({"host": "h", "boot": "b", "pid": pid, "started": 1.0} for pid in (1, 2, 3))


def lease(number: int, process: dict[str, Any], since: int | None = None, **more: Any) -> Lease:
    return Lease(number, 0, process if since is None else {**process, "since": since}, **more)


OWNERS: dict[str, tuple[list[tuple[Lease, Lease | None]], Lease, bool]] = {
    "its own": ([(lease(1, A, 5), None)], lease(1, A, 5), True),
    "not heard of yet": ([(lease(2, B, 6), lease(1, A, 5))], lease(1, A, 5), True),
    "nor its second life": (
        [(lease(2, B, 6), lease(1, A, 5)), (lease(3, B, 7), lease(2, B, 6))],
        lease(1, A, 5),
        True,
    ),
    "taken": ([(lease(1, A, 5), None)], lease(2, B, 6), False),
    "taken, same number": ([(lease(2, A, 5), lease(1, C, 4))], lease(2, B, 6), False),
    "taken, same process": ([(lease(2, A, 5), lease(1, C, 4))], lease(2, A, 6), False),
    "taken between two of its own": (
        [(lease(1, A, 5), None), (lease(3, A, 8), lease(2, B, 6))],
        lease(2, B, 6),
        True,
    ),
    "taken after that": (
        [(lease(1, A, 5), None), (lease(3, A, 8), lease(2, B, 6))],
        lease(4, B, 9),
        False,
    ),
    "finished meanwhile": ([(lease(2, B), lease(1, A, 5))], lease(1, A, 5, finished=True), False),
    "extended": (
        [(lease(2, B), lease(1, A, 5, finished=True))],
        lease(1, A, 5, finished=True),
        True,
    ),
    "an old record": ([(lease(0, A), None)], lease(0, A), True),
    "an old record, taken": ([(lease(0, A), None)], lease(0, B), False),
    "an old record, taken since": ([(lease(0, A), None)], lease(1, B, 6), False),
    "no tags": ([(lease(1, A, 5), None)], Lease(), True),
    "no number": ([(lease(1, A, 5), None)], lease(0, A, 5), True),
    "no number, taken": ([(lease(1, A, 5), None)], lease(0, B, 6), False),
    "no process": ([(lease(1, A, 5), None)], lease(1, {}), True),
    "no process, taken": ([(lease(1, A, 5), None)], lease(2, {}), False),
    "nothing begun": ([], Lease(), True),
    "nothing begun, taken": ([], lease(1, A, 5), False),
}


@pytest.mark.parametrize("name", OWNERS)
def test_who_may_write(name: str, tmp_path: Path) -> None:
    begun, owner, expected = OWNERS[name]
    content = Content()
    box = outbox.Outbox(tmp_path / "outbox.jsonl")
    for new, before in begun:
        content.begin(new, before)
        box.append("begun", {**new.dump(), **({"after": before.dump()} if before else {})})
    box.close()
    assert content.may_write(owner) is expected
    read = outbox.read(box.path)
    assert (read.leases, read.before) == (content.leases, content.before)
    again = ownership.owner(owner.tags(), owner.finished)
    assert read.may_write(again) is expected


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "9" * 5000, "²", "[" * 5000, "null"])
def test_tags_that_tell_of_no_life_are_nobodys(text: str) -> None:
    tags = {"waymark.process": text, "waymark.life": text, "waymark.from_step": text}
    assert ownership.owner(tags) == Lease()


# Two machines, one server.


class Machine:
    """A folder of its own, in which processes of its own train."""

    def __init__(self, name: str, folder: Path, uri: str, patch: pytest.MonkeyPatch) -> None:
        self.name, self.folder, self.uri, self._patch = name, folder, uri, patch
        self._pid = 0
        self._process: Any = None  # that delivers
        folder.mkdir()

    @contextmanager
    def at_work(self, alone: bool = False) -> Iterator[None]:
        """Be another process, on this machine; `alone`: those of the other one are silent."""
        self._pid += 1
        process = {**this_process(), "host": self.name, "pid": self._pid, "started": 1.0}
        with self._patch.context() as patch:
            patch.chdir(self.folder)
            patch.setattr(active_run, "this_process", lambda: process)
            patch.setattr(remote_store, "_process", self._process)
            if alone:
                patch.setattr(liveness, "DEAD_AFTER_S", -liveness.HEARTBEAT_S)
            yield
            self._process = remote_store._process

    def sync(self, alone: bool = False) -> list[str]:
        with self.at_work(alone):
            told = list(sync(open_store(self.uri)))
        assert all(well for _, well in told), told
        return [line for line, _ in told]

    def resume(self, run_id: str, step: int) -> ActiveRun:
        with self.at_work(alone=True):
            tracking = open_store(self.uri)
            return reopen_run(
                remote(tracking), find(tracking, run_id), compose_config([THREADS]).config, step
            )


@pytest.fixture
def machines(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[Machine]:
    return [Machine(name, tmp_path / name, server[0], monkeypatch) for name in "AB"]


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the runs whose process hangs: nothing of them is sent."""
    frozen: list[Any] = []
    real = Delivery.deliver

    def deliver(delivery: Delivery) -> None:
        if None in frozen or any(delivers(run, delivery) for run in frozen):
            raise ConnectionError("frozen")
        real(delivery)

    monkeypatch.setattr(Delivery, "deliver", deliver)
    return frozen


def put(run: ActiveRun, *steps: int) -> None:
    """Make the checkpoints of a run those of some steps."""
    folder = run.info.folder / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for step in steps:
        for end in ("npz", "json"):
            (folder / f"weights-{step}.{end}").write_text(f"{step} of {run.info.folder}")
    run.mark_artifacts_dirty()


def trained(run: ActiveRun, *steps: int) -> None:
    """Record losses; which process did it shows in their times alone."""
    time.sleep(0.002)
    run.record(steps, {"train/loss": [1 / step for step in steps]})


def seen(client: MlflowClient, run_id: str) -> dict[str, Any]:
    run = client.get_run(run_id)
    points = {
        key: sorted((p.step, p.value, p.timestamp) for p in client.get_metric_history(run_id, key))
        for key in run.data.metrics
    }
    files = {
        file.path: Path(client.download_artifacts(run_id, file.path)).read_bytes()
        for folder in (None, "checkpoints")
        for file in client.list_artifacts(run_id, folder)
        if not file.is_dir
    }
    told = (run.info.status, run.info.lifecycle_stage, run.info.end_time)
    return {"told": told, "tags": run.data.tags, "points": points, "files": files}


def checkpoints(facts: dict[str, Any]) -> set[str]:
    return {name for name in facts["files"] if name.startswith("checkpoints/")}


def settled(client: MlflowClient, run: ActiveRun) -> dict[str, Any]:
    """Return what the server has of a run once all that it recorded has arrived."""
    poll(lambda: has_arrived(run))
    time.sleep(0.05)
    poll(lambda: has_arrived(run))
    return seen(client, run.info.id)


@pytest.fixture
def begun(machines: list[Machine], frozen: list[Any]) -> ActiveRun:
    """Return a run of A with 5 steps and a checkpoint on the server, and 3 more not sent."""
    with machines[0].at_work():
        tracking = open_store(machines[0].uri, create=True)
        run = create_run(
            remote(tracking), compose_config([THREADS]), {"waymark.version": "test"}, POINTS
        )
    trained(run, 1, 2, 3, 4, 5)
    put(run, 5)
    poll(lambda: run.info.known)
    poll(lambda: has_arrived(run))
    frozen.append(run)
    trained(run, 6, 7, 8)
    run.record([4], {"early": [0.5]})
    put(run, 7)
    run.set_tags({"waymark.colour": "A"})
    return run


class Scene(NamedTuple):
    client: MlflowClient
    a: Machine
    b: Machine
    begun: ActiveRun
    run_id: str


@pytest.fixture
def scene(machines: list[Machine], begun: ActiveRun, server: tuple[str, Path]) -> Scene:
    """Return both machines and the run that A has begun, with its server's client."""
    return Scene(MlflowClient(server[0]), *machines, begun, begun.info.id)


@pytest.mark.parametrize("how", ["sync", "late"])
@pytest.mark.parametrize("when", ["training", "finished"])
def test_a_former_owner_adds_what_is_missing_and_no_more(
    when: str, how: str, scene: Scene, frozen: list[Any]
) -> None:
    client, a, b, begun, run_id = scene
    other = b.resume(run_id, 5)
    trained(other, 6, 7)
    put(other, 6)
    other.set_tags({"waymark.colour": "B"})
    if when == "finished":
        trained(other, 8, 9, 10)
        put(other, 10)
        assert other.finish("FINISHED") is None
        before = seen(client, run_id)
    else:
        before = settled(client, other)
    assert before["told"][0] == {"training": "RUNNING", "finished": "FINISHED"}[when]
    assert (before["tags"]["waymark.life"], before["tags"]["waymark.from_step"]) == ("2", "5")
    assert "early" not in before["points"]

    if how == "sync":
        end_sending(begun)
        (line,) = a.sync()
        assert line.startswith(f"run {run_id}: delivered without ")
        assert ("1 point after step 5, status" in line) is (when == "training"), line
    else:  # the process was only thought dead, and goes on to its own end
        frozen.clear()
        trained(begun, 9)
        assert begun.finish("FINISHED") is None
        line = begun.refused
    done = {"training": "went on from step 5", "finished": "has finished it"}[when]
    assert f"status, tags and files (a process on B {done})" in line
    assert a.sync() == []
    after = seen(client, run_id)
    assert [p[:2] for p in after["points"].pop("early")] == [(4, 0.5)]
    assert after == before

    if when == "training":
        trained(other, 8, 9, 10)
        put(other, 10)
        assert other.finish("FINISHED") is None
        after = seen(client, run_id)
    assert after["told"][0] == "FINISHED"
    assert [p[0] for p in after["points"]["train/loss"]] == [*range(1, 11)]
    assert checkpoints(after) == {"checkpoints/weights-10.npz", "checkpoints/weights-10.json"}
    assert a.sync() == b.sync() == []
    assert not [path for m in (a, b) for path in m.folder.rglob("*") if path.is_file()]


def test_until_the_next_owner_has_told_the_former_one_may_write(
    scene: Scene, frozen: list[Any]
) -> None:
    """A syncs before B's first sending: B then makes no point again, and all else is B's."""
    client, a, b, begun, run_id = scene
    end_sending(begun)
    frozen.append(None)  # nothing of B arrives
    other = b.resume(run_id, 5)
    trained(other, 6, 7)
    put(other, 6)
    frozen.clear()
    frozen.append(other)
    client.set_tag(run_id, "waymark.heartbeat", "4000000000")  # later than the run began
    assert a.sync() == [f"run {run_id}: delivered"]
    first = seen(client, run_id)
    assert first["tags"]["waymark.heartbeat"] == "4000000000"
    assert (first["told"][0], first["tags"]["waymark.life"]) == ("KILLED", "1")
    assert [p[0] for p in first["points"]["train/loss"]] == [*range(1, 9)]
    assert "checkpoints/weights-7.npz" in first["files"]
    frozen.clear()
    trained(other, 8, 9)
    put(other, 9)
    assert other.finish("FINISHED") is None
    after = seen(client, run_id)
    assert (after["told"][0], after["tags"]["waymark.life"]) == ("FINISHED", "2")
    assert after["points"]["train/loss"][:8] == first["points"]["train/loss"]
    assert [p[0] for p in after["points"]["train/loss"]] == [*range(1, 10)]
    assert checkpoints(after) == {"checkpoints/weights-9.npz", "checkpoints/weights-9.json"}
    assert a.sync() == []
    assert seen(client, run_id) == after


@pytest.mark.parametrize("case", ["taken", "finished"])
def test_a_resume_that_is_told_too_late_has_lost_the_run(
    case: str, scene: Scene, frozen: list[Any]
) -> None:
    """Both go on offline or at once, and one is heard first; or the first one had finished."""
    client, a, b, begun, run_id = scene
    if case == "finished":
        with suppress(OSError):
            begun._outbox.append("status", ["FINISHED", time.time_ns() // 10**6])
    end_sending(begun)
    frozen.append(None)
    runs = [machine.resume(run_id, 5) for machine in (a, b)[case == "finished" :]]
    loser = runs[-1]
    frozen[:] = [loser]
    if case == "finished":
        assert a.sync() == [f"run {run_id}: delivered"]
        before, host = seen(client, run_id), "has finished it"
    else:
        before, host = settled(client, runs[0]), "went on from step 5"
    assert before["told"][0] == {"taken": "RUNNING", "finished": "FINISHED"}[case]
    frozen.clear()
    trained(loser, 6, 7, 8, 9)
    put(loser, 9)
    loser.set_tags({"waymark.colour": "lost"})
    assert loser.finish("KILLED") is None
    assert f"status, tags and files (a process on A {host})" in loser.refused
    assert seen(client, run_id) == before
    if case == "taken":
        trained(runs[0], 9)
        assert runs[0].finish("FINISHED") is None
        assert [p[0] for p in seen(client, run_id)["points"]["train/loss"]] == [*range(1, 10)]


@pytest.mark.parametrize("how", ["sync", "late"])
@pytest.mark.parametrize("known", [True, False])
def test_nobody_writes_to_a_run_that_was_deleted(
    known: bool, how: str, scene: Scene, frozen: list[Any]
) -> None:
    """Nor is it made again where the outbox had not heard of the id that it was given."""
    client, a, _, begun, run_id = scene
    client.delete_run(run_id)
    before = seen(client, run_id)
    if how == "late":
        frozen.clear()
        trained(begun, 9)
        assert "it was deleted there" in str(begun.finish("FINISHED"))
    end_sending(begun)
    if not known:
        path = begun.info.outbox
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(line for line in lines if b'"ids"' not in line))
    (line,) = a.sync()
    assert "left out, it was deleted there" in line
    assert seen(client, run_id) == before
    (experiment,) = [client.get_run(run_id).info.experiment_id]
    mine = f"tags.`waymark.local_id` = '{begun.info.outbox.parent.name}'"
    assert len(client.search_runs([experiment], mine, run_view_type=3)) == 1


def test_the_dead_are_marked_by_who_is_asked_and_no_more(scene: Scene) -> None:
    """B, the owner, dies: A marks the run and leaves its own old words out; then it goes on."""
    client, a, b, begun, run_id = scene
    other = b.resume(run_id, 5)
    trained(other, 6)
    put(other, 6)
    begun._outbox.append("status", ["KILLED", 5])
    settled(client, other)
    end_sending(begun)
    end_sending(other)
    (line,) = a.sync(alone=True)
    assert "1 point" not in line and "2 points after step 5" in line
    after = seen(client, run_id)
    assert (after["told"][0], after["tags"]["waymark.reason"]) == ("KILLED", "its process is gone")
    assert "waymark.colour" not in after["tags"]
    last = a.resume(run_id, 6)
    trained(last, 7, 8, 9)  # two of them stand in A's outbox, with their times
    put(last, 9)
    assert last.finish("FINISHED") is None
    after = seen(client, run_id)
    assert (after["told"][0], after["tags"]["waymark.life"]) == ("FINISHED", "3")
    assert after["tags"]["waymark.from_step"] == "6"
    assert "waymark.colour" not in after["tags"]
    assert [p[0] for p in after["points"]["train/loss"]] == [*range(1, 10)]
    assert checkpoints(after) == {"checkpoints/weights-9.npz", "checkpoints/weights-9.json"}
    (line,) = b.sync()
    assert "0 point" not in line and "status, tags and files" in line
    assert seen(client, run_id) == after


def test_records_of_an_older_waymark_tell_their_owner_too(scene: Scene) -> None:
    client, a, b, begun, run_id = scene
    end_sending(begun)
    path, mine = begun.info.outbox, ("life", "from_step", "finished", "since")
    process = {k: v for k, v in outbox.read(path).leases[0].process.items() if k not in mine}
    box = outbox.Outbox(path.with_name("old"))
    for kind, value in list(outbox._entries(path.read_bytes())):
        box.append(kind, process if kind == "begun" else value)
    box.close()
    os.replace(box.path, path)
    for key in ("waymark.life", "waymark.from_step"):
        client.delete_tag(run_id, key)
    client.set_tag(run_id, "waymark.process", json.dumps(process))

    other = b.resume(run_id, 5)
    put(other, 5)
    before = settled(client, other)
    assert before["tags"]["waymark.life"] == "1"
    (line,) = a.sync()
    assert "3 points after step 5, status, tags and files" in line
    after = seen(client, run_id)
    assert after["points"].pop("early")
    assert after == before
    end_sending(other)


# The whole program, on both machines in turn.

SHORT = ["data=arrays", "save=npz", "steps=30", "save.every=5", "save.max_to_keep=2", THREADS]
SHORT += ["eval_every=10", "batch_size=10", "progress=false", "record.changes=false"]
PACE = "train/steps_per_second"


class HangAndDie(NoProgress):
    """Let a process hang for the server's part at one step, and die at another."""

    def __init__(self, freeze: int, die: int, hang: Callable[[], None]) -> None:
        super().__init__(0, 0)
        self.freeze, self.die, self.hang = freeze, die, hang

    def on_steps(self, step: int, loss: float) -> None:
        if step >= self.freeze:
            self.hang()
            self.freeze = 10**9
        if step >= self.die:
            raise Killed


class Story:
    """What becomes of one run between two machines; nothing of it may be lost or doubled."""

    def __init__(
        self,
        draw: random.Random,
        frozen: list[Any],
        machines: list[Machine],
        data: list[str],
    ) -> None:
        self.draw, self.frozen, self.data = draw, frozen, data
        self.client, self.run_id = MlflowClient(machines[0].uri), ""
        self.hanging: list[tuple[Machine, ActiveRun]] = []  # processes that are thought dead
        self.told: list[str] = []

    def train(self, machine: Machine, patch: pytest.MonkeyPatch, undisturbed: bool = False) -> None:
        """Begin the run or go on with it, and die, hang or end."""
        made: list[ActiveRun] = []
        first, steps = ActiveRun.__init__, self.draw.randint(1, 36)
        hang = steps - self.draw.choice([0, 5, 10, 50])
        heard = not self.run_id or self.draw.random() < 0.7

        def noted(run: ActiveRun, *arguments: Any, **named: Any) -> None:
            first(run, *arguments, **named)
            made.append(run)

        def hung() -> None:
            if heard and not silent:
                poll(lambda: has_arrived(made[0]))
            self.frozen.append(None)

        silent = self.run_id and hang < 0 and not undisturbed  # nothing of it is ever sent
        self.frozen += [None] * bool(silent)
        moments = (10**9, 10**9) if undisturbed else (max(hang, 1), steps)
        reporter = HangAndDie(*moments, hung)
        seconds = 30 if undisturbed else 0.2
        store = {"tracking.uri": machine.uri, "tracking.flush_seconds": seconds}
        with machine.at_work(alone=True), patch.context() as inner:
            inner.setattr(ActiveRun, "__init__", noted)
            inner.setattr("waymark.execution.execute.make_progress", lambda *_: reporter)
            with suppress(Killed, BadInput, StoreError):
                if self.run_id:
                    execute.resume(self.run_id, store)
                else:
                    words = [f"{key}={value}" for key, value in store.items()]
                    execute.run(compose_config([*SHORT, *self.data, *words]))
        self.told.append(f"{machine.name} trains to {steps}, hangs at {hang}: {len(made)}")
        for run in made:
            if not run.status.done and None in self.frozen and self.draw.random() < 0.5:
                self.frozen.append(run)
                self.hanging.append((machine, run))
            else:
                end_sending(run)
        while None in self.frozen:
            self.frozen.remove(None)

    def wake(self) -> None:
        """Let a process that was thought dead go on to its end."""
        if self.hanging:
            machine, run = self.hanging.pop(self.draw.randrange(len(self.hanging)))
            self.frozen.remove(run)
            self.told.append(f"{machine.name} wakes")
            with suppress(ValueError, OSError):  # it had ended, all but its sending
                run.finish(self.draw.choice(["KILLED", "FAILED"]))
            end_sending(run)

    def sync(self, machine: Machine) -> None:
        self.told.append(f"{machine.name} syncs: {machine.sync(alone=True)}")

    def check(self, before: dict[str, Any], step: Callable[[], None], host: str) -> None:
        """Take a step; if another machine has the run, nothing but missing points is new."""
        step()
        after, owner = seen(self.client, self.run_id), ownership.owner(before["tags"])
        for points in after["points"].values():
            assert len({point[0] for point in points}) == len(points)
        for key, points in before["points"].items():
            assert set(points) <= set(after["points"][key])
        if before["told"][0] == "FINISHED":
            assert after == before
        elif ownership.owner(after["tags"]) != owner:  # a resume that was not heard of before
            assert ownership.owner(after["tags"]).number > owner.number
            assert ownership.owner(after["tags"]).process["host"] == host
        elif owner.process["host"] != host:
            assert after["files"] == before["files"]
            assert after["told"][0] in (before["told"][0], "KILLED")  # which is right of the dead


@pytest.fixture
def undisturbed(
    server: tuple[str, Path], tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    machine = Machine("alone", tmp_path / "alone", server[0], monkeypatch)
    with machine.at_work():
        words = [*SHORT, f"data.path={small}", f"tracking.uri={server[0]}"]
        return seen(MlflowClient(server[0]), execute.run(compose_config(words)).run_id)


def lasting(facts: dict[str, Any]) -> dict[str, Any]:
    """Return what two runs that are the same have in common."""
    points = {
        key: [(step, value) for step, value, _ in points]
        for key, points in facts["points"].items()
        if key != PACE
    }
    states = [
        json.loads(body)["digest"]
        for name, body in sorted(facts["files"].items())
        if name.startswith("checkpoints/") and name.endswith(".json")
    ]
    told = facts["told"][:2], facts["tags"]["waymark.state_digest"]
    history = json.loads(facts["files"]["history.json"])["metrics"]
    known = {key: set(steps) for key, (steps, _) in history.items() if key != PACE}
    return {
        "points": points,
        "files": checkpoints(facts),
        "states": states,
        "told": told,
        "history": known,
    }


@pytest.mark.long
@pytest.mark.parametrize("number", range(30))
def test_two_owners_of_one_run(
    number: int,
    seed: int,
    machines: list[Machine],
    frozen: list[Any],
    undisturbed: dict[str, Any],
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Kill, resume and sync on two machines at random, processes thought dead among them."""
    name = f"experiment_name={tmp_path.name}"
    draw = random.Random(f"{seed}-{number}")
    story = Story(draw, frozen, machines, [f"data.path={small}", name])
    try:
        story.train(machines[0], monkeypatch)
        story.sync(machines[0])
        experiment = story.client.get_experiment_by_name(tmp_path.name)
        (run,) = story.client.search_runs([experiment.experiment_id])
        story.run_id = run.info.run_id
        for _ in range(draw.randint(4, 9)):
            machine = draw.choice(machines)
            step = draw.choice(["train", "train", "sync", "sync", "wake"])
            if step == "train":
                story.train(machine, monkeypatch)
                continue
            host = machine.name if step == "sync" else ""
            if step == "wake" and not story.hanging:
                continue
            before = seen(story.client, story.run_id)
            if step == "wake":
                story.wake()
            else:
                story.check(before, lambda m=machine: story.sync(m), host)
        while story.hanging:
            story.wake()
        for machine in draw.sample(machines, 2):
            story.sync(machine)
        story.train(draw.choice(machines), monkeypatch, undisturbed=True)
        after = seen(story.client, story.run_id)
        for machine in machines:
            story.sync(machine)
            assert machine.sync() == []
        assert seen(story.client, story.run_id) == after
        assert lasting(after) == lasting(undisturbed)
        assert not [path for m in machines for path in m.folder.rglob("*") if path.is_file()]
        found = story.client.search_runs([experiment.experiment_id], run_view_type=3)
        assert len(found) == 1
    finally:
        print("\n".join(story.told))
