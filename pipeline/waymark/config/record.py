"""A run's config.yaml: read, checked, and with overrides on top."""

import re
import shlex
from collections.abc import Collection, Iterable, Mapping
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import yaml

from waymark.config.masking import MASK, Secret, as_interpolation, mask_secrets
from waymark.config.old_names import CLASSES
from waymark.config.resolve import COMMAND_LINE, Resolved, build_group, refuse_both, resolve
from waymark.config.schema import (
    DATA_DEFAULTS,
    DATA_PLACES,
    FORMAT,
    GROUP_PROTOCOLS,
    KERAS_DEFAULTS,
    KERAS_OPTIMIZERS,
    LABELS,
    OPTIMIZER_DEFAULTS,
    OPTIMIZERS_OF_KERAS,
    SCHEDULE,
)
from waymark.config.values import flatten, json_text, nearest
from waymark.config.yaml_source import decode_yaml, yaml_problem
from waymark.errors import BadInput, first_line
from waymark.names import RESTORED_ACCURACY

# What a command on a recorded run does not take from its record.
NOT_NEEDED = (*LABELS, "tracking", "trusted_modules")


class _Record(yaml.SafeLoader):
    """A loader that refuses a key that stands twice, and what takes YAML long to unfold."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        deep = self.depth > 20 and not self.check_event(yaml.ScalarEvent)
        if deep or self.check_event(yaml.AliasEvent):
            raise ValueError("it holds an alias, or is nested too deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                problem = f"the key {key.value} stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return dict(super().construct_mapping(node, deep))


def check_format(version: object, origin: object) -> None:
    """Raise BadInput unless `version` is a format that this Waymark reads."""
    if type(version) is not int or not 1 <= version <= FORMAT:
        raise BadInput(
            f"{origin} has format {version!r}; this Waymark reads formats up to {FORMAT}."
        )


def read_record(path: Path) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Return values, choices and masked keys of a run's config.yaml; raise BadInput if damaged."""
    unreadable = f"{path} is not a readable record of a run"
    try:
        text = decode_yaml(path.read_bytes())
        body = yaml.load(text, Loader=_Record)
        if not isinstance(body, dict):
            raise ValueError("line 1: it holds no settings")
        # Keys that came later than the first records of this format, and what was done before.
        body.setdefault("objective", {"metric": RESTORED_ACCURACY, "mode": "max"})
        body.setdefault("prune", None)
        body.setdefault("stop", None)
        body.setdefault("fork", None)
        body.setdefault("epochs", None)
        body.setdefault("metrics", [])
        body.setdefault("rerun_finished", False)
        if isinstance(body.get("save"), dict):
            body["save"].setdefault("log_model", False)
        if isinstance(body.get("runtime"), dict):
            body["runtime"].setdefault("deterministic", False)
        if isinstance(body.get("data"), dict):
            for key, value in {**DATA_DEFAULTS, "scale": "uint8"}.items():
                body["data"].setdefault(key, value)
        if isinstance(optimizer := body.get("optimizer"), dict):
            keras = str(optimizer.get("_target_")).startswith(KERAS_OPTIMIZERS)
            for key, value in {**OPTIMIZER_DEFAULTS, **(KERAS_DEFAULTS if keras else {})}.items():
                optimizer.setdefault(key, value)
        model = body.get("model")
        if isinstance(model, dict) and model.get("_target_") == "waymark.models.keras.Keras":
            model.setdefault("file", None)
        version = body.pop("format")
    except yaml.YAMLError as error:
        raise BadInput(f"{unreadable}: {yaml_problem(error, text)}") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        inside = isinstance(error, OSError) and error.strerror  # its text names the file again
        raise BadInput(f"{unreadable}: {inside or first_line(error)}") from None
    check_format(version, path)
    choices = body.pop("choices", None)
    if isinstance(choices, dict) and "task" not in body:  # as all runs were before there were tasks
        body["task"] = {"_target_": "waymark.tasks.classification.Classification"}
        choices["task"] = "classification"
    if not isinstance(choices, dict) or set(choices) != set(GROUP_PROTOCOLS):
        raise BadInput(f"{unreadable}: its choices are not there.")
    if isinstance(body.get("tags"), dict):  # they may be numbers in an older record
        body["tags"] = {key: str(value) for key, value in body["tags"].items()}
    for group in GROUP_PROTOCOLS:
        if isinstance(body.get(group), dict):
            target = body[group].get("_target_")
            body[group]["_target_"] = CLASSES.get(str(target), target)
    suspect = [key for key, value in flatten(body).items() if "***" in str(value)]
    masked = body.pop("masked", suspect)  # earlier versions did not tell
    if not isinstance(masked, list):
        raise BadInput(f"{unreadable}: masked is no list.")
    return body, choices, [key for key in suspect if key in masked]


