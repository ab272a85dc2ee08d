"""Attack Waymark: kill its runs, damage their checkpoints, take the tracking server away.

    python -m benchmarks.torture --kills 200 --damage 500 --outages 20 --seed 1

Prints one table of attempts and survivals; the exit status is 1 if anything was lost. All that
is random is drawn from the seed and an attempt's number, so numbers add up over seeds, and
`--only N` repeats one attempt of each group asked for (a kill's moment only as nearly as the
machine's speed allows). What was lost stays in the folder that is named.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest.mock import patch

from waymark.names import LOCAL_ID
from waymark.tracking.opening import open_store

from benchmarks import chaos
from benchmarks.chaos import (
    DAMAGES,
    damage_one,
    finish,
    left_over,
    start,
    waymark,
)
from tests.support.data import write_pictures
from tests.support.ends import End, differences, local_end, server_end
from tests.support.processes import StopAt
from tests.support.proxy import Proxy
from tests.support.server import Server

LANES = 2
BASE = ["data=arrays", "progress=false", "record.changes=false", "runtime.intra_op_threads=2"]
BASE += ["save.max_to_keep=3", "save.keep_every_n_hours=null"]
MODELS = {
    "softmax": ["model=softmax", "steps=4000", "save.every=80", "eval_every=400"],
    "cnn": ["model=cnn", "model.keep_prob=0.5", "steps=600", "save.every=30", "eval_every=60"],
}
MODELS["softmax"] += ["batch_size=1000"]
MODELS["cnn"] += ["batch_size=20"]
STEPS = {"softmax": 4000, "cnn": 600}
TINY = ["steps=60", "save.every=5", "eval_every=20", "batch_size=10"]  # for damage: later wins
FORMATS = ("ckpt", "npz")
RESTORED = r"(?m)^test accuracy, restored +(\S+)$"
NEVER = 10**9  # a step that no run reaches
GROUPS = ("kills", "damage", "outages")
FAULTS = [("down", "at the start"), ("down", "in the middle"), ("down", "at the end")]
FAULTS += [("error", ""), ("hang", ""), ("deaf", ""), ("slow", "")]
LASTS = {"two seconds": 2.0, "for good": float(chaos.BOUND)}
PATIENCE = 75  # seconds that a run may take whose server is away; undisturbed it takes ten


@dataclass(frozen=True)
class Undisturbed:
    """The same run in one piece, and the seconds it took."""

    end: End
    accuracy: str  # as printed
    head: float  # from the first line to the first checkpoint
    training: float  # from the first checkpoint to the last
    tail: float  # from the last checkpoint to the end


@dataclass
class Attempts:
    """Where the attempts take place, and what came of them."""

    root: Path
    seed: int
    only: int | None
    rows: dict[str, dict[str, Counter[str]]] = field(default_factory=dict)
    moments: Counter[str] = field(default_factory=Counter)
    ways: Counter[str] = field(default_factory=Counter)  # of kills
    losses: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def numbers(self) -> Iterator[int]:
        """Return the numbers of attempts to make."""
        return itertools.count() if self.only is None else iter([self.only])

    def draw(self, group: str, number: int) -> random.Random:
        """Return what draws an attempt's chances."""
        return random.Random(f"{self.seed} {group} {number}")

    def place(self, group: str, number: int) -> Path:
        """Return a folder for an attempt, with an empty store in it."""
        folder = self.root / f"{group}-{number}"
        shutil.copytree(self.root / "store", folder / "mlruns")
        return folder

    def options(self, model: str, save: str) -> list[str]:
        """Return a run's overrides."""
        return [*BASE, *MODELS[model], f"save={save}", f"data.path={self.root}/pictures.npz"]

    def judge(self, group: str, number: int, kind: str, attempts: int, wrong: list[str]) -> None:
        """Count attempts; say what was lost and keep its folder, or remove it."""
        folder = self.root / f"{group}-{number}"
        with self.lock:
            if attempts:
                row = self.rows.setdefault(group, {}).setdefault(kind, Counter())
                row.update(attempts=attempts, survived=0 if wrong else attempts)
            if not wrong:
                shutil.rmtree(folder)
                return
            self.losses += 1
            counts = " ".join(f"--{name} {int(name == group)}" for name in GROUPS)
            print(f"LOST {kind}, kept in {folder}; again:")
            print(f"  python -m benchmarks.torture {counts} --seed {self.seed} --only {number}")
            print("\n".join(f"  {text}" for text in wrong), flush=True)

    def report(self) -> None:
        """Print the table."""
        print("\n| kind | attempts | survived |\n|---|---|---|")
        for group, kinds in self.rows.items():
            for kind, row in sorted(kinds.items()):
                print(f"| {kind} | {row['attempts']} | {row['survived']} |")
            total = sum(kinds.values(), Counter())
            print(f"| **{group}, total** | **{total['attempts']}** | **{total['survived']}** |")
        if self.moments:
            print("\nThe kills fell", ", ".join(f"{n} {at}" for at, n in self.moments.items()))
            print("They were of:", ", ".join(f"{way} {n}" for way, n in self.ways.items()))


