"""From plain values to a checked Config, without TensorFlow: a bad value is refused at once."""

import logging
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, is_dataclass
from inspect import signature
from pkgutil import resolve_name
from typing import Any, get_args, get_type_hints

import pydantic
import yaml

from waymark.config import masking
from waymark.config.functions import check_settings, takes_learning_rate
from waymark.config.masking import Secret, mask_secrets, reveal_secrets
from waymark.config.old_names import CLASSES, with_classes
from waymark.config.schema import (
    DATA_DEFAULTS,
    FORMAT,
    GROUP_PROTOCOLS,
    LABELS,
    OPTIMIZER_DEFAULTS,
    OPTIMIZERS_OF_KERAS,
    RUN_NAMES,
    SCHEDULE,
    TAG_NAMES,
    TAG_VALUES,
    Config,
)
from waymark.config.values import flatten, nearest
from waymark.config.yaml_source import MISSING
from waymark.errors import BadInput, first_line, listed
from waymark.users_code import place

# Of Waymark's own those that build models, which a record may name.
OWN_FUNCTIONS = ("waymark.models.mlp.build", "waymark.models.resnet.build")
# Settings with defaults that a class of the user's own need not have; what has them all.
DEFAULTS: dict[str, tuple[Mapping[str, Any], str]] = {
    "data": (DATA_DEFAULTS, "Loader"),
    "optimizer": (OPTIMIZER_DEFAULTS, "waymark.optimizers.Optimizer"),
}
COMMAND_LINE = "the command line"  # where an override came from
Source = Callable[[str], str]  # where the value of a key came from


@dataclass(frozen=True)
class Resolved:
    """A checked configuration and the plain values it was made from."""

    config: Config
    values: dict[str, Any]  # nested, resolved, without secrets: what is recorded
    choices: dict[str, str]  # group -> chosen member
    hidden: Mapping[str, Any] = field(default_factory=dict)  # dotted keys: what `values` masks
    home: str = ""  # the id of the run that recorded it, if one did

    def record(self) -> str:
        """Return the text of config.yaml: everything but secrets needed to do the run again."""
        body = {"format": FORMAT, "choices": self.choices, **self.values}
        if "***" in str(self.values):  # which may be a folder's name as well
            body["masked"] = sorted(self.hidden)
        return yaml.safe_dump(body, sort_keys=False)

    def secrets(self) -> dict[str, Any]:
        """Return the settings that are masked, as overrides that know their masks."""
        recorded = flatten(self.values)
        return {key: masking.with_masks(value, recorded[key]) for key, value in self.hidden.items()}

    def typed(self) -> Config:
        """Return the configuration; should it come back, its secrets will be known again."""
        masking.remember_settings(self.hidden, flatten(self.values))
        return self.config

    def params(self) -> dict[str, str]:
        """Return MLflow's params: dotted keys, the chosen member for each group."""
        every, apart = flatten(self.values) | self.choices, ("tags.", "run_name")
        names = {f"{SCHEDULE}.kind": SCHEDULE}  # as a group's member has the group's name
        params = {names.get(k, k): str(v) for k, v in every.items() if not k.startswith(apart)}
        return with_classes(params)


def resolve(
    values: dict[str, Any],
    choices: dict[str, str],
    source: Source,
    trusted: list[str] | None = None,
) -> Resolved:
    """Check plain values and build what their `_target_` entries name; raise BadInput.

    `source` says where a key's value came from, for error messages. `trusted` limits the classes
    to those defined under `waymark` and the named modules; None allows any. What is a Secret is
    masked in what is recorded; of a label only the mask is known.
    """
    recorded = mask_secrets(values)
    for key, value in flatten(recorded).items():
        if value == "???" or str(value).startswith(MISSING):
            where = str(value).removeprefix(MISSING) if value != "???" else source(key)
            raise BadInput(f"{key} ({where}): a value is missing.")
        said = f"{key}={value!r} ({source(key)})"
        if "${" in str(value):
            raise BadInput(f"{said}: holds an interpolation, which is never recorded.")
        if str(value).encode(errors="replace").decode() != str(value):
            raise BadInput(f"{said}: is not UTF-8 and cannot be recorded.")
    if source("steps") == COMMAND_LINE:
        refuse_both(values)
    given, known = flatten(values), flatten(recorded)
    masks = [key for key in given if isinstance(given[key], Secret) or given[key] != known[key]]
    hidden = {key: reveal_secrets(given[key]) for key in masks}
    values = {**values, **{key: recorded[key] for key in LABELS if key in recorded}}
    runtime = values.get("runtime")
    if isinstance(runtime, Mapping) and runtime.get("intra_op_threads", 0) is None:
        runtime = {**runtime, "intra_op_threads": os.cpu_count() or 1}
        values, recorded = ({**each, "runtime": runtime} for each in (values, recorded))
    if isinstance(stop := values.get("stop"), Mapping):
        stop = {"min_delta": 0.0, **stop}
        values, recorded = ({**each, "stop": stop} for each in (values, recorded))
    try:
        parts = {group: build_group(group, values, source, trusted) for group in GROUP_PROTOCOLS}
        config = _checked(Config, {**values, **parts}, "", source)
        _check_texts(config, source)
        for name in config.metrics:
            if "." in name:
                _locate_users_code(name, "metrics", source, trusted)
    except BadInput as error:
        said = str(error)
        for key, value in hidden.items():
            said = said.replace(f"{key}={value!r}", f"{key}={known[key]!r}")
        raise BadInput(said) from None
    return Resolved(config, recorded, choices, hidden)


