"""MLflow: the store of runs, finding them, and sending what stands in their outboxes.

Nothing else imports mlflow. Every point of a metric is first appended to the run's outbox, a
file beside the run's artifacts, and sent to MLflow by a background thread in batches. The outbox
is flushed to disk before a checkpoint is published; the same key, value, timestamp and step are
one point to MLflow, so sending twice changes nothing.
"""

import errno
import getpass
import json
import logging
import math
import os
import re
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit
from urllib.request import url2pathname

from pipeline import names
from pipeline.config import BadInput, Resolved, without_password
from pipeline.masking import without_secrets
from pipeline.process_state import same_environment, set_level, set_variable
from pipeline.tracking import history, lives, local_store, outbox
from pipeline.tracking.alive import BOUND, is_alive, this_process
from pipeline.tracking.history import History
from pipeline.tracking.limits import KEY, TAG, Deleted, exact, fitted, is_refusal, params
from pipeline.tracking.lives import Life
from pipeline.tracking.outbox import Birth
from pipeline.tracking.recovery import bury, complain
from pipeline.tracking.tracked import (
    Facts,
    RunRecord,
    TrackedRun,
    begun,
    is_held,
    last_sign,
    reason_of,
    sweep,
    this_process_text,
)

__all__ = ["REASON", "RESUME", "Facts", "RunRecord", "TrackedRun", "Tracking", "ui_command"]

SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql")
ACTIVE, ALL = 1, 3  # MLflow's views of what it holds; the second one with what was deleted
NEWEST_FIRST = ["attributes.start_time DESC"]
PLACES = {"experiments": "artifact_location", "runs": "artifact_uri"}


