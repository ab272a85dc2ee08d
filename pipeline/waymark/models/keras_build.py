"""Build a Keras model so that it depends on nothing but its function, or file, and the seed."""

import json
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pkgutil import resolve_name
from typing import Any

import numpy as np

from waymark.data.dataset import ImageSpec
from waymark.errors import BadInput, first_line
from waymark.keras_file import OwnObject, check_config, parse_config, texts
from waymark.keras_import import import_keras, named_afresh
from waymark.users_code import defined, place

KEPT = ("float64", "float32", "float16", "bool")  # with integers, what NumPy's files hold
PATHS = "variables"  # beside a config: the paths of the model's variables
OWN_STEPS = (  # of which Waymark calls none
    *("train_step", "test_step", "predict_step", "compute_loss", "compute_metrics"),
    *("make_train_function", "make_test_function", "fit"),
)


def build_model(
    make: Callable[[Any], Any], spec: ImageSpec | None, seed: int, precision: str, said: str
) -> Any:
    """Return the model that a function makes, built for batches of `spec`; raise BadInput.

    Without a `spec` the model must come built.
    """
    keras = import_keras()

    def build() -> Any:
        keras.config.set_dtype_policy(precision)
        with _seeded(seed):
            model = make(spec)
            if not isinstance(model, keras.Model):
                raise BadInput(f"{said}: returns {_kind(model)}, not a keras.Model.")
            if spec is not None:
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
    if model.run_eagerly:
        raise BadInput(
            f"{said}: its model is compiled with run_eagerly=True, and Waymark computes in a graph."
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
        if variable.trainable and variable.dtype != "float32":
            raise BadInput(
                f"{said}: the trained variable {variable.path!r} is {variable.dtype}; Waymark's "
                f"parameters are float32, and precision=mixed_bfloat16 computes in less."
            )
        if variable.dtype not in KEPT and "int" not in variable.dtype:
            raise BadInput(
                f"{said}: the variable {variable.path!r} is {variable.dtype}, which NumPy's files "
                f"do not hold; precision=mixed_bfloat16 keeps variables in float32."
            )


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}" + (f" of {len(value)}" if hasattr(value, "__len__") else "")


def made_from(config: Mapping[str, Any], trusted: Sequence[str], said: str) -> Any:
    """Return the model that a config describes, by its own names; raise BadInput.

    Of what it names, only Keras's classes and those of the `trusted` modules are made.
    """
    own = check_config(config, trusted, said)
    keras = import_keras()
    from keras.src.saving.serialization_lib import ObjectSharingScope

    objects = {each.registered: _own_object(each, trusted, said) for each in own}
    named = texts(config)
    for key, found in {**keras.saving.get_custom_objects()}.items():  # registered by anybody
        known = key in named or (key.rpartition(">")[2] in named and "builtins" in named)
        if known and not _is_trusted(found, trusted):
            raise BadInput(
                f"{said}: names {key!r}, which is registered with Keras; if you trust its module, "
                f"say so with trusted_modules=[{getattr(found, '__module__', '')}]."
            )
    try:
        with ObjectSharingScope():
            return keras.saving.deserialize_keras_object(deepcopy(config), objects, safe_mode=True)
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(
            f"{said}: Keras {keras.__version__} does not make its model: {type(error).__name__}: "
            f"{first_line(error)}{place(error)}"
        ) from None


def architecture_of(model: Any, said: str) -> dict[str, Any] | None:
    """Return the config from which an equal model is made; None if there is none.

    There is one of a model of Keras's own classes alone, unless another model comes of it.
    """
    keras = import_keras()

    def described(model: Any) -> dict[str, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of lambdas, which are refused
            text = json.dumps(keras.saving.serialize_keras_object(model))
        return parse_config(text.encode(), said)

    try:
        config = described(model)
        with _seeded(0):
            again = named_afresh(lambda: made_from(config, (), said))
        same = described(again) == config and _variables(again) == _variables(model)
    except Exception:  # of a class that tells no config, or does not take its own
        return None
    return config if same else None


def _variables(model: Any) -> list[tuple[Any, ...]]:
    """Return what tells the variables of a model from those of another; paths change."""
    return [(v.name, tuple(v.shape), v.dtype, v.trainable) for v in model.variables]


def with_paths(model: Any, paths: Any, said: str) -> Any:
    """Return a model whose variables are called by these paths, in order; raise BadInput.

    By a config a layer is built in another place than by a function, so that its path differs.
    """
    if model.built and paths is not None:
        texts = isinstance(paths, list) and all(isinstance(path, str) for path in paths)
        if not texts or len(paths) != len(model.variables):
            raise BadInput(f"{said}: its {PATHS} are not those of its model.")
        for variable, path in zip(model.variables, paths, strict=True):
            variable._path = path
    return model


def _own_object(each: OwnObject, trusted: Sequence[str], said: str) -> Any:
    """Import a class or function of the user's own; raise BadInput."""
    try:
        found = resolve_name(f"{each.module}.{each.name}")
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}{place(error)}"
        raise BadInput(f"{said}: {each.module}.{each.name} cannot be loaded: {reason}") from None
    if not _is_trusted(found, trusted):  # a module holds what it imports as well
        raise BadInput(f"{said}: {each.module}.{each.name} is not a class of this module.")
    return found


def _is_trusted(found: Any, trusted: Sequence[str]) -> bool:
    roots = tuple(f"{root}." for root in ("keras", *trusted))
    return f"{getattr(found, '__module__', '')}.".startswith(roots)


def check_policy(model: Any, precision: str, said: str) -> None:
    """Refuse a saved model whose layers, which keep their policies, compute in other types."""
    keras = import_keras()
    without = (keras.Model, keras.layers.InputLayer)  # which take the policy of now
    layers = [each for each in model._flatten_layers() if not isinstance(each, without)]
    policies = {each.name: each.dtype_policy.name for each in layers}
    others = {name: p for name, p in policies.items() if "float" in p and p != precision}
    if precision != "float32" and precision in policies.values():
        others = {}  # some of its layers may compute in float32
    if others:
        name = min(others)
        raise BadInput(
            f"{said}: its layer {name!r} was saved with Keras's policy {others[name]}; "
            f"precision={precision} cannot change that."
        )
