"""Hydra: from overrides and the YAML files in `conf/` to a checked configuration."""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict
from functools import cache, reduce
from importlib.metadata import PackageNotFoundError, distribution
from operator import getitem
from pathlib import Path
from typing import Any

import yaml

from waymark.config import masking
from waymark.config.own_hydra import load, own_singletons
from waymark.config.resolve import COMMAND_LINE, Resolved, keras_optimizer, resolve
from waymark.config.schema import (
    GROUP_PROTOCOLS,
    OPTIMIZERS_OF_KERAS,
    SCHEDULE,
    SCHEDULES,
    Config,
)
from waymark.config.values import flatten, nearest
from waymark.config.yaml_source import yaml_class
from waymark.errors import BadInput
from waymark.package import CONF

# Overrides of settings that are texts; values in which numbers are meant; and the parts of all
# others: a text in quotes, what may be taken for a number, what stands between such.
TEXT = re.compile(r"(\+{0,2}(?:tags(?:\.[^=]+)?|experiment_name|run_name)=)(.*)", re.DOTALL)
NUMERIC = re.compile(r"\$\{|\b(range|interval|int|float|bool|glob)\(")
PARTS = re.compile(
    r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|(?:\\.|[^,()\[\]{}'"\\])+|.""", re.DOTALL
)
# A schedule is chosen by its dotted key as well: Hydra's own word is the one with a slash, for
# whose choice it takes no null.
CHOSEN = re.compile(
    r"""\+{0,2}optimizer[./]schedule=(?!(?:true|false|nan|inf)$)([a-zA-Z_'"].*)""", re.DOTALL
)
NO_SCHEDULE = "none"
# Settings that only Keras's Adam and SGD have: whether these are meant is known with the model.
OF_KERAS = re.compile(
    r"optimizer\.(beta_[12]|amsgrad|nesterov|global_clipnorm|clipvalue|use_ema|ema_momentum"
    r"|ema_overwrite_frequency|gradient_accumulation_steps)=.*",
    re.DOTALL,
)
SEARCHPATH = "hydra.searchpath"
RENAMED = ("chapter_", "tutorial_")  # how ready-made experiments began, and begin now
# What launchers and Optuna are in, as the extras of pyproject.toml say it.
PACKAGES = {
    "hydra/launcher=joblib": ["hydra-joblib-launcher~=1.2.0"],
    "hydra/launcher=ray": ["hydra-ray-launcher~=1.2.2", "ray>=2.50,<3", "boto3>=1.40"],
    "hydra/launcher=submitit": ["hydra-submitit-launcher~=1.2.0", "submitit>=1.5"],
    "hydra/sweeper=optuna": ["optuna>=4"],
}


@cache
def parser() -> Any:
    """Return Hydra's parser of overrides."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create()


def as_written(overrides: Iterable[str]) -> list[str]:
    """Return overrides as Hydra is to read them.

    Numbers get quotes where a setting is a text (`+tags.version=1.10` is not 1.1), the choice of a
    schedule the name of its group; and what `adam` and `sgd` have with Keras models alone is added.
    """

    def quoted(match: re.Match[str]) -> str:
        text = match[0].strip()
        try:
            number = text and not isinstance(parser().parse_override(f"x={text}").value(), str)
        except hydra_errors():  # what is wrong is said where the whole is read
            return match[0]
        return f"'{text}'" if number else match[0]

    def written(override: str) -> str:
        if chosen := CHOSEN.fullmatch(override):
            return f"{SCHEDULES}=" + re.sub(r"\bnull\b", NO_SCHEDULE, chosen[1])
        if OF_KERAS.fullmatch(override):
            return f"++{override}"
        found = TEXT.fullmatch(override)
        if not found or NUMERIC.search(found[2]):
            return override
        name, value = found.groups()
        if value.strip().startswith("{"):  # name: value, name: value
            return name + re.sub(r"(?<=:)[^,:{}'\"]+(?=[,}])", quoted, value)
        nothing = value.strip().lower() == "null" and "tags." not in name
        return override if nothing else name + PARTS.sub(quoted, value)

    with own_singletons():
        return [written(override) for override in overrides]


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """Return plain key=value overrides as values; raise BadInput for Hydra's other forms."""
    from hydra.errors import OverrideParseException
    from omegaconf import OmegaConf

    overrides = as_written(overrides)
    try:
        with own_singletons():
            found = parser().parse_overrides(overrides)
    except OverrideParseException as error:
        raise BadInput(f"{error.override}: is not of the form key=value.") from None
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond all bounds
        raise BadInput(f"{error} (in {' '.join(overrides)[:80]!r}).") from None
    for item in found:
        if item.is_sweep_override() or item.is_delete() or item.is_add():
            raise BadInput(f"{item.input_line}: only plain key=value can be given here.")
    given = {item.key_or_group: item.value() for item in found}
    if SCHEDULES in given:
        chosen = given.pop(SCHEDULES)
        given = {SCHEDULE: None if chosen == NO_SCHEDULE else chosen, **given}
    # Interpolations know only each other.
    open_ = {key: value for key, value in given.items() if "${" in str(value)}
    if not open_:
        return given
    try:
        return {**given, **masking.resolve(OmegaConf.create(open_))}
    except hydra_errors() as error:
        words = [f"{key}={value}" for key, value in open_.items()]
        said = explain_hydra_error(error, words)
        raise BadInput(f"{said} (in {' '.join(words)[:80]!r}).") from None


def searchpath(folders: Iterable[str]) -> str:
    """Return the override that adds folders of the user's own YAML; raise BadInput for another."""
    quoted = []
    for folder in folders:
        path = Path(folder.removeprefix("file://")).expanduser().absolute()
        if "://" not in folder.removeprefix("file://") and not path.is_dir():
            raise BadInput(f"--config-dir={folder!r}: there is no such folder.")
        text = folder if "://" in folder else f"file://{path}"
        quoted.append("'" + re.sub(r"(\\*)'", r"\1\1\'", text) + "'")
    return f"{SEARCHPATH}=[{','.join(quoted)}]"


def compose_config(overrides: Sequence[str]) -> Resolved:
    """Return the checked configuration for Hydra's `overrides`; raise BadInput."""
    overrides = as_written(overrides)
    with explained(overrides):
        cfg = load(CONF, overrides, yaml_class(CONF))
    choices = cfg.hydra.runtime.choices
    return resolved(cfg, choices, overrides, lambda word: compose_config([*overrides, word]))


def _composed_again(word: str) -> Resolved:
    """Return what the job that Hydra carries out is configured by with another override."""
    from hydra.core.hydra_config import HydraConfig

    now = HydraConfig.get()
    own = [x for x in now.runtime.config_sources if x.provider not in ("hydra", "main", "schema")]
    folders = [f"{each.schema}://{each.path}" for each in own]
    return compose_config([*now.overrides.task, *([searchpath(folders)] if own else []), word])


def resolved(
    cfg: Any,
    chosen: Mapping[str, Any],
    overrides: list[str],
    again: Callable[[str], Resolved] = _composed_again,
) -> Resolved:
    """Return the checked configuration for what Hydra composed; `chosen` is group -> member.

    With a Keras model `adam` and `sgd` are Keras's: that is what `again` composes and checks.
    """
    from omegaconf import OmegaConf

    meant = {f"optimizer={member}" for member in OPTIMIZERS_OF_KERAS.values()}
    words = [text for text in overrides if text not in meant]
    given = {text.lstrip("+").partition("=")[0].replace("/", ".") for text in words}

    def source(key: str) -> str:
        above = [key[:dot] for dot, mark in enumerate(key) if mark == "."]
        return COMMAND_LINE if given & {key, *above} else "conf/"

    choices = {group: str(chosen.get(group)) for group in GROUP_PROTOCOLS}
    own = without_hydra(cfg)
    with explained(overrides):
        values = masking.resolve(own)
    if member := keras_optimizer(flatten(values), chosen):
        return again(f"optimizer={member}")
    for group, member in chosen.items():
        if group in values and group not in GROUP_PROTOCOLS:
            raise BadInput(
                f"{group}={member}: the settings of this file are those of no group, "
                f"so it has to begin with the line `# @package _global_`."
            )
    _keep_texts(values, OmegaConf.to_container(own))  # type: ignore[arg-type]
    return resolve(values, choices, source)


def _keep_texts(values: dict[str, Any], written: Mapping[str, Any]) -> None:
    """Make a text of a number that an interpolation brought to where a text must stand."""

    def text(now: Any, before: object) -> Any:
        number = isinstance(now, bool | int | float) and "${" in str(before)
        return str(now) if number else now

    for key in {"experiment_name", "run_name"} & values.keys():
        values[key] = text(values[key], written[key])
    tags, before = values.get("tags"), written.get("tags")
    if isinstance(tags, Mapping) and isinstance(before, Mapping):
        values["tags"] = {key: text(value, before[key]) for key, value in tags.items()}


def without_hydra(cfg: Any) -> Any:
    """Return what Hydra composed but for its own node."""
    from omegaconf import OmegaConf

    own = [key for key in cfg if key != "hydra"]
    return OmegaConf.masked_copy(cfg, own) if "hydra" in cfg else cfg


def with_group_members(
    body: dict[str, Any],
    choices: dict[str, str],
    members: dict[str, str],
    folders: Iterable[str],
    trusted: list[str],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return recorded values and choices with other `members` of groups in them.

    What the members' YAML, in `conf/` or `folders`, sets comes in, what the former ones' set goes;
    all else stays as it was recorded, but with a Keras model that is chosen `adam` and `sgd` are
    Keras's. Raises BadInput for a member that does not exist.
    """
    values, now = deepcopy(body), {**choices}
    own = [searchpath(folders)] if folders else []
    for group, member in members.items():
        if group == SCHEDULE:  # which a record does not know by the name of its file
            found = _composed([f"{SCHEDULES}={member}", *own])["optimizer"]
            values["optimizer"]["schedule"] = found["schedule"]
        else:
            _change_member(values, now, group, member, own)
    chosen = members.keys() & {"model", "optimizer"}
    if chosen and (member := keras_optimizer(flatten(values), now, trusted)):
        _change_member(values, now, "optimizer", member, own)
    return values, now


def _change_member(
    values: dict[str, Any], choices: dict[str, str], group: str, member: str, own: list[str]
) -> None:
    """Choose another member of a group, in place."""
    former, found = (_composed([f"{group}={name}", *own]) for name in (choices[group], member))
    for key, value in found[group].items():
        values[group].setdefault(key, {} if isinstance(value, dict) else value)
    before, after = flatten(former), flatten(found)
    for key in {**before, **after}:
        if before.get(key, ...) != after.get(key, ...):
            *parents, last = key.split(".")
            place = reduce(getitem, parents, values)
            place.pop(last, None)
            if key in after:
                place[last] = after[key]
    for key in former[group].keys() - found[group].keys():  # which the loop has emptied
        values[group].pop(key, None)
    choices[group] = member


def from_config(config: Config) -> Resolved:
    """Return a typed configuration with the plain values that record it.

    Raises BadInput for what `resolve` refuses: a Config checks its types only when it is made.
    """
    values, choices = asdict(config), {}
    for group in GROUP_PROTOCOLS:
        kind = type(getattr(config, group))
        target = f"{kind.__module__}.{kind.__qualname__}"
        values[group] = {"_target_": target, **values[group]}
        choices[group] = _member(group, target)
    return resolve(masking.recall_secrets(values), choices, lambda key: "the given configuration")


def _member(group: str, target: str) -> str:
    """Return the name by which `conf/` knows a class, else the class's own."""
    for path in sorted((CONF / group).glob("*.yaml")):
        if target in flatten(yaml.safe_load(path.read_text(encoding="utf-8"))).values():
            return path.stem
    return target.rpartition(".")[2].lower()


def to_plain(cfg: Any) -> dict[str, Any]:
    """Return what Hydra composed as plain values, `???` where one is missing.

    Interpolations stay in Hydra's own node, and where one of a value that is missing is among
    them. The experiment's name is the one that is recorded.
    """
    from omegaconf import OmegaConf

    own = {key: OmegaConf.to_container(cfg[key]) if OmegaConf.is_config(cfg[key]) else cfg[key]
           for key in cfg if not OmegaConf.is_missing(cfg, key)}  # fmt: skip
    with contextlib.suppress(*hydra_errors()):
        values = masking.resolve(without_hydra(cfg), partly=True)
        own |= {key: value for key, value in values.items() if key in own}
    return {**own, "experiment_name": str(masking.mask_secrets(own["experiment_name"]))}


def hydra_errors() -> tuple[type[Exception], ...]:
    """Return what Hydra and OmegaConf raise for what a user gave."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    of_values = (ValueError, TypeError, AssertionError, RecursionError)
    return (HydraException, OmegaConfBaseException, *of_values)


@contextlib.contextmanager
def explained(arguments: list[str]) -> Iterator[None]:
    """Raise what Hydra refuses of a command's `arguments` as BadInput; see explain_hydra_error."""
    try:
        yield
    except hydra_errors() as error:
        raise BadInput(explain_hydra_error(error, arguments)) from None


def brought_by(choice: str) -> str:
    """Return a hint that tells how to install a launcher or sweeper, nothing if it is there."""
    try:
        for package in PACKAGES[choice]:
            distribution(re.split("[~<>=]", package)[0])
    except PackageNotFoundError:
        return f"; pip install {' '.join(map(repr, PACKAGES[choice]))} brings it"
    return ""


def explain_hydra_error(error: Exception, arguments: list[str]) -> str:
    """Say in one sentence what Hydra refused, naming the nearest thing that exists."""
    from hydra.errors import MissingConfigException, OverrideParseException
    from omegaconf.errors import MissingMandatoryValue

    if isinstance(error, MissingConfigException) and error.options:
        group, _, member = str(error.missing_cfg_file).rpartition("/")
        options, family = sorted(error.options), member.partition("_")[0]
        if group == SCHEDULES:
            group, options = SCHEDULE, [*(x for x in options if x != NO_SCHEDULE), "null"]
        now = member.replace(*RENAMED)
        hint = f"; it is called {now} now" if now in options else nearest(member, options)
        known = any(name.partition("_")[0] == family for name in options)
        if f"{group}={family}" in PACKAGES and not known:
            hint = brought_by(f"{group}={family}")
            if not hint:  # a run by itself does not look for launchers
                return f"{group}={member}: launchers are for sweeps (waymark run -m)."
        return f"{group}={member}: there is no such choice ({', '.join(options)}){hint}."
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: cannot be read as key=value; "
            f"a value with special characters stands in quotes: 'key=\"value\"'."
        )
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} (conf/): a value is missing."
    unknown = re.search(r"Could not override '([^']+)'", str(error))
    if unknown and unknown[1].split(".")[0] == "tags":
        return f"{unknown[1]}: an entry of tags is added with a plus sign, +tags.NAME=VALUE."
    chosen = any(w.startswith(f"{SCHEDULES}=") and NO_SCHEDULE not in w for w in arguments)
    if unknown and unknown[1].startswith(f"{SCHEDULE}.") and not chosen:
        return f"{unknown[1]}: there is no schedule; {SCHEDULE}=cosine, or another, chooses one."
    if unknown and unknown[1] not in GROUP_PROTOCOLS:
        return f"{unknown[1]}: there is no such key{nearest(unknown[1], _known_keys(arguments))}."
    lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
    if any("full_key: hydra.runtime." in line for line in lines):
        return (
            f"the current folder, {str(Path.cwd())!r}, or that of a configuration: Hydra takes "
            f"a ${{ in its name for an interpolation; use a folder whose path is without it."
        )
    return "; ".join(lines[:2])


def _known_keys(arguments: list[str]) -> list[str]:
    """Return the keys that can be given beside the chosen groups (the user's own left aside)."""
    groups = "|".join([*GROUP_PROTOCOLS, SCHEDULES])
    chosen = [a for a in arguments if re.match(rf"({groups})=\w+$", a)]
    for members in (chosen, []):
        with contextlib.suppress(BadInput):
            known = flatten(_composed(members))
            choices = {"optimizer": "adam", **dict(each.split("=") for each in members)}
            if member := keras_optimizer(known, choices):
                known = flatten(_composed([*members, f"optimizer={member}"]))
            return [*GROUP_PROTOCOLS, *known]
    return list(GROUP_PROTOCOLS)


def _composed(members: list[str]) -> dict[str, Any]:
    """Return what `conf/` says with the chosen members, as it stands there."""
    from omegaconf import OmegaConf

    with explained(members):
        own = without_hydra(load(CONF, members, yaml_class(CONF)))
        return OmegaConf.to_container(own)  # type: ignore[return-value]
