"""Checkpoints: whole or not there, bit for bit, whatever is killed or damaged."""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import hypothesis.extra.numpy as hnp
import numpy as np
import pydantic
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from waymark.checkpoints import SaveFormat, State
from waymark.checkpoints.ckpt import Ckpt
from waymark.checkpoints.npz import Npz
from waymark.checkpoints.retention import (
    BestCheckpoint,
    KeepBest,
    RetentionState,
    Save,
    initial_retention,
)
from waymark.checkpoints.store import CheckpointStore, CheckpointWriteError, CorruptCheckpoint
from waymark.config.schema import FORMAT
from waymark.digest import digest
from waymark.errors import BadInput
from waymark.training.runtime import start_tensorflow

from tests.support.processes import Killed

BEGIN = 1_700_000_000.0
BEST = KeepBest(metric="test/accuracy", mode="max")
both_formats = pytest.mark.parametrize("kind", [Ckpt, Npz])


@pytest.fixture(scope="module", autouse=True)
def tensorflow() -> None:
    start_tensorflow(2)


def save_format(kind: Any, **changed: Any) -> SaveFormat:
    own = {"meta_graph": False} if kind is Ckpt else {}
    usual = {"every": 10, "max_to_keep": 2, "keep_every_n_hours": None, "keep_best": None}
    return kind(**{"asynchronous": False, "log_model": False, **own, **usual, **changed})


def state_at(step: int) -> State:
    """Return what a small run would save at `step`: other values at every step."""
    noise = np.random.default_rng(step)
    return {
        "step": np.array(step, np.int64),
        "weights": noise.normal(size=(3, 2)).astype(np.float32),
        "weights/Adam": noise.normal(size=(3, 2)).astype(np.float32),
        "beta1_power": np.array(0.9**step, np.float32),
    }


When = tuple[int, bool]  # the step, and whether it is on the cadence


def commit(store: CheckpointStore, save: When) -> None:
    step, on_schedule = save
    metrics = {"test/accuracy": 1 - abs(step - 40) / 100} if store.save.keep_best else {}
    store.commit(Save(step, BEGIN + step, metrics, on_schedule), state_at(step))


def new_store(folder: Path, save: SaveFormat, *given: Any) -> CheckpointStore:
    """Return the store of a run that starts at BEGIN."""
    store = CheckpointStore(folder, save, *given)
    store.retention = initial_retention(BEGIN, store.policy)
    return store


def filled(folder: Path, save: SaveFormat, saves: list[When]) -> CheckpointStore:
    """Commit some checkpoints, as one process that nothing disturbs."""
    folder.mkdir(exist_ok=True)
    store = new_store(folder, save)
    for each in saves:
        commit(store, each)
    return store


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def names_of(save: SaveFormat, steps: list[int]) -> set[str]:
    """Return the files that a folder with these checkpoints holds, no more and no less."""
    if isinstance(save, Npz):
        return {f"weights-{step}.{end}" for step in steps for end in ("npz", "json")}
    ends = ("index", "data-00000-of-00001", "json")
    return {f"model_ckpt-{step}.{end}" for step in steps for end in ends} | {"checkpoint"}


