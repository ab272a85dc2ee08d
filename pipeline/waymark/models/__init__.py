"""What a model is, and the few pure functions that every model is run through.

A model is a settings dataclass with two methods (a user's own needs nothing else):

    initial(spec, key)                  name -> first value of each parameter, float32, in order
    logits(parameters, images, dropout) the outputs for a batch, [B, spec.outputs]

`key(i)` is the key (int64 [2]) with which the i-th parameter is drawn by `tf.random.stateless_*`.
`parameters` maps the same names to tensors; `images` is [B, H, W, C] or [B, ...], scaled. Both are
float32, or bfloat16 under `precision=mixed_bfloat16`, and so may the logits be. `dropout` is such
a key in training, None otherwise. Of data with several inputs `images` maps their names to such
tensors, and `spec.shape` to their shapes.

A model that keeps something beside its parameters, as a Keras model does, says so by

    buffers(spec)                       name -> first value of it, asked for after initial()
    train(parameters, buffers, images)  the outputs in training, by name what it assigns before the
                                        update, and a loss of the model's own, float32 []

Then `logits` is what it computes when it is not trained, and finds the buffers among `parameters`.
Its `initial` has two arguments more, `seed` and `precision`, in which it computes by itself.

    from waymark.config.compose import compose_config
    from waymark.evaluation.restore import load_data, parameter_shapes

    config = compose_config(["model=cnn"]).config
    print(config.model, parameter_shapes(config, load_data(config).spec))
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from waymark.data.dataset import MEAN, SCALE, Dataset, ImageSpec
from waymark.data.randomness import Tensor
from waymark.errors import BadInput, UserMessage, listed
from waymark.users_code import defined

Tensors = Mapping[str, Tensor]
NO_STATISTICS: Tensors = MappingProxyType({})


class WrongOutputs(UserMessage):
    """Say how many outputs a model has, and how many the data and the task need."""


def truncated_normal(shape: tuple[int, ...], stddev: float, key: Tensor) -> Tensor:
    """Draw float32 values of `shape`, as `tf.compat.v1.truncated_normal` but without state."""
    import tensorflow as tf

    return tf.random.stateless_truncated_normal(shape, key, stddev=stddev, alg="philox")


def one_input(spec: ImageSpec, model: str) -> tuple[int, ...]:
    """Return the shape of an example of one input; raise BadInput where there are several."""
    if isinstance(spec.shape, dict):
        raise BadInput(
            f"model={model} takes one input, and this data has {listed(list(spec.shape))}; a model "
            f"of your own takes several, as a mapping."
        )
    return spec.shape


def scale(
    images: Tensor, divide: bool | frozenset[str], statistics: Tensors = NO_STATISTICS
) -> Tensor:
    """Return features as float32, divided by 255 if need be as NumPy divides float32.

    Of several inputs, a mapping, those that `divide` names are. With the `statistics` of the
    training set, float32 [D], features [B, D] are standardised: their mean is subtracted, what is
    left divided by their scale.
    """
    import tensorflow as tf

    if not isinstance(divide, bool):
        return {name: scale(array, name in divide) for name, array in images.items()}
    pixels = tf.cast(images, tf.float32)
    if statistics:
        return (pixels - statistics[MEAN]) / statistics[SCALE]
    if not divide:
        return pixels
    # In a compiled function TensorFlow turns `/ 255.0` into a multiplication by 1 / 255, which
    # differs for 126 of the 256 values; this division it leaves alone.
    return tf.math.divide_no_nan(pixels, 255.0)


def forward(
    model: Any, precision: str, parameters: Tensors, images: Tensor, dropout: Tensor | None = None
) -> Tensor:
    """Return float32 outputs [B, spec.outputs] for float32 images, computed in `precision`."""
    import tensorflow as tf

    if precision == "mixed_bfloat16" and not hasattr(model, "buffers"):
        parameters = {name: tf.cast(value, tf.bfloat16) for name, value in parameters.items()}
        images = tf.nest.map_structure(lambda array: tf.cast(array, tf.bfloat16), images)
    return tf.cast(model.logits(parameters, images, dropout), tf.float32)


def first_values(
    model: Any, spec: ImageSpec, key: Callable[[int], Tensor], seed: int, precision: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the first values of the parameters, and of what a model keeps beside them."""
    if not hasattr(model, "buffers"):
        return dict(model.initial(spec, key)), {}
    parameters = dict(model.initial(spec, key, seed=seed, precision=precision))
    return parameters, dict(model.buffers(spec))


def trained_forward(
    model: Any,
    precision: str,
    parameters: Tensors,
    buffers: Tensors,
    images: Tensor,
    dropout: Tensor,
) -> tuple[Tensor, Tensors, Tensor | None]:
    """Return `forward`'s outputs in training, what the model assigns, and its own loss."""
    import tensorflow as tf

    if not hasattr(model, "buffers"):
        return forward(model, precision, parameters, images, dropout), {}, None
    outputs, changed, loss = model.train(parameters, buffers, images)
    return tf.cast(outputs, tf.float32), changed, loss


def functions_of(part: Any) -> list[str]:
    """Return the dotted names of the functions that the settings of a model, or another, name."""
    named = [getattr(part, name) for name in getattr(part, "functions", ())]
    return [name for name in named if name is not None]


def as_logits(model: Any, task: Any, outputs: Tensor) -> Tensor:
    """Return a model's outputs as a task takes them, which they are but for probabilities."""
    convert = getattr(model, "as_logits", None)
    return convert(task, outputs) if convert else outputs


def check_outputs(model: Any, outputs: Tensor, data: Dataset) -> None:
    """Raise WrongOutputs unless a model has the data's outputs; of classes it may have more."""
    shape, wanted = outputs.shape, data.spec.outputs
    if shape.rank is None or (shape.rank and shape[-1] is None and data.has_classes):
        return
    place = defined(model.logits) or defined(model.initial)
    found = shape[-1] if shape.rank else 0
    if data.has_classes:
        if found < wanted:
            raise WrongOutputs(
                f"the data have labels up to {wanted - 1}, but the model has {found} outputs{place}"
            )
    elif shape.rank != 2 or found not in (None, wanted):
        shown = ["N", *shape[1:]]
        raise WrongOutputs(
            f"the task needs outputs [N, {wanted}], but those of the model are "
            f"[{', '.join(map(str, shown))}]{place}"
        )
