"""The function that every export computes: from raw inputs to what a task says of them.

It scales, standardises and encodes as training did, and computes as `training.score` does. What
it returns for a batch [B] is `waymark.tasks.answers`, which a task names:

    classification   logits float32 [B, K], probabilities float32 [B, K], classes int64 [B]
    multilabel       logits float32 [B, K], probabilities float32 [B, K], labels uint8 [B, K]
    regression       predictions float32 [B, T]
    one's own        outputs float32 [B, T], predictions as its `predict` returns them
"""

from typing import Any

import numpy as np

from waymark.checkpoints import State
from waymark.config.schema import Config
from waymark.data.columns import EncodedColumn
from waymark.data.randomness import Tensor
from waymark.data.signature import ONE, Signature
from waymark.evaluation.restore import scored_values
from waymark.models import Tensors, as_logits, forward, scale
from waymark.tasks import answers


def serving_function(
    config: Config, state: State, signature: Signature, plain: bool = False
) -> tuple[Any, Any]:
    """Return a tf.Module with the variables of a model, and its function, concrete.

    The function takes what `signature.inputs` names, for batches of any size; TensorFlow raises
    InvalidArgumentError for a missing value that nothing fills, another number that is not finite,
    and an unknown category. A `plain` one, for engines without texts and such checks, takes what
    `signature.tensors` names, and such rows come to meaningless outputs. Where the optimizer keeps
    a mean of the parameters, it computes with that.
    """
    import tensorflow as tf

    module = tf.Module()
    statistics = {name: state[name] for name in signature.statistics if name in state}
    values = scored_values(config, signature.spec, statistics, state)
    module.variables_by_name = {
        name: tf.Variable(value, trainable=False, name=name) for name, value in values.items()
    }

    def serve(**given: Tensor) -> dict[str, Tensor]:
        read = {name: each.read_value() for name, each in module.variables_by_name.items()}
        statistics = {name: read.pop(name) for name in signature.statistics}
        features = scale(_features(signature, given, plain), signature.divide, statistics)
        outputs = forward(config.model, config.precision, read, features)
        return answers(config.task, as_logits(config.model, config.task, outputs))

    inputs = signature.tensors if plain else signature.inputs
    kinds = {
        name: tf.TensorSpec((None, *each.shape), each.dtype, name) for name, each in inputs.items()
    }
    module.serve = tf.function(serve, autograph=False)
    return module, module.serve.get_concrete_function(**kinds)


def _features(signature: Signature, given: Tensors, plain: bool) -> Any:
    """Return features as the data set has them, one tensor or several by their names."""
    import tensorflow as tf

    if signature.takes_columns and not plain:
        named = {each.name: given[name] for name, each in signature.inputs.items()}
        return tf.concat([_encoded(each, named[each.name]) for each in signature.columns], 1)
    named = {each.name: given[name] for name, each in signature.tensors.items()}
    fills = [] if signature.takes_columns else [column.fill for column in signature.columns]
    if any(fill is not None for fill in fills):
        named[""] = _filled(named[""], np.array(fills, np.float32))
    if not plain:
        named = {name: _finite(values, name or ONE) for name, values in named.items()}
    return named.get("", named)


def _encoded(column: EncodedColumn, values: Tensor) -> Tensor:
    """Return the features, float32 [B, features], of a column's values [B]."""
    import tensorflow as tf

    if column.kind != "category":
        if column.fill is not None:
            values = _filled(values, np.float32(column.fill))
        return _finite(values, column.name)[:, tf.newaxis]
    if column.fill is not None and "" not in column.categories:
        values = tf.where(tf.equal(values, ""), str(column.fill), values)
    same = tf.equal(values[:, tf.newaxis], tf.constant(column.categories))
    known = tf.reduce_any(same, 1, keepdims=True)
    if column.unknown == "column":
        same = tf.concat([same, tf.logical_not(known)], 1)
    else:
        with tf.control_dependencies([_check(known, f"{column.name}: an unknown category")]):
            same = tf.identity(same)
    return tf.cast(same, tf.float32)


def _filled(values: Tensor, fill: Any) -> Tensor:
    import tensorflow as tf

    return tf.where(tf.math.is_nan(values), fill, values)


def _finite(values: Tensor, name: str) -> Tensor:
    """Return values, and refuse those that are not finite when they are computed."""
    import tensorflow as tf

    if not values.dtype.is_floating:
        return values
    said = f"{name}: a value is missing, or not finite"
    with tf.control_dependencies([_check(tf.math.is_finite(values), said)]):
        return tf.identity(values)


def _check(right: Tensor, said: str) -> Any:
    import tensorflow as tf

    return tf.debugging.Assert(tf.reduce_all(right), [said])
