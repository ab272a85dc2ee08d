"""The store of runs, behind a few verbs of our own; MLflow's client stays in this package."""

import getpass
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar
from urllib.request import url2pathname

from waymark import names
from waymark.errors import BadInput
from waymark.tracking import local_store, outbox, questions
from waymark.tracking.address import Address, location, page_of
from waymark.tracking.description import without_typed_over
from waymark.tracking.limits import Deleted, is_refusal, params, restore_infinity, store_errors
from waymark.tracking.outbox import RunCreation
from waymark.tracking.questions import question
from waymark.tracking.runs import RunRecord, RunSummary

T = TypeVar("T")
ACTIVE, ALL = 1, 3  # MLflow's views of what it holds; the second one with what was deleted


class RunStore:
    """A store of runs: a local SQLite file beside its artifacts, or whatever MLflow reaches.

    A tracking server may be down: then the runs in `spool`, of this machine, are all there is.
    Outside this package nine verbs are used: summary, metrics, metric_history, set_tags,
    log_metrics, log_text, log_files, end and link; the others take or return what is MLflow's.
    A process that trains has a `remote_store.RemoteStore`.
    """

    def __init__(
        self,
        address: Address,
        client: Any,
        recovered: Callable[[str, str], None],
        maker: Any,
        moved_from: Sequence[str],
        copy: tempfile.TemporaryDirectory[str] | None,
    ) -> None:
        """See `opening.open_store`; `client` and the `maker` of experiments are MLflow's.

        `moved_from` are the roots of a moved store that may not be written to, the longest first;
        `copy` holds the database that is read in its place, until this object is gone.
        """
        self.address, self.client, self.recovered = address, client, recovered
        self._maker, self._moved_from, self._copy = maker, moved_from, copy
        self.uri = client.tracking_uri
        self.root, self.database, self.server = address.root, address.database, address.server

    def answer(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Answer a question, by its name."""
        return questions.known[name](self, *args, **kwargs)

    def ask(self, meanwhile: Callable[[], Any], question: Callable[..., T], *args: Any) -> T:
        """Return the answer to a question; do other work while it is looked for, if that can be."""
        meanwhile()
        return question(self, *args)

    def sql(self, patience: float = 5.0) -> AbstractContextManager[sqlite3.Connection]:
        """Open the local database itself; commit at the end. A lock is waited for so long."""
        assert self.database
        return local_store.connected(self.database, patience=patience)

    def record(self, run: Any) -> RunRecord:
        """Return what MLflow knows of a run, and where its files lie here."""
        info, tags = run.info, dict(run.data.tags)
        artifact_uri = info.artifact_uri
        old = next((old for old in self._moved_from if artifact_uri.startswith(f"{old}/")), None)
        if old:
            artifact_uri = location(self.root) + artifact_uri[len(old) :]
        local = next((t for t in (tags.get(names.LOCAL_ID, ""), info.run_id) if t.isalnum()), None)
        if local is None:  # it becomes the name of a folder
            raise BadInput(f"run {info.run_id!r}: is no id of MLflow's.")
        below = f"{info.experiment_id}/{info.run_id}/artifacts"
        scheme, _, path = artifact_uri.rpartition("://")  # a plain path is quoted as well
        remote = self.server or scheme not in ("", "file")
        if self.database and artifact_uri.startswith("mlflow-artifacts:"):
            folder, remote = self.root / "artifacts" / below, False
        elif remote:
            folder = self.root / "spool" / local / "artifacts"
        else:
            folder = Path(url2pathname(path))
        start = (info.start_time or 0) / 1000
        known = info.run_name, info.experiment_id, info.status
        return RunRecord(info.run_id, local, *known, start, tags, folder, remote)

    def offline(
        self, creation: RunCreation, ids: tuple[str, str] | None, status: str, home: Path
    ) -> RunRecord:
        """Return what is known of a run from its outbox alone; `home` is its folder."""
        run_id, experiment = ids or (creation.id, "")
        known = creation.name or "offline", experiment, status, creation.start / 1000
        folder, remote = home / "artifacts", home.parent.name == "spool"
        return RunRecord(run_id, creation.id, *known, creation.tags, folder, remote)

    @question
    def create(self, creation: RunCreation) -> RunRecord:
        """Return a new run; raise BadInput if the store takes none."""
        with store_errors(f"{self.address.named}: takes no new run"):
            return self.record(self.get_or_create(creation, None, may_exist=False))

    @question
    def experiment_name(self, record: RunRecord) -> str:
        """Return the name of a run's experiment; raise what MLflow raises."""
        return str(self.client.get_experiment(record.experiment_id).name)

    def get_or_create(
        self, creation: RunCreation | None, record: RunRecord | None, may_exist: bool
    ) -> Any:
        """Return MLflow's run, created where there is none; looked for first if it `may_exist`."""
        from mlflow.exceptions import MlflowException

        if record and record.known:
            try:
                return self.client.get_run(record.id)
            except MlflowException as error:
                if creation is None or error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        assert creation
        if may_exist:
            # The deleted ones too: such a run is not to be made again.
            for made in self.search(f"tags.`{names.LOCAL_ID}` = '{creation.id}'", view=ALL):
                return self.client.get_run(made.info.run_id)
        tags = creation.tags | ({names.LOCAL_ID: creation.id} if self.server or may_exist else {})
        if may_exist:  # the process that began it may be gone: it comes with the rest, and an end
            tags = {key: text for key, text in tags.items() if key not in names.OWNERSHIP}
        experiment = self.experiment(creation.experiment)
        try:
            return self.client.create_run(experiment, creation.start, tags, creation.name)
        except MlflowException as error:
            if not is_refusal(error):
                raise
        # One of the tags it may be: with its own it is found, the others follow one by one.
        first = (names.LOCAL_ID, *names.OWNERSHIP)
        own = {key: text for key, text in tags.items() if key in first}
        return self.client.create_run(experiment, creation.start, own, creation.name)

    def experiment(self, name: str) -> str:
        """Return the id of an experiment, made if there is none of this name."""
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                # A local store itself makes <mlruns>/artifacts/<experiment id>; the client alone
                # would make ./mlruns/<experiment id>.
                made = self._maker.create_experiment(name)
                if self.database:
                    self.client.set_experiment_tag(made, names.ROOT_TAG, location(self.root))
            except MlflowException:  # another process made it meanwhile
                if self.client.get_experiment_by_name(name) is None:
                    raise
            found = self.client.get_experiment_by_name(name)
        if found is None or found.lifecycle_stage != "active":
            raise Deleted(f"experiment_name={name!r}: this experiment was deleted in MLflow.")
        return str(found.experiment_id)

    def artifacts(self, record: RunRecord) -> Any:
        """Return MLflow's access to the artifacts of a run."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        run = self.client.get_run(record.id)
        return get_artifact_repository(run.info.artifact_uri, self.uri)

    def search(
        self,
        query: str,
        order: list[str] | None = None,
        experiment: str | None = None,
        page: int = 50,
        view: int = ACTIVE,
    ) -> Iterator[Any]:
        """Yield the runs that fit a filter of MLflow's; `page` is how many are asked for at once.

        Raises BadInput for an experiment that does not exist, and what MLflow raises.
        """
        if experiment is None:
            ask = self.client.search_experiments
            ids = [e.experiment_id for e in pages(lambda token: ask(view, page_token=token))]
        else:
            known = self.client.get_experiment_by_name(experiment)
            if known is None or known.lifecycle_stage != "active":
                raise BadInput(f"--experiment={experiment!r}: there is no such experiment.")
            ids = [known.experiment_id]
        if ids:  # else MLflow looks into its default experiment
            yield from pages(
                lambda token: self.client.search_runs(
                    ids, query, view, max_results=page, order_by=order, page_token=token
                )
            )

    @question
    def summary(self, record: RunRecord) -> RunSummary:
        """Return what is known of a run as a whole; raise BadInput if the store does not answer."""
        if record.known and not record.offline:
            with store_errors(f"run {record.id}: cannot be read"):
                return summary_of(self.client.get_run(record.id))
        content = outbox.read(record.outbox)
        last = {p.key: p.values[-1] for p in content.points if p.values}
        settings = params(content.creation.params) if content.creation else {}
        return RunSummary(settings, last, content.status[1] / 1000 if content.status else None)

    @question
    def metric_history(self, run_id: str, key: str) -> list[tuple[int, float]]:
        """Return step and value of each point of a metric, as MLflow orders them."""
        points = self.client.get_metric_history(run_id, key)
        return [(point.step, restore_infinity(point.value)) for point in points]

    @question
    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run at once; raise what MLflow raises, as all that follow do.

        A description that a person typed stays.
        """
        if names.DESCRIPTION in tags:
            tags = without_typed_over(tags, self.client.get_run(run_id).data.tags)
        for key, text in tags.items():
            self.client.set_tag(run_id, key, text)

    @question
    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics of a run at a step."""
        for key, value in metrics.items():
            self.client.log_metric(run_id, key, value, step=step)

    @question
    def metrics(self, run_id: str) -> dict[str, float]:
        """Return the last value of each metric of a run."""
        return dict(self.client.get_run(run_id).data.metrics)

    @question
    def log_text(self, run_id: str, text: str, name: str) -> None:
        """Put a text among a run's artifacts."""
        self.client.log_text(run_id, text, name)

    @question
    def log_files(self, run_id: str, folder: Path) -> None:
        """Put the files of a folder among a run's artifacts."""
        self.client.log_artifacts(run_id, str(folder))

    @question
    def end(self, run_id: str, status: str) -> None:
        """End a run."""
        self.client.set_terminated(run_id, status)

    def link(self, record: RunRecord) -> str:
        """Return the page that shows the run in MLflow's UI, and how to open a local store's."""
        if not record.known:
            return f"{self.address.display_uri}, once waymark sync has brought it there"
        page = page_of(f"experiments/{record.experiment_id}/runs/{record.id}")
        ours = "waymark ui, then http://127.0.0.1:5000"
        site = ours if self.database else self.address.display_uri
        return f"{site}/{page}"


def pages(ask: Callable[[str | None], Any]) -> Iterator[Any]:
    """Yield all that MLflow has, page by page; `ask` takes the token of a page, None first."""
    page = ask(None)
    yield from page
    while page.token:
        page = ask(page.token)
        yield from page


def summary_of(run: Any) -> RunSummary:
    """Return the parameters and last metrics of MLflow's `run`."""
    metrics = {key: restore_infinity(value) for key, value in run.data.metrics.items()}
    end = run.info.end_time
    return RunSummary(dict(run.data.params), metrics, end / 1000 if end else None)


def user_name() -> str:
    """Return the name of the user of this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
