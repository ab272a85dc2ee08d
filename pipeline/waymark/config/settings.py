"""The typed configuration and its checks: the only place where a DictConfig becomes a Config.

Types and bounds stand here (and in the classes that `_target_` names), values in `conf/`.
Nothing here imports TensorFlow or MLflow, so a bad value is refused within a second.
"""

import codecs
import difflib
import json
import logging
import math
import os
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, dataclass_transform, get_args, get_type_hints

import pydantic
import yaml
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from waymark.config.masking import (
    MASK,
    Secret,
    as_interpolation,
    mapped,
    remember_setting,
    revealed,
    with_masks,
    without_secrets,
)
from waymark.config.old_names import CLASSES
from waymark.names import RESTORED_ACCURACY
from waymark.users_code import place

FORMAT = 1  # of config.yaml, manifests and environment.json; a newer one is refused by name

# What only names or finds a run, so that it need not be known again.
LABELS = ("experiment_name", "run_name", "tags")
# What a command on a recorded run does not take from its record.
NOT_NEEDED = (*LABELS, "tracking", "trusted_modules")

# Keys that came later than the first records of this format, and what was done before.
LATER = {
    "objective": {"metric": RESTORED_ACCURACY, "mode": "max"},
    "prune": None,
    "rerun_finished": False,
    "runtime.deterministic": False,
}

# What each group's class must offer; a user's own class needs no more than this.
GROUPS = {
    "model": ("initial", "logits"),
    "data": ("load",),
    "optimizer": ("slots", "apply"),
    "save": ("write", "read"),
}


# A pattern, the most characters, and both in words. What is refused: controls, line separators,
# directions of writing and halves of characters, which deceive a reader, and the shell's syntax.
CONTROLS = r"\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
NAME = (rf"[^{CONTROLS}`$;|&<>]+", 250, "no control characters, nor any of ` $ ; | & < >")
TAG_VALUE = (
    rf"([^{CONTROLS}`$]|[\n\t]|\$(?!\())*",
    8000,
    "no control characters but newline and tab, no backticks, no $(",
)
TAG = (  # as MLflow has it: a relative path
    r"(?!\.\.)(?!.*(^|/)\.{0,2}(/|$))[\w .:/-]+",
    250,
    "a tag's name has letters, digits, spaces and _ - . : and / as in a path",
)

MISSING = "??? in "  # and a file of the user's: a value that is to be given

Source = Callable[[str], str]  # where the value of a key came from


class Sentence(Exception):
    """One sentence for the user, without secrets; what a terminal would act on is escaped."""

    def __init__(self, text: str) -> None:
        text = without_secrets(text)
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))


class BadInput(Sentence):
    """Say in one sentence what is wrong with what the user gave; the command exits 2."""


@dataclass_transform(kw_only_default=True)
def settings(cls: type) -> Any:
    """Make `cls` a dataclass that checks the types and bounds of its own settings."""
    config = pydantic.ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True
    )
    return pydantic.dataclasses.dataclass(cls, config=config, kw_only=True)


@settings
class Runtime:
    intra_op_threads: PositiveInt
    deterministic: bool


@settings
class Tracking:
    uri: str | None
    flush_seconds: PositiveFloat
    system_metrics: bool


@settings
class Record:
    changes: bool


@settings
class Objective:
    metric: str
    mode: Literal["min", "max"]


@settings
class Config:
    """Everything that decides a run; see the README's table for the meaning of each key."""

    model: Any
    data: Any
    optimizer: Any
    save: Any
    steps: PositiveInt
    batch_size: PositiveInt
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)]
    precision: Literal["float32", "mixed_bfloat16"]
    eval_every: NonNegativeInt
    log_every: PositiveInt
    on_nan: Literal["stop", "continue"]
    init_from: str | None
    runtime: Runtime
    tracking: Tracking
    record: Record
    objective: Objective
    prune: Literal["median", "asha"] | None
    rerun_finished: bool
    progress: Literal["auto"] | bool
    trusted_modules: list[str]
    experiment_name: Annotated[str, Field(min_length=1)]
    run_name: Annotated[str, Field(min_length=1)] | None
    tags: dict[str, str]