class Tracking:
    """A store of runs: a local SQLite file beside its artifacts, or whatever MLflow reaches.

    A tracking server may be down: then the runs in `spool`, of this machine, are all there is.
    """

    def __init__(
        self,
        uri: str | None,
        create: bool = False,
        reading: bool = False,
        recovered: Callable[[str, str], None] = complain,
    ) -> None:
        """Open the store, creating a local one if asked; raise BadInput if it cannot be used.

        With `reading` a local one that may not be written to will do. `recovered` is told the id
        of each dead run that is delivered on the way, and what was left out of it, in words.
        """
        self.recovered = recovered
        elsewhere = os.environ.get("MLFLOW_TRACKING_URI")
        from_where = "MLFLOW_TRACKING_URI" if elsewhere and not uri else "tracking.uri"
        uri = uri or elsewhere or "sqlite:///mlruns/mlflow.db"
        scheme = urlsplit(uri).scheme.partition("+")[0]
        self._named = f"{from_where}={without_password(uri)!r}"
        try:
            port = urlsplit(uri).port if scheme in ("http", "https") else None
            usable = scheme in SCHEMES and port != 0
        except ValueError:
            usable = False
        if not usable:
            raise BadInput(
                f"{self._named}: cannot be used; give sqlite:///FILE, "
                f"an http(s)://HOST:PORT server, or a database that MLflow knows."
            )
        self.server = scheme in ("http", "https")
        self.database = _database(uri, self._named) if scheme == "sqlite" else None
        self.uri = _database_uri(self.database) if self.database else uri
        self.address = (
            without_password(f"sqlite:///{self.database}" if self.database else uri) or ""
        )
        self.root = self.database.parent if self.database else Path("mlruns").absolute()
        there = self.database is not None and self._is_there(self.database)
        if self.database and not create and not there:
            lost = next(self.root.glob(f"artifacts/*/*/{outbox.NAME}"), None)
            hint = "; waymark sync makes it again from the runs' folders" if lost else ""
            raise BadInput(f"there are no runs here: {self.database} does not exist{hint}.")
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self._moved_from: list[str] = []  # the longest first
        parts = [self.database, self.root] if self.database else []
        self.read_only = reading and not all(os.access(path, os.W_OK) for path in parts)
        if (self.database or create) and not reading:
            self._check_root()
        self.client = self._open()
        if not self.read_only:
            sweep(self.root / "spool")

    @staticmethod
    def _is_there(database: Path) -> bool:
        """Tell whether there is a file; raise BadInput if it may not be read.

        It is not opened: closing it would drop all locks that SQLite has on it in this process.
        """
        try:
            database.stat()
            if not os.access(database, os.R_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return True
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise BadInput(f"{database}: cannot be read ({error.strerror}).") from None

    def _check_root(self) -> None:
        """Create the folder for everything that runs write, where needed, and try to write."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):  # without a name: a kill leaves nothing
                pass
        except OSError as error:
            raise BadInput(f"{self.root}: cannot be written to ({error.strerror}).") from None

    def _open(self) -> Any:
        _mlflow_defaults()
        try:
            if self.database:
                self._local = self._open_file(self.database)
            from mlflow.tracking import MlflowClient

            client = MlflowClient(self.uri)
            if not (self.server or self.read_only):
                self.client = client
                self.reap()
        except Exception as error:
            raise BadInput(f"{self._named}: cannot be used ({reason_of(error)}).") from None
        return client

    def _open_file(self, database: Path) -> Any:
        """Return MLflow's store of a local file, which is then as it has to be."""
        self.file = database
        if self.read_only:
            self._copy = local_store.copy_to_read(database)  # is gone when this object is
            if self._copy:
                self.file = Path(self._copy.name) / database.name
                self.uri = _database_uri(self.file)
        store = _store(self)
        self._settle()
        return store

    def sql(self, patience: float = 5.0) -> AbstractContextManager[sqlite3.Connection]:
        """Open the local database itself; commit at the end. A lock is waited for so long."""
        return local_store.connected(self.file, patience=patience)

    def _settle(self) -> None:
        """Point a moved or copied store's rows to where it lies now: MLflow's are absolute."""
        root, tagged = (
            location(self.root),
            "(SELECT experiment_id FROM experiment_tags WHERE key = ?)",
        )
        own = f"artifact_location = ? || experiment_id AND experiment_id NOT IN {tagged}"
        with self.sql() as database:  # nothing is written, and no lock asked for, without need
            values = "SELECT DISTINCT value FROM experiment_tags WHERE key = ?"
            roots = {value for (value,) in database.execute(values, (names.ROOT,))} - {root}
            if self.read_only:
                self._moved_from = sorted(roots, key=len, reverse=True)
                return
            for old in roots:
                for table, column in PLACES.items():
                    database.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                        f"WHERE substr({column}, 1, ?) = ?",
                        (root, len(old) + 1, len(old) + 1, f"{old}/"),
                    )
                change = "UPDATE experiment_tags SET value = ? WHERE key = ? AND value = ?"
                database.execute(change, (root, names.ROOT, old))
            new = f"SELECT experiment_id FROM experiments WHERE {own}"
            for (experiment,) in database.execute(
                new, (f"{root}/artifacts/", names.ROOT)
            ).fetchall():
                database.execute(
                    "INSERT OR IGNORE INTO experiment_tags (key, value, experiment_id) "
                    "VALUES (?, ?, ?)",  # another process may have done so meanwhile
                    (names.ROOT, root, experiment),
                )

    def _settled(self, place: str) -> str:
        """Return where artifacts lie now whose store was moved and may not be written to."""
        for old in self._moved_from:
            if place.startswith(f"{old}/"):
                return location(self.root) + place[len(old) :]
        return place

    def create(self, resolved: Resolved, tags: Mapping[str, str], data: Any) -> TrackedRun:
        """Create a run with its params, tags and data set, and start to track it.

        With a tracking server this returns at once; what the server is told follows.
        """
        config = resolved.config
        shapes = json.dumps({"x_train": data.x_train.shape, "x_test": data.x_test.shape})
        life = begun(Life(), 0)
        birth = Birth(
            id=uuid.uuid4().hex,
            address=self.place,
            experiment=config.experiment_name,
            name=config.run_name,
            start=time.time_ns() // 1_000_000,
            tags={
                names.USER: _user(),
                names.SOURCE: "waymark",
                **{key: str(value) for key, value in resolved.values["tags"].items()},
                **tags,
                **life.tags(),
                names.HEARTBEAT: str(int(time.time())),
            },
            params=resolved.params(),
            dataset={
                "name": data.name,
                "digest": data.digest[:36],
                "source": without_secrets(data.source).encode(errors="backslashreplace").decode(),
                "profile": shapes,
            },
        )
        if self.server:
            record = self.offline(birth, None, "RUNNING", self.root / "spool" / birth.id)
        else:
            try:
                record = self.record(self.ensure(birth, None, lookup=False))
            except Exception as error:
                raise BadInput(f"{self._named}: takes no new run ({reason_of(error)}).") from None
            birth = replace(birth, id=record.id, name=record.name)
        return TrackedRun(self, record, birth, config.tracking, life)

    def parent(
        self, experiment: str, name: str, tags: Mapping[str, str], key: str
    ) -> tuple[RunRecord, RunRecord | None]:
        """Return the experiment's run of the same tag `key`, made if need be, RUNNING from now on.

        With it comes what it was before, None if it was made. Raises BadInput if the store does
        not answer.
        """
        alive = {
            names.PROCESS: this_process_text(),
            names.HEARTBEAT: str(int(time.time())),
            names.REASON: "",
        }
        try:
            known = self.tagged(experiment, key, tags[key])
            if not known:
                return self.record(self._made(experiment, name, {**tags, **alive})), None
            record = known[-1][0]  # the first one that was made
            self.client.update_run(record.id, status="RUNNING")
            for tag, text in {**tags, **alive}.items():
                self.client.set_tag(record.id, tag, text)
            return record, record
        except Exception as error:  # of MLflow, the network
            raise BadInput(f"{self._named}: takes no sweep ({reason_of(error)}).") from None

    def withdraw(self, run_id: str, before: RunRecord | None) -> None:
        """Make a run that `parent` returned what it was before; delete it if there was none."""
        if before is None:
            self.client.delete_run(run_id)
            return
        for tag, text in before.tags.items():
            if tag.startswith("waymark."):
                self.client.set_tag(run_id, tag, text)
        self.client.update_run(run_id, status=before.status)

    def stillborn(self, experiment: str, name: str, tags: Mapping[str, str]) -> None:
        """Record a run that failed before it began."""
        self.client.set_terminated(self._made(experiment, name, tags).info.run_id, "FAILED")

    def _made(self, experiment: str, name: str, tags: Mapping[str, str]) -> Any:
        """Return a new run of MLflow's that no process trains."""
        own = {names.USER: _user(), names.SOURCE: "waymark", **tags}
        own = {key: fitted(text, TAG) for key, text in own.items()}
        return self.client.create_run(self._experiment(experiment), tags=own, run_name=name[:KEY])

    def reopen(self, record: RunRecord, config: Any, from_step: int = 0) -> TrackedRun:
        """Go on with a run from a step: replay its outbox, skip from now on what is recorded.

        Raises BadInput if another process has the run.
        """
        process, beat = _life(record)
        if record.status == "RUNNING" and not _is_own(process) and self._is_alive(record):
            raise BadInput(
                f"run {record.id}: a process on {process.get('host')} is training it; "
                f"its last sign of life is {max(0, time.time() - beat):.0f} s old."
            )
        content = outbox.read(record.outbox)
        before = lives.owner(record.tags, record.status == "FINISHED")
        if content.lives and (record.offline or not record.known or content.is_of(before)):
            before = content.lives[-1]  # of which the store may not have heard yet
        birth = None if content.birth else self._birth(record)
        earlier = None
        with suppress(OSError):  # there is none before the first words of a run
            earlier = history.load((record.folder / history.NAME).read_bytes())
        life = begun(before, from_step)
        return TrackedRun(
            self, record, birth, config.tracking, life, before, earlier or History({})
        )

    def _is_alive(self, record: RunRecord) -> bool:
        """Tell whether the process that owns a run may still run.

        Its lock is certain where it lies here: in the folder of a local store, or of the outbox
        that its owner writes.
        """
        process, beat = _life(record)
        held = is_held(record) if record.outbox.exists() else None
        if held and not record.remote:
            return True
        if held is not None and outbox.read(record.outbox).is_of(lives.owner(record.tags)):
            return held
        return _is_own(process) or is_alive(process, beat)

    def _birth(self, record: RunRecord) -> Birth:
        """Return what a run was created with, whose outbox lies on another machine."""
        experiment = self.client.get_experiment(record.experiment_id).name
        params, start = self.client.get_run(record.id).data.params, int(record.start_time * 1000)
        others = (names.LOCAL_ID, names.PROCESS, names.LIFE, names.FROM_STEP)
        own = {key: text for key, text in record.tags.items() if key not in others}
        return Birth(
            id=record.local,
            address=self.place,
            experiment=experiment,
            name=record.name,
            start=start,
            tags=own,
            params=dict(params),
            dataset={},
        )

    def undelivered(self, record: RunRecord) -> bool:
        """Tell whether something of a run may still be on its way to MLflow."""
        return record.outbox.exists() and not outbox.is_delivered(record.outbox)

    def ensure(self, birth: Birth | None, record: RunRecord | None, lookup: bool) -> Any:
        """Return MLflow's run, made where there is none; `lookup`: it may have been made before."""
        from mlflow.exceptions import MlflowException

        if record and record.known:
            try:
                return self.client.get_run(record.id)
            except MlflowException as error:
                if birth is None or error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        assert birth
        if lookup:
            # The deleted ones too: such a run is not to be made again.
            for made in self._search(f"tags.`{names.LOCAL_ID}` = '{birth.id}'", view=ALL):
                return self.client.get_run(made.info.run_id)
        tags = birth.tags | ({names.LOCAL_ID: birth.id} if self.server or lookup else {})
        if lookup:  # the process that began it may be gone: it comes with the rest, and an end
            others = (names.PROCESS, names.LIFE, names.FROM_STEP, names.HEARTBEAT)
            tags = {key: text for key, text in tags.items() if key not in others}
        experiment = self._experiment(birth.experiment)
        try:
            return self.client.create_run(experiment, birth.start, tags, birth.name)
        except MlflowException as error:
            if not is_refusal(error):
                raise
        # One of the tags it may be: with its own it is found, the others follow one by one.
        first = (names.LOCAL_ID, names.PROCESS, names.LIFE, names.FROM_STEP, names.HEARTBEAT)
        own = {key: text for key, text in tags.items() if key in first}
        return self.client.create_run(experiment, birth.start, own, birth.name)

    def artifacts(self, record: RunRecord) -> Any:
        """Return MLflow's access to the artifacts of a run."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        run = self.client.get_run(record.id)
        return get_artifact_repository(run.info.artifact_uri, self.uri)

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                # The local store makes <mlruns>/artifacts/<experiment id>; the client alone
                # would make ./mlruns/<experiment id>.
                maker = self._local if self.database else self.client
                made = maker.create_experiment(name)
                if self.database:
                    self.client.set_experiment_tag(made, names.ROOT, location(self.root))
            except MlflowException:  # another process made it meanwhile
                if self.client.get_experiment_by_name(name) is None:
                    raise
            found = self.client.get_experiment_by_name(name)
        if found is None or found.lifecycle_stage != "active":
            raise Deleted(f"experiment_name={name!r}: this experiment was deleted in MLflow.")
        return str(found.experiment_id)

    def record(self, run: Any) -> RunRecord:
        """Return what MLflow knows of a run, and where its files lie here."""
        info, tags = run.info, dict(run.data.tags)
        place = self._settled(info.artifact_uri)
        local = next((t for t in (tags.get(names.LOCAL_ID, ""), info.run_id) if t.isalnum()), None)
        if local is None:  # it becomes the name of a folder
            raise BadInput(f"run {info.run_id!r}: is no id of MLflow's.")
        below = f"{info.experiment_id}/{info.run_id}/artifacts"
        scheme, _, path = place.rpartition("://")  # a plain path is quoted as well
        remote = self.server or scheme not in ("", "file")
        if self.database and place.startswith("mlflow-artifacts:"):
            folder, remote = self.root / "artifacts" / below, False
        elif remote:
            folder = self.root / "spool" / local / "artifacts"
        else:
            folder = Path(url2pathname(path))
        start = (info.start_time or 0) / 1000
        return RunRecord(
            info.run_id,
            local,
            info.run_name,
            info.experiment_id,
            info.status,
            start,
            tags,
            folder,
            remote,
        )

    def offline(
        self, birth: Birth, ids: tuple[str, str] | None, status: str, home: Path
    ) -> RunRecord:
        """Return what is known of a run from its outbox alone; `home` is its folder."""
        run_id, experiment = ids or (birth.id, "")
        return RunRecord(
            run_id,
            birth.id,
            birth.name or "offline",
            experiment,
            status,
            birth.start / 1000,
            birth.tags,
            home / "artifacts",
            home.parent.name == "spool",
        )

    @property
    def place(self) -> str:
        """Return the store's address without user and password; nothing for a local file."""
        return "" if self.database else re.sub(r"://\S*@", "://", self.address)

    def _spooled(self) -> Iterator[RunRecord]:
        """Yield the runs of this machine that are not, or not all, in the server."""
        for path in sorted(self.root.glob(f"spool/*/{outbox.NAME}")):
            content = outbox.read(path)
            if content.birth and content.birth.address == self.place:
                status = content.status[0] if content.status else "RUNNING"
                record = self.offline(content.birth, content.ids, status, path.parent)
                yield replace(record, tags=record.tags | content.tags, offline=True)

    def find_single(self, text: str) -> RunRecord:
        """Find RUN as `find` does; raise BadInput for a sweep's parent as well."""
        record = self.find(text)
        if record.tags.get(names.KIND) == "sweep":
            command = record.tags.get(names.COMMAND) or "the one that it was begun with"
            raise BadInput(
                f"run {record.id} is a sweep; waymark compare --sweep {record.id[:8]} shows its "
                f"trials, and this command completes it: {command}"
            )
        return record

    def find(self, text: str) -> RunRecord:
        """Find RUN: an id, a unique prefix of one, a unique name, or `latest`.

        Raises BadInput if there is none, or more than one.
        """
        try:
            if self.server:
                self.reap()
            found = [self.record(run) for run in self._matching(text)]
        except Exception as error:  # whatever is wrong with the server, what is here is here
            if isinstance(error, BadInput):
                raise
            if not self.server:
                reason = reason_of(error)
                raise BadInput(f"RUN={text!r}: {self.address} cannot be read ({reason}).") from None
            found, trouble = [], f"; {self._named}: cannot be used ({reason_of(error)})"
        else:
            trouble = ""
        here = [record for record in self._spooled() if trouble or not record.known]
        if text == "latest":
            past = _present() / 1000
            order = sorted([*found, *here], key=lambda r: (r.start_time <= past, r.start_time))
            found = order[-1:]
        elif not found and len(text) >= 4:
            found = [
                record
                for record in here
                if record.id.startswith(text) or record.local.startswith(text)
            ] or [record for record in here if record.name == text != "offline"]
        if not found:
            raise BadInput(f"RUN={text!r}: there is no such run in {self.address}{trouble}.")
        if len(found) > 1:
            ids = ", ".join(record.id[:12] for record in found[:5])
            raise BadInput(f"RUN={text!r}: more than one run fits ({ids}); give more of its id.")
        try:
            content = outbox.read(found[0].outbox) if self.undelivered(found[0]) else None
        except OSError as error:  # another user's, who has closed it
            reason = f"{found[0].folder.parent}: cannot be read ({error.strerror})"
            raise BadInput(f"run {found[0].id}: {reason}.") from None
        owner = lives.owner(found[0].tags, found[0].status == "FINISHED")
        told = content.status if content and content.may_write(owner) else None
        # Without one it ended, if it did, as MLflow says; else MLflow has not heard of it yet.
        return replace(found[0], status=told[0]) if told else found[0]

    def _matching(self, text: str) -> list[Any]:
        if text == "latest":
            found: list[Any] = []
            for when in (f"<= {_present()}", f"> {_present()}"):  # the latter by a wrong clock
                query = f"tags.`waymark.version` != '' AND attributes.start_time {when}"
                runs = self._search(query, NEWEST_FIRST)
                own = (run for run in runs if run.data.tags.get(names.KIND) != "sweep")
                found = found or list(islice(own, 1))
            return found
        found = []
        if len(text) >= 4 and text.isalnum():
            found = list(islice(self._search(f"attributes.run_id LIKE '{text}%'"), 50))
            found = found or list(
                islice(self._search(f"tags.`{names.LOCAL_ID}` LIKE '{text}%'"), 50)
            )
        if not found and text:
            # MLflow's filters know no escape, but a pattern in which `_` is any character.
            pattern = text.replace("'", "_")
            quote = '"' if "'" in text else "'"
            same = f"= {quote}{text}{quote}" if quote not in text else f"LIKE '{pattern}'"
            alike = self._search(f"attributes.run_name {same}")
            found = list(islice((run for run in alike if run.info.run_name == text), 50))
        return found

    def _search(
        self,
        query: str,
        order: list[str] | None = None,
        experiment: str | None = None,
        page: int = 50,
        view: int = ACTIVE,
    ) -> Iterator[Any]:
        """Yield the runs that fit a filter of MLflow's, of one experiment or of all.

        `page` is how many are asked for at once; a store may give fewer. Raises BadInput for an
        experiment that does not exist, and what MLflow raises.
        """
        if experiment is None:
            ask = self.client.search_experiments
            ids = [e.experiment_id for e in _pages(lambda token: ask(view, page_token=token))]
        else:
            known = self.client.get_experiment_by_name(experiment)
            if known is None or known.lifecycle_stage != "active":
                raise BadInput(f"--experiment={experiment!r}: there is no such experiment.")
            ids = [known.experiment_id]
        if ids:  # else MLflow looks into its default experiment
            yield from _pages(
                lambda token: self.client.search_runs(
                    ids, query, view, max_results=page, order_by=order, page_token=token
                )
            )

    def select(
        self, experiment: str | None, sweep: str | None, where: str | None, most: int | None = None
    ) -> list[tuple[RunRecord, Facts]]:
        """Return the runs that fit all conditions, the one started last first, `most` at most.

        `sweep` is RUN of a parent, whose children are meant, or of one of a sweep's trials, which
        are meant then; `where` is a filter of MLflow's, as in "params.model = 'cnn'". Raises
        BadInput for what does not exist or cannot be read.
        """
        conditions = [where] if where else []
        if sweep is not None:
            record = self.find(sweep)
            trial = names.TRIAL in record.tags
            parent = record.tags.get(names.PARENT_RUN, record.id) if trial else record.id
            conditions.append(f"tags.{names.PARENT_RUN} = '{parent}'")
        try:
            if self.server:
                self.reap()
            page = min(most or 1000, 1000)
            runs = self._search(" AND ".join(conditions), NEWEST_FIRST, experiment, page)
            found = [(self.record(run), _facts(run)) for run in islice(runs, most)]
        except BadInput:
            raise
        except Exception as error:  # of MLflow, the network
            wrong = where and getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE"
            what = f"--where={where!r}" if wrong else self._named
            raise BadInput(f"{what}: cannot be used ({reason_of(error)}).") from None
        return found

    def tagged(self, experiment: str, key: str, text: str) -> list[tuple[RunRecord, Facts]]:
        """Return an experiment's runs that bear a tag, the one started last first."""
        known = self.client.get_experiment_by_name(experiment)
        if known is None or known.lifecycle_stage != "active":
            return []
        return self.select(experiment, None, f"tags.`{key}` = '{text}'")

    def reached(self, record: RunRecord, key: str) -> int:
        """Return the last step at which a run recorded a metric, 0 if it did at none."""
        here = [step for p in outbox.read(record.outbox).points if p.key == key for step in p.steps]
        if not here and record.known and not record.offline:
            with suppress(Exception):  # of MLflow, the network: less is told
                here = [point.step for point in self.client.get_metric_history(record.id, key)]
        return max(here, default=0)

    def facts(self, record: RunRecord) -> Facts:
        """Return what is known of a run as a whole; raise BadInput if the store does not answer."""
        if record.known and not record.offline:
            try:
                return _facts(self.client.get_run(record.id))
            except Exception as error:  # of MLflow, the network
                reason = reason_of(error)
                raise BadInput(f"run {record.id}: cannot be read ({reason}).") from None
        content = outbox.read(record.outbox)
        last = {p.key: p.values[-1] for p in content.points if p.values}
        settings = content.birth.params if content.birth else {}
        return Facts(params(settings), last, content.status[1] / 1000 if content.status else None)

    def reap(self) -> None:
        """Mark KILLED the runs whose process is gone, so that all see they can be resumed.

        Raises what MLflow raises. A run of another host is left alone until its last sign of
        life is older than `alive.BOUND`.
        """
        query = f"attributes.status = 'RUNNING' AND tags.`{names.PROCESS}` LIKE '%'"
        for run in list(self._search(query)):  # all of them first: pages count what still fits
            record = self.record(run)
            if self._is_alive(record):
                continue
            with suppress(Exception):  # a process holds it after all, or the next command can
                if self.database:
                    with self.sql(0.1) as database:  # for which MLflow would wait long
                        database.execute("BEGIN IMMEDIATE")
                bury(self, record, last_sign(record, _life(record)[1]))

    def system_metrics(self, run_id: str) -> Any:
        """Start MLflow's monitor of CPU and memory for a run."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=self.uri)
        monitor.start()
        return monitor

    def fetch(self, record: RunRecord, name: str, target: Path) -> None:
        """Bring an artifact of a remote run below `target`; it is there whole or not at all."""
        try:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
                os.replace(self.client.download_artifacts(record.id, name, scratch), target / name)
        except Exception as error:  # of MLflow, the network, the disk
            reason = reason_of(error)
            raise BadInput(f"run {record.id}: {name} cannot be fetched ({reason}).") from None

    def newer(self, record: RunRecord) -> list[str]:
        """Return a remote run's checkpoint files if they are newer than those here, else none.

        Manifests come last, as they do when a checkpoint is published.
        """
        there = self.checkpoints(record)
        here = [path.name for path in (record.folder / "checkpoints").glob("*.json")]
        return there if _newest(there) > _newest(here) else []

    def checkpoints(self, record: RunRecord) -> list[str]:
        """Return the names of a remote run's checkpoint files, manifests last; none of a local's.

        Raises BadInput if the store does not answer.
        """
        if not record.remote or record.offline:
            return []
        listed = self.listed(record, "checkpoints")
        there = [name for name in listed if re.fullmatch(r"checkpoints/\w[\w.-]*", name)]
        return sorted(there, key=lambda name: name.endswith(".json"))

    def listed(self, record: RunRecord, folder: str | None = None) -> list[str]:
        """Return the names in a folder of a run's remote home; raise BadInput without an answer."""
        try:
            return [file.path for file in self.client.list_artifacts(record.id, folder)]
        except Exception as error:  # of MLflow, the network
            reason = reason_of(error)
            raise BadInput(f"run {record.id}: its files cannot be listed ({reason}).") from None

    def artifact(self, record: RunRecord, name: str, there: bool = False) -> bytes | None:
        """Return what a small artifact of a run holds, None if the run has none of that name.

        `there` asks the run's remote home, whether or not a copy is here.
        """
        with suppress(OSError, BadInput):
            path = record.folder / name
            if (path.exists() and not there) or not record.remote or record.offline:
                return path.read_bytes()
            with tempfile.TemporaryDirectory() as scratch:
                self.fetch(record, name, Path(scratch) / "run")
                return (Path(scratch) / "run" / name).read_bytes()
        return None

    def link(self, record: RunRecord) -> str:
        """Return the page that shows the run in MLflow's UI, and how to open a local store's."""
        if not record.known:
            return f"{self.address}, once waymark sync has brought it there"
        page = (
            f"#/experiments/{record.experiment_id}/runs/{record.id}?workflowType=machine_learning"
        )
        if self.database:
            return f"waymark ui, then http://127.0.0.1:5000/{page}"
        return f"{self.address}/{page}"


