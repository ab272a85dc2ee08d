"""Fork a run: begin a new one with the whole state of a recorded checkpoint.

from waymark.execution.forking import fork

fork("latest@700", {"optimizer.learning_rate": 1e-4, "steps": 2000})
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from waymark.config.compose import parse_overrides
from waymark.config.resolve import Resolved
from waymark.config.schema import RUN_NAMES, Fork
from waymark.errors import BadInput
from waymark.execution.execute import Result, run
from waymark.execution.origin import Origin, read_checkpoint, refuse_settings
from waymark.execution.plan import record_of
from waymark.tracking.finder import find, find_checkpoint_of, find_single
from waymark.tracking.registry import is_address
from waymark.tracking.remote_store import connect
from waymark.tracking.runs import RunRecord
from waymark.tracking.store import RunStore


def fork(text: str, overrides: Mapping[str, Any], summary: bool = False) -> Result:
    """Train a new run on from a checkpoint, RUN@STEP, of a recorded one, in its configuration.

    STEP is a step, `best` or `latest`, the newest whole one, which it is if there is no STEP. A
    model's address (models:/NAME@ALIAS) names a checkpoint by itself.
    `overrides` (dotted keys) may change all of the configuration but what the model's parameters
    are. `summary` is `run`'s. Raises BadInput for what is not there, is damaged, or does not fit;
    what `run` raises.
    """
    resolved, origin = begin(text, overrides)
    refuse_settings(resolved.config)
    if "run_name" not in overrides:
        name = f"fork of {_named(text, overrides)[0].name}"
        fits = re.fullmatch(RUN_NAMES.pattern, name)
        values = {**resolved.values, "run_name": name[: RUN_NAMES.longest] if fits else None}
        config = replace(resolved.config, run_name=values["run_name"])
        resolved = replace(resolved, config=config, values=values)
    return run(resolved, summary, origin=origin)


def begin(text: str, overrides: Mapping[str, Any]) -> tuple[Resolved, Origin]:
    """Return the configuration of a fork of RUN@STEP, and what it begins with; raise BadInput."""
    record, step, digest, store = _named(text, overrides)
    resolved = record_of(store, record, _given(overrides))
    origin = read_checkpoint(store, record, resolved.config, step)
    if digest not in (None, origin[0].digest):
        raise BadInput(
            f"--fork={text!r}: checkpoint {step} of run {record.id}, of which it was made, is "
            f"another one now."
        )
    begun = Fork(run=record.id, step=origin[0].step, digest=origin[0].digest)
    return _with_origin(resolved, begun), origin


def trial(begun: Fork, words: Iterable[str]) -> Resolved:
    """Return the configuration of a sweep's trial, a fork, by its overrides; raise BadInput."""
    overrides = parse_overrides(words)
    store = connect(overrides.get("tracking.uri"))
    resolved = _with_origin(record_of(store, find(store, begun.run), _given(overrides)), begun)
    refuse_settings(resolved.config)
    return resolved


def _named(text: str, overrides: Mapping[str, Any]) -> tuple[RunRecord, str, str | None, RunStore]:
    """Return the run and the step that RUN@STEP, or a model's address, names, and their store.

    Of an address the digest of the state comes with them.
    """
    for key, value in overrides.items():
        if key.partition(".")[0] == "fork" or (key == "init_from" and value is not None):
            raise BadInput(f"{key}: a fork begins with the checkpoint that --fork names alone.")
    store = connect(overrides.get("tracking.uri"))
    if is_address(text):
        record, made = find_checkpoint_of(store, text)
        assert made
        return record, str(made.step), made.digest, store
    found = re.fullmatch(r"(.*)@([0-9]+|best|latest)", text, re.DOTALL)
    wanted, step = found.groups() if found else (text, "latest")
    try:
        return find_single(store, wanted), step, None, store
    except BadInput as error:
        if found or "@" not in text:
            raise
        step = text.rpartition("@")[2]
        raise BadInput(f"{error} Of RUN@STEP, {step!r} is no number, best or latest.") from None


def _given(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is put on top of the origin's configuration."""
    not_taken = dict.fromkeys(("tracking.uri", "init_from", "fork", "run_name"))
    return {**not_taken, **overrides}


def _with_origin(resolved: Resolved, begun: Fork) -> Resolved:
    values = {**resolved.values, "fork": asdict(begun)}
    return replace(resolved, config=replace(resolved.config, fork=begun), values=values)