def undisturbed(attempts: Attempts) -> dict[tuple[str, str], Undisturbed]:
    """Run every model and format in one piece, in two lanes as the attempts will be."""

    def one(key: tuple[str, str]) -> Undisturbed:
        folder = attempts.root / "-".join(("undisturbed", *key))
        shutil.copytree(attempts.root / "store", folder / "mlruns")
        process = start(folder, "run", *attempts.options(*key))
        run_id = process.stdout.readline().split()[1]
        moments = [time.monotonic()]
        for step in (1, STEPS[key[0]]):
            chaos.watch(process, folder, step)
            moments.append(time.monotonic())
        status, out, err = finish(process)
        if status:
            sys.exit(f"an undisturbed run failed:\n{err}")
        head, training, tail = (b - a for a, b in itertools.pairwise([*moments, time.monotonic()]))
        accuracy = re.search(RESTORED, out)[1]
        return Undisturbed(local_end(folder, run_id), accuracy, head, training, tail)

    keys = list(itertools.product(MODELS, FORMATS))
    with ThreadPoolExecutor(LANES) as pool:
        return dict(zip(keys, pool.map(one, keys), strict=True))


# Kills


def kill(
    attempts: Attempts,
    draw: random.Random,
    folder: Path,
    total: int,
    pace: Undisturbed,
    *arguments: str,
) -> tuple[str, bool]:
    """Start a program and kill it at a moment drawn; return its first line, and if it was hit."""
    with start(folder, *arguments) as process:
        line = process.stdout.readline()
        reached = chaos.newest(folder)
        phase = draw.choices(["start", "training", "end"], [20, 60, 20])[0]
        later = draw.randint(reached, total - 1) if reached < total else total
        step, spread = {
            "start": (0, pace.head if arguments[0] == "run" else pace.tail / 2),
            "training": (later, pace.training / 15),
            "end": (total, 0.8 * pace.tail),
        }[phase]
        seen = chaos.watch(process, folder, step)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0, spread))
        way = draw.choices(chaos.WAYS, [3, 2, 3, 1, 1])[0]
        hit = chaos.strike(process, way)
        _, err = process.communicate(timeout=chaos.BOUND)
        if process.returncode and (way == "delivery" or not hit):
            return err, False
    if hit:
        with attempts.lock:
            attempts.ways[way] += 1
        now = max(seen, chaos.newest(folder))
        at = "before the first checkpoint" if now == 0 else "in training"
        with attempts.lock:
            attempts.moments[at if now < total else "after the last checkpoint"] += 1
    return line, hit


