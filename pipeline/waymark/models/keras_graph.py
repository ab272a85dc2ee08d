"""A Keras model's computation, looked at before it is trained: what a new process would not repeat.

TensorFlow calls Python once, when it compiles; a resume compiles again. So a model is called twice
here, and must come to the same graph both times.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import numpy as np

from waymark.data.dataset import ImageSpec
from waymark.errors import BadInput
from waymark.keras_import import import_keras
from waymark.users_code import defined

# Operations that hand on what they are given, as an input of a model may be.
HANDED_ON = {
    *("Identity", "Reshape", "ExpandDims", "Squeeze", "StridedSlice", "Slice", "Split", "SplitV"),
    *("Unpack", "Pack", "ConcatV2", "Transpose", "EnsureShape", "Cast"),
}

Node = tuple[str, tuple[Any, ...]]  # name, and what it computes
Call = Callable[[Mapping[str, Any], Any, bool], Any]  # of values by path, features, in training


def graph_of(call: Call, model: Any, spec: ImageSpec) -> Any:
    """Return the graph of a model's call in training and of one that is not; raise what it does.

    Features and variables are placeholders; those of the features bear the inputs' names.
    """
    import tensorflow as tf
    from tensorflow.python.framework.func_graph import FuncGraph

    shapes = spec.shape if isinstance(spec.shape, dict) else {"": spec.shape}
    graph = FuncGraph("model")
    with graph.as_default():
        given = {
            name: tf.compat.v1.placeholder(tf.float32, (None, *shape), name or "features")
            for name, shape in shapes.items()
        }
        values = {
            variable.path: tf.compat.v1.placeholder(variable.dtype, variable.shape)
            for variable in model.variables
        }
        for part, training in (("training", True), ("scoring", False)):
            with tf.name_scope(part):
                call(values, given.get("", given), training)
    graph.features = dict(given)
    return graph


def refuse_changing(call: Call, model: Any, spec: ImageSpec, said: str) -> Any:
    """Return the `graph_of` a call; raise BadInput unless another call computes the same."""
    before = random.getstate(), np.random.get_state()
    try:
        one, two = graph_of(call, model, spec), graph_of(call, model, spec)
        drawn = random.getstate() != before[0], not _same(np.random.get_state(), before[1])
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
    where = _first_difference(one, two)
    if where is None and not any(drawn):
        return one
    by = [name for name, used in zip(("Python's random", "NumPy's"), drawn, strict=True) if used]
    what = f"draws by {' and '.join(by)} generator" if by else "computes otherwise at each call"
    raise BadInput(
        f"{said}: its model {what}{_layer(model, where or '')}, which Python does once, when the "
        f"model is compiled, and a resume would do anew; a layer keeps by add_weight() and draws "
        f"by a keras.random.SeedGenerator."
    )


def integers(graph: Any) -> dict[str, str]:
    """Return the inputs that a model turns into integers, '' of only one, and from which dtype."""
    found = {}
    for name, placeholder in graph.features.items():
        seen, left = set(), [placeholder]
        while left:
            tensor = left.pop()
            for operation in tensor.consumers():
                if operation.type not in HANDED_ON or operation in seen:
                    continue
                seen.add(operation)
                if operation.type == "Cast" and operation.outputs[0].dtype.is_integer:
                    found[name] = tensor.dtype.name
                left += operation.outputs
    return found


@contextmanager
def computing_with(model: Any, values: Mapping[str, Any], training: bool) -> Iterator[Any]:
    """Let a model compute with values in place of its variables'; yield Keras's scope of them.

    A Normalization layer keeps a copy of its variables that no restored state would reach; it
    computes with the values too. What a layer assigns to a trained variable, as a
    SpectralNormalization does, takes the variable's place as in Keras: what comes later reads it,
    and its gradient is the variable's.
    """
    keras: Any = import_keras()

    class Scope(keras.StatelessScope):
        def add_update(self, update: tuple[Any, Any]) -> None:
            variable, value = update
            if variable.trainable and self.get_current_value(variable) is not None:
                value = _in_place_of(self.get_current_value(variable), value)
            super().add_update((variable, value))

    mapping = [(v, values[v.path]) for v in model.variables if v.path in values]
    layers = [x for x in model._flatten_layers() if isinstance(x, keras.layers.Normalization)]
    own = [(x, x.mean, x.variance) for x in layers if x.input_mean is None]
    with Scope(state_mapping=mapping, collect_losses=training) as scope:
        try:
            for layer, *_ in own:
                layer.finalize_state()
            yield scope
        finally:
            for layer, mean, variance in own:
                layer.mean, layer.variance = mean, variance


def _in_place_of(old: Any, new: Any) -> Any:
    """Return `new`, whose gradient is that of `old`: both are values of one variable."""
    import tensorflow as tf

    @tf.custom_gradient
    def replaced(old: Any, new: Any) -> Any:
        return tf.identity(new), lambda upstream: (upstream, None)

    return replaced(old, new)


def _first_difference(one: Any, two: Any) -> str | None:
    """Return the name of the first operation that two graphs have not alike; None if they do."""
    for (name, first), (_, second) in zip_longest(_nodes(one), _nodes(two), fillvalue=("", ())):
        if first != second:
            return name
    outside = [
        [each for each, _ in graph.captures if each.dtype != "resource"] for graph in (one, two)
    ]
    for first, second in zip_longest(*outside):
        if first is not second and not _same(first, second):
            return ""
    return None


def _same(one: Any, two: Any) -> bool:
    """Tell whether two values are the same: arrays, or lists of such."""
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(_same, one, two))
    return bool(np.array_equal(np.asarray(one), np.asarray(two)))


def _nodes(graph: Any) -> Iterator[Node]:
    definition = graph.as_graph_def()
    bodies = {body.signature.name: body for body in definition.library.function}
    return _computed(definition.node, (), bodies)


def _computed(
    nodes: Sequence[Any], arguments: Sequence[str], bodies: Mapping[str, Any]
) -> Iterator[Node]:
    """Yield what each node computes, in order: without names, which count what was traced."""
    places = {name: i for i, name in enumerate([*arguments, *(node.name for node in nodes)])}
    for node in nodes:
        inputs = []
        for text in node.input:
            name, _, rest = text.removeprefix("^").partition(":")
            inputs.append((text.startswith("^"), places.get(name), rest))
        attributes = [
            (key, _value(node.attr[key], bodies))
            for key in sorted(node.attr)
            if not key.startswith("_") and key != "token"  # a number of each Python function
        ]
        yield node.name, (node.op, inputs, attributes)


def _value(attribute: Any, bodies: Mapping[str, Any]) -> Any:
    """Return the value of a node's attribute; of a function, what it computes."""
    called = [attribute.func] if attribute.HasField("func") else attribute.list.func
    found = [bodies[each.name] for each in called if each.name in bodies]
    if not found:
        return attribute.SerializeToString(deterministic=True)
    return [
        [
            what
            for _, what in _computed(
                body.node_def, [a.name for a in body.signature.input_arg], bodies
            )
        ]
        for body in found
    ]


def _layer(model: Any, operation: str) -> str:
    """Say in which layer an operation is, by its name, and where the layer's class stands."""
    layers = {layer.name: layer for layer in model._flatten_layers(include_self=False)}
    for part in reversed(operation.split("/")):
        # A scope bears a number, since Keras opens it to build the layer first.
        layer = layers.get(part.rpartition("_")[0]) or layers.get(part)
        if layer is not None:
            return f" in the layer {layer.name}{defined(type(layer).call)}"
    return ""
