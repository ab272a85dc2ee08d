"""Restore what was saved into a fresh model and score it."""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from waymark.checkpoints import State
from waymark.checkpoints.external import find_bundle, read_parameters
from waymark.checkpoints.retention import KeepBest, Save, better
from waymark.checkpoints.store import CheckpointStore, CorruptCheckpoint, Manifest, refuse_links
from waymark.config.compose import SEARCHPATH
from waymark.config.record import from_record, read_record
from waymark.config.resolve import Resolved
from waymark.config.schema import Config
from waymark.data import splits
from waymark.data.dataset import Dataset, ImageSpec
from waymark.data.images import showing
from waymark.data.signature import FILE as SIGNATURE
from waymark.data.signature import Signature, read_signature, signature_of
from waymark.errors import BadInput, listed
from waymark.evaluation import graph
from waymark.keras_file import ARCHITECTURE
from waymark.keras_import import use_recorded_settings
from waymark.names import DATA_DIGEST, EVALUATED, TEST, VERSION
from waymark.schedules import within
from waymark.tasks import scores_of_classes
from waymark.tasks.metrics import judged_by, modes, refuse_few_outputs
from waymark.tasks.report import ClassScore
from waymark.tracking import artifacts
from waymark.tracking.finder import find_checkpoint_of
from waymark.tracking.registry import ModelCheckpoint
from waymark.tracking.remote_store import connect
from waymark.tracking.runs import RunRecord
from waymark.tracking.store import RunStore
from waymark.training.loop import averages, check_state, initial_state
from waymark.training.runtime import import_tensorflow, start_if_imported, start_tensorflow
from waymark.training.score import Score, Scorer, make_scorer


@dataclass(frozen=True)
class Evaluation:
    """What a restored checkpoint scored on the whole test set."""

    metrics: Mapping[str, float]  # the one that the task is judged by first; a graph tells no more
    total: int
    source: str  # which files were restored
    step: int | None = None  # of a run's checkpoint
    per_class: Sequence[ClassScore] = field(default_factory=list)  # none if the task has no classes

    @property
    def accuracy(self) -> float | None:
        """Return the share of hits, None of a task without them."""
        return self.metrics.get("accuracy")

    @property
    def loss(self) -> float | None:
        """Return the mean loss; a graph alone does not tell it."""
        return self.metrics.get("loss")

    @property
    def hits(self) -> int | None:
        """Return how many of `total` are right, None of a task without an accuracy."""
        return None if self.accuracy is None else round(self.accuracy * self.total)

    def plain(self) -> dict[str, Any]:
        """Return the metrics and the fields that are known, without the scores of classes."""
        fields = {"hits": self.hits, "total": self.total, "source": self.source, "step": self.step}
        return {**self.metrics, **{key: x for key, x in fields.items() if x is not None}}


def load_data(config: Config) -> Dataset:
    """Load the data set and check that configuration and model fit it; raise BadInput."""
    measured = modes(config.task, config.metrics)
    with showing(config.progress):
        data = splits.load(config.data, config.task)
    refuse_few_outputs(config.metrics, data.spec.outputs)
    if config.batch_size > len(data.x_train):
        raise BadInput(
            f"batch_size={config.batch_size}: must be 1 to {len(data.x_train)}, "
            f"the size of the training set of {data.name}."
        )
    if config.stop and config.eval_every == 0:
        raise BadInput("stop: needs evaluations during training; with eval_every=0 there are none.")
    recorded = [f"{data.evaluated}/{name}" for name in measured]
    held_out = "" if data.evaluated == "val" else "; data.validation=0.1 would hold out val"
    for key, rule in {"save.keep_best": config.save.keep_best, "stop": config.stop}.items():
        if rule and rule.metric not in recorded:
            raise BadInput(
                f"{key}.metric={rule.metric}: is not recorded in training, where "
                f"{listed(recorded)} are{held_out}."
            )
    check = getattr(config.model, "check", None)
    if check:
        check(data.spec)
    return data