def killed_run(
    attempts: Attempts, number: int, kills: int, server: Server, expected: dict[Any, Undisturbed]
) -> int:
    """Kill a run and its resumes so many times, resume it to its end; return the kills that hit."""
    draw = attempts.draw("kills", number)
    combinations = list(itertools.product(MODELS, FORMATS, ("local", "server")))
    model, save, home = combinations[(number + attempts.seed) % len(combinations)]
    key, folder = (model, save), attempts.place("kills", number)
    uri = [f"tracking.uri={server.uri}"] if home == "server" else []
    command = ["run", *attempts.options(*key), *uri]
    run_id, hits, wrong = "", 0, []
    for _ in range(kills):
        line, hit = kill(attempts, draw, folder, STEPS[model], expected[key], *command)
        if not run_id:
            run_id = line.split()[1] if line.startswith("run ") else ""
        if not line.startswith(("run ", "nothing left")) or not run_id:
            wrong.append(f"{' '.join(command)} said: {line}")
            break
        command = ["resume", run_id, *uri]
        hits += hit
        if not hit:
            break
    if run_id:
        status, _, err = finish(start(folder, "resume", run_id, *uri))
        if status:
            wrong.append(f"resume {run_id} ended with status {status}: {err.strip()}")
        remote = (server_end, server.uri, mlflow_id(server.uri, run_id), folder / "fetched")
        wrong += differences(expected[key].end, *(remote if uri else (local_end, folder, run_id)))
        wrong += left_over(folder)
    attempts.judge("kills", number, f"kill {model} {save} {home}", max(hits, bool(wrong)), wrong)
    return hits


def kills(
    attempts: Attempts, wanted: int, server: Server, expected: dict[Any, Undisturbed]
) -> None:
    """Kill until so many kills have hit, in two lanes."""
    numbers, promised = attempts.numbers(), 0

    def lane() -> None:
        nonlocal promised
        while True:
            with attempts.lock:
                number = next(numbers, None)
                if number is None or promised >= wanted:
                    return
                few = attempts.draw("number of kills", number).randint(1, 4)
                few = few if attempts.only is not None else min(few, wanted - promised)
                promised += few
            hits = killed_run(attempts, number, few, server, expected)
            with attempts.lock:
                promised += hits - few

    with ThreadPoolExecutor(LANES) as pool:
        for future in [pool.submit(lane) for _ in range(LANES)]:
            future.result()


# Damage


@dataclass(frozen=True)
class StoppedRun:
    """An interrupted run, what its checkpoints score, and how it ends undisturbed."""

    kind: str
    folder: Path
    run_id: str
    scores: dict[int, tuple[float, float]]  # step -> accuracy, loss
    expected: End


def stopped_run(attempts: Attempts, model: str, save: str) -> StoppedRun:
    """Run in one piece, and once more stopped by a signal at a step drawn."""
    folders = [attempts.root / "-".join((name, model, save)) for name in ("whole", "stopped")]
    draw = attempts.draw(f"stopped {model} {save}", 0)
    ids = []
    for folder, stop in zip(folders, (NEVER, draw.randint(18, 40)), strict=True):
        shutil.copytree(attempts.root / "store", folder / "mlruns")
        os.chdir(folder)
        with patch("waymark.execution.execute.make_progress", lambda *_, stop=stop: StopAt(stop)):
            status, out, err = waymark("run", *attempts.options(model, save), *TINY)
        if status != (0 if stop == NEVER else 143):
            sys.exit(f"a run to be damaged could not be made:\n{err}")
        ids.append(out.split()[1])
    scores = {}
    for step in local_end(folders[1], ids[1]).checkpoints:
        found = json.loads(waymark("evaluate", ids[1], "--step", str(step), "--json")[1])
        scores[step] = (found["accuracy"], found["loss"])
    expected = replace(local_end(folders[0], ids[0]), files=[])  # strays may stay
    return StoppedRun(f"{model} {save}", folders[1], ids[1], scores, expected)