@dataclass(frozen=True)
class Resolved:
    """A checked configuration together with the plain values it was made from."""

    config: Config
    values: dict[str, Any]  # nested, resolved, without secrets: what is recorded
    choices: dict[str, str]  # group -> chosen member
    hidden: Mapping[str, Any] = field(default_factory=dict)  # dotted keys: what `values` masks

    def record(self) -> str:
        """Return the text of config.yaml: everything but secrets needed to do the run again."""
        body = {"format": FORMAT, "choices": self.choices, **self.values}
        if "***" in str(self.values):  # which may be a folder's name as well
            body["masked"] = sorted(self.hidden)
        return yaml.safe_dump(body, sort_keys=False)

    def secrets(self) -> dict[str, Any]:
        """Return the settings that are masked, as overrides that know their masks."""
        recorded = flatten(self.values)
        return {key: with_masks(value, recorded[key]) for key, value in self.hidden.items()}

    def typed(self) -> Config:
        """Return the configuration; should it come back, its secrets will be known again."""
        known = flatten(self.values)
        for key, value in self.hidden.items():
            remember_setting(key, value, known[key])
        return self.config

    def params(self) -> dict[str, str]:
        """Return MLflow's params: dotted keys, the chosen member for each group."""
        flat = {k: v for k, v in flatten(self.values).items() if not k.startswith("tags.")}
        return {key: str(value) for key, value in {**flat, **self.choices}.items()}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def json_text(value: Any, indent: int | None = None) -> str:
    """Return `value` as JSON that every reader takes: NaN and infinities stand in it as texts."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [plain(inner) for inner in value]
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(value), indent=indent, allow_nan=False)


def without_password(uri: str | None) -> str | None:
    """Return a URI with the password in it, if any, replaced by asterisks.

    What stands for a variable's value (`***(NAME)`) stays.
    """
    if uri is None:
        return None

    def mask(match: re.Match[str]) -> str:
        known = "".join(mask[0] for mask in MASK.finditer(match["password"]))
        return f"{match['before']}{known or '***'}{match['after']}"

    names = "password|passwd|pwd|token|secret"
    query = rf"(?i)(?P<before>[?&](?:{names})=)(?P<password>[^&\s]*)(?P<after>)"
    user = rf"(?P<before>://[^/@:?]*:)(?!{MASK.pattern}@)(?P<password>\S*)(?P<after>@)"
    return re.sub(user, mask, re.sub(query, mask, uri))


# What stands before the reason in errors of TensorFlow, AutoGraph and Keras, and their tracebacks.
HEADING = re.compile(
    r"Graph execution error:|Detected at node |<stack traces|\d+ root error"
    r"|in user code:|Exception encountered when calling |\s"
)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's reason, without secrets; its kind if it says nothing."""
    text = re.sub(r"\x1b\[[\d;]*m", "", str(error)).strip()  # Keras prints in bold
    text = re.sub(r"(?m)^ {2}(?=\(\d+\) )|^ {4}(?=\S*(Error|Exception): )", "", text)
    lines = [line for line in text.splitlines() if line.strip()] or [type(error).__name__]
    said = [line for line in lines if not HEADING.match(line)]
    return without_secrets(re.sub(r"^\(\d+\) [A-Z_]+: +", "", (said or lines)[0]))


def masked(values: Any) -> Any:
    """Return nested values with secrets, and passwords in URIs, masked."""

    def mask(value: Any) -> Any:
        shown = value.shown if isinstance(value, Secret) else value
        return without_password(shown) if isinstance(shown, str) else shown

    return mapped(values, mask)


def nearest(word: str, known: Iterable[str]) -> str:
    """Return '; the nearest is X' for the known name closest to `word`, or nothing."""
    known, (parent, _, last) = list(known), word.rpartition(".")
    tails = [name for name in known if name.rpartition(".")[2] == last]
    siblings = [n.rpartition(".")[2] for n in known if parent and n.rpartition(".")[0] == parent]
    if siblings and not tails:
        close = [f"{parent}.{n}" for n in difflib.get_close_matches(last, siblings, 1, 0.25)]
    else:
        close = tails or difflib.get_close_matches(word, known, n=1)
    return f"; the nearest is {close[0]}" if close else ""


