"""Keras's own file, which `keras.models.load_model` reads: the model alone, behind its scaling.

It returns what the model does, which are logits unless the model ends otherwise. Features that are
divided by 255 or standardised are so by operations of Keras's; a division by a constant would be
made a multiplication in a compiled function, which has other bits: `divide_no_nan` is left alone.
A table's rows come as the run's `signature.json` has their features.
"""

from pathlib import Path
from typing import Any

from waymark.checkpoints import State
from waymark.config.schema import Config
from waymark.data.dataset import MEAN, SCALE
from waymark.data.signature import Signature
from waymark.errors import BadInput, first_line
from waymark.evaluation.restore import scored_values
from waymark.exporting.writing import silence
from waymark.files import replacing, writes
from waymark.keras_import import import_keras, named_afresh

NAME = "model.keras"


def check(config: Config, said: str) -> None:
    """Raise BadInput for a model that is not one of Keras's and tells no layers that equal it."""
    if not (hasattr(config.model, "keras_model") or hasattr(config.model, "keras_layers")):
        raise BadInput(
            f"{said}: its model is a {type(config.model).__name__}, which is none of Keras's and "
            f"has no method keras_layers(outputs); --to=savedmodel takes every model."
        )


def write(config: Config, state: State, signature: Signature, path: Path) -> None:
    """Write a model as `path`, whole or not at all; raise BadInput, DoesNotFit."""
    statistics = {name: state[name] for name in signature.statistics if name in state}
    values = scored_values(config, signature.spec, statistics, state)
    said = getattr(config.model, "said", "model")
    with writes(path.parent), replacing(path) as target, silence():
        try:

            def made() -> Any:
                return _behind_scaling(_model(config, signature, values), signature, values)

            named_afresh(made).save(target)
        except (OSError, BadInput):
            raise
        except Exception as error:  # of a class that Keras cannot save
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise BadInput(f"{said}: Keras cannot save this model: {reason}") from None


def _model(config: Config, signature: Signature, values: State) -> Any:
    """Return a keras.Model that computes what the run's does, of scaled features."""
    keras, model, spec = import_keras(), config.model, signature.spec
    if hasattr(model, "keras_model"):
        made = model.keras_model(spec, config.seed, config.precision)
        for variable in made.variables:
            variable.assign(values[variable.path])
        return made
    keras.config.set_dtype_policy(config.precision)
    made = keras.Sequential([keras.Input(spec.shape), *model.keras_layers(spec.outputs)])
    made.set_weights([values[name] for name in values if name not in signature.statistics])
    return made


def _behind_scaling(model: Any, signature: Signature, values: State) -> Any:
    """Return a model that takes raw features; the same one if they are not scaled."""
    if not (signature.statistics or any(each.divide for each in signature.features)):
        return model
    keras = import_keras()
    inputs, scaled = {}, {}
    for name, each in zip(signature.tensors, signature.features, strict=True):
        inputs[each.name] = keras.Input(each.shape, dtype=each.dtype, name=name)
        pixels = keras.ops.cast(inputs[each.name], "float32")
        if signature.statistics:
            pixels = keras.ops.divide_no_nan(pixels - values[MEAN], values[SCALE])
        elif each.divide:
            pixels = keras.ops.divide_no_nan(pixels, 255.0)
        scaled[each.name] = pixels
    return keras.Model(inputs.get("", inputs), model(scaled.get("", scaled)), name="scaled")
