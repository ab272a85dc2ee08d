"""What a sweep's trials share: as Hydra composes it, or for forks as their origin has it."""

import re
from collections.abc import Mapping
from math import prod
from typing import Any

from waymark.config import compose
from waymark.config.compose import CONF, explain_hydra_error, hydra_errors, parse_overrides
from waymark.config.resolve import keras_optimizer
from waymark.config.schema import GROUP_PROTOCOLS, SCHEDULE, SCHEDULES, Fork
from waymark.config.values import flatten
from waymark.errors import BadInput
from waymark.execution import forking


def added(word: str) -> str:
    """Return a plain override as Hydra takes it of a setting that its own files lack.

    Of a fork the configuration is its origin's, and what Hydra composes is not looked at.
    """
    key = word.partition("=")[0]
    group = key in GROUP_PROTOCOLS or "/" in key or key.startswith("hydra.")
    return f"++{word}" if re.fullmatch(r"[\w.]+", key) and "=" in word and not group else word


def shared_values(
    overrides: list[str], config_dir: str | None, fork: str | None
) -> tuple[dict[str, Any], list[str], Fork | None]:
    """Return the values that all trials share, the keys that are varied, and what forks begin with.

    Of forks, of RUN@STEP, the values are those of their origin.
    """
    import hydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
        fixed = [item for item in parsed if not item.is_sweep_override()]
        swept = [item.key_or_group for item in parsed if item.is_sweep_override()]
        if SCHEDULES in swept:  # not all of which have what is set of some
            swept[swept.index(SCHEDULES)] = SCHEDULE
            fixed = [x for x in fixed if not x.key_or_group.startswith(f"{SCHEDULE}.")]
        own = [str(x.input_line) for x in fixed if fork and not x.is_hydra_override()]
        words = [str(x.input_line) for x in fixed if not fork or x.is_hydra_override()]
        words += [compose.searchpath([config_dir])] if config_dir else []
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = hydra.compose("config", words, return_hydra_config=True)
            values = compose.to_plain(cfg)
            if member := keras_optimizer(flatten(values), cfg.hydra.runtime.choices):
                words.append(f"optimizer={member}")
                values = compose.to_plain(hydra.compose("config", words, return_hydra_config=True))
    except hydra_errors() as error:
        raise BadInput(explain_hydra_error(error, overrides)) from None
    if fork is None:
        return values, swept, None
    resolved, _ = forking.begin(fork, parse_overrides(own))
    tracking = {**resolved.values["tracking"], "uri": resolved.config.tracking.uri}
    return (
        {**resolved.values, "tracking": tracking, "hydra": values["hydra"]},
        swept,
        resolved.config.fork,
    )


def count_trials(overrides: list[str], sweeper: Mapping[str, Any]) -> int | None:
    """Return how many trials a grid has, or a sweeper is to make; None where only it will know."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Glob

    if "n_trials" in sweeper:
        count = sweeper["n_trials"]
        if not isinstance(count, int | None):
            raise BadInput(f"hydra.sweeper.n_trials={count!r}: must be a whole number.")
        return count
    words = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    parsed = OverridesParser.create().parse_overrides([*words, *overrides])
    swept = {item.key_or_group: item for item in parsed if item.is_sweep_override()}.values()
    if not all(each.is_discrete_sweep() and not isinstance(each.value(), Glob) for each in swept):
        return None
    return prod(sum(1 for _ in each.sweep_string_iterator()) for each in swept)