def resolve(
    values: dict[str, Any],
    choices: dict[str, str],
    source: Source,
    trusted: list[str] | None = None,
) -> Resolved:
    """Check plain values and build what their `_target_` entries name.

    `source` says where a key's value came from, for error messages. `trusted` limits the classes
    to those defined under `pipeline` and the named modules; None allows any. What is a Secret is
    masked in what is recorded, and a label is all that is known of it.

    Raises BadInput for an unknown or missing key, a wrong type, a value out of bounds, a class
    that cannot be used, or a text that would be an interpolation or is not UTF-8.
    """
    recorded = masked(values)
    for key, value in flatten(recorded).items():
        if value == "???" or str(value).startswith(MISSING):
            where = str(value).removeprefix(MISSING) if value != "???" else source(key)
            raise BadInput(f"{key} ({where}): a value is missing.")
        if "${" in str(value):
            raise BadInput(
                f"{key}={value!r} ({source(key)}): holds an interpolation, which is never recorded."
            )
        if str(value).encode(errors="replace").decode() != str(value):
            raise BadInput(f"{key}={value!r} ({source(key)}): is not UTF-8 and cannot be recorded.")
    given, known = flatten(values), flatten(recorded)
    masks = [key for key in given if isinstance(given[key], Secret) or given[key] != known[key]]
    hidden = {key: revealed(given[key]) for key in masks}
    values = {**values, **{key: recorded[key] for key in LABELS if key in recorded}}
    runtime = values.get("runtime")
    if isinstance(runtime, Mapping) and runtime.get("intra_op_threads", 0) is None:
        runtime = {**runtime, "intra_op_threads": os.cpu_count() or 1}
        values, recorded = ({**each, "runtime": runtime} for each in (values, recorded))
    try:
        parts = {group: _build(group, values, source, trusted) for group in GROUPS}
        config = _checked(Config, {**values, **parts}, "", source)
        _check_texts(config, source)
    except BadInput as error:
        said = str(error)
        for key, value in hidden.items():
            said = said.replace(f"{key}={value!r}", f"{key}={known[key]!r}")
        raise BadInput(said) from None
    return Resolved(config, recorded, choices, hidden)


def _checked(kind: type, values: Mapping[str, Any], prefix: str, source: Source) -> Any:
    """Build a settings class, and those that its fields hold, with BadInput for a refusal."""
    given, values = values, dict(revealed(values))
    for name, hint in get_type_hints(kind).items():
        secret, kinds = given.get(name), {hint, *get_args(hint)}
        if isinstance(secret, Secret) and str not in kinds and kinds & {int, float, bool}:
            values[name] = secret.as_number()
        nested = [t for t in (hint, *get_args(hint)) if is_dataclass(t) and isinstance(t, type)]
        if nested and isinstance(values.get(name), Mapping):
            inner = f"{prefix}.{name}" if prefix else name
            values[name] = _checked(nested[0], given[name], inner, source)
    try:
        return kind(**values)
    except (pydantic.ValidationError, TypeError) as error:
        raise BadInput(_sentence(kind, values, error, prefix, source)) from None


def _check_texts(config: Config, source: Source) -> None:
    """Refuse names and tags that MLflow does not take, or a terminal or shell would act on."""
    rows = [("experiment_name", config.experiment_name, NAME)]
    rows += [("run_name", config.run_name, NAME)] if config.run_name else []
    for tag, value in config.tags.items():
        rows += [(f"tags.{tag}", tag, TAG), (f"tags.{tag}", str(value), TAG_VALUE)]
    for key, text, (allowed, longest, words) in rows:
        if len(text) > longest or not re.fullmatch(allowed, text):
            shown = repr(text) if len(text) < 300 else f"{text[:50]!r}..."
            raise BadInput(f"{key}={shown} ({source(key)}): {words}, at most {longest} characters.")


def _sentence(
    kind: type, values: Mapping[str, Any], error: Exception, prefix: str, source: Source
) -> str:
    if not isinstance(error, pydantic.ValidationError):
        return f"{prefix} ({source(prefix)}): {error}."
    errors = error.errors(include_url=False)
    first = errors[0]
    place = list(first["loc"][:1])
    if isinstance(values.get(str(place[0])), Mapping):  # then its entry is what is wrong
        place += first["loc"][1:2]
    key = ".".join(str(part) for part in ([prefix, *place] if prefix else place))
    if first["type"] == "unexpected_keyword_argument":
        return (
            f"{key} ({source(key)}): there is no such setting{nearest(key, _fields(kind, prefix))}."
        )
    if first["type"].startswith("missing"):
        return f"{key} ({source(key)}): a value is missing."
    if first["type"] == "string_type":
        said = "must be a text, which stands in quotes in a YAML file if it looks like a number"
        return f"{key}={first['input']!r} ({source(key)}): {said}."
    messages = [e["msg"] for e in errors if e["loc"][0] == first["loc"][0]]
    said = " or ".join(dict.fromkeys(m[0].lower() + m[1:] for m in messages))
    return f"{key}={first['input']!r} ({source(key)}): {said}."


