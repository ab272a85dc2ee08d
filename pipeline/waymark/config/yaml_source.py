"""The YAML files that Hydra composes: read as YAML allows, or refused with file and line."""

import codecs
import os
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from waymark.errors import BadInput, first_line

MISSING = "??? in "  # and a file of the user's: a value that is to be given


def decode_yaml(body: bytes) -> str:
    """Return YAML's text, UTF-8 or as its mark says; raise ValueError that begins with the line."""
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
    words = [] if context.startswith("while") else [context]
    words += filter(None, (getattr(error, name, None) for name in ("problem", "reason")))
    return f"line {text.count(chr(10), 0, at) + 1}: {' '.join(words) or first_line(error)}"


def read_yaml(path: str) -> tuple[str, dict[str, Any]]:
    """Return text and settings of a file; raise BadInput with the file and the wrong line."""
    from omegaconf._utils import get_yaml_loader

    try:
        text = decode_yaml(Path(path).read_bytes())
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise BadInput(f"{path}, {error}.") from None
    try:
        body = yaml.load(text, Loader=get_yaml_loader())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadInput(f"{path}, {yaml_problem(error, text)}.") from None
    if not isinstance(body, dict) and not (body is None and "@package" in text):
        raise BadInput(f"{path}, line 1: holds no settings.")
    return text, body or {}


@cache
def yaml_class(conf: Path) -> Any:
    """Return Hydra's class for folders of files, which reads them by `read_yaml`.

    In files outside of `conf` a `???` does not give way to a value that was there before.
    """
    from hydra._internal.core_plugins import file_config_source
    from hydra.plugins.config_source import ConfigResult
    from omegaconf import OmegaConf

    # Its name is that of Hydra's class: in a sweep's worker, which gets this one, Hydra offers its
    # own, and leaves the one that is there if the names are the same.
    class FileConfigSource(file_config_source.FileConfigSource):
        def load_config(self, config_path: str) -> ConfigResult:
            name = self._normalize_file_name(config_path)
            path = os.path.realpath(os.path.join(self.path, name))
            text, body = read_yaml(path)
            if not (name.startswith("hydra/") or Path(path).is_relative_to(conf)):
                for key in body.keys() - {"defaults", "hydra"}:
                    body[key] = _to_be_given(body[key], path)
            return ConfigResult(
                config=OmegaConf.create(body),
                path=f"{self.scheme()}://{self.path}",
                provider=self.provider,
                header=self._get_header_dict(text[:512]),
            )

    return FileConfigSource


def _to_be_given(value: Any, path: str) -> Any:
    """Return settings with the file's name in each `???`: see MISSING."""
    if isinstance(value, dict):
        return {key: _to_be_given(inner, path) for key, inner in value.items()}
    return f"{MISSING}{path}" if value == "???" else value


def install(conf: Path) -> None:
    """Let Hydra's own entry points read files by `yaml_class`, here and in a sweep's workers."""
    from hydra._internal.sources_registry import SourcesRegistry
    from hydra.core.plugins import Plugins

    Plugins.instance()  # which registers its own sources
    SourcesRegistry.instance().types["file"] = yaml_class(conf)