def damage_some(draw: random.Random, how: str, folder: Path) -> list[str]:
    """Damage one file, several, or one of every checkpoint; say what was done."""
    done = []
    if how == "all":
        stems = sorted({path.name.split(".")[0] for path in folder.glob("*-*.json")})
        for stem in stems:
            path = draw.choice(sorted(folder.glob(f"{stem}.*")) or sorted(folder.iterdir()))
            done.append(damage_one(draw, draw.choice(DAMAGES[:4]), path))
        return done
    for _ in range(draw.randint(2, 5) if how == "several" else 1):
        way = draw.choice(DAMAGES) if how == "several" else how
        done.append(damage_one(draw, way, draw.choice(sorted(folder.iterdir()))))
    return done


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file."""
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def step_of(name: str) -> int | None:
    """Return the step to which a file of a checkpoint belongs."""
    found = re.match(r"\w+-(\d+)\.", name)
    return int(found[1]) if found else None


def damaged_run(attempts: Attempts, number: int, run: StoppedRun) -> None:
    """Damage a copy of a run; evaluate every checkpoint of it, then resume it."""
    how = (*DAMAGES, "several", "all")[number // 4 % 8]
    folder = attempts.root / f"damage-{number}"
    shutil.copytree(run.folder / "mlruns", folder / "mlruns")
    os.chdir(folder)
    (checkpoints,) = folder.glob(f"mlruns/artifacts/*/{run.run_id}/artifacts/checkpoints")
    before = hashes(checkpoints)
    said = damage_some(attempts.draw("damage", number), how, checkpoints)
    after = hashes(checkpoints)
    touched = {step_of(n) for n in {*before, *after} if before.get(n) != after.get(n)}
    found = [re.fullmatch(r"\w+-(\d+)\.json", name) for name in after]
    published = {int(name[1]) for name in found if name}
    whole, wrong = set(), []
    for step in sorted(published | run.scores.keys()):
        fine, complaint = evaluated(run, step, step in touched)
        wrong += complaint
        if fine:
            whole.add(step)
    wrong += resumed(run, folder, published, whole)
    kind = f"{how} {run.kind}"
    attempts.judge("damage", number, kind, 1, wrong and [f"done: {'; '.join(said)}", *wrong])


def evaluated(run: StoppedRun, step: int, touched: bool) -> tuple[bool, list[str]]:
    """Evaluate a checkpoint: tell if it gave the right numbers, and what is wrong with it."""
    status, out, err = waymark("evaluate", run.run_id, "--step", str(step), "--json")
    if status == 0:
        try:
            found = json.loads(out)
            right = (found["accuracy"], found["loss"]) == run.scores.get(step)
        except (ValueError, KeyError, TypeError):
            right = False
        return right, [] if right else [f"evaluate --step {step} gave wrong numbers: {out.strip()}"]
    sentence = err.startswith("waymark: ") and err.count("\n") == 1
    if touched and status in (1, 2) and not out and sentence:
        return False, []
    of = "a damaged" if touched else "an untouched"
    return False, [f"evaluate --step {step} of {of} checkpoint: status {status}, {out}{err}"]


def resumed(run: StoppedRun, folder: Path, published: set[Any], whole: set[int]) -> list[str]:
    """Resume a damaged run; return what is wrong with how it went."""
    status, out, err = waymark("resume", run.run_id)
    wrong = [f"resume: {err}"] if "Traceback" in err else []
    if published and not whole:
        last = (err.splitlines() or [""])[-1]
        if status != 1 or out or not last.startswith("waymark: "):
            wrong.append(f"resume with no whole checkpoint: status {status}, {out}{err}")
        return wrong
    if status:
        return [*wrong, f"resume: status {status}, {out}{err}"]
    for step in published - whole:
        if step > max(whole) and f"checkpoint {step} is damaged" not in err:
            wrong.append(f"resume did not name the damaged checkpoint {step}: {err!r}")
    found = differences(run.expected, local_end, folder, run.run_id)
    return wrong + [f"resumed, {text}" for text in found]


def damage(attempts: Attempts, wanted: int) -> None:
    """Damage copies of four interrupted runs so many times, all in this process."""
    here = Path.cwd()
    runs = [stopped_run(attempts, *key) for key in itertools.product(MODELS, FORMATS)]
    for number in itertools.islice(attempts.numbers(), wanted):
        damaged_run(attempts, number, runs[number % len(runs)])
    os.chdir(here)


# Outages


def outage(
    attempts: Attempts, number: int, server: Server, proxy: Proxy, expected: dict[Any, Undisturbed]
) -> None:
    """Take the server from a run at work; bring it back, sync twice and look."""
    draw = attempts.draw("outages", number)
    cases = [(*fault, lasts) for lasts in LASTS for fault in FAULTS]
    fault, when, lasts = cases[(number + attempts.seed) % len(cases)]
    key = draw.choice(list(expected))
    when = when or draw.choice(["at the start", "in the middle", "at the end"])
    uri = server.uri if fault == "down" else proxy.uri
    folder, before, wrong = attempts.place("outages", number), run_ids(server.uri), []

    def begin(grace: int = 0) -> None:
        server.kill() if fault == "down" else proxy.set(fault, grace)

    def repair() -> None:
        server.start()
        proxy.set("pass")

    if when == "at the start":  # or while the run is being created
        begin(draw.choice([0, draw.randint(1, 9)]))
    options = [*attempts.options(*key), f"tracking.uri={uri}", "tracking.flush_seconds=3"]
    with start(folder, "run", *options) as process:
        limit = threading.Timer(PATIENCE, process.kill)
        limit.start()
        began = time.monotonic()
        line = process.stdout.readline()
        if when != "at the start":
            last = STEPS[key[0]]
            chaos.watch(process, folder, last if when == "at the end" else draw.randrange(last))
            begin()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LASTS[lasts])
        if process.poll() is None:
            repair()
        status, out, err = finish(process)
        limit.cancel()
        took = time.monotonic() - began
    repair()
    said = re.search(RESTORED, out)
    if status or said is None or said[1] != expected[key].accuracy:
        wrong.append(f"the run ended with status {status} after {took:.0f} s: {line}{out}{err}")
    for _ in range(2):
        status, out, err = finish(start(folder, "sync", f"tracking.uri={uri}"))
        if status:
            wrong.append(f"sync ended with status {status}: {out}{err}")
    found = run_ids(server.uri) - before
    if len(found) == 1:
        remote: tuple[Any, ...] = (server_end, server.uri, *found, folder / "fetched")
        wrong += [*differences(expected[key].end, *remote), *left_over(folder)]
    else:
        wrong.append(f"MLflow holds {len(found)} runs, not one: {found}")
    if wrong:
        wrong.insert(0, f"{' '.join(key)}, {line.strip()}")
    attempts.judge("outages", number, f"{fault} {when}, {lasts}", 1, wrong)


def mlflow_id(uri: str, run_id: str) -> str:
    """Return MLflow's id of a run that was begun, maybe, before the server had answered."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiments = [item.experiment_id for item in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.`{LOCAL_ID}` = '{run_id}'")
    return found[0].info.run_id if found else run_id


