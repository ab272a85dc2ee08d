"""Fork a run: begin a new one with the whole state of a recorded checkpoint.

from waymark.execution.forking import fork

fork("latest@700", {"optimizer.learning_rate": 1e-4, "steps": 2000})
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from waymark.config.schema import RUN_NAMES, Fork
from waymark.errors import BadInput
from waymark.execution.execute import Result, run
from waymark.execution.origin import read_checkpoint, refuse_settings
from waymark.execution.plan import record_of
from waymark.tracking.finder import find_single
from waymark.tracking.remote_store import connect


def fork(text: str, overrides: Mapping[str, Any], summary: bool = False) -> Result:
    """Train a new run on from a checkpoint, RUN@STEP, of a recorded one, in its configuration.

    STEP is a step, `best` or `latest`, the newest whole one, which it is if there is no STEP.
    `overrides` (dotted keys) may change all of the configuration but what the model's parameters
    are. `summary` is `run`'s. Raises BadInput for what is not there, is damaged, or does not fit;
    what `run` raises.
    """
    for key, value in overrides.items():
        if key.partition(".")[0] == "fork" or (key == "init_from" and value is not None):
            raise BadInput(f"{key}: a fork begins with the checkpoint that --fork names alone.")
    found = re.fullmatch(r"(.*)@([0-9]+|best|latest)", text, re.DOTALL)
    wanted, step = found.groups() if found else (text, "latest")
    given = {"tracking.uri": None, "init_from": None, "fork": None, **overrides}
    store = connect(given["tracking.uri"])
    record = find_single(store, wanted)
    name = f"fork of {record.name}"
    fits = re.fullmatch(RUN_NAMES.pattern, name)
    given.setdefault("run_name", name[: RUN_NAMES.longest] if fits else None)
    resolved = record_of(store, record, given)
    origin = read_checkpoint(store, record, resolved.config, step)
    begun = Fork(run=record.id, step=origin[0].step, digest=origin[0].digest)
    config = replace(resolved.config, fork=begun)
    refuse_settings(config)
    values = {**resolved.values, "fork": asdict(begun)}
    return run(replace(resolved, config=config, values=values), origin=origin, summary=summary)