def _fields(kind: type, prefix: str) -> list[str]:
    names = getattr(kind, "__dataclass_fields__", {})
    return [f"{prefix}.{name}" if prefix else name for name in names]


def _build(group: str, values: Mapping[str, Any], source: Source, trusted: list[str] | None) -> Any:
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
    missing = [name for name in GROUPS[group] if not callable(getattr(cls, name, None))]
    if missing:
        raise BadInput(
            f"{key}={given['_target_']!r} ({source(key)}): has no method {missing[0]}()."
        )
    return _checked(cls, own, group, source)


def _locate(target: str, key: str, source: Source, trusted: list[str] | None) -> type:
    from hydra.utils import get_class

    def allowed(name: str) -> bool:
        roots = ["waymark", *(trusted or [])]
        return trusted is None or any(name == r or name.startswith(f"{r}.") for r in roots)

    distrust = BadInput(
        f"{key}={target!r} ({source(key)}): is not part of Waymark; "
        f"if you trust its module, say so with trusted_modules=[...]."
    )
    if target in CLASSES:  # a record's is the new one by now
        raise BadInput(f"{key}={target!r} ({source(key)}): is now called {CLASSES[target]}.")
    if not allowed(target):
        raise distrust
    log = logging.getLogger("hydra.utils")
    disabled, log.disabled = log.disabled, True  # it prints what is raised as well
    try:
        cls = get_class(target)
    except Exception as error:
        cause = error.__cause__ or error
        reason = f"{type(cause).__name__}: {first_line(cause)}{place(cause)}"
        raise BadInput(f"{key}={target!r} ({source(key)}): cannot be loaded: {reason}") from None
    finally:
        log.disabled = disabled
    if not allowed(cls.__module__):  # a dotted name also walks through what a module imports
        raise distrust
    return cls