def location(folder: Path) -> str:
    """Return the address of a folder from which MLflow makes this very folder's path again.

    It decodes a plain path as well, and writes the first experiment's into SQL as repr() has it.
    """
    return "".join(quote(c) if c in "%?:'\\" or not c.isprintable() else c for c in str(folder))


def _database(uri: str, named: str) -> Path:
    """Return the file that an address means, as it is written or percent-encoded.

    Where both are possible it is the one of which more exists. Raises BadInput for a path that
    MLflow's database cannot have.
    """

    def existing(path: Path) -> int:
        return next(len(p.parts) for p in (path, *path.parents) if os.path.lexists(p))

    text = uri.partition(":///")[2]
    if "?" in text.rpartition("/")[2]:
        raise BadInput(f"{named}: cannot be used; no options go with a file (%3F means ? in one).")
    database = max((Path(t).absolute() for t in (text, unquote(text))), key=existing)
    try:
        str(database).encode()
    except UnicodeEncodeError:
        raise BadInput(f"{database}: MLflow records no path that is not UTF-8.") from None
    if len(os.fsencode(os.path.realpath(database))) > 504:
        raise BadInput(f"{database}: SQLite takes a path of 504 bytes at most.")
    return database


def _database_uri(database: Path) -> str:
    """Return the address of a file for SQLAlchemy, which decodes it."""
    path = str(database)
    if not {"?", "%"} & set(path):
        return f"sqlite:///{path}"
    # With the driver's name, as MLflow makes the folder that stands in an address without one.
    return f"sqlite+pysqlite:///{quote(path)}"