def refuse_both(values: Mapping[str, Any]) -> None:
    """Raise BadInput where `steps` are given and epochs as well."""
    if values.get("epochs") is not None:
        raise BadInput(
            f"steps={values['steps']} and epochs={values['epochs']}: give one of them; "
            f"epochs are turned into steps."
        )


def _checked(kind: type, values: Mapping[str, Any], prefix: str, source: Source) -> Any:
    """Build a settings class, and those that its fields hold; raise BadInput.

    `prefix` is what stands before the names of its fields: nothing, or a group and a dot.
    """
    given, values = values, dict(reveal_secrets(values))
    for name, hint in get_type_hints(kind).items():
        secret, kinds = given.get(name), {hint, *get_args(hint)}
        if isinstance(secret, Secret) and str not in kinds and kinds & {int, float, bool}:
            values[name] = secret.as_number()
        nested = [t for t in (hint, *get_args(hint)) if is_dataclass(t) and isinstance(t, type)]
        key, value = f"{prefix}{name}", values.get(name)
        if nested and isinstance(value, Mapping):
            values[name] = _checked(
                _of_kind(nested, given[name], key, source), given[name], f"{key}.", source
            )
        elif len(nested) > 1 and not (value is None or is_dataclass(value)):
            raise BadInput(
                f"{key}={value!r} ({source(key)}): must be {_kinds(nested)}, chosen on the command "
                f"line, or in a YAML file's defaults by override /{key.replace('.', '/')}."
            )
    try:
        return kind(**values)
    except (pydantic.ValidationError, TypeError) as error:
        raise BadInput(_sentence(kind, values, error, prefix, source)) from None


def _of_kind(kinds: list[Any], given: Mapping[str, Any], key: str, source: Source) -> Any:
    """Return the one of some settings classes that the entry `kind` names, if there are several."""
    found = [each for each in kinds if len(kinds) == 1 or each.kind == given.get("kind")]
    if not found:
        said = f"{key}.kind={given.get('kind')!r} ({source(f'{key}.kind')})"
        raise BadInput(f"{said}: must be {_kinds(kinds)}.")
    return found[0]


def _kinds(kinds: list[Any]) -> str:
    return f"one of {listed([each.kind for each in kinds])}"


def _check_texts(config: Config, source: Source) -> None:
    """Refuse names and tags that MLflow does not take, or a terminal or shell would act on."""
    rows = [("experiment_name", config.experiment_name, RUN_NAMES)]
    rows += [("run_name", config.run_name, RUN_NAMES)] if config.run_name else []
    for tag, value in config.tags.items():
        rows += [(f"tags.{tag}", tag, TAG_NAMES), (f"tags.{tag}", str(value), TAG_VALUES)]
    for key, text, rule in rows:
        if len(text) > rule.longest or not re.fullmatch(rule.pattern, text):
            shown = repr(text) if len(text) < 300 else f"{text[:50]!r}..."
            said = f"{rule.words}, at most {rule.longest} characters"
            raise BadInput(f"{key}={shown} ({source(key)}): {said}.")