def from_record(
    path: Path,
    overrides: Mapping[str, Any],
    trusted: list[str],
    frozen: tuple[str, ...],
    name: str = "RUN",
) -> Resolved:
    """Read a run's config.yaml, with `overrides` (dotted keys) put on top.

    Raises BadInput for what `read_record` and `with_overrides` refuse, and for a change of what
    lies under the keys in `frozen` (but DATA_PLACES, and what is masked in the record). `name` is
    the run's, for the command that starts another one.
    """
    body, choices, masked = read_record(path)
    known = {**flatten(body), **choices}
    if f"{SCHEDULE}.kind" in known:
        known[SCHEDULE] = known[f"{SCHEDULE}.kind"]
    _check_known(overrides, known)
    # What was recorded with keys of its own is known by them alone: null is a change of it.
    changed = {key: value for key, value in overrides.items() if value != known.get(key, ...)}
    if OPTIMIZERS_OF_KERAS.get(str(changed.get("optimizer"))) == choices["optimizer"]:
        changed.pop("optimizer", None)  # as it was given, and recorded by Keras's name
    moved = is_moved_file(known.get("data.test"), overrides.get("data.test"))
    free = (*DATA_PLACES, *(["data.test"] if moved else []), *masked)
    if "steps" in overrides:
        refuse_both(overrides)
    fixed = [k for k in changed if k in choices or (k.startswith(frozen) and k not in free)]
    if fixed:
        again = shlex.join(["waymark", "run", "--config-from", name, *map(_given, changed.items())])
        raise BadInput(
            f"{', '.join(fixed)}: cannot change in a recorded run (a fork goes on from its "
            f"checkpoint: waymark run --fork {name}); a new one: {again}"
        )
    return with_overrides(body, choices, masked, changed, trusted, f"recorded in {path}")


def is_moved_file(recorded: object, given: object) -> bool:
    """Tell whether a test set's file is named anew: that it is the same one the digest tells."""
    return isinstance(recorded, str) and isinstance(given, str)


def _given(setting: tuple[str, Any]) -> str:
    """Return a setting as it is given on the command line, secrets as they are read there."""
    key, value = setting
    shown = mask_secrets(value)
    text = as_interpolation(shown if isinstance(shown, str) else json_text(shown))
    if isinstance(shown, str) and not re.fullmatch(r"[\w./-]+|\$\{oc\.env:\w+\}", text):
        text = '"' + re.sub(r'(\\*)"', r"\1\1\"", text) + '"'
    return f"{key}={text}"


def recorded_model(path: Path, model: Any, trusted: list[str]) -> Any:
    """Make a config.yaml's model, with what is masked there from `model`; raise BadInput."""
    values, *_ = read_record(path)
    settings = values["model"]
    for key, value in settings.items():
        if "***" in str(value):
            settings[key] = getattr(model, key, value)
    return build_group("model", values, lambda key: f"recorded in {path}", trusted)


def with_overrides(
    body: dict[str, Any],
    choices: dict[str, str],
    masked: Collection[str],
    overrides: Mapping[str, Any],
    trusted: list[str],
    origin: str,
) -> Resolved:
    """Return recorded values with `overrides` (dotted keys) put on top, checked; see `resolve`.

    Raises BadInput for a value, but for labels, that is `masked` in the record and not given: what
    a record says is never looked up in the environment, from where it could be sent away.
    """
    known = flatten(body)
    _check_known(overrides, known)
    left = {key: known[key] for key in masked if "***" in str(known.get(key))}
    kept = {key: Secret(value, value) for key, value in left.items() if isinstance(value, str)}
    typed, overrides = tuple(overrides), {**kept, **overrides}
    needed = {key: left[key] for key in left if key.partition(".")[0] not in NOT_NEEDED}
    missing = {k: value for k, value in needed.items() if overrides.get(k, value) == value}
    if missing:
        again = shlex.join(map(_given, missing.items()))
        unknown = any("***" in MASK.sub("", str(value)) for value in missing.values())
        raise BadInput(
            f"{', '.join(missing)} ({origin}): secrets are not recorded; give {again} again"
            f"{', with what was masked by *** put in' if unknown else ''}."
        )
    if "steps" in overrides:
        refuse_both(overrides)
    for key, value in overrides.items():
        *parents, last = key.split(".")
        reduce(getitem, parents, body)[last] = value
    body["trusted_modules"] = trusted

    def source(key: str) -> str:
        given = any(f"{key}.".startswith(f"{each}.") for each in typed)
        return COMMAND_LINE if given else origin

    return resolve(body, choices, source, trusted)


def _check_known(overrides: Iterable[str], known: Collection[str]) -> None:
    for key in overrides:  # `save.keep_best` is one, whether it was recorded as null or with keys
        if key not in known and not any(name.startswith(f"{key}.") for name in known):
            raise BadInput(f"{key}: there is no such key{nearest(key, known)}.")
