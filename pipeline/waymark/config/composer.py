"""The configurations of a sweep's trials, hundreds in a second."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from waymark.config.compose import as_written, parser, resolved, without_hydra
from waymark.config.resolve import Resolved, keras_optimizer
from waymark.config.values import flatten


class Composer:
    """Compose the trials of a sweep, which differ in a few values, hundreds in a second.

    Hydra takes a twentieth of a second for each. What it composed for one choice of groups holds
    for all trials of that choice; their plain values are put on top, as Hydra does it.
    """

    def __init__(self, config_loader: Any, master: Any) -> None:
        self._loader, self._master = config_loader, master
        self._is_group = cache(lambda key: bool(config_loader.get_group_options(key)))
        self._parsed = cache(self._parse)
        self._base = cache(self._compose)

    def __call__(self, overrides: Sequence[str]) -> Resolved:
        """Return the checked configuration of one trial; raise what Hydra raises, and BadInput."""
        from omegaconf import OmegaConf

        overrides = as_written(overrides)
        items = [(text, *self._parsed(text)) for text in overrides]
        put = {item.key_or_group: item.value() for _, item, kind in items if kind == "value"}
        others = [item.key_or_group for _, item, kind in items if kind == "other"]
        rest = tuple(text for text, _, kind in items if kind != "value")
        whole = any(_overlap(key, other) for key in put for other in others)  # their order matters
        if not whole:
            _, choices, before = self._base(rest)
            if member := keras_optimizer(before, choices):
                return self([*overrides, f"optimizer={member}"])
            whole = not put.keys() <= before.keys()  # or one replaces a whole branch
        if whole:
            put, rest = {}, tuple(overrides)
        cfg, choices, before = self._base(rest)
        try:
            for key, value in put.items():
                OmegaConf.update(cfg, key, value, merge=True)
            return resolved(cfg, choices, overrides, lambda word: self([*overrides, word]))
        finally:  # a copy for each would take longer than all the rest
            for key in put:
                OmegaConf.update(cfg, key, before[key], merge=True)

    def _parse(self, text: str) -> tuple[Any, str]:
        """Return an override, and its kind: of a group, of a plain value in its place, other."""
        item = parser().parse_override(text)
        if self._is_group(item.key_or_group):
            return item, "group"
        special = item.is_add() or item.is_delete() or item.package
        plain = not special and isinstance(item.value(), int | float | str | None)
        return item, "value" if plain else "other"

    def _compose(self, rest: tuple[str, ...]) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        from omegaconf import OmegaConf

        cfg = self._loader.load_sweep_config(self._master, list(rest))
        own, choices = without_hydra(cfg), dict(cfg.hydra.runtime.choices)
        return own, choices, flatten(OmegaConf.to_container(own))  # type: ignore[arg-type]


def _overlap(key: str, other: str) -> bool:
    """Tell whether one dotted key is the other or a part of it."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")