def _sentence(
    kind: type, values: Mapping[str, Any], error: Exception, prefix: str, source: Source
) -> str:
    if not isinstance(error, pydantic.ValidationError):
        key = prefix.removesuffix(".")
        return f"{key} ({source(key)}): {error}."
    errors = error.errors(include_url=False)
    first = errors[0]
    place = list(first["loc"][:1])
    if isinstance(values.get(str(place[0])), Mapping):  # then its entry is what is wrong
        place += first["loc"][1:2]
    key = prefix + ".".join(map(str, place))
    if first["type"] == "unexpected_keyword_argument":
        known = [f"{prefix}{name}" for name in getattr(kind, "__dataclass_fields__", {})]
        return f"{key} ({source(key)}): there is no such setting{nearest(key, known)}."
    if first["type"].startswith("dataclass"):
        hint = get_type_hints(kind)[str(place[0])]
        cls = next(each for each in (hint, *get_args(hint)) if is_dataclass(each))
        said = f"must be settings, {listed(list(cls.__dataclass_fields__))}"
        return f"{key}={first['input']!r} ({source(key)}): {said}."
    if first["type"].startswith("missing"):
        return f"{key} ({source(key)}): a value is missing."
    if first["type"] == "string_type":
        said = "must be a text, which stands in quotes in a YAML file if it looks like a number"
        return f"{key}={first['input']!r} ({source(key)}): {said}."
    if first["type"] == "string_pattern_mismatch":
        return f"{key}={first['input']!r} ({source(key)}): must be val/NAME or test/NAME."
    messages = [e["msg"] for e in errors if e["loc"][0] == first["loc"][0]]
    said = " or ".join(dict.fromkeys(m[0].lower() + m[1:] for m in messages))
    shown = getattr(first["input"], "kind", None) or repr(first["input"])  # a schedule's name
    return f"{key}={shown} ({source(key)}): {said}."


def build_group(
    group: str, values: Mapping[str, Any], source: Source, trusted: list[str] | None
) -> Any:
    """Make the object that `values[group]` describes; see `resolve` for the rest and BadInput."""
    given = values.get(group)
    if not isinstance(given, Mapping) or not isinstance(given.get("_target_"), str):
        raise BadInput(f"{group} ({source(group)}): must be a group of settings with a _target_.")
    own = {key: value for key, value in given.items() if key != "_target_"}
    special = [k for k in flatten(own) if {"_target_", "_args_", "_partial_"} & set(k.split("."))]
    if special:
        key = f"{group}.{special[0]}"
        raise BadInput(f"{key} ({source(key)}): only the group's own _target_ may stand.")
    key = f"{group}._target_"
    cls = _locate(given["_target_"], key, source, trusted)
    missing = [name for name in GROUP_PROTOCOLS[group] if not callable(getattr(cls, name, None))]
    if missing:
        said = f"{key}={given['_target_']!r} ({source(key)})"
        raise BadInput(f"{said}: has no method {missing[0]}().")
    if group in DEFAULTS:
        own = _without_defaults(group, cls, own, source)
    for name in getattr(cls, "dotted_names", ()):
        if isinstance(own.get(name), str):
            _locate_users_code(own[name], f"{group}.{name}", source, trusted)
    part = _checked(cls, own, f"{group}.", source)
    if group == "optimizer":
        _check_schedule(part, source)
    for name, settings in getattr(cls, "functions", {}).items():
        if getattr(part, name) is not None:
            given = getattr(part, name), getattr(part, settings)
            _check_function(f"{group}.{name}", *given, source, trusted)
    if check := getattr(part, "check_settings", None):
        modules = values.get("trusted_modules") if trusted is None else trusted
        check(modules if isinstance(modules, list) else [], recorded=trusted is not None)
    return part


def keras_optimizer(
    values: Mapping[str, Any], choices: Mapping[str, Any], trusted: list[str] | None = None
) -> str:
    """Return which member `adam` or `sgd` means, if the model is one of Keras's; else nothing.

    `values` have dotted keys. A class that is not `trusted` is not looked at; see `resolve`.
    """
    member = OPTIMIZERS_OF_KERAS.get(str(choices.get("optimizer")), "")
    if member and str(values.get("optimizer._target_")).startswith("waymark.optimizers."):
        key = "model._target_"
        with suppress(BadInput):  # which is raised again where the model is made
            cls = _locate(str(values.get(key)), key, lambda _: "", trusted)
            return member if hasattr(cls, "buffers") else ""
    return ""


