"""What a run is to do: planned new, resumed, or from a run's record; nothing is written here."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from waymark import names
from waymark.checkpoints import State
from waymark.checkpoints.external import read_parameters
from waymark.checkpoints.store import CheckpointStore, Manifest
from waymark.comparison import environment
from waymark.comparison.recorded_run import RecordedRun, load_recorded_run
from waymark.comparison.repository import git_commit
from waymark.config.compose import NO_SCHEDULE, SEARCHPATH, with_group_members
from waymark.config.record import from_record, with_overrides
from waymark.config.resolve import OWN_FUNCTIONS, Resolved
from waymark.config.schema import SCHEDULE, Config
from waymark.data.dataset import Dataset
from waymark.digest import digest
from waymark.errors import BadInput, Failed, printable
from waymark.evaluation import graph, restore
from waymark.execution.origin import Origin, first_values, origin_of
from waymark.keras_import import use_recorded_settings
from waymark.models import WrongOutputs, functions_of
from waymark.package import __version__
from waymark.tasks.metrics import judged_by
from waymark.tracking import history
from waymark.tracking.finder import find, find_single
from waymark.tracking.limits import store_errors
from waymark.tracking.registry import registered_steps
from waymark.tracking.remote_store import connect
from waymark.tracking.runs import RunRecord
from waymark.tracking.store import RunStore
from waymark.training.loop import Trainer
from waymark.training.runtime import start_if_imported, start_tensorflow
from waymark.training.stopping import early_stop

# What decides the numbers or the files; a resume refuses to change it. (`data.path` may move:
# the digest of the data decides.)
RESUME_FIXED = (
    *("model", "data", "task", "optimizer", "batch_size", "seed", "precision", "init_from"),
    *("fork", "metrics", "runtime", "save._target_", "save.meta_graph"),
)


@dataclass(frozen=True)
class RunPlan:
    """All that is known of a run before it trains."""

    resolved: Resolved
    data: Dataset
    tags: Mapping[str, str]
    parameters: State  # float32, in place of the model's own initial ones; a new run's
    checkpoint: tuple[Manifest, State] | None = None  # to go on from
    step: int = 0  # that the run begins at
    original: RecordedRun | None = None  # what this rerun is to be compared with
    trainer: Trainer | None = None  # if there is a compiled one already
    origin: Origin | None = None  # what a fork has not kept yet
    registered: frozenset[int] = frozenset()  # steps of checkpoints that are registered versions


def plan_new(
    resolved: Resolved,
    original: RecordedRun | None = None,
    tags: Mapping[str, str] | None = None,
    compile_now: bool = True,
    origin: Origin | None = None,
) -> RunPlan:
    """Plan a new run and compile the user's own classes; raise BadInput, HiddenState.

    `origin` is what a fork begins with.
    """
    config = resolved.config
    start_if_imported(**vars(config.runtime))
    data = restore.load_data(config)
    resolved = restore.in_steps(resolved, data)
    config = resolved.config
    start_if_imported(**vars(config.runtime))  # by the user's own classes
    if original and uses_keras(config):
        start_tensorflow(**vars(config.runtime))
        use_recorded_settings(original.facts)
    parameters = _initial_parameters(config, data, origin)
    commit = git_commit()
    all_tags = {
        names.VERSION: __version__,
        names.DATA_DIGEST: data.digest,
        names.SAVE_FORMAT: resolved.choices.get("save", ""),
        names.STEPS: str(config.steps),
        names.METRIC: judged_by(config.task)[0],
        **({names.GIT_COMMIT: commit} if commit else {}),
        **(tags or {}),
        **({names.INIT_DIGEST: digest(parameters)} if config.init_from else {}),
        **({names.RERUN_OF: original.record.id} if original else {}),
    }
    trainer = _compile_own_classes(config, data) if compile_now else None
    if original is None:
        _check_logits(config, data)
    if origin is None:
        all_tags |= weights_tags(config, trainer)
    parts = resolved, data, all_tags, parameters
    return RunPlan(*parts, original=original, trainer=trainer, origin=origin)


def plan_resume(
    store: RunStore,
    record: RunRecord,
    overrides: dict[str, Any],
    allow_drift: bool = False,
    compile_now: bool = True,
) -> RunPlan | None:
    """Plan how a run goes on from its newest valid checkpoint; None if nothing is left to do.

    Raises BadInput for an override, data or (without `allow_drift`) a numerical environment that
    would change the numbers; Failed if no checkpoint is valid; HiddenState.
    """
    trusted, path = overrides.pop("trusted_modules", []), record.folder / "config.yaml"
    resolved = from_record(path, overrides, trusted, RESUME_FIXED, record.id)
    config = resolved.config
    if config.stop and "eval_every" in overrides:
        raise BadInput("eval_every: decides where a run with stop ends, so a resume takes none.")
    start_if_imported(**vars(config.runtime))
    data = restore.load_data(config)
    restore.refuse_other_data(record, data)
    resolved = restore.in_steps(resolved, data)
    config = resolved.config
    start_tensorflow(**vars(config.runtime))
    if uses_keras(config):
        restore.use_keras_settings(record.folder)
    checkpoint = _newest_checkpoint(record, config)
    if checkpoint:
        restore.use_architecture(config.model, record.folder)
    origin = None if checkpoint else origin_of(store, resolved, record)
    begin = checkpoint or origin
    reached = begin[0].step if begin else 0
    if config.steps < reached:
        raise BadInput(f"steps={config.steps}: run {record.id} has already reached {reached}.")
    finished = reached == config.steps
    if not finished and config.stop and record.tags.get(names.STOPPED):
        with store_errors(f"run {record.id}: cannot be read"):
            known = history.history(store, record).metrics.get(config.stop.metric, {})
        every = int(config.eval_every)
        finished = early_stop(known, config.stop, reached, every) is not None
    if record.status == "FINISHED" and finished:
        print(_finished_line(record, config, reached), flush=True)
        return None
    if not allow_drift:
        _refuse_drift(record, config)
    parameters = {} if checkpoint else _initial_parameters(config, data, origin)
    start = record.recorded_tag(names.INIT_DIGEST)
    if config.init_from and not checkpoint and digest(parameters) != start:
        raise BadInput(f"init_from={config.init_from!r}: is not what the run started from.")
    over = (names.PRUNED, names.STOPPED, names.SCORED)
    ended = {name: "" for name in over if name in record.tags}
    tags = {names.STEPS: str(config.steps), names.REASON: "", names.RESUME: "", **ended}
    original = _original_of(store, record)
    trainer = _compile_own_classes(config, data) if compile_now else None
    if trainer and not begin:
        refuse_other_weights(record, config, trainer)
    parts = resolved, data, tags, parameters, checkpoint, reached
    return RunPlan(*parts, original, trainer, origin, _registered(store, record))


def _registered(store: RunStore, record: RunRecord) -> frozenset[int]:
    """Return the steps of a run's checkpoints that are registered, none where MLflow fails."""
    try:
        return registered_steps(store, record)
    except BadInput as error:  # of a server that is down, or knows no models
        print(f"waymark: {error}", file=sys.stderr)
        return frozenset()