_stores: dict[Any, Any] = {}  # at most one


def _store(tracking: Tracking) -> Any:
    """Return MLflow's store of a local file, made and checked anew only if it may differ."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    assert tracking.database
    artifacts, file = location(tracking.root / "artifacts"), tracking.file
    known = file.exists() and (tracking.uri, *_version(tracking))
    if known not in _stores:
        if not tracking.read_only:
            local_store.ensure(file, _database_uri, artifacts)
        elif not local_store.is_whole(file):
            raise ValueError("its making was interrupted")
        for last in _stores.values():  # its connections may be to a file that was there before
            last.engine.dispose()
        store = SqlAlchemyStore(tracking.uri, artifacts)
        known = tracking.uri, *_version(tracking)
        _stores.clear()
        _stores[known] = store
    return _stores[known]


def _version(tracking: Tracking) -> tuple[Any, ...]:
    """Return what tells a database file and its schema from any other."""
    with tracking.sql() as database:  # MLflow tries a minute and a half to open it
        schema = database.execute("PRAGMA schema_version").fetchone()  # counts its changes
    file = tracking.file.stat()
    return file.st_dev, file.st_ino, schema


def _pages(ask: Callable[[str | None], Any]) -> Iterator[Any]:
    """Yield all that MLflow has, page by page; `ask` takes the token of a page, None first."""
    token = None
    while True:
        page = ask(token)
        yield from page
        token = page.token
        if not token:
            return


def _facts(run: Any) -> Facts:
    metrics = {key: exact(value) for key, value in run.data.metrics.items()}
    end = run.info.end_time
    return Facts(dict(run.data.params), metrics, end / 1000 if end else None)


def _newest(names: list[str]) -> int:
    """Return the highest step that a manifest among some files is for, -1 if there is none."""
    found = [re.search(r"-(\d{1,19})\.json$", name) for name in names]
    return max((int(match[1]) for match in found if match), default=-1)


def _life(record: RunRecord) -> tuple[dict[str, Any], float]:
    """Return the process that trains a run, and its last sign of life, as far as they are told."""
    process = dict(lives.owner(record.tags).process)
    try:
        beat = float(record.tags.get(names.HEARTBEAT, ""))
    except ValueError:
        beat = 0.0
    return process, beat if math.isfinite(beat) else 0.0


def _present() -> int:
    """Return the latest time (ms) that a right clock may show now, on whatever machine."""
    return int((time.time() + BOUND) * 1000)


def _is_own(process: Mapping[str, Any]) -> bool:
    """Tell whether a record names this very process."""
    return {key: process.get(key) for key in this_process()} == this_process()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def _mlflow_defaults() -> None:
    """Keep MLflow from retrying for minutes and from reporting usage, unless the user asks."""
    set_variable("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    set_variable("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    set_variable("MLFLOW_DISABLE_TELEMETRY", "true")
    set_variable("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    set_variable("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    with same_environment():
        import mlflow.tracking  # noqa: F401  (it sets the levels as it is imported)

    if "MLFLOW_LOGGING_LEVEL" not in os.environ:  # it logs what it raises as well
        for name in ("mlflow", "alembic"):
            set_level(name, logging.CRITICAL)


def ui_command(tracking: Tracking, host: str, port: int) -> list[str]:
    """Return the command line of MLflow's server on a local store."""
    import sys

    _mlflow_defaults()
    set_variable("MLFLOW_LOGGING_LEVEL", "CRITICAL")
    set_variable("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # ten more processes
    set_variable("PYTHONWARNINGS", "ignore")  # of what MLflow imports, for its authors
    options = {
        "--backend-store-uri": tracking.uri,
        "--artifacts-destination": location(tracking.root / "artifacts"),
        "--host": host,
        "--port": str(port),
        "--workers": "1",
    }
    return [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        *(x for pair in options.items() for x in pair),
    ]
