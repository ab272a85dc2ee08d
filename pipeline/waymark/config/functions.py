"""Functions of the user's own that a setting names: their arguments, told without importing them.

A module of a model imports TensorFlow, which takes seconds, and whose threads must be set first.
"""

import ast
import importlib.machinery
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from waymark.config.values import nearest

GIVEN = ("input_shape", "outputs")  # what a function that builds a model is called with


def written_signature(dotted: str) -> inspect.Signature | None:
    """Return the signature of a function by its source alone; None where it does not tell.

    Raises ValueError for a name that its module, as it is written, never has.
    """
    module, _, name = dotted.rpartition(".")
    path = _source(module)
    if path is None:
        return None
    try:
        body = ast.parse(path.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return None
    names = {name, "__getattr__", "globals", "*"}  # by the last three it may come from anywhere
    bound = [node for node in ast.walk(ast.Module(body, [])) if _named(node) in names]
    found = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == name]
    if not bound:
        raise ValueError(f"{path.name} has no {name}")
    if len(bound) != 1 or len(found) != 1 or found[0].decorator_list:
        return None
    return _signature(found[0].args)


def _named(node: ast.AST) -> str:
    """Return the name that a part of a module binds, and that of `globals`; else nothing."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return node.name
    if isinstance(node, ast.alias):
        return node.asname or node.name
    if isinstance(node, ast.Name) and (isinstance(node.ctx, ast.Store) or node.id == "globals"):
        return node.id
    return ""


def _source(module: str) -> Path | None:
    """Return the file of a module that is not imported, nor any package above it."""
    places: list[str] | None = None
    *packages, last = module.split(".")
    for package in packages:
        spec = importlib.machinery.PathFinder.find_spec(package, places)
        places = list(spec.submodule_search_locations or []) if spec else []
    spec = importlib.machinery.PathFinder.find_spec(last, places)
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _signature(arguments: ast.arguments) -> inspect.Signature:
    kind, parameters = inspect.Parameter, []
    plain, alone = [*arguments.posonlyargs, *arguments.args], len(arguments.posonlyargs)
    first = len(plain) - len(arguments.defaults)
    for number, each in enumerate(plain):
        how = kind.POSITIONAL_ONLY if number < alone else kind.POSITIONAL_OR_KEYWORD
        default = None if number >= first else kind.empty  # that there is one is all that counts
        parameters.append(kind(each.arg, how, default=default))
    if arguments.vararg:
        parameters.append(kind(arguments.vararg.arg, kind.VAR_POSITIONAL))
    for each, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        default = None if value is not None else kind.empty
        parameters.append(kind(each.arg, kind.KEYWORD_ONLY, default=default))
    if arguments.kwarg:
        parameters.append(kind(arguments.kwarg.arg, kind.VAR_KEYWORD))
    return inspect.Signature(parameters)


def arguments_of(
    signature: inspect.Signature, given: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Return with what a function is called: `given` by name or place, if it takes it, settings.

    A parameter of the name of what is `given` takes it; else the first ones without a default do,
    in order. Raises ValueError, which says what does not fit.
    """
    kinds = inspect.Parameter
    parameters = signature.parameters.values()
    by_name = [p for p in parameters if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]
    anything = any(p.kind is kinds.VAR_KEYWORD for p in parameters)
    names = {p.name for p in by_name}
    for name in settings:
        if name in given:
            raise ValueError(f"{name} is not a setting; it is given by the data and the task")
        if name not in names and not anything:
            raise ValueError(f"it takes no {name}{nearest(name, names - given.keys())}")
    keywords = {name: value for name, value in given.items() if name in names}
    left = [value for name, value in given.items() if name not in names]
    places = []
    for p in parameters:
        needed = p.default is p.empty and p.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)
        if not needed or p.name in keywords or p.name in settings:
            continue
        if not left:
            raise ValueError(f"it needs a setting {p.name}")
        value = left.pop(0)
        if p.kind is kinds.POSITIONAL_ONLY:
            places.append(value)
        else:
            keywords[p.name] = value
    return places, {**keywords, **settings}


def check_settings(dotted: str, settings: Mapping[str, Any], locate: Callable[[], Any]) -> None:
    """Raise ValueError unless a function takes these settings; `locate` imports it if need be."""
    signature = None if dotted.rpartition(".")[0] in sys.modules else written_signature(dotted)
    if signature is None:
        signature = inspect.signature(locate())
    arguments_of(signature, dict.fromkeys(GIVEN), settings)


def takes_learning_rate(optimizer: Any) -> bool:
    """Tell whether an optimizer's `apply` has the argument `learning_rate`."""
    try:
        return "learning_rate" in inspect.signature(optimizer.apply).parameters
    except (TypeError, ValueError):  # of a compiled extension, which may not tell
        return False
