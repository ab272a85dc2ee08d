"""The compiled steps: a batch, its loss and gradients, one update; one call runs many of them."""

from collections.abc import Callable
from typing import Any

from waymark.config.functions import takes_learning_rate
from waymark.config.schema import Config
from waymark.data.dataset import Dataset
from waymark.data.randomness import DROPOUT, Tensor, random_key
from waymark.data.rows import each, is_read
from waymark.data.sources import batch_indices
from waymark.models import Tensors, as_logits, check_outputs, scale, trained_forward
from waymark.schedules import rate_of
from waymark.tasks import example_losses, training_truth
from waymark.training import streaming
from waymark.training.hidden_state import trace


def train_step(
    config: Config,
    data: Dataset,
    parameters: Tensors,
    buffers: Tensors,
    slots: Tensors,
    images: Tensor,
    truth: tuple[Tensor, ...],
    dropout: Tensor,
    learning_rate: Tensor,
) -> Tensor:
    """Take one gradient step, in place; return its loss, float32 [].

    `images` are float32 [batch, H, W, C] or [batch, ...], scaled, `truth` the labels [batch, ...]
    and, if there are any, the weights, float32 [batch], by which the loss is a weighted mean;
    `dropout` is the int64 [2] key of this step's stateless dropout. Raises WrongOutputs.
    """
    import tensorflow as tf

    values, kept = (
        {name: variable.read_value() for name, variable in variables.items()}
        for variables in (parameters, buffers)
    )
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(values)
        outputs, changed, own_loss = trained_forward(
            config.model, config.precision, values, kept, images, dropout
        )
        check_outputs(config.model, outputs, data)
        outputs = as_logits(config.model, config.task, outputs)
        labels, *weights = truth
        losses = example_losses(config.task, labels, outputs, training=True)
        loss = _weighted_mean(losses, *weights) if weights else tf.reduce_mean(losses)
        loss = loss if own_loss is None else loss + own_loss
    gradients = tape.gradient(loss, values, unconnected_gradients="zero")
    rate = {"learning_rate": learning_rate} if takes_learning_rate(config.optimizer) else {}
    kept_by_model = {**parameters, **buffers}
    for name, value in changed.items():
        kept_by_model[name].assign(value)
    config.optimizer.apply(parameters, slots, gradients, **rate)
    getattr(config.model, "constrain", lambda _: None)(parameters)
    return loss


def _weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean of losses [batch]; 0 where all weights are."""
    import tensorflow as tf

    return tf.math.divide_no_nan(tf.reduce_sum(losses * weights), tf.reduce_sum(weights))


def _batches(config: Config, data: Dataset, statistics: Tensors) -> Callable[..., Any]:
    """Return a function of seed, step and, of data larger than memory, the chunk.

    It returns the batch of the step: its features, scaled, and what `training_truth` tells of it.
    """
    import tensorflow as tf

    arrays = () if is_read(data.x_train) else (data.x_train, *training_truth(config.task, data))
    resident = [each(tf.constant, array) for array in arrays]

    def batch(
        seed: tf.Tensor, step: tf.Tensor, *chunk: tf.Tensor
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        if chunk:
            pixels, *known = streaming.batch_of(step, *chunk)
        else:
            sampling, size = config.data.sampling, config.batch_size
            picked = batch_indices(sampling, seed, step, size, len(data.x_train))
            pixels, *known = tf.nest.map_structure(lambda array: tf.gather(array, picked), resident)
        return scale(pixels, data.divide, statistics), tuple(known)

    return batch


def compile_steps(
    config: Config, data: Dataset, variables: Tensors, parameters: Tensors, buffers: Tensors
) -> Any:
    """Compile a function of how many steps (int32 []), seed (int64 []), learning rate (float32 []).

    Where features are larger than memory, also of a chunk of batches (see `streaming`). One call
    returns the losses of all steps, float32 [steps], and the rate of the last one, float32 [].
    Raises HiddenState, WrongOutputs.
    """
    import tensorflow as tf

    statistics = {name: variables[name] for name in data.statistics}
    others = {"step", *parameters, *buffers, *statistics}
    slots = {name: v for name, v in variables.items() if name not in others}
    batch = _batches(config, data, statistics)
    scalars = [tf.TensorSpec([], kind) for kind in (tf.int32, tf.int64, tf.float32)]
    given = [*scalars, *(streaming.signature(config, data) if is_read(data.x_train) else [])]

    @tf.function(autograph=False, input_signature=given)
    def run_steps(
        steps: tf.Tensor, seed: tf.Tensor, learning_rate: tf.Tensor, *chunk: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        reached = variables["step"].read_value()

        def body(
            i: tf.Tensor, losses: tf.TensorArray, pixels: tf.Tensor, known: tuple[tf.Tensor, ...]
        ) -> tuple[tf.Tensor, tf.TensorArray, tf.Tensor, tuple[tf.Tensor, ...]]:
            step = reached + tf.cast(i, tf.int64) + 1
            # The next batch depends on no result, so TensorFlow makes it meanwhile.
            following = batch(seed, step + 1, *chunk)
            dropout = random_key(seed, DROPOUT, step)
            given = (pixels, known, dropout, rate_of(config.optimizer, learning_rate, step))
            loss = train_step(config, data, parameters, buffers, slots, *given)
            return i + 1, losses.write(i, loss), *following

        losses = tf.TensorArray(tf.float32, size=steps, element_shape=[])
        loop = tf.while_loop(
            lambda i, *_: i < steps,
            body,
            (tf.constant(0), losses, *batch(seed, reached + 1, *chunk)),
            parallel_iterations=1,
        )
        last = reached + tf.cast(steps, tf.int64)
        variables["step"].assign(last)
        return loop[1].stack(), rate_of(config.optimizer, learning_rate, last)

    parts = (config.model, config.optimizer, config.task)
    return trace(run_steps, parts, variables.values())
