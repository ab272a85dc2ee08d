"""The checkpoints of a run that trains: where it begins, and commits in the background."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from waymark import names
from waymark.checkpoints import State
from waymark.checkpoints.retention import Save
from waymark.checkpoints.store import CheckpointStore, CorruptCheckpoint
from waymark.data.signature import FILE as SIGNATURE
from waymark.data.signature import signature_of
from waymark.evaluation import graph
from waymark.execution.origin import keep
from waymark.execution.plan import RunPlan, refuse_other_weights, weights_tags
from waymark.files import replace_file
from waymark.keras_file import ARCHITECTURE
from waymark.tracking import history
from waymark.tracking.active_run import ActiveRun
from waymark.training.loop import Trainer


class Saver:
    """Commit copies of the state in the background, one at a time, records first.

    `before` is called before each `save`; `graph` is the graph's file, if the format has one;
    `newest` is the step that is saved already, -1 if none is.
    """

    def __init__(
        self,
        store: CheckpointStore,
        run: ActiveRun,
        graph: Path | None,
        before: Callable[[], None],
        newest: int,
    ) -> None:
        self.store, self._run, self._graph, self._before = store, run, graph, before
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._pending: Future[None] | None = None
        self._newest = newest  # the step handed over last

    def save(
        self, step: int, state: State, metrics: Mapping[str, float], on_schedule: bool = True
    ) -> None:
        """Take a copy of the state; wait only for a save that is still in flight.

        One off the schedule only competes as the best: it is not written where it would have to be
        removed at once. Raises CheckpointWriteError, of this save or the last one.
        """
        self._before()
        now = time.time()
        self.wait()
        save = Save(step, now, metrics, on_schedule)
        if self.store.would_keep(save):
            self._hand_over(save, state)

    def stop(self, step: int, state: Callable[[], State], metrics: Mapping[str, float]) -> None:
        """Save off the schedule, to go on from there, unless this step is saved."""
        now = time.time()
        self.wait()
        if self._newest != step:
            self._hand_over(Save(step, now, metrics, on_schedule=False), state())

    def _hand_over(self, save: Save, state: State) -> None:
        self._newest = save.step
        self._pending = self._pool.submit(self._commit, save, state)
        if not self.store.save.asynchronous:
            self.wait()

    def wait(self) -> None:
        """Wait for the save in flight; raise what it raised."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def _commit(self, save: Save, state: State) -> None:
        manifest = self.store.commit(save, state, self._graph)
        self._run.record_checkpoint_digest(save.step, manifest.digest)


def restore_or_initialise(
    plan: RunPlan, run: ActiveRun, trainer: Trainer, before: Callable[[], None]
) -> Saver:
    """Put the trainer where the run begins, and its checkpoints' folder in order.

    Raises DoesNotFit for a checkpoint of another model or optimizer, CheckpointWriteError.
    """
    config, folder = plan.resolved.config, run.info.folder / "checkpoints"
    folder.mkdir(exist_ok=True)
    store = CheckpointStore(folder, config.save, run.mark_artifacts_dirty, run.info.outbox)
    store.parameters, store.registered = list(trainer.shapes), plan.registered
    _record_model(plan, run, trainer)
    start, now = run.info.start_time, time.time()
    graph_is_valid = False
    if plan.checkpoint:
        manifest, state = plan.checkpoint
        trainer.load(state)
        store.repair_and_prune(manifest, start, now)
        _restore_recorded_digests(run, store)
        with suppress(CorruptCheckpoint):
            store.verify(manifest.graph)
            graph_is_valid = bool(manifest.graph)
    else:
        store.begin(start, now)
        if plan.origin:
            keep(plan.origin, run, config)
        trainer.assign(plan.parameters)
        given, means = plan.parameters, trainer.averages.items()
        trainer.assign({mean: given[n] for n, mean in means if n in given and mean not in given})
    graph_file = graph.file_name(config, plan.data.spec)
    file = folder / graph_file if graph_file else None
    if file and not graph_is_valid:
        statistics = plan.data.statistics
        replace_file(file, graph.export(config, plan.data.spec, trainer.shapes, statistics))
    newest = plan.step if plan.checkpoint else -1
    return Saver(store, run, file, before, newest)


def _record_model(plan: RunPlan, run: ActiveRun, trainer: Trainer) -> None:
    """Record what a model takes, and how one of Keras's is made and what it starts from."""
    config, path = plan.resolved.config, run.info.folder / ARCHITECTURE
    signature = signature_of(plan.data, config.task, config.data)
    replace_file(run.info.folder / SIGNATURE, signature.dump())
    run.mark_artifacts_dirty()
    if not hasattr(config.model, "use_architecture"):
        return
    if not (plan.checkpoint or plan.origin or names.INITIAL_WEIGHTS in plan.tags):
        refuse_other_weights(run.info, config, trainer)
        run.set_tags(weights_tags(config, trainer))
    if not path.exists() and (architecture := config.model.architecture()):
        replace_file(path, architecture)
        run.mark_artifacts_dirty()


def _restore_recorded_digests(run: ActiveRun, store: CheckpointStore) -> None:
    """Record digests of a run resumed on another machine, or killed before the outbox had them."""
    digests: dict[int, str] = {}
    with suppress(OSError):
        known = history.load((run.info.folder / history.NAME).read_bytes())
        digests |= known.digests if known else {}
    for step in store.steps():
        with suppress(CorruptCheckpoint):
            digests[step] = store.manifest(step).digest
    for step, text in digests.items():
        run.record_checkpoint_digest(step, text)