def _newest_checkpoint(record: RunRecord, config: Config) -> tuple[Manifest, State] | None:
    """Return a run's newest valid checkpoint, None if it had none yet; raise Failed."""
    store = CheckpointStore(record.folder / "checkpoints", config.save)
    checkpoint, damage = store.latest_valid()
    for line in damage:
        print(f"waymark: {line}", file=sys.stderr)
    if checkpoint is None and (store.steps() or record.status == "FINISHED"):
        state = "published checkpoints, but none is whole" if store.steps() else "lost them all"
        raise Failed(
            f"run {record.id} has {state}; to start afresh: waymark run --config-from {record.id}"
        )
    return checkpoint


def _refuse_drift(record: RunRecord, config: Config) -> None:
    """Raise BadInput if the next steps would be computed by other means than the last ones."""
    old = environment.read_environment(record.folder / "environment.json")
    now = environment.describe_environment(
        config.runtime.intra_op_threads, keras=uses_keras(config)
    )
    drift = environment.numerical(environment.differences(old, now))
    if drift:
        raise BadInput(
            f"run {record.id}: was trained in another numerical environment, so that its bits "
            f"would not be repeatable ({'; '.join(map(environment.format_difference, drift))}); "
            f"waymark resume --allow-drift goes on all the same."
        )


def refuse_other_weights(record: RunRecord, config: Config, trainer: Trainer) -> None:
    """Raise BadInput if a run without a checkpoint would start from other weights than it did."""
    for tag, now in weights_tags(config, trainer).items():
        known = record.recorded_tag(tag)
        if known is not None and known != now:
            what = "the file" if tag == names.MODEL_DIGEST else "the weights"
            raise BadInput(f"{config.model.said}: is not {what} that run {record.id} started from.")


def weights_tags(config: Config, trainer: Trainer | None) -> dict[str, str]:
    """Return the tags that tell what a Keras model starts from; the trainer has not trained yet."""
    if not hasattr(config.model, "use_architecture"):
        return {}
    file = config.model.digest()
    tags = {names.MODEL_DIGEST: file} if file else {}
    if trainer:
        state = trainer.state()
        tags[names.INITIAL_WEIGHTS] = digest({name: state[name] for name in trainer.shapes})
    return tags


def _finished_line(record: RunRecord, config: Config, reached: int) -> str:
    """Say where a run has finished, and what makes it go on."""
    if record.tags.get(names.STOPPED):
        return printable(f"{record.tags[names.REASON]}; stop=null, or more patience, goes on")
    return (
        f"already finished at step {reached}; {'epochs' if config.epochs else 'steps'}=N extends it"
    )


