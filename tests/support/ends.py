"""How a run ended, wherever it is recorded, and in what one end differs from another."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any


def points_of(client: Any, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Return the points (step, value) of all metrics of a run but its speed, sorted."""
    return {
        key: sorted((p.step, p.value) for p in client.get_metric_history(run_id, key))
        for key in client.get_run(run_id).data.metrics
        if key != "train/steps_per_second"
    }


@dataclass(frozen=True)
class End:
    """How a run ended: all of this must be the same whatever happened on the way."""

    status: str
    digest: str
    points: dict[str, list[tuple[int, float]]]
    checkpoints: dict[int, str]  # step -> digest of the state, as the manifest has it
    files: list[str]  # all artifacts, relative
    damaged: list[str]  # payload that is not what its manifest says

    @classmethod
    def read(cls, client: Any, run_id: str, folder: Path) -> "End":
        """Read what MLflow has of a run whose artifacts lie in `folder`."""
        run = client.get_run(run_id)
        points = points_of(client, run_id)
        checkpoints, damaged = {}, []
        for path in sorted((folder / "checkpoints").glob("[!.]*-*.json")):
            try:
                manifest = json.loads(path.read_text())
                checkpoints[manifest["step"]] = manifest["digest"]
                payload = {path.with_name(n): f["sha256"] for n, f in manifest["files"].items()}
            except (ValueError, KeyError, TypeError):
                payload = {path: "a manifest that can be read"}
            for file, digest in payload.items():
                if not file.exists() or sha256(file.read_bytes()).hexdigest() != digest:
                    damaged.append(file.name)
        files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        digest = run.data.tags.get("waymark.state_digest", "")
        return cls(run.info.status, digest, points, checkpoints, files, damaged)

    @property
    def kept(self) -> list[str]:
        """Return the names of the files of checkpoints."""
        inside = [Path(file) for file in self.files if file.startswith("checkpoints/")]
        return sorted(file.name for file in inside)

    def unlike(self, expected: "End") -> list[str]:
        """Say, one text each, in what this differs from what is expected (of files, if any)."""
        found = [f"{name} is not what its manifest says" for name in self.damaged]
        for name in ("status", "digest"):
            now, right = getattr(self, name), getattr(expected, name)
            found += [f"{name}: {now!r}, not {right!r}"] if now != right else []
        for name in ("checkpoints", "files") if expected.files else ("checkpoints",):
            now, right = set(getattr(self, name)), set(getattr(expected, name))
            if now != right:
                more, less = sorted(now - right), sorted(right - now)
                found.append(f"{name}: {more} too many, {less} missing")
        for step in sorted(self.checkpoints.keys() & expected.checkpoints.keys()):
            if self.checkpoints[step] != expected.checkpoints[step]:
                found.append(f"checkpoint {step} has another state")
        for key in sorted(self.points.keys() | expected.points.keys()):
            now, right = self.points.get(key, []), expected.points.get(key, [])
            if now != right:
                steps = [step for step, _ in now]
                twice = sorted({step for step in steps if steps.count(step) > 1})
                missing = sorted({step for step, _ in right} - set(steps))
                other = sorted({step for step, _ in set(now) - set(right)})
                said = {"missing": missing, "twice": twice, "with another value": other}
                parts = [f"{len(s)} steps {how} {s[:4]}" for how, s in said.items() if s]
                found.append(f"{key}: {', '.join(parts)}")
        return found


def local_end(folder: Path, run_id: str) -> End:
    """Read the end of a run in the local store of a folder."""
    from mlflow.tracking import MlflowClient

    (home,) = folder.glob(f"mlruns/artifacts/*/{run_id}/artifacts")
    return End.read(MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db"), run_id, home)


def server_end(uri: str, run_id: str, scratch: Path) -> End:
    """Read the end of a run on a server, whose artifacts are fetched into a scratch folder."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    folders = [""]
    for folder in folders:
        (scratch / folder).mkdir()
        items = client.list_artifacts(run_id, folder)
        folders += [item.path for item in items if item.is_dir]
        for item in items:  # one by one: an empty folder cannot be fetched
            if not item.is_dir:
                client.download_artifacts(run_id, item.path, str(scratch / folder))
    return End.read(client, run_id, scratch)


def differences(expected: End, read: Callable[..., End], *where: Any) -> list[str]:
    """Say in what a run's end, read where it is recorded, differs from the one expected."""
    try:
        return read(*where).unlike(expected)
    except Exception as error:
        return [f"how it ended cannot be read: {error!r}"]