def same_bits(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(
        (a[n].dtype, a[n].shape, a[n].tobytes()) == (b[n].dtype, b[n].shape, b[n].tobytes())
        for n in a
    )


# What goes in comes out


def digest_by_hand(state: Mapping[str, np.ndarray]) -> str:
    """Compute a state's digest from its description in DESIGN.md, with no code of Waymark's."""
    body = b""
    for name, array in sorted(state.items()):
        shape = "(" + ", ".join(map(str, array.shape)) + ("," if array.ndim == 1 else "") + ")"
        body += f"{name}\n{array.dtype.name}\n{shape}\n".encode()
        body += array.astype(array.dtype.newbyteorder("<")).tobytes(order="C")
    return hashlib.sha256(body).hexdigest()


NUMBERS = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?", "c8"]
arrays = st.sampled_from(NUMBERS).flatmap(
    lambda kind: hnp.arrays(np.dtype(kind), hnp.array_shapes(min_dims=0, min_side=0, max_side=4))
)
states = st.dictionaries(
    st.sampled_from(["step", "weights", "weights/Adam", "a/b/c", "file", "allow_pickle", "ö 1"]),
    arrays,
    min_size=1,
    max_size=5,
)
SPECIAL = {
    "step": np.array(2**62 + 1, np.int64),
    "weights": np.array([[np.nan, np.inf, -np.inf], [-0.0, 1e-45, 3.4e38]], np.float32),
    "payload": np.array([0x7FC00001, 0xFFC0BEEF], np.uint32).view(np.float32),  # two other NaNs
    "scalar": np.array(-0.0, np.float32),
    "empty": np.zeros((0, 3), np.float32),
}


@both_formats
@settings(max_examples=40, deadline=None)
@given(state=states)
@example(state=SPECIAL)
def test_a_state_comes_back_bit_for_bit(kind: Any, state: State) -> None:
    with TemporaryDirectory() as folder:
        store = filled(Path(folder), save_format(kind), [])
        store.commit(Save(1, BEGIN), state)
        manifest, found = store.read(1)
        assert same_bits(found, state)
        assert manifest.digest == digest_by_hand(state)


@given(states)
def test_the_digest_is_what_plain_numpy_computes(state: State) -> None:
    assert digest(state) == digest_by_hand(state)


def test_the_digest_sees_values_and_not_how_they_lie_in_memory() -> None:
    plain = np.arange(12, dtype="<f4").reshape(3, 4)
    turned = {"fortran": np.asfortranarray(plain), "big": plain.astype(">f4")}
    turned["strided"] = np.repeat(plain, 2, axis=1)[:, ::2]
    assert {digest({"w": array}) for array in turned.values()} == {digest({"w": plain})}


def test_the_digest_sees_every_difference() -> None:
    w = np.arange(6, dtype=np.float32)
    others = [{"w": w}, {"v": w}, {"w": w.reshape(2, 3)}, {"w": w.reshape(3, 2)}, {}]
    others += [{"w": w.view(np.int32)}, {"w": -w}, {"w": w[::-1]}, {"w": w, "x": w[:0]}]
    others += [{"w": np.float32(0)}, {"w": np.zeros(1, np.float32)}, {"w": np.zeros(0, np.float32)}]
    assert len({digest(state) for state in others}) == len(others)


# What a committed checkpoint is


@both_formats
def test_the_manifest_describes_the_files(kind: Any, tmp_path: Path) -> None:
    save = save_format(kind, keep_best=KeepBest(metric="test/accuracy", mode="max"))
    store = filled(tmp_path, save, [])
    graph = tmp_path / "model_ckpt.meta"
    graph.write_bytes(b"a graph")
    store.commit(Save(10, BEGIN + 1, {"test/accuracy": 0.5}), state_at(10), graph)
    body = json.loads((tmp_path / f"{save.stem}-10.json").read_text())

    def facts(name: str) -> dict[str, Any]:
        content = (tmp_path / name).read_bytes()
        return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    payload = names_of(save, [10]) - {f"{save.stem}-10.json", "checkpoint"}
    assert body.pop("checksum") == checksum(body)
    assert body == {
        "format": 1,
        "step": 10,
        "time": BEGIN + 1,
        "digest": digest_by_hand(state_at(10)),
        "metrics": {"test/accuracy": 0.5},
        "regular": True,
        "memory": {
            "next_hourly": None,
            "recent": [[10, BEGIN + 1]],
            "hourly": [],
            "best": {"step": 10, "value": 0.5, "metric": "test/accuracy", "mode": "max"},
            "resumed": [],
        },
        "files": {name: facts(name) for name in payload},
        "graph": {"model_ckpt.meta": facts("model_ckpt.meta")},
        "parameters": None,
    }
    manifest, _ = CheckpointStore(tmp_path, save).read(10)
    assert manifest.memory == store.retention
    store.verify(manifest.graph)
    graph.write_bytes(b"b graph")
    with pytest.raises(CorruptCheckpoint, match=r"model_ckpt\.meta does not hold what was written"):
        store.verify(manifest.graph)
    store.verify(manifest.files)  # the state does not depend on the graph's file


@both_formats
@pytest.mark.parametrize("max_to_keep", [0, 1, 3])
def test_the_folder_holds_what_is_kept_and_nothing_else(
    kind: Any, max_to_keep: int, tmp_path: Path
) -> None:
    save = save_format(kind, max_to_keep=max_to_keep)
    steps = [10, 20, 30, 40, 50]
    for count in range(1, 6):
        folder = tmp_path / str(count)
        store = filled(folder, save, [(step, True) for step in steps[:count]])
        kept = steps[:count] if max_to_keep == 0 else steps[:count][-max_to_keep:]
        assert store.steps() == kept
        assert names(folder) == names_of(save, kept)


@both_formats
def test_the_best_and_the_hourly_stay(kind: Any, tmp_path: Path) -> None:
    best = KeepBest(metric="test/accuracy", mode="max")
    save = save_format(kind, max_to_keep=1, keep_every_n_hours=1, keep_best=best)
    store = filled(tmp_path, save, [])
    values = {10: 0.1, 20: 0.9, 30: np.nan, 40: 0.9, 50: 0.2, 60: 0.3}
    for step, value in values.items():
        at = BEGIN + 120 * step  # twenty minutes from one to the next
        store.commit(Save(step, at, {"test/accuracy": value}), state_at(step))
    assert store.steps() == [20, 40, 60]  # the best, the first after an hour, the newest
    assert names(tmp_path) == names_of(save, [20, 40, 60])
    if kind is Ckpt:  # as Saver's: only those that still come and go
        assert (tmp_path / "checkpoint").read_text().count("model_ckpt-") == 2


@both_formats
def test_other_programs_files_in_the_folder_stay(kind: Any, tmp_path: Path) -> None:
    own = ["notes.txt", "model_ckpt.meta", "weights.npz", "events.out"]
    for name in own:
        (tmp_path / name).write_text("mine")
    store = filled(tmp_path, save_format(kind), [(10, True), (20, True), (30, True)])
    store.repair_and_prune(store.manifest(30), BEGIN, BEGIN)
    assert names(tmp_path) == names_of(store.save, [20, 30]) | set(own)


@both_formats
def test_a_remote_store_can_follow(kind: Any, tmp_path: Path) -> None:
    mirror: set[str] = set()

    def changed() -> None:
        mirror.clear()
        mirror.update(names(tmp_path))

    save = save_format(kind)
    store = new_store(tmp_path, save, changed)
    for each in [(10, True), (20, True), (25, False), (30, True), (35, False)]:
        commit(store, each)
        assert mirror == names(tmp_path)
    (
        tmp_path / f"{save.stem}-7{save.endings[0]}"
    ).touch()  # a payload whose manifest never appeared
    again = CheckpointStore(tmp_path, save, changed)
    again.repair_and_prune(again.manifest(35), BEGIN, BEGIN)
    commit(again, (40, True))
    assert mirror == names(tmp_path) == names_of(save, [30, 40])


def test_settings_have_bounds() -> None:
    wrong = [{"max_to_keep": -1}, {"every": -1}, {"keep_every_n_hours": 0}, {"every": 1.5}]
    wrong += [
        {"keep_every_n_hours": -1.0},
        {"keep_best": "accuracy"},
        {"asynchronous": 1},
        {"log_model": "yes"},
    ]
    for changed in wrong:
        with pytest.raises(pydantic.ValidationError):
            save_format(Npz, **changed)


# A checkpoint off the cadence, because of a signal


@both_formats
@pytest.mark.parametrize("max_to_keep", [0, 1, 2])
@pytest.mark.parametrize("killed", [False, True])
def test_a_signals_checkpoint_goes_with_the_next_on_schedule(
    kind: Any, max_to_keep: int, killed: bool, tmp_path: Path
) -> None:
    save = save_format(kind, max_to_keep=max_to_keep)
    on_schedule = [10, 20, 30]
    store = filled(tmp_path, save, [(step, True) for step in on_schedule])
    kept = on_schedule[-max_to_keep:]
    for step in (33, 37):  # one signal, a resume, and another
        before = store.retention
        commit(store, (step, False))
        assert store.retention == before
        assert store.steps() == [*kept, step]
        assert store.manifest(step).regular is False
        if killed:
            store = CheckpointStore(tmp_path, save)
            store.repair_and_prune(store.manifest(step), BEGIN, BEGIN)
            assert store.retention.retained_steps() == (set(kept) if max_to_keep else None)
            assert store.steps() == [*kept, step]
    commit(store, (40, True))
    kept = [*on_schedule, 40][-max_to_keep:]
    assert store.steps() == kept
    assert names(tmp_path) == names_of(save, kept)
    if kind is Ckpt:
        last = (tmp_path / "checkpoint").read_text().splitlines()[0]
        assert last == 'model_checkpoint_path: "model_ckpt-40"'


@both_formats
def test_a_resume_may_keep_fewer_than_all(kind: Any, tmp_path: Path) -> None:
    saves = [(10, True), (20, True), (30, True), (33, False)]
    filled(tmp_path, save_format(kind, max_to_keep=0), saves)
    store = CheckpointStore(tmp_path, save_format(kind, max_to_keep=2))
    store.repair_and_prune(store.manifest(33), BEGIN, BEGIN)
    commit(store, (40, True))
    assert names(tmp_path) == names_of(store.save, [30, 40])


@both_formats
@pytest.mark.parametrize("max_to_keep", [0, 2])
def test_a_checkpoint_for_the_best_alone_goes_when_it_is_not(
    kind: Any, max_to_keep: int, tmp_path: Path
) -> None:
    save = save_format(kind, max_to_keep=max_to_keep, keep_best=BEST)
    store = filled(tmp_path, save, [])
    on_schedule, values = (
        [],
        {10: 0.1, 13: 0.5, 17: 0.6, 20: 0.2, 23: 0.3, 30: 0.4, 40: 0.7, 50: 0.0},
    )
    for step, value in values.items():
        made = Save(step, BEGIN, {"test/accuracy": value}, on_schedule=step % 10 == 0)
        store.commit(made, state_at(step))
        on_schedule += [step] if made.on_schedule else []
        best = max((s for s in values if s <= step), key=values.__getitem__)
        kept = sorted({*on_schedule[-max_to_keep:], best, step})
        assert store.steps() == kept
        again = CheckpointStore(tmp_path, save)
        found = again.latest_valid()[0]
        assert found is not None
        again.repair_and_prune(found[0], BEGIN, BEGIN)
        assert replace(again.retention, resumed=()) == store.retention
        assert names(tmp_path) == names_of(save, kept)
        if kind is Ckpt:  # other programs find the newest, and of the rest what Saver would list
            lines = (tmp_path / "checkpoint").read_text().splitlines()
            listed = on_schedule[-2:] if max_to_keep else on_schedule[-1:]
            assert lines[0] == f'model_checkpoint_path: "model_ckpt-{step}"'
            assert lines[1:] == [f'all_model_checkpoint_paths: "model_ckpt-{s}"' for s in listed]
    assert store.manifest(40).memory.best == BestCheckpoint(40, 0.7, "test/accuracy", "max")


# Whatever is killed, whenever


@dataclass
class CrashAt:
    """Count what a process does to the disk, and end it at one of these moments.

    The moments: a payload is written, another file is written (both half done), a file or folder is
    flushed, renamed, removed (not done). `drop_unflushed` then takes away what was not flushed.
    """

    moment: int
    seen: int = 0
    flushed: set[int] = field(default_factory=set)  # inodes
    renamed: list[tuple[Path, Path]] = field(default_factory=list)  # since the folder's flush
    known: set[int] = field(default_factory=set)  # inodes from before

    def due(self) -> bool:
        self.seen += 1
        return self.seen == self.moment

    @contextlib.contextmanager
    def patched(self, folder: Path) -> Iterator[None]:
        """Let the process that writes to `folder` die at the moment."""
        self.known = {path.stat().st_ino for path in folder.iterdir()}
        replace, unlink = os.replace, Path.unlink

        def fsync(handle: int) -> None:  # not the real one, which is slow
            if self.due():
                raise Killed
            found = os.fstat(handle)
            if stat.S_ISDIR(found.st_mode):
                self.renamed.clear()
            else:
                self.flushed.add(found.st_ino)

        def rename(source: Path, target: Path) -> None:
            if self.due():
                raise Killed
            replace(source, target)
            self.renamed.append((Path(source), Path(target)))

        def remove(path: Path, missing_ok: bool = False) -> None:
            if self.due():
                raise Killed
            unlink(path, missing_ok=missing_ok)

        def writing(real: Callable[..., Any]) -> Callable[..., None]:
            def write(path: Path, content: Any, **options: Any) -> None:
                dies = self.due()
                real(path, content[: len(content) // 2] if dies else content, **options)
                if dies:
                    raise Killed

            return write

        def payload(real: Callable[..., list[Path]]) -> Callable[..., list[Path]]:
            def torn(save: SaveFormat, path: Path, state: State) -> list[Path]:
                files = real(save, path, state)
                if self.due():
                    with files[0].open("r+b") as file:
                        file.truncate(files[0].stat().st_size // 2)
                    for lost in files[1:]:
                        unlink(lost)
                    files[0].with_name(f"{files[0].name}.tempstate17").touch()  # TensorFlow's
                    raise Killed
                return files

            return torn

        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch("os.fsync", fsync))
            stack.enter_context(mock.patch("os.replace", rename))
            stack.enter_context(mock.patch.object(Path, "unlink", remove))
            for way in ("write_text", "write_bytes"):
                stack.enter_context(mock.patch.object(Path, way, writing(getattr(Path, way))))
            for cls in (Ckpt, Npz):
                stack.enter_context(mock.patch.object(cls, "write", payload(cls.write)))
            yield

    def drop_unflushed(self, folder: Path) -> None:
        """Undo renames since the folder's last flush; empty new files that were not flushed."""
        for source, target in reversed(self.renamed):
            if target.name != "checkpoint":  # the state file is rebuilt, so it may be lost
                os.replace(target, source)
        for path in folder.iterdir():
            if path.stat().st_ino not in self.flushed | self.known:
                path.write_bytes(b"")


SAVES: list[When] = [(10, True), (20, True), (30, True), (33, False), (37, False), (40, True)]
SAVES += [(50, True)]


def revived(folder: Path, save: SaveFormat) -> tuple[CheckpointStore, int]:
    """Do what a resume does: find the newest valid checkpoint, clear up, go on from there."""
    store = new_store(folder, save)
    found, damage = store.latest_valid()
    assert damage == []
    if found is None:
        store.remove_orphans()
        return store, 0
    manifest, state = found
    assert same_bits(state, state_at(manifest.step))
    store.repair_and_prune(manifest, BEGIN, BEGIN)
    return store, manifest.step


def clean(store: CheckpointStore, newest: int) -> None:
    """Assert that the folder holds complete checkpoints only, and points to the newest."""
    steps = store.steps()
    expected = names_of(store.save, steps) if steps else set()
    assert names(store.folder) - {"checkpoint"} == expected - {"checkpoint"}
    if steps and isinstance(store.save, Ckpt):
        import tensorflow as tf

        assert tf.train.latest_checkpoint(str(store.folder)) == str(store.path(newest))


@both_formats
@pytest.mark.parametrize(
    ("power", "max_to_keep", "best"),
    [
        ("kill", 2, None),
        ("power loss", 2, None),
        ("kill", 0, None),
        ("kill", 2, BEST),
        ("kill", 0, BEST),
    ],
)
@pytest.mark.parametrize("interrupted", [0, 2, 3, 4, 5])
def test_a_process_may_die_at_every_moment_of_a_commit(
    kind: Any, power: str, max_to_keep: int, best: KeepBest | None, interrupted: int, tmp_path: Path
) -> None:
    """Where the best is kept, the saves off the cadence are made for that: each is the best."""
    save = save_format(kind, max_to_keep=max_to_keep, keep_best=best)
    complete = filled(tmp_path / "whole", save, SAVES)
    assert complete.steps() == [10, 20, 30, 40, 50][-max_to_keep:]
    before, rest = SAVES[:interrupted], SAVES[interrupted:]
    filled(tmp_path / "before", save, before)
    previous, now = (before[-1][0] if before else 0), rest[0][0]
    reached, moment = set(), 0
    while True:
        moment += 1
        crash, folder = CrashAt(moment), tmp_path / "run"
        shutil.copytree(tmp_path / "before", folder)
        store = new_store(folder, save)
        if before:
            store.repair_and_prune(store.manifest(previous), BEGIN, BEGIN)
        with crash.patched(folder):
            try:
                commit(store, rest[0])
            except Killed:
                dead = True
            else:
                dead = False
        if dead and power == "power loss":
            crash.drop_unflushed(folder)
        left = CheckpointStore(folder, save)
        assert all(left.read(step) for step in left.steps())
        store, found = revived(folder, save)
        assert found in ({previous, now} if dead else {now})
        clean(store, found)
        reached.add(found)
        for each in rest:
            if each[0] > found and (each[1] or best or not dead):  # no second signal
                commit(store, each)
        assert replace(store.retention, resumed=()) == complete.retention
        assert names(folder) == names(complete.folder) == names_of(save, complete.steps())
        shutil.rmtree(folder)
        if not dead:
            break
    assert reached == {previous, now}
    assert moment > 8  # there were that many moments, at least


@both_formats
def test_a_process_may_die_again_while_clearing_up(kind: Any, tmp_path: Path) -> None:
    save = save_format(kind)
    filled(tmp_path / "before", save, SAVES[:5])
    moments, first, dead = 0, 0, True
    while dead:
        first, second, dead = first + 1, 0, False
        while True:
            second += 1
            folder = tmp_path / "run"
            shutil.copytree(tmp_path / "before", folder)
            store, crash, clearing = CheckpointStore(folder, save), CrashAt(first), CrashAt(second)
            store.repair_and_prune(store.manifest(37), BEGIN, BEGIN)
            with crash.patched(folder), contextlib.suppress(Killed):
                commit(store, SAVES[5])
            dead = crash.seen == first
            finished = False
            with clearing.patched(folder), contextlib.suppress(Killed):
                revived(folder, save)
                finished = True
            store, found = revived(folder, save)
            assert found in (37, 40)
            clean(store, found)
            shutil.rmtree(folder)
            moments += 1
            if finished:
                break
    assert moments > first  # clearing up had moments to die at


@contextlib.contextmanager
def full_at(moment: int, kind: Any) -> Iterator[None]:
    """Let the disk refuse one thing: the writing, flushing or renaming at a moment."""
    seen = itertools.count(1)

    def once(real: Any) -> Any:
        def refused(*arguments: Any, **options: Any) -> Any:
            if next(seen) == moment:
                raise OSError(28, "No space left on device")
            return real(*arguments, **options)

        return refused

    places = [(os, "fsync"), (os, "replace"), (kind, "write")]
    with contextlib.ExitStack() as stack:
        for owner, name in [*places, (Path, "write_text"), (Path, "write_bytes")]:
            method = once(getattr(owner, name))
            patch = mock.patch.object(owner, name, lambda *a, m=method, **k: m(*a, **k))
            stack.enter_context(patch)
        yield


@both_formats
def test_a_disk_that_is_full_at_any_moment(kind: Any, tmp_path: Path) -> None:
    """It is said in words; nothing half-written is left, and what was published before stays."""
    save, folder = save_format(kind), tmp_path / "run"
    filled(tmp_path / "before", save, SAVES[:5])
    complete = filled(tmp_path / "complete", save, SAVES[:6]).steps()
    reached: list[int] = []
    for moment in itertools.count(1):
        shutil.copytree(tmp_path / "before", folder)
        store = CheckpointStore(folder, save)
        store.repair_and_prune(store.manifest(37), BEGIN, BEGIN)
        before = store.steps()
        with full_at(moment, kind):
            try:
                commit(store, SAVES[5])
            except CheckpointWriteError as error:
                assert str(error) == "checkpoint 40 cannot be written: No space left on device"
            else:
                break
        store = CheckpointStore(folder, save)
        assert store.steps() in (before, [*before, 40])
        assert all(store.read(step) for step in store.steps())
        assert names(folder) == names_of(save, store.steps())
        reached.append(max(store.steps()))
        shutil.rmtree(folder)
    assert store.steps() == complete
    assert reached == sorted(reached)
    assert {*reached} == {37, 40}


FOREIGN = {  # names that Waymark never gives, beside those that it does
    Npz: ["weights-keep.npz", "weights-20 (copy).npz", "weights-best.npz", "weights-20.npz.bak",
          "weights-020.npz", "weights-99.NPZ", "weights-+9.npz", "weights-\u0663.npz", "weights-9",
          "weights-9.5.npz", "weights-20.txt", "weights-best.json", "my-weights-20.npz",
          ".tmp-weights-keep.npz", "weights-99.npz\n", "model_ckpt-20.index"],
    Ckpt: ["model_ckpt-010.index", "model_ckpt-20.index.bak", "model_ckpt-best.index",
           "model_ckpt-20.data-00001-of-00002", "model_ckpt-20", "model_ckpt-20.meta",
           "model_ckpt-keep.data-00000-of-00001", "model_ckpt-1e3.json", "weights-20.npz",
           ".tmp-model_ckpt-20.index.mine", "model_ckpt-20.tempstate3"],
}  # fmt: skip
FOREIGN = {kind: [*own, ".tmp-mine", ".tmp-", "checkpoint.txt"] for kind, own in FOREIGN.items()}


@both_formats
def test_only_names_that_waymark_gives_are_touched(kind: Any, tmp_path: Path) -> None:
    save, mine = save_format(kind, max_to_keep=1), FOREIGN[kind]
    left = [f".tmp-{save.stem}-20{end}" for end in (".json", *save.endings)]
    left += [f".tmp-{save.stem}-20{save.endings[0]}.tempstate17", ".tmp-checkpoint"]
    left += [f"{save.stem}-{step}{end}" for step in (1, 25, 99) for end in save.endings]
    for name in [*mine, *left]:
        (tmp_path / name).write_text("mine")
    folders = [f"{save.stem}-old", f"{save.stem}-98{save.endings[0]}", f"{save.stem}-98.json"]
    folders += [f".tmp-{save.stem}-98.json"]
    for name in folders:
        (tmp_path / name).mkdir()
    store = filled(tmp_path, save, [(10, True), (15, False), (20, True)])
    assert store.steps() == [20]
    again = CheckpointStore(tmp_path, save)
    found, damage = again.latest_valid()
    assert found is not None
    assert not damage
    again.repair_and_prune(found[0], BEGIN, BEGIN)
    commit(again, (30, True))
    assert names(tmp_path) == names_of(save, [30]) | {*mine, *folders}
    with mock.patch.object(kind, "write", side_effect=OSError(28, "No space left on device")):
        (tmp_path / left[0]).touch()
        with pytest.raises(CheckpointWriteError):
            commit(again, (40, True))
    assert names(tmp_path) == names_of(save, [30]) | {*mine, *folders}
    assert all((tmp_path / name).read_text() == "mine" for name in mine)


# Whatever is damaged


@dataclass(frozen=True)
class Damage:
    """One thing that happens to a file, and to another where two take part."""

    what: str
    file: int
    other: int
    place: float  # in [0, 1)
    bit: int

    def happen(self, folder: Path) -> None:
        paths = sorted(folder.iterdir())
        if not paths:
            return
        path, other = paths[self.file % len(paths)], paths[self.other % len(paths)]
        body, others = path.read_bytes(), other.read_bytes()
        place = int(self.place * len(body))
        if self.what == "truncate":
            path.write_bytes(body[:place])
        elif self.what == "flip" and body:
            flipped = bytes([body[place] ^ (1 << self.bit)])
            path.write_bytes(body[:place] + flipped + body[place + 1 :])
        elif self.what == "delete":
            path.unlink()
        elif self.what == "empty":
            path.write_bytes(b"")
        elif self.what == "extend":
            path.write_bytes(body + bytes([self.bit]))
        elif self.what == "swap":
            path.write_bytes(others)
            other.write_bytes(body)
        elif self.what == "rename":
            path.rename(other)
        elif self.what == "renumber":
            path.rename(path.with_name(path.name.replace("0.", "7.", 1)))


WHATS = ["truncate", "flip", "delete", "empty", "extend", "swap", "rename", "renumber"]
damages = st.builds(
    Damage,
    st.sampled_from(WHATS),
    st.integers(0, 99),
    st.integers(0, 99),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 7),
)


@dataclass(frozen=True)
class Three:
    """A format and the contents of a folder with the checkpoints 10, 20 and 30."""

    save: SaveFormat = field(repr=False)
    files: dict[str, bytes] = field(repr=False)

    def manifest(self, **changed: Any) -> bytes:
        """Return the manifest of step 30 with other entries, and the checksum that fits."""
        body = json.loads(self.files[f"{self.save.stem}-30.json"])
        del body["checksum"]
        body |= changed
        return json.dumps({**body, "checksum": checksum(body)}).encode()


@pytest.fixture(scope="module", params=[Ckpt, Npz])
def three(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Three:
    folder, save = tmp_path_factory.mktemp("three"), save_format(request.param, max_to_keep=3)
    filled(folder, save, [(10, True), (20, True), (30, True)])
    return Three(save, {path.name: path.read_bytes() for path in folder.iterdir()})


@contextlib.contextmanager
def folder_of(files: Mapping[str, bytes]) -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        for name, body in files.items():
            (Path(folder) / name).write_bytes(body)
        yield Path(folder)


@settings(max_examples=150, deadline=None)
@given(st.lists(damages, min_size=1, max_size=3))
def test_damage_is_named_and_never_gives_wrong_numbers(
    three: Three, happened: list[Damage]
) -> None:
    save, files = three.save, three.files
    with folder_of(files) as folder:
        for each in happened:
            each.happen(folder)
        now = {path.name: path.read_bytes() for path in folder.iterdir()}
        intact = [
            step
            for step in (10, 20, 30)
            if all(
                now.get(name) == files[name]
                for name in names_of(save, [step])
                if name != "checkpoint"
            )
        ]
        store = CheckpointStore(folder, save)
        listed = store.steps()
        found, named = store.latest_valid()
        assert (found[0].step if found else None) == max(intact, default=None)
        newer = [step for step in reversed(listed) if not found or step > found[0].step]
        heads = [line.partition(" is damaged: ")[0] for line in named]
        assert heads == [f"checkpoint {step}" for step in newer]
        if found is None:
            return
        manifest, state = found
        assert same_bits(state, state_at(manifest.step))
        for step in set(listed) - set(intact):  # a step asked for by name fails instead
            with pytest.raises(CorruptCheckpoint):
                store.read(step)
        store.repair_and_prune(manifest, BEGIN, BEGIN)
        commit(store, (40, True))
        assert names(folder) <= names_of(save, store.steps())  # an older one may lack files
        assert store.steps()[-1] == 40
        assert set(store.steps()) <= (store.retention.retained_steps() or set())
        assert set(intact) <= set(store.steps()) | ({10} if manifest.step == 30 else set())
        assert same_bits(store.read(40)[1], state_at(40))


@both_formats
@pytest.mark.parametrize("max_to_keep", [0, 2])
def test_a_damaged_newer_checkpoint_goes_when_an_older_one_is_resumed(
    kind: Any, max_to_keep: int, tmp_path: Path
) -> None:
    save = save_format(kind, max_to_keep=max_to_keep)
    store = filled(tmp_path, save, [(10, True), (20, True), (30, True)])
    store.path(30).with_suffix(".json").write_text("{}")
    found, _ = store.latest_valid()
    assert found is not None
    again = CheckpointStore(tmp_path, save)
    again.repair_and_prune(found[0], BEGIN, BEGIN)
    assert again.steps() == [10, 20, 30][-max_to_keep:-1]
    clean(again, 20)


@both_formats
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"time": 1700000020.0', '"time": 1700000021.0'),
        ('"regular": true', '"regular": false'),
        ('"next_hourly": null', '"next_hourly": 3.5'),
        ('"best": null', '"best":  {"step": 1, "value": 1, "metric": "m", "mode": "max"}'),
        ('"metrics": {}', '"metrics": {"test/accuracy": 1.0}'),
        ('"graph": {}', '"graph": {"model_ckpt.meta": {}}'),
    ],
)
def test_no_entry_of_a_manifest_may_change(kind: Any, old: str, new: str, tmp_path: Path) -> None:
    store = filled(tmp_path, save_format(kind), [(10, True), (20, True)])
    path = store.path(20).with_suffix(".json")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(
        CorruptCheckpoint, match=rf"{store.save.stem}-20\.json does not hold what was written"
    ):
        store.manifest(20)


@both_formats
def test_a_manifest_under_another_steps_name_is_refused(kind: Any, tmp_path: Path) -> None:
    store = filled(tmp_path, save_format(kind), [(10, True), (20, True)])
    shutil.copy(store.path(20).with_suffix(".json"), store.path(99).with_suffix(".json"))
    with pytest.raises(
        CorruptCheckpoint, match=rf"{store.save.stem}-99\.json does not hold what was written"
    ):
        store.manifest(99)
    found, damage = store.latest_valid()
    assert found is not None
    assert found[0].step == 20
    assert len(damage) == 1


@both_formats
def test_the_sentence_names_the_file(kind: Any, tmp_path: Path) -> None:
    save = save_format(kind, max_to_keep=5)
    store = filled(tmp_path, save, [(step, True) for step in (10, 20, 30, 40)])
    end = "index" if kind is Ckpt else "npz"
    (tmp_path / f"{save.stem}-40.{end}").unlink()
    with (tmp_path / f"{save.stem}-30.{end}").open("ab") as file:
        file.write(b"\0")
    (tmp_path / f"{save.stem}-20.json").write_text("{")
    found, damage = store.latest_valid()
    assert found is not None
    assert found[0].step == 10
    assert damage[0] == f"checkpoint 40 is damaged: {save.stem}-40.{end} is missing"
    assert damage[1] == (
        f"checkpoint 30 is damaged: {save.stem}-30.{end} does not hold what was written"
    )
    assert damage[2].startswith(f"checkpoint 20 is damaged: {save.stem}-20.json cannot be read (")
    with pytest.raises(CorruptCheckpoint, match=rf"{save.stem}-50\.json is missing"):
        store.manifest(50)


@both_formats
def test_a_payload_may_be_a_folder_or_unreadable(kind: Any, tmp_path: Path) -> None:
    store = filled(tmp_path, save_format(kind), [(10, True), (20, True)])
    end = "index" if kind is Ckpt else "npz"
    path = store.path(20).with_name(f"{store.path(20).name}.{end}")
    path.unlink()
    path.mkdir()
    found, damage = store.latest_valid()
    assert found is not None
    assert found[0].step == 10
    assert damage == [f"checkpoint 20 is damaged: {path.name} cannot be read (Is a directory)"]


# What stands in a manifest


def checksum(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def places(body: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of everything inside a JSON value."""
    inner = body.items() if isinstance(body, dict) else enumerate(body)
    found = []
    for key, value in inner:
        found.append((*here, key))
        if isinstance(value, dict | list):
            found += places(value, (*here, key))
    return found


@st.composite
def manifests(draw: st.DrawFn, body: dict[str, Any]) -> bytes:
    """Draw a manifest with other values in some places, whose checksum is right (or not)."""
    body = json.loads(json.dumps(body))
    del body["checksum"]
    for _ in range(draw(st.integers(1, 2))):
        *parents, last = draw(st.sampled_from(places(body)))
        where = body
        for parent in parents:
            where = where[parent]
        if isinstance(where, dict) and draw(st.booleans()):
            del where[last]
        else:
            where[last] = draw(values)
    if draw(st.integers(0, 4)):
        body["checksum"] = checksum(body)
    return json.dumps(body).encode()


@contextlib.contextmanager
def store_with(three: Three, text: bytes) -> Iterator[CheckpointStore]:
    """Open the folder with other contents for the manifest of step 30."""
    with folder_of({**three.files, f"{three.save.stem}-30.json": text}) as folder:
        yield CheckpointStore(folder, three.save)


def check_manifest(three: Three, text: bytes) -> None:
    """Assert that a changed manifest of step 30 is refused, or harmless."""
    with store_with(three, text) as store:
        try:
            store.verify(store.manifest(30).graph)
        except CorruptCheckpoint:
            pass
        except BadInput as error:
            assert "this Waymark reads formats" in str(error)
            return
        found, damage = store.latest_valid()
        assert found is not None
        manifest, state = found
        assert same_bits(state, state_at(manifest.step))
        assert len(damage) == (manifest.step == 20)
        assert all("\n" not in line for line in damage)
        store.repair_and_prune(manifest, BEGIN, BEGIN)
        commit(store, (40, True))
        assert store.steps()[-1] == 40


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_changed_manifest_is_refused_or_harmless(three: Three, data: st.DataObject) -> None:
    body = json.loads(three.files[f"{three.save.stem}-30.json"])
    check_manifest(three, data.draw(manifests(body)))


@settings(max_examples=100, deadline=None)
@given(st.binary() | values.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 100_000)
@example(b"9" * 5_000)
@example(b'{"format": 1}')
@example(b'{"format": 1, "checksum": 5, "step": 30}')
@example(b"null")
@example(b"\xff\xfe")
def test_any_other_bytes_are_no_manifest(three: Three, text: bytes) -> None:
    with store_with(three, text) as store, pytest.raises(CorruptCheckpoint):
        store.manifest(30)
    check_manifest(three, text)


@pytest.mark.parametrize("version", [FORMAT + 1, 99, 0, -1, 1.0, True, "1", None])
def test_another_formats_manifest_is_refused_and_stays(three: Three, version: Any) -> None:
    """It is not damage: a resume that fell back would remove what a newer Waymark wrote."""
    text = three.manifest(format=version, more=[])
    said = rf"-30\.json has format {version!r}; this Waymark reads formats up to {FORMAT}\.$"
    with store_with(three, text) as store:
        before = names(store.folder)
        for read in (lambda: store.manifest(30), lambda: store.read(30), store.latest_valid):
            with pytest.raises(BadInput, match=said):
                read()
        assert names(store.folder) == before


def test_another_format_that_fails_its_checksum_is_damage(three: Three) -> None:
    text = three.files[f"{three.save.stem}-30.json"].replace(b'"format": 1', b'"format": 2')
    with store_with(three, text) as store:
        with pytest.raises(CorruptCheckpoint, match=r"-30\.json does not hold what was written"):
            store.manifest(30)
        found, damage = store.latest_valid()
        assert (found[0].step if found else None, len(damage)) == (20, 1)


# As Waymark wrote it when FORMAT was 1. Later formats must read it, so it never changes.
FORMAT_1 = """{
 "format": 1, "step": 30, "time": 1700000030.5,
 "digest": "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945",
 "metrics": {"test/accuracy": 0.875, "test/loss": NaN}, "regular": false,
 "memory": {"next_hourly": 1700003600.0, "recent": [[10, 1700000010.0], [20, 1700000020.0]],
  "hourly": [5],
  "best": {"step": 20, "value": 0.5, "metric": "test/accuracy", "mode": "max"}},
 "files": {"weights-30.npz": {"size": 2, "sha256": "ab"}},
 "graph": {"model_ckpt.meta": {"size": 3, "sha256": "cd"}},
 "checksum": "117872c4d20022aa5c04106ba4db65cb5e9bc8bbf32a3a57a8e83e58af4a60d1"
}"""


def test_a_manifest_of_format_1_is_read(tmp_path: Path) -> None:
    (tmp_path / "weights-30.json").write_text(FORMAT_1)
    found = CheckpointStore(tmp_path, save_format(Npz)).manifest(30)
    assert (found.step, found.time, found.regular) == (30, BEGIN + 30.5, False)
    assert found.digest.startswith("4f53cda1")
    assert found.metrics["test/accuracy"] == 0.875
    assert np.isnan(found.metrics["test/loss"])
    best = BestCheckpoint(20, 0.5, "test/accuracy", "max")
    saved = ((10, BEGIN + 10), (20, BEGIN + 20))
    assert found.memory == RetentionState(BEGIN + 3600, saved, (5,), best)
    assert found.files == {"weights-30.npz": {"size": 2, "sha256": "ab"}}
    assert found.graph == {"model_ckpt.meta": {"size": 3, "sha256": "cd"}}


@pytest.mark.parametrize("name", ["/dev/zero", "../secret", "", ".", "a\0b"])
def test_a_manifest_names_no_file_elsewhere(three: Three, name: str) -> None:
    facts = {"size": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    text = three.manifest(files={name: facts})
    with store_with(three, text) as store, pytest.raises(CorruptCheckpoint):
        store.read(30)


def test_a_wrong_digest_gives_no_numbers(three: Three) -> None:
    text = three.manifest(digest="0" * 64)
    said = "does not hold the state that was saved"
    with store_with(three, text) as store, pytest.raises(CorruptCheckpoint, match=said):
        store.read(30)


def test_a_fork_flushes_with_threads_of_its_own(tmp_path: Path) -> None:
    """The threads that flushed before it are not in it: it would wait for them for ever."""
    program = """
import os, sys
from pathlib import Path
from waymark.files import flush
places = [Path(text) for text in sys.argv[1:]]
flush(*places)
child = os.fork()
flush(*places)
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    (tmp_path / "a").touch()
    command = [sys.executable, "-c", program, str(tmp_path / "a"), str(tmp_path)]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, timeout=30)
