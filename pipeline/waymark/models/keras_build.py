"""Build a Keras model so that it depends on nothing but its function and the seed."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from waymark.data.dataset import ImageSpec
from waymark.errors import BadInput, first_line
from waymark.keras_import import import_keras, named_afresh
from waymark.users_code import defined, place

OWN_STEPS = ("train_step", "compute_loss", "compute_metrics")  # of which Waymark calls none


def build_model(
    make: Callable[[ImageSpec], Any], spec: ImageSpec, seed: int, precision: str, said: str
) -> Any:
    """Return the model that a function makes, built for batches of `spec`; raise BadInput."""
    keras = import_keras()

    def build() -> Any:
        keras.config.set_dtype_policy(precision)
        with _seeded(seed):
            model = make(spec)
            if not isinstance(model, keras.Model):
                raise BadInput(f"{said}: returns {_kind(model)}, not a keras.Model.")
            _check_model(model, spec, said)
        policy = keras.config.dtype_policy().name
        if policy != precision:
            raise BadInput(
                f"{said}: sets Keras's policy, or clears it with the session, to {policy}; "
                f"precision={precision} is what was asked for."
            )
        return model

    return named_afresh(build)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Let Python's, NumPy's and TensorFlow's generators begin at a seed; put them back."""
    import tensorflow as tf
    from tensorflow.python.eager import context

    keras, here = import_keras(), context.context()
    before = random.getstate(), np.random.get_state()
    of_tensorflow = {name: getattr(here, name) for name in ("_seed", "_rng") if hasattr(here, name)}
    keras.utils.set_random_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        tf.random.set_seed(of_tensorflow.get("_seed"))
        vars(here).pop("_rng", None)  # which draws the seeds of operations, if a seed was ever set
        vars(here).update(of_tensorflow)


def _check_model(model: Any, spec: ImageSpec, said: str) -> None:
    """Build what is not built yet; refuse what cannot be trained here, or not saved."""
    keras = import_keras()
    for name in OWN_STEPS:
        own = getattr(type(model), name)
        if own is not getattr(keras.Model, name):
            raise BadInput(
                f"{said}: {type(model).__name__} has its own {name}(){defined(own)}, which the "
                f"compiled loop does not call; a loss of its own is for add_loss() in call()."
            )
    try:
        shapes = spec.shape if isinstance(spec.shape, dict) else {"": spec.shape}
        given = {name: keras.KerasTensor((None, *x), dtype="float32") for name, x in shapes.items()}
        outputs = model(given.get("", given))
    except Exception as error:
        shown = [f"{name} [{', '.join(map(str, ('N', *x)))}]" for name, x in shapes.items()]
        raise BadInput(
            f"{said}: its model does not take features {', '.join(shown).strip()}: "
            f"{type(error).__name__}: {first_line(error)}{place(error)}"
        ) from None
    if not isinstance(outputs, keras.KerasTensor):
        raise BadInput(
            f"{said}: its model returns {_kind(outputs)}; a task takes one tensor of outputs."
        )
    if not model.trainable_variables:
        raise BadInput(f"{said}: its model has no variable that is trained.")
    seen = set()
    for variable in model.variables:
        if variable.path in seen:
            raise BadInput(
                f"{said}: two variables of its model are called {variable.path!r}; "
                f"give the layers names of their own."
            )
        seen.add(variable.path)
        if variable.dtype not in ("float64", "float32", "float16") and "int" not in variable.dtype:
            raise BadInput(
                f"{said}: the variable {variable.path!r} is {variable.dtype}, which NumPy's files "
                f"do not hold; precision=mixed_bfloat16 keeps variables in float32."
            )


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}" + (f" of {len(value)}" if hasattr(value, "__len__") else "")