def _check_schedule(optimizer: Any, source: Source) -> None:
    """Refuse a schedule of a class that is told no learning rate, or takes any kind of value."""
    schedule, kind = getattr(optimizer, "schedule", None), type(optimizer).__name__
    if schedule is None:
        return
    said = f"{SCHEDULE} ({source(SCHEDULE)})"
    if not is_dataclass(optimizer) or not hasattr(schedule, "rate"):
        raise BadInput(
            f"{said}: {kind} must be a dataclass with a field of the type "
            f"waymark.schedules.Schedule | None."
        )
    if not takes_learning_rate(optimizer):
        raise BadInput(
            f"{said}: {kind}.apply() has no argument learning_rate, by which it would be told "
            f"the rate of each step."
        )


def _check_function(
    key: str, dotted: str, settings: Mapping[str, Any], source: Source, trusted: list[str] | None
) -> None:
    """Refuse a function that is not there, does not take the settings, or is not trusted.

    Of Waymark's own those that build its models can be named.
    """
    said = f"{key}={dotted!r} ({source(key)})"
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", dotted):
        raise BadInput(f"{said}: must be the dotted name of a function, as my_models.resnet.")
    if dotted.startswith("waymark.") and dotted not in OWN_FUNCTIONS:
        raise BadInput(f"{said}: is part of Waymark; allowed are functions of yours.")
    _refuse_distrusted(dotted, said, trusted)

    def located() -> Any:
        if dotted in OWN_FUNCTIONS:
            return resolve_name(dotted)
        return _locate_users_code(dotted, key, source, trusted)

    try:
        check_settings(dotted, settings, located)
    except ValueError as error:
        raise BadInput(f"{said}: {error}.") from None


def _refuse_distrusted(name: str, said: str, trusted: list[str] | None) -> None:
    """Raise BadInput for a name that is not under `waymark` nor a trusted module."""
    roots = tuple(f"{root}." for root in ("waymark", *(trusted or [])))
    if trusted is not None and not f"{name}.".startswith(roots):
        raise BadInput(
            f"{said}: is not part of Waymark; "
            f"if you trust its module, say so with trusted_modules=[...]."
        )


def _without_defaults(group: str, cls: type, own: dict[str, Any], source: Source) -> dict[str, Any]:
    """Leave out what asks for nothing of a class that has a default for it, or no such setting.

    Raises BadInput for what asks for something that the class does not have.
    """
    parameters = signature(cls).parameters
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return own
    defaults, base = DEFAULTS[group]
    for key, value in [(key, own[key]) for key in defaults if key in own]:
        known = parameters.get(key)
        default = value == defaults[key]
        if known is not None and not (default and known.default is not known.empty):
            continue
        if default or (key, value) == ("scale", "uint8"):
            del own[key]
        else:
            raise BadInput(
                f"{group}.{key}={value!r} ({source(f'{group}.{key}')}): {cls.__name__} has no such "
                f"setting; a class that is derived from {base} has."
            )
    return own


def _locate_users_code(
    target: str, key: str, source: Source, trusted: list[str] | None
) -> Callable[..., Any]:
    """Return the user's class or function of this name, which will be called; raise BadInput.

    Waymark's own are refused: a record could have any of them called, with any arguments.
    """
    found: Callable[..., Any] = _locate(target, key, source, trusted, resolve_name)
    if f"{getattr(found, '__module__', None)}.".startswith("waymark."):
        said = f"{key}={target!r} ({source(key)})"
        raise BadInput(f"{said}: is part of Waymark; allowed are classes and functions of yours.")
    return found


def _locate(
    target: str,
    key: str,
    source: Source,
    trusted: list[str] | None,
    get: Callable[[str], Any] | None = None,
) -> Any:
    """Return the class of a dotted name, or what `get` returns for it; raise BadInput."""
    from hydra.utils import get_class

    said = f"{key}={target!r} ({source(key)})"
    if target in CLASSES:  # a record's is the new one by now
        raise BadInput(f"{said}: is now called {CLASSES[target]}.")
    _refuse_distrusted(target, said, trusted)
    log = logging.getLogger("hydra.utils")
    disabled, log.disabled = log.disabled, True  # it prints what is raised as well
    try:
        found = (get or get_class)(target)
    except Exception as error:
        cause = error.__cause__ or error
        reason = f"{type(cause).__name__}: {first_line(cause)}{place(cause)}"
        raise BadInput(f"{said}: cannot be loaded: {reason}") from None
    finally:
        log.disabled = disabled
    # A dotted name also walks through what a module imports.
    _refuse_distrusted(str(getattr(found, "__module__", "")), said, trusted)
    if not callable(found):
        raise BadInput(f"{said}: is not a function.")
    return found