def run_ids(uri: str) -> set[str]:
    """Return all runs of a server."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiments = [item.experiment_id for item in client.search_experiments()]
    return {run.info.run_id for run in client.search_runs(experiments, max_results=50000)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--damage", type=int, default=500)
    parser.add_argument("--outages", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one attempt, by its number")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers are stopped then
    root = Path(tempfile.mkdtemp(prefix="waymark-torture-"))
    attempts = Attempts(root, asked.seed, asked.only)
    chaos.clean_environment(root / "home")
    write_pictures(root / "pictures.npz", 2000, 100)

    open_store(f"sqlite:///{root}/store/mlflow.db", create=True)
    expected = undisturbed(attempts) if asked.kills or asked.outages else {}
    if asked.kills:
        with Server(root / "server") as server:
            kills(attempts, asked.kills, server, expected)
    if asked.damage:
        damage(attempts, asked.damage)
    if asked.outages:
        with Server(root / "server-2") as server, Proxy(server.uri) as proxy:
            for number in itertools.islice(attempts.numbers(), asked.outages):
                outage(attempts, number, server, proxy, expected)
    attempts.report()
    if not attempts.losses:
        shutil.rmtree(root)
    return 1 if attempts.losses else 0


if __name__ == "__main__":
    sys.exit(main())
