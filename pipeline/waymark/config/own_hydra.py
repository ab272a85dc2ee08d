"""Hydra with a state of its own, so that the program that calls Waymark may use Hydra as well."""

import threading
from collections import UserDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

from waymark.errors import BadInput

_lock = threading.RLock()


class _ForThisThread(UserDict[Any, Any]):
    """A table of the process in which this thread finds `own`, all others what was `before`."""

    def __init__(self, own: dict[Any, Any], before: Any) -> None:
        self._own, self._before, self._thread = own, before, threading.get_ident()

    @property
    def data(self) -> Any:  # type: ignore[override]
        return self._own if threading.get_ident() == self._thread else self._before


def load(folder: Path, overrides: Sequence[str], source: Any) -> Any:
    """Return what Hydra makes of a folder's config.yaml by `source`; raise what Hydra raises."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
    from hydra._internal.core_plugins import importlib_resources_config_source as installed
    from hydra._internal.core_plugins import structured_config_source
    from hydra._internal.sources_registry import SourcesRegistry
    from hydra.core.utils import JobRuntime
    from hydra.types import RunMode

    with own_singletons():
        sources = SourcesRegistry.instance()
        sources.register(source)
        sources.register(installed.ImportlibResourcesConfigSource)
        sources.register(structured_config_source.StructuredConfigSource)
        JobRuntime.instance().set("name", "waymark")
        path = ConfigSearchPathImpl()
        path.append("hydra", "pkg://hydra.conf")
        path.append("main", f"file://{folder}")
        path.append("schema", "structured://")
        loader = ConfigLoaderImpl(path)
        return loader.load_configuration("config", list(overrides), RunMode.RUN, from_shell=False)


def parse_flags(arguments: Sequence[str]) -> Any:
    """Return Hydra's own flags, and `overrides`, of a command line; raise BadInput."""
    from hydra._internal.utils import get_args_parser

    def refuse(message: str) -> NoReturn:
        raise BadInput(f"{message} (waymark run --hydra-help lists the flags).")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    return parser.parse_args(list(arguments))


@contextmanager
def own_singletons(for_all_threads: bool = False) -> Iterator[None]:
    """Let this thread, or all threads, use Hydra without the singletons of the process.

    Of the ConfigStore only Hydra's own entries are there: a user's `config` or `model/cnn` would
    be taken for a schema of ours.
    """
    from hydra import version
    from hydra._internal.core_plugins import basic_launcher, basic_sweeper  # noqa: F401
    from hydra.core.config_store import ConfigStore
    from hydra.core.singleton import Singleton

    with nullcontext() if for_all_threads else _lock:
        before, entries = Singleton._instances, ConfigStore.instance().repo["hydra"]
        own: Any = {} if for_all_threads else _ForThisThread({}, before)
        Singleton._instances = own
        try:
            ConfigStore.instance().repo["hydra"] = entries
            version.setbase("1.3")
            yield
        finally:
            Singleton._instances = before


@contextmanager
def own_resolvers() -> Iterator[None]:
    """Let this thread use Hydra's resolvers, `now` for example, beside those of the process."""
    from hydra.core.utils import setup_globals
    from omegaconf.basecontainer import BaseContainer

    with _lock:
        before = BaseContainer._resolvers
        BaseContainer._resolvers = _ForThisThread(dict(before), before)  # type: ignore[assignment]
        try:
            setup_globals()
            yield
        finally:
            BaseContainer._resolvers = before


@contextmanager
def composing_once() -> Iterator[None]:
    """Keep Hydra's entry point from composing twice, the first time for `hydra.mode` alone.

    Whether a command is a sweep is for -m to say here.
    """
    from hydra._internal.hydra import Hydra

    before = Hydra.get_mode

    def unknown(*_: Any, **__: Any) -> None:
        Hydra.get_mode = before  # type: ignore[method-assign]  # for applications inside of ours

    Hydra.get_mode = unknown  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.get_mode = before  # type: ignore[method-assign]
