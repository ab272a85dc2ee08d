"""A recorded run, any file of which is damaged: the damage is named, no wrong number is loaded."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waymark.checkpoints.store import CheckpointStore, CorruptCheckpoint
from waymark.config.compose import compose_config
from waymark.config.record import from_record
from waymark.digest import digest
from waymark.errors import BadInput
from waymark.evaluation import restore as work
from waymark.execution.execute import run
from waymark.tracking.opening import open_store
from waymark.training.score import Score

STEPS = (2, 4, 6)
SETTINGS = ["steps=6", "save.every=2", "batch_size=5", "eval_every=2", "progress=false"]
SETTINGS += ["save.keep_every_n_hours=null", "runtime.intra_op_threads=2"]


@dataclass(frozen=True)
class Recorded:
    """A finished run with the checkpoints 2, 4, 6, as it was before anything was damaged."""

    home: Path
    id: str
    stem: str
    digests: dict[int, str]
    tracking: Any = None

    @property
    def folder(self) -> Path:
        return next(self.home.glob(f"mlruns/artifacts/1/{self.id}/artifacts"))

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def store(self) -> CheckpointStore:
        config = from_record(self.folder / "config.yaml", {}, [], ()).config
        return CheckpointStore(self.checkpoints, config.save)


@pytest.fixture(scope="module", params=["ckpt", "npz"])
def recorded(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    empty_store: Path,
    small: Path,
) -> Recorded:
    home = tmp_path_factory.mktemp(request.param)
    shutil.copytree(empty_store, home / "mlruns")
    data = ["data=arrays", f"data.path={small}", f"save={request.param}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        result = run(compose_config([*SETTINGS, *data]))
        tracking = open_store(None)  # opening it takes longer than what is tested
    stem = "model_ckpt" if request.param == "ckpt" else "weights"
    made = Recorded(home, result.run_id, stem, {}, tracking)
    for step in STEPS:
        made.digests[step] = made.store().manifest(step).digest
    assert made.digests[6] == result.state_digest
    return made


@pytest.fixture
def evaluate(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], tuple[int, str]]]:
    """Return what evaluates a step of the run, without scoring.

    It gives the step and the digest of the state that would have been scored.
    """
    config = from_record(recorded.folder / "config.yaml", {}, [], ()).config
    data = work.load_data(config)
    seen: list[str] = []

    def score(config: Any, data: Any, state: Any) -> Score:
        seen.append(digest(state))
        return Score(np.zeros(1, np.int64), {"accuracy": 1.0, "loss": 0.0})

    def evaluate(step: str) -> tuple[int, str]:
        found = work.evaluate_run("latest", step, False, {})
        return found.step, seen[-1]

    monkeypatch.setattr(work, "connect", lambda uri, reading: recorded.tracking)
    monkeypatch.setattr(work, "load_data", lambda config: data)
    monkeypatch.setattr(work, "score_state", score)
    before = {path: path.read_bytes() for path in recorded.checkpoints.iterdir()}
    yield evaluate
    shutil.rmtree(recorded.checkpoints)
    recorded.checkpoints.mkdir()
    for path, body in before.items():
        path.write_bytes(body)


def truncate(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def halve(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path, other: Path) -> None:
    body = bytearray(path.read_bytes())
    body[len(body) // 3] ^= 4
    path.write_bytes(body)


def delete(path: Path, other: Path) -> None:
    path.unlink()


def empty(path: Path, other: Path) -> None:
    path.write_bytes(b"")


def swap(path: Path, other: Path) -> None:
    body = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(body)


def rename(path: Path, other: Path) -> None:
    path.rename(path.with_name(path.name.replace("-6", "-60", 1).replace("-4", "-40", 1)))


def overwrite(path: Path, other: Path) -> None:
    path.rename(other)


def folder(path: Path, other: Path) -> None:
    path.unlink()
    path.mkdir()


HAPPENS = [truncate, halve, flip, delete, empty, swap, rename, overwrite, folder]


@pytest.mark.parametrize("happen", HAPPENS)
@pytest.mark.parametrize("step", [4, 6])
def test_damage_of_any_file_is_named_and_an_older_checkpoint_is_used(
    step: int,
    happen: Callable[[Path, Path], None],
    recorded: Recorded,
    evaluate: Callable[[str], tuple[int, str]],
) -> None:
    """Damage one file after the other; `other` is the same file of another checkpoint."""
    whole = {path: path.read_bytes() for path in recorded.checkpoints.iterdir()}
    names = [path.name for path in whole if path.name.startswith(f"{recorded.stem}-{step}.")]
    assert len(names) == (3 if recorded.stem == "model_ckpt" else 2)
    for name in names:
        other = recorded.checkpoints / name.replace(f"-{step}.", f"-{10 - step}.")
        happen(recorded.checkpoints / name, other)
        hurt = {step, 10 - step} if happen in (swap, overwrite) else {step}
        if happen is rename and name.endswith("json"):
            hurt.add(10 * step)
        store = recorded.store()
        for at in (2, 4, 6, *(hurt - {4, 6})):
            if at not in hurt:
                assert evaluate(str(at)) == (at, recorded.digests[at])
            elif at in store.steps():
                with pytest.raises(CorruptCheckpoint, match=rf"{recorded.stem}-{at}\b"):
                    evaluate(str(at))
            else:  # its manifest is gone, and with it the checkpoint
                with pytest.raises(BadInput, match=rf"--step={at}: .* has the checkpoints \["):
                    evaluate(str(at))
        found, damage = store.latest_valid()
        newest = max({2, 4, 6} - hurt)
        assert found is not None
        assert (found[0].step, digest(found[1])) == (newest, recorded.digests[newest])
        named = [at for at in reversed(store.steps()) if at > newest]
        assert [line.partition(" is damaged: ")[0] for line in damage] == [
            f"checkpoint {at}" for at in named
        ]
        shutil.rmtree(recorded.checkpoints)
        recorded.checkpoints.mkdir()
        for path, body in whole.items():
            path.write_bytes(body)


@pytest.mark.parametrize("happen", [truncate, flip, delete, empty, swap, folder])
def test_the_state_file_decides_nothing(
    happen: Callable[[Path, Path], None],
    recorded: Recorded,
    evaluate: Callable[[str], tuple[int, str]],
) -> None:
    path = recorded.checkpoints / "checkpoint"
    path.touch()  # npz has none
    happen(path, recorded.checkpoints / f"{recorded.stem}-2.json") if path.stat().st_size else None
    assert evaluate("latest") == (6, recorded.digests[6])
    assert evaluate("4") == (4, recorded.digests[4])


@pytest.mark.parametrize("step", ["06", "6.0", " 6", "٦", "9" * 5000, "-6", "", "\x1b[2J"])
def test_a_step_is_named_as_it_is_listed(
    step: str, recorded: Recorded, evaluate: Callable[[str], tuple[int, str]]
) -> None:
    with pytest.raises(BadInput, match=r"^--step=.*has the checkpoints \[2, 4, 6\]") as error:
        evaluate(step)
    assert str(error.value).isprintable()


# The whole program


@pytest.fixture
def copied(recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    shutil.copytree(recorded.home / "mlruns", tmp_path / "mlruns")
    monkeypatch.chdir(tmp_path)
    return Recorded(tmp_path, recorded.id, recorded.stem, recorded.digests)


def test_a_renamed_manifest_is_seen_and_the_run_goes_on(copied: Recorded, main: Any) -> None:
    manifest = copied.checkpoints / f"{copied.stem}-6.json"
    manifest.rename(manifest.with_name(f"{copied.stem}-8.json"))
    done = main("evaluate", "latest")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert f"{copied.stem}-8.json does not hold what was written" in done.stderr
    done = main("resume", "latest")
    assert done.returncode == 0, done
    lines = done.stderr.splitlines()
    assert lines[0].startswith("waymark: checkpoint 8 is damaged: ")
    assert len(lines) == 1
    store = copied.store()
    assert store.steps() == [2, 4, 6]
    assert store.manifest(6).digest == copied.digests[6]  # trained again from 4, the same bits


def test_none_that_is_whole_is_not_a_fresh_start(copied: Recorded, main: Any) -> None:
    for path in copied.checkpoints.glob(f"{copied.stem}-*.json"):
        flip(path, path)
    before = {path: path.read_bytes() for path in copied.folder.rglob("*") if path.is_file()}
    done = main("resume", "latest", "steps=8")
    assert (done.returncode, done.stdout) == (1, "")
    *named, last = done.stderr.splitlines()
    heads = [line.partition(" is damaged")[0] for line in named]
    assert heads == [f"waymark: checkpoint {step}" for step in (6, 4, 2)]
    assert "none is whole; to start afresh: waymark run" in last
    assert {p: p.read_bytes() for p in copied.folder.rglob("*") if p.is_file()} == before


def test_a_newer_waymarks_checkpoint_stops_a_resume_and_stays(copied: Recorded, main: Any) -> None:
    import hashlib
    import json

    path = copied.checkpoints / f"{copied.stem}-6.json"
    body = json.loads(path.read_text()) | {"format": 99}
    del body["checksum"]
    body["checksum"] = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(body))
    before = {path: path.read_bytes() for path in copied.folder.rglob("*") if path.is_file()}
    for command in (["resume", "latest", "steps=8"], ["evaluate", "latest"],
                    ["evaluate", "latest", "--step", "best"]):  # fmt: skip
        done = main(*command)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done
        assert f"{copied.stem}-6.json has format 99; this Waymark reads" in done.stderr
    assert {p: p.read_bytes() for p in copied.folder.rglob("*") if p.is_file()} == before