def _original_of(store: RunStore, record: RunRecord) -> RecordedRun | None:
    """Return what an interrupted rerun is to be compared with, if that is still there."""
    if names.RERUN_OF not in record.tags:
        return None
    try:
        return load_recorded_run(store, find(store, record.tags[names.RERUN_OF]))
    except BadInput as error:
        print(f"waymark: no verdict: {error}", file=sys.stderr)
        return None


def _initial_parameters(config: Config, data: Dataset, origin: Origin | None) -> State:
    """Return the parameters at `init_from`, or what a fork begins with, else {}; raise BadInput."""
    if origin:
        return first_values(config, data, origin)
    if config.init_from is None:
        return {}
    start_tensorflow(**vars(config.runtime))
    shapes = restore.parameter_shapes(config, data.spec)
    path, statistics = Path(config.init_from).expanduser(), data.statistics
    known = {name: value.shape for name, value in statistics.items()}
    found = read_parameters(path, shapes, "init_from", known, config.model)
    return {name: found[name] for name in shapes}  # the statistics are this run's own


def _compile_own_classes(config: Config, data: Dataset) -> Trainer | None:
    """Return a trainer of the user's own classes, compiled; None for Waymark's, which keep nothing.

    Raises BadInput before a run is made, of a Keras model for all that is wrong with it; what else
    is wrong the run meets again, and records.
    """
    parts = config.model, config.optimizer, config.task
    own = not all(type(part).__module__.startswith("waymark.") for part in parts)
    if not (own or uses_keras(config)):
        return None
    start_tensorflow(config.runtime.intra_op_threads)
    try:
        trainer = Trainer(config, data)
        if graph.file_name(config, data.spec):
            graph.export(config, data.spec, trainer.shapes, data.statistics)
    except BadInput:
        raise
    except WrongOutputs as error:
        if not hasattr(config.model, "said"):
            return None
        raise BadInput(f"{config.model.said}: {error}.") from None
    except Exception:
        return None
    return trainer


def _check_logits(config: Config, data: Dataset) -> None:
    """Refuse a user's Keras model whose loss cannot be told; raise BadInput."""
    model = config.model
    if hasattr(model, "check_logits") and model.build not in OWN_FUNCTIONS:
        start_tensorflow(**vars(config.runtime))
        model.check_logits(config.task, data, config.seed, config.precision)


def uses_keras(config: Config) -> bool:
    """Tell whether the model or the optimizer is one of Keras's."""
    return hasattr(config.model, "buffers") or hasattr(config.optimizer, "variables")


def own_modules(config: Config) -> list[str]:
    """Return the modules outside Waymark whose classes, and metrics, take part."""
    parts = config.model, config.data, config.task, config.optimizer, config.save
    modules = {type(part).__module__ for part in parts}
    modules |= {name.rpartition(".")[0] for name in functions_of(config.model)}
    modules |= {name.rpartition(".")[0] for name in config.metrics if "." in name}
    modules |= {*getattr(config.data, "modules", ()), *getattr(config.model, "modules", ())}
    return sorted(name for name in modules if not name.startswith("waymark."))


def recorded(text: str, overrides: Mapping[str, Any]) -> Resolved:
    """Return the configuration that a run was recorded with, with overrides put on top.

    Raises BadInput for an unknown run, a damaged record, or an override that does not fit.
    """
    given = {"tracking.uri": None, **overrides}
    store = connect(given["tracking.uri"])
    return record_of(store, find_single(store, text), given)


def record_of(store: RunStore, record: RunRecord, overrides: Mapping[str, Any]) -> Resolved:
    """Return the configuration of a run that was found; see `recorded`."""
    values, choices, masked = restore.record_as_it_is(store, record)
    members = {key: str(overrides[key]) for key in choices if key in overrides}
    if not isinstance(overrides.get(SCHEDULE, {}), Mapping):
        members[SCHEDULE] = overrides[SCHEDULE] or NO_SCHEDULE
    separate = (*members, SEARCHPATH, "trusted_modules")
    others = {key: value for key, value in overrides.items() if key not in separate}
    for one, other in (("build", "file"), ("file", "build")):  # of which a model has one
        if others.get(f"model.{one}") is not None and values["model"].get(other) is not None:
            others = {f"model.{other}": None, **others}
    trusted, origin = overrides.get("trusted_modules", []), f"recorded by run {record.id}"
    folders = overrides.get(SEARCHPATH, ())
    values, choices = with_group_members(values, choices, members, folders, trusted)
    resolved = with_overrides(values, choices, masked, others, trusted, origin)
    return replace(resolved, home="" if "fork" in overrides else record.id)
