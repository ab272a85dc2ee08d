"""Secrets: which environment variables hold one, and what stands for their values in a record.

Only what an interpolation `${oc.env:NAME}` brings from such a variable is masked, at its place:
`https://me:${oc.env:HUB_TOKEN}@host` is recorded as `https://me:***(HUB_TOKEN)@host`.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

from waymark.config.own_hydra import own_resolvers
from waymark.errors import remember_secret

SECRET_NAME = re.compile(
    r"TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|(API|ACCESS|PRIVATE)_KEY|_(PASS|PWD|KEY)\Z"
)
MASK = re.compile(r"\*\*\*\(([^()]*)\)")

_settings: dict[tuple[str, str], str] = {}  # key and text of what was handed out -> masked


class Secret(str):
    """A setting's value that holds a secret, as a text, and what is recorded of it."""

    shown: str
    value: Any  # the text itself, or the number that was made of it

    def __new__(cls, value: Any, shown: str) -> "Secret":
        self = super().__new__(cls, value if isinstance(value, str) else json.dumps(value))
        self.value, self.shown = value, shown
        remember_secret(str(self), shown)
        before, _, rest = shown.partition("***(")
        name, _, after = rest.partition(")")
        if "***(" not in after:
            remember_secret(self[len(before) : len(self) - len(after)], f"***({name})")
        return self

    def __getnewargs__(self) -> tuple[Any, Any]:  # type: ignore[override]
        return self.value, self.shown

    def as_number(self) -> Any:
        """Return the value for a setting that is no text."""
        try:
            return json.loads(self.value)
        except (TypeError, ValueError):
            return self.value


def is_secret(name: str) -> bool:
    """Tell whether the name of an environment variable says that its value is secret."""
    return SECRET_NAME.search(name.upper()) is not None


def map_values(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return nested plain values with each one changed."""
    if isinstance(value, Mapping):
        return {key: map_values(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [map_values(inner, change) for inner in value]
    return change(value)


def reveal_secrets(value: Any) -> Any:
    """Return nested plain values with that of each Secret in its place."""
    return map_values(value, lambda each: each.value if isinstance(each, Secret) else each)


def with_masks(value: Any, shown: Any) -> Any:
    """Return a value, or a list of such, as a Secret where something else is shown."""
    if isinstance(value, list):
        return [with_masks(*pair) for pair in zip(value, shown, strict=True)]
    return value if value == shown else Secret(value, shown)


def remember_settings(values: Mapping[str, Any], shown: Mapping[str, Any]) -> None:
    """Take note of settings, by dotted keys, whose texts are handed out without their masks."""
    texts = {key: value for key, value in values.items() if isinstance(value, str)}
    _settings.update({(key, text): shown[key] for key, text in texts.items()})


def recall_secrets(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings that were handed out, secret ones as Secret."""

    def recalled(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return recall_secrets(value, f"{key}.")
        known = isinstance(value, str) and (key, value) in _settings
        return Secret(value, _settings[key, value]) if known else value

    return {name: recalled(f"{prefix}{name}", value) for name, value in values.items()}


def as_interpolation(text: str) -> str:
    """Return a masked text as it is given on the command line, where it is read and masked."""
    return MASK.sub(r"${oc.env:\1}", text)


def resolve(cfg: Any, partly: bool = False) -> Any:
    """Return the plain values that a DictConfig of OmegaConf's comes to, secret ones as Secret.

    Raises what OmegaConf raises, also for a value that is missing unless `partly`.
    """
    from omegaconf import OmegaConf

    read: set[str] = set()
    with own_resolvers():
        _watch(read, masking=False)
        values: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=not partly)
        if not read:
            return values
        _watch(read, masking=True)
        again = deepcopy(cfg)
        OmegaConf.clear_cache(again)  # of resolvers, which hold true values
        return {key: _marked(value, again, key, read, ()) for key, value in values.items()}


def _marked(value: Any, place: Any, key: Any, read: set[str], above: tuple[str, ...]) -> Any:
    """Return a value with its secrets as Secret; `above` are those that it was taken out of."""
    read.clear()
    try:
        found = place[key]
    except Exception:  # a resolver that cannot do with a mask
        found = None
    names = (*above, *sorted(read))
    if isinstance(value, dict):
        return {k: _marked(inner, found, k, read, names) for k, inner in value.items()}
    if isinstance(value, list):
        return [_marked(inner, found, i, read, names) for i, inner in enumerate(value)]
    if not names or found == value:
        return value
    in_place = isinstance(found, str) and set(MASK.findall(found)) >= set(names)
    return Secret(value, found if in_place else "".join(f"***({n})" for n in dict.fromkeys(names)))


def _watch(read: set[str], masking: bool) -> None:
    """Let `oc.env` tell which secrets it reads and, if `masking`, give a mask for each."""
    from omegaconf import OmegaConf
    from omegaconf.resolvers import oc

    def env(key: str, *default: Any) -> Any:
        if not (is_secret(str(key)) and key in os.environ):
            return oc.env(key, *default)
        read.add(key)
        remember_secret(os.environ[key], f"***({key})")
        return f"***({key})" if masking else os.environ[key]

    def decode(text: str | None, _parent_: Any, _node_: Any) -> Any:
        masked = masking and text is not None and MASK.search(text)
        return text if masked else oc.decode(text, _parent_, _node_)

    OmegaConf.register_new_resolver("oc.env", env, replace=True)
    OmegaConf.register_new_resolver("oc.decode", decode, replace=True)


def without_password(uri: str | None) -> str | None:
    """Return a URI with asterisks for a password; what stands for a variable's value stays."""
    if uri is None:
        return None

    def mask(match: re.Match[str]) -> str:
        known = "".join(mask[0] for mask in MASK.finditer(match["password"]))
        return f"{match['before']}{known or '***'}{match['after']}"

    names = "password|passwd|pwd|token|secret"
    query = rf"(?i)(?P<before>[?&](?:{names})=)(?P<password>[^&\s]*)(?P<after>)"
    user = rf"(?P<before>://[^/@:?]*:)(?!{MASK.pattern}@)(?P<password>\S*)(?P<after>@)"
    return re.sub(user, mask, re.sub(query, mask, uri))


def mask_secrets(values: Any) -> Any:
    """Return nested values with secrets, and passwords in URIs, masked."""

    def mask(value: Any) -> Any:
        value = value.shown if isinstance(value, Secret) else value
        return without_password(value) if isinstance(value, str) else value

    return map_values(values, mask)
