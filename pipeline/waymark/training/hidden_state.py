"""Refuse what a model or an optimizer keeps beside the state: no checkpoint would hold it."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from waymark.errors import BadInput

PYTHON_OPS = ("PyFunc", "PyFuncStateless", "EagerPyFunc")  # operations that call Python

# Of those that TensorFlow calls stateful, what keeps nothing but in variables: these `trace` knows.
KEEPS_NOTHING = re.compile(
    r"(ReadVariableOp|Assign(Add|Sub)?VariableOp|VarIsInitializedOp|VariableShape"
    r"|Resource(Sparse)?Apply\w+|Resource(Gather|Scatter|Strided)\w+"
    r"|If|Case|While|(Stateful)?PartitionedCall|SymbolicGradient"
    r"|Assert|Print(V2)?|StatelessRandomGet\w+)$"
)


class HiddenState(BadInput):
    """Say in one sentence what a model or an optimizer keeps beside the state."""


@contextmanager
def refuse_variables(parts: Sequence[Any], known: Iterable[Any] = ()) -> Iterator[None]:
    """Raise HiddenState for a tf.Variable made meanwhile that is not in `known` by the end."""
    import tensorflow as tf

    made: list[Any] = []

    def creator(following: Callable[..., Any], **given: Any) -> Any:
        made.append(given.get("name") or "Variable")  # TensorFlow may refuse to make it here
        made[-1] = following(**given)
        return made[-1]

    def refuse_hidden(allowed: Iterable[Any]) -> None:
        handles = {id(getattr(value, "handle", value)) for value in allowed}
        for variable in made:
            if id(getattr(variable, "handle", variable)) not in handles:
                raise _refusal(parts, f"makes {_describe(variable)}") from None

    try:
        with tf.variable_creator_scope(creator):
            yield
    except Exception:
        refuse_hidden(())
        raise
    refuse_hidden(known)


def trace(function: Any, parts: Sequence[Any], known: Iterable[Any], *signature: Any) -> Any:
    """Trace a tf.function; return the concrete one.

    Raises HiddenState for a variable that it makes, or uses and is not among the `known`, for any
    other resource, for Python that it would call, whose state is out of sight, and for operations
    with a state of their own, as those are that draw random numbers by no key.
    """
    with refuse_variables(parts):
        concrete = function.get_concrete_function(*signature)
    handles = {id(variable.handle) for variable in known}
    for captured in concrete.captured_inputs:
        if captured.dtype == "resource" and id(captured) not in handles:
            found = (each for each in concrete.graph.variables if each.handle is captured)
            raise _refusal(parts, f"uses {_describe(next(found, None))}")
    definition = concrete.graph.as_graph_def()
    inner = [node for body in definition.library.function for node in body.node_def]
    for node in [*definition.node, *inner]:
        if kept := _kept_by(node):
            raise _refusal(parts, kept)
    return concrete


def _kept_by(node: Any) -> str:
    """Say what an operation keeps or calls that is in no checkpoint; nothing of all others."""
    from tensorflow.python.framework import op_def_registry

    known, place = op_def_registry.get(node.op), node.name.removeprefix("while/").rpartition("/")[0]
    named = f"({node.op}{f' in {place}' if place else ''})"
    if node.op in PYTHON_OPS:
        return f"calls Python while it computes {named}"
    if node.op.startswith("CudnnRNN") and not node.attr["dropout"].f:
        return ""
    if KEEPS_NOTHING.match(node.op) or not ((known and known.is_stateful) or "seed2" in node.attr):
        return ""
    draws = "draws by a generator of TensorFlow's" if "seed" in node.attr else "keeps something"
    return f"{draws} {named}"


def _describe(variable: Any) -> str:
    if variable is None:
        return "a variable or table without a name"
    name = str(getattr(variable, "name", variable))
    return f"the variable {name.removesuffix(':0').removeprefix('while/')!r}"  # of Waymark's loop


def _refusal(parts: Sequence[Any], what: str) -> HiddenState:
    keras = [part.said for part in parts if hasattr(part, "said")]
    names = [f"{type(part).__module__}.{type(part).__qualname__}" for part in parts]
    own = keras + [name for name in names if not name.startswith("waymark.")]
    kept = (
        "a layer keeps by add_weight() and draws by a keras.random.SeedGenerator"
        if keras
        else "all that a model or an optimizer keeps must be among what its initial() or slots() "
        "returns"
    )
    return HiddenState(
        f"{' or '.join(own or names)}: {what}, whose value is in no checkpoint; {kept}."
    )