def in_steps(resolved: Resolved, data: Dataset) -> Resolved:
    """Return a configuration whose epochs are turned into steps, of which the last may be partial.

    The batches of an epoch run on into the next one, so that so many epochs are the batches that
    hold so many times the training set. The steps in which a schedule falls, if they are the run's,
    are numbers from here on. Raises BadInput for a schedule that leaves none.
    """
    config, size = resolved.config, len(data.x_train)
    changed: dict[str, int | None] = {}
    if config.epochs is not None:
        changed |= {"steps": -(-config.epochs * size // config.batch_size), "epochs": None}
    if config.eval_every == "epoch":
        changed["eval_every"] = -(-size // config.batch_size)
    values = {**resolved.values, **changed}
    config = replace(config, **cast(Any, changed))
    schedule = getattr(config.optimizer, "schedule", None)
    final = within(schedule, config.steps)
    if final is not schedule:
        config = replace(config, optimizer=replace(config.optimizer, schedule=final))
        values["optimizer"] = {**values["optimizer"], "schedule": asdict(final)}
    return replace(resolved, config=config, values=values)


def parameter_shapes(config: Config, spec: ImageSpec) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of what the model computes with, in the model's order.

    These are the parameters, and of what it keeps beside them what is floating point.
    """
    initial, names, kept = initial_state(config, spec)
    names += [name for name in kept if initial[name].dtype.is_floating]
    return {name: tuple(initial[name].shape) for name in names}


def score_state(config: Config, data: Dataset, state: State, scorer: Scorer | None = None) -> Score:
    """Score a whole state by a `scorer` of this model and data, or a new one; raise DoesNotFit.

    Where the optimizer keeps a mean of the parameters, that is what is scored.
    """
    values = scored_values(config, data.spec, data.statistics, state)
    return (scorer or make_scorer(config, data))(values)


def scored_values(
    config: Config, spec: ImageSpec, statistics: Mapping[str, np.ndarray], state: State
) -> State:
    """Return what a model computes with, by name, as it is scored; raise DoesNotFit.

    Of the `statistics` of the training set the values are the state's.
    """
    initial, names, kept = initial_state(config, spec, statistics)
    check_state(state, initial)
    means = averages(config)
    return {n: state[means.get(n, n)] for n in [*names, *kept, *statistics]}


@dataclass(frozen=True)
class FoundCheckpoint:
    """A checkpoint of a recorded run, and what its state belongs to."""

    record: RunRecord
    config: Config
    folder: Path  # with the run's files, as far as they are needed
    store: CheckpointStore
    step: int

    def data(self) -> Dataset:
        """Return the data that the run was trained on; raise BadInput for others."""
        data = load_data(self.config)
        refuse_other_data(self.record, data)
        return data

    def start(self) -> None:
        """Start TensorFlow, and Keras if the model is one of its, as the run had them."""
        start_tensorflow(**vars(self.config.runtime))
        if hasattr(self.config.model, "buffers"):
            use_keras_settings(self.folder)

    def read(self) -> tuple[Manifest, State]:
        """Start TensorFlow, and return the checkpoint; raise CorruptCheckpoint."""
        self.start()
        return self.store.read(self.step)


@contextmanager
def find_checkpoint(
    text: str,
    step: str,
    overrides: Mapping[str, Any],
    meanwhile: Callable[[], Any] = import_tensorflow,
) -> Iterator[FoundCheckpoint]:
    """Yield a run's checkpoint: a step, `best` or `latest`; raise BadInput, CorruptCheckpoint.

    Raises NeedsNewProcess if TensorFlow is here already, but not as the run needs it. RUN may be a
    model's address, of one step. `meanwhile` is called while the run is looked for.
    """
    overrides = dict(overrides)
    tracking = connect(overrides.pop("tracking.uri", None), reading=True)
    trusted = overrides.pop("trusted_modules", [])
    overrides.pop(SEARCHPATH, None)  # a record names no YAML
    record, made = tracking.ask(meanwhile, find_checkpoint_of, text)
    refuse_foreign(tracking, record)
    if made:
        refuse_step(step)
    with tempfile.TemporaryDirectory() as scratch:
        folder = record.folder
        newer = artifacts.newer(tracking, record)
        if newer or (record.remote and not (folder / "config.yaml").exists()):
            folder = Path(scratch) / "run"
            there = artifacts.listed(tracking, record)
            known = (ARCHITECTURE, SIGNATURE, "environment.json")
            small = [name for name in known if name in there]
            for name in ("config.yaml", *small, *newer):
                artifacts.fetch(tracking, record, name, folder)
        config = from_record(folder / "config.yaml", overrides, trusted, ("",), record.id).config
        use_architecture(config.model, folder)
        store = CheckpointStore(folder / "checkpoints", config.save)
        if made:
            _refuse_other_state(text, store, made)
        chosen = choose_step(store, str(made.step) if made else step, record.id, config.task)
        start_if_imported(**vars(config.runtime))
        yield FoundCheckpoint(record, config, folder, store, chosen)


def refuse_step(step: str) -> None:
    """Raise BadInput for a step beside a model's address."""
    if step != "latest":
        raise BadInput(f"--step={step}: a model's address names the checkpoint by itself.")


def _refuse_other_state(text: str, store: CheckpointStore, made: ModelCheckpoint) -> None:
    """Raise BadInput if the checkpoint that a model was made of is not kept, or another one."""
    if made.step not in store.steps() or store.manifest(made.step).digest != made.digest:
        raise BadInput(
            f"RUN={text!r}: checkpoint {made.step} of run {made.run_id}, of which it was made, is "
            f"not kept any more; waymark serve and MLflow still load the model."
        )


def evaluate_run(text: str, step: str, from_meta: bool, overrides: Mapping[str, Any]) -> Evaluation:
    """Score a run's checkpoint: a step, `best` or `latest`; raise BadInput, CorruptCheckpoint."""
    with find_checkpoint(text, step, overrides) as found:
        config, store, chosen = found.config, found.store, found.step
        data = found.data()
        if from_meta:
            found.start()
            graph.refuse_inputs(data)
            manifest = store.manifest(chosen)
            if not manifest.graph:
                raise BadInput(
                    "--from meta: this run saved no graph; that takes save=ckpt and "
                    "task=classification."
                )
            store.verify(manifest.files)
            store.verify(manifest.graph)
            meta = store.folder / min(manifest.graph)
            scored = _score_graph(meta, store.path(chosen), config, data)
        else:
            state = found.read()[1]
            scored = _summary(config, data, score_state(config, data, state))
        source = f"checkpoints/{store.path(chosen).name} of run {found.record.id}"
        return Evaluation(**scored, step=chosen, source=source)


def recorded_signature(found: FoundCheckpoint) -> Signature:
    """Return what a run's model takes and returns, as it was recorded; raise BadInput.

    A run of an earlier version did not record it: it is read off the run's data.
    """
    path = found.folder / SIGNATURE
    if path.exists():
        return read_signature(path.read_bytes(), f"recorded in {path}")
    return signature_of(found.data(), found.config.task, found.config.data)


def use_keras_settings(folder: Path) -> None:
    """Set Keras's settings as the run in a folder recorded them."""
    with suppress(OSError, ValueError, RecursionError):
        use_recorded_settings(json.loads((folder / "environment.json").read_bytes()))


def use_architecture(model: Any, folder: Path) -> None:
    """Let a Keras model be made as its run recorded it, if it did; raise BadInput."""
    path = folder / ARCHITECTURE
    if path.exists() and hasattr(model, "use_architecture"):
        model.use_architecture(path.read_bytes(), f"recorded in {path}")


def refuse_foreign(tracking: RunStore, record: RunRecord) -> None:
    """Raise BadInput for a run that is not Waymark's, or whose files are links."""
    refuse_links(record.folder)
    if VERSION not in record.tags and artifacts.read(tracking, record, "config.yaml") is None:
        raise BadInput(f"run {record.id}: is not one that Waymark trained; it has no config.yaml.")


def record_as_it_is(
    store: RunStore, record: RunRecord
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Return what `read_record` does of a run, wherever its config.yaml is; raise BadInput."""
    refuse_foreign(store, record)
    with tempfile.TemporaryDirectory() as scratch:
        folder = record.folder
        if not (folder / "config.yaml").exists() and record.remote:
            folder = Path(scratch) / "run"
            artifacts.fetch(store, record, "config.yaml", folder)
        return read_record(folder / "config.yaml")


def refuse_other_data(record: RunRecord, data: Dataset) -> None:
    """Raise BadInput unless a run was trained on `data`."""
    known = record.recorded_tag(DATA_DIGEST)
    if known is None:
        raise BadInput(
            f"run {record.id}: its tag {DATA_DIGEST} is gone, so that nothing tells what data it "
            f"was trained on; if it was {data.source}, set the tag in MLflow to {data.digest}."
        )
    if data.digest != known:
        raise BadInput(f"data: {data.source} is not the data that run {record.id} was trained on.")


def choose_step(
    store: CheckpointStore, step: str, run_id: str, task: Any, before: str = "--step="
) -> int:
    """Return the step that `step` means, with what it is given; raise BadInput with those kept."""
    steps, (name, mode) = store.steps(), judged_by(task)
    if step == "latest" and steps:
        return steps[-1]
    if step == "best":
        best = None
        for at in steps:
            try:
                found = store.manifest(at)
                keys = [f"{part}{name}" for part in EVALUATED]
                metric = next((key for key in keys if key in found.metrics), f"{TEST}{name}")
                rule = store.save.keep_best or KeepBest(metric=metric, mode=mode)
                best = better(best, Save(at, found.time, found.metrics), rule)
            except CorruptCheckpoint as error:
                print(f"waymark: checkpoint {at} is damaged: {error}", file=sys.stderr)
        if best is None:
            raise BadInput(f"{before}best: no checkpoint of run {run_id} was evaluated.")
        return best.step
    if step not in map(str, steps):
        raise BadInput(f"{before}{step}: run {run_id} has the checkpoints {steps}, best, latest.")
    return int(step)


def _score_graph(meta: Path, prefix: Path, config: Config, data: Dataset) -> dict[str, Any]:
    hits = graph.score(meta, prefix, data, config.runtime.intra_op_threads)
    return {"metrics": {"accuracy": hits / len(data.x_test)}, "total": len(data.x_test)}


def _summary(config: Config, data: Dataset, score: Score) -> dict[str, Any]:
    return {
        "metrics": score.metrics,
        "total": len(score.predictions),
        "per_class": scores_of_classes(config.task, data, score.predictions),
    }


def evaluate_files(resolved: Resolved, path: Path, from_meta: bool) -> Evaluation:
    """Score files that Waymark did not write; raise BadInput if they do not fit."""
    config = resolved.config
    start_if_imported(**vars(config.runtime))
    if from_meta and getattr(config.task, "kind", "") != "classification":
        raise BadInput(
            "--from meta: a graph tells an accuracy alone, so it takes task=classification."
        )
    data = load_data(config)
    if from_meta:
        graph.refuse_inputs(data)
    start_tensorflow(**vars(config.runtime))
    if from_meta:
        prefix = find_bundle(path)
        stems = [prefix.name, prefix.name.rpartition("-")[0]]
        metas = [prefix.with_name(f"{stem}.meta") for stem in stems if stem]
        found = [meta for meta in metas if os.path.exists(meta)]
        if not found:
            raise BadInput(f"--checkpoint={str(path)!r}: there is no {metas[-1].name} beside it.")
        return Evaluation(**_score_graph(found[0], prefix, config, data), source=str(prefix))
    shapes = parameter_shapes(config, data.spec)
    statistics = {name: value.shape for name, value in data.statistics.items()}
    state = read_parameters(path, shapes, "--checkpoint", statistics, config.model)
    score = make_scorer(config, data)(state)
    return Evaluation(**_summary(config, data, score), source=str(path))
