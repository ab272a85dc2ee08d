"""Questions to a store: functions that this process answers, or the delivery process for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])

known: dict[str, Callable[..., Any]] = {}  # name -> function; nothing else is answered


STATUS, PRINT = "status", "print"  # what the delivery process tells without a question


@dataclass(frozen=True)
class Opening:
    """How a process that trains opens a store."""

    uri: str | None
    create: bool
    reading: bool
    environment: Mapping[str, str]
    folder: str  # the current one
    umask: int


class StoreError(Exception):
    """Say in a few words what MLflow, the network or the disk raised in the delivery process."""


def question(function: F) -> F:
    """Let a store answer the calls of a function, whose first argument the store is.

    A `RunStore` calls it here. A `RemoteStore` has the delivery process call it, to which the
    other arguments, and from which the result and what is raised, go as copies.
    """
    name = f"{function.__module__}.{function.__qualname__}"
    known[name] = function

    @wraps(function)
    def ask(store: Any, *args: Any, **kwargs: Any) -> Any:
        return store.answer(name, *args, **kwargs)

    return cast(F, ask)