def decoded(body: bytes) -> str:
    """Return the text of a YAML file, which is UTF-8 unless it has a byte order mark.

    Raises ValueError that begins with the line.
    """
    wide = body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = "UTF-16" if wide else "UTF-8"
    try:
        text = body.removeprefix(codecs.BOM_UTF8).decode(encoding)
    except UnicodeDecodeError as error:
        line = body[: error.start].count(b"\n") + 1
        raise ValueError(f"line {line}: is not {encoding}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def yaml_problem(error: Exception, text: str) -> str:
    """Say in which line YAML found what wrong with a text."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    at = mark.index if mark else getattr(error, "position", 0)
    context = getattr(error, "context", None) or "while"
    told = [] if context.startswith("while") else [context]
    told += filter(None, (getattr(error, name, None) for name in ("problem", "reason")))
    return f"line {text.count(chr(10), 0, at) + 1}: {' '.join(told) or first_line(error)}"


def _check_yaml(text: str) -> None:
    """Raise ValueError for what no record needs and what takes YAML long to unfold."""
    depth = 0
    for event in yaml.parse(text):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > 20 or isinstance(event, yaml.AliasEvent):
            raise ValueError("it holds an alias, or is nested too deep")


class _Record(yaml.SafeLoader):
    """A loader that refuses a key that stands twice."""

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
    """Return the values and choices of a run's config.yaml, and which values are masked.

    Raises BadInput for a file that is missing, damaged, or of a newer format.
    """
    try:
        text = decoded(path.read_bytes())
        _check_yaml(text)
        body = yaml.load(text, Loader=_Record)
        if not isinstance(body, dict):
            raise ValueError("line 1: it holds no settings")
        for key, value in LATER.items():
            *parents, last = key.split(".")
            place: Any = body
            for parent in parents:
                place = place.get(parent) if isinstance(place, dict) else None
            if isinstance(place, dict):
                place.setdefault(last, deepcopy(value))
        version = body.pop("format")
    except yaml.YAMLError as error:
        raise BadInput(
            f"{path} is not a readable record of a run: {yaml_problem(error, text)}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        inside = isinstance(error, OSError) and error.strerror  # its text names the file again
        reason = inside or first_line(error)
        raise BadInput(f"{path} is not a readable record of a run: {reason}") from None
    check_format(version, path)
    choices = body.pop("choices", None)
    if not isinstance(choices, dict) or set(choices) != set(GROUPS):
        raise BadInput(f"{path} is not a readable record of a run: its choices are not there.")
    if isinstance(body.get("tags"), dict):  # they may be numbers in an older record
        body["tags"] = {key: str(value) for key, value in body["tags"].items()}
    for group in GROUPS:
        if isinstance(body.get(group), dict):
            target = body[group].get("_target_")
            body[group]["_target_"] = CLASSES.get(str(target), target)
    suspect = [key for key, value in flatten(body).items() if "***" in str(value)]
    masked = body.pop("masked", suspect)  # earlier versions did not tell
    if not isinstance(masked, list):
        raise BadInput(f"{path} is not a readable record of a run: masked is no list.")
    return body, choices, [key for key in suspect if key in masked]


def from_record(
    path: Path,
    overrides: Mapping[str, Any],
    trusted: list[str],
    frozen: tuple[str, ...],
    name: str = "RUN",
) -> Resolved:
    """Read a run's config.yaml, with `overrides` (dotted keys) put on top.

    Raises BadInput for what `read_record` refuses, and for a record that names classes outside
    Waymark and the trusted modules; and for overrides that change what lies under the keys in
    `frozen` (but `data.path`, and what is masked in the record). `name` is the run's, for the
    command that starts another one.
    """
    body, choices, masked = read_record(path)
    known = {**flatten(body), **choices}
    _check_known(overrides, known)
    changed = {key: value for key, value in overrides.items() if value != known.get(key)}
    free = ("data.path", *masked)
    fixed = [k for k in changed if k in choices or (k.startswith(frozen) and k not in free)]
    if fixed:
        again = shlex.join(["waymark", "run", "--config-from", name, *map(_given, changed.items())])
        raise BadInput(f"{', '.join(fixed)}: cannot change in a recorded run; a new one: {again}")
    return with_overrides(body, choices, masked, changed, trusted, f"recorded in {path}")


def _given(setting: tuple[str, Any]) -> str:
    """Return a setting as it is given on the command line, secrets as they are read there."""
    key, value = setting
    shown = masked(value)
    text = as_interpolation(shown if isinstance(shown, str) else json_text(shown))
    if isinstance(shown, str) and not re.fullmatch(r"[\w./-]+|\$\{oc\.env:\w+\}", text):
        text = '"' + re.sub(r'(\\*)"', r"\1\1\"", text) + '"'
    return f"{key}={text}"


def recorded_model(path: Path, model: Any, trusted: list[str]) -> Any:
    """Make the model that a run's config.yaml names anew; what is masked there comes from `model`.

    Raises BadInput for what `read_record` refuses, and for a class that cannot be made.
    """
    values, *_ = read_record(path)
    settings = values["model"]
    for key, value in settings.items():
        if "***" in str(value):
            settings[key] = getattr(model, key, value)
    return _build("model", values, lambda key: f"recorded in {path}", trusted)


def with_overrides(
    body: dict[str, Any],
    choices: dict[str, str],
    masked: Collection[str],
    overrides: Mapping[str, Any],
    trusted: list[str],
    origin: str,
) -> Resolved:
    """Return recorded values with `overrides` (dotted keys) put on top, checked; see `resolve`.

    Raises BadInput for a value that is `masked` in the record and not given: what a record
    says is never looked up in the environment, from where it could be sent away. Labels do
    without.
    """
    known = flatten(body)
    _check_known(overrides, known)
    left = {key: known[key] for key in masked if "***" in str(known.get(key))}
    kept = {key: Secret(value, value) for key, value in left.items() if isinstance(value, str)}
    overrides = {**kept, **overrides}
    missing = {
        key: value
        for key, value in left.items()
        if overrides.get(key, value) == value and key.partition(".")[0] not in NOT_NEEDED
    }
    if missing:
        again = shlex.join(map(_given, missing.items()))
        unknown = any("***" in MASK.sub("", str(value)) for value in missing.values())
        raise BadInput(
            f"{', '.join(missing)} ({origin}): secrets are not recorded; give {again} again"
            f"{', with what was masked by *** put in' if unknown else ''}."
        )
    for key, value in overrides.items():
        *parents, last = key.split(".")
        place = body
        for parent in parents:
            place = place[parent]
        place[last] = value
    body["trusted_modules"] = trusted
    return resolve(body, choices, lambda key: origin, trusted)


def _check_known(overrides: Iterable[str], known: Collection[str]) -> None:
    for key in overrides:  # `save.keep_best` is one, whether it was recorded as null or with keys
        if key not in known and not any(name.startswith(f"{key}.") for name in known):
            raise BadInput(f"{key}: there is no such key{nearest(key, known)}.")
