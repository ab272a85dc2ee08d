"""Keras's optimizers, on variables of Waymark's loop: each class bears the name of Keras's own.

What each setting means is told by Keras's documentation. All that an optimizer remembers, the
learning rate of its last step too, is in its slots, under Keras's paths. The arithmetic is Keras's;
Adam, AdamW and SGD do it by TensorFlow's fused kernels, in half of the time of a small net's step.
"""

import re
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationInfo
from pydantic import field_validator as checks
from pydantic_core import PydanticCustomError

from waymark.config.schema import settings
from waymark.errors import BadInput, first_line
from waymark.keras_import import import_keras, named_afresh
from waymark.optimizers import Decay, Optimizer, Tensors, Variables

Steps = Annotated[int, Field(ge=2)]


@settings
class KerasOptimizer(Optimizer):
    """What all of them are told, and how they work on tf.Variables."""

    # The defaults stand in conf/keras_optimizer.yaml; these are for code that makes one itself.
    global_clipnorm: PositiveFloat | None = None
    """the longest all gradients together may be; null: any length"""
    clipvalue: PositiveFloat | None = None
    """the most that one number of a gradient may be; null: any"""
    gradient_accumulation_steps: Steps | None = None
    """so many steps' gradients are averaged for one update; null: each makes one"""
    use_ema: bool = False
    """whether a mean of the parameters over the steps (EMA) is kept, and scored in their place"""
    ema_momentum: Annotated[float, Field(ge=0, le=1)] = 0.99
    """decay of that mean a step, 0 to 1"""
    ema_overwrite_frequency: PositiveInt | None = None
    """after so many updates the parameters become their mean; null: never"""

    @checks("global_clipnorm", "clipvalue")
    @classmethod
    def _clip_one_way(cls, value: float | None, known: ValidationInfo) -> float | None:
        before = [name for name in ("clipnorm", "global_clipnorm") if known.data.get(name)]
        if value is not None and before:
            raise PydanticCustomError("clip", "{text}", {"text": f"{before[0]} is set already"})
        return value

    def slots(self, parameters: Tensors) -> dict[str, Any]:
        """Build the optimizer for parameters; return the first values of its variables."""
        keras, name = import_keras(), type(self).__name__
        said = f"optimizer: Keras's {name}"
        given = {key: value for key, value in self.__getstate__().items() if key != "schedule"}

        def build() -> None:
            kind = self._kind(getattr(keras.optimizers, name))
            self._optimizer = kind(**given, name=name.lower())
            self._parameters = {
                key: keras.Variable(value, dtype=value.dtype.name, name=key.replace("/", "_"))
                for key, value in parameters.items()
            }
            self._optimizer.build(list(self._parameters.values()))

        if not hasattr(keras.optimizers, name):
            raise BadInput(f"optimizer: Keras {keras.__version__} has no {name}.")
        try:
            named_afresh(build)
        except (ValueError, TypeError) as error:
            raise BadInput(f"{said}: {first_line(error)}") from None
        self._variables = _by_path(self._optimizer.variables, name.lower())
        for average, parameter in zip(self._averages(), self._parameters.values(), strict=False):
            average.assign(parameter)  # as after the first step, so that it can be scored before
        return {name: variable.value.read_value() for name, variable in self._variables.items()}

    def _kind(self, of_keras: type) -> type:
        """Return Keras's class, or one derived from it whose `update_step` is a faster kernel."""
        return of_keras

    def variables(self) -> Variables:
        """Return the tf.Variables on which the optimizer that `slots` built works."""
        both = {**self._parameters, **self._variables}
        return {name: variable.value for name, variable in both.items()}

    def averages(self) -> dict[str, str]:
        """Return by each parameter's name that of its mean's slot; nothing without EMA."""
        if not self.use_ema:
            return {}
        names = {id(variable): name for name, variable in self._variables.items()}
        found = zip(self._parameters, self._averages(), strict=False)
        return {parameter: names[id(average)] for parameter, average in found}

    def _averages(self) -> list[Any]:
        return list(self._optimizer._model_variables_moving_average) if self.use_ema else []

    def apply(
        self, parameters: Variables, slots: Variables, gradients: Tensors, learning_rate: Any
    ) -> None:
        """Update what `variables` returned, in place."""
        self._optimizer.learning_rate = learning_rate
        given = [gradients[name] for name in self._parameters]
        self._optimizer.apply(given, list(self._parameters.values()))

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process makes it from: the settings."""
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}


def _by_path(variables: list[Any], optimizer: str) -> dict[str, Any]:
    """Return an optimizer's variables by their paths; of several of one path with a number."""
    found: dict[str, Any] = {}
    # Adafactor makes some outside of its own scope, under the names of parameters.
    paths = [f"{optimizer}/{x.path.removeprefix(f'{optimizer}/')}" for x in variables]
    for first, variable in zip(paths, variables, strict=True):
        path, number = first, 0
        while path in found or (number and path in paths):
            number += 1
            path = f"{first}_{number}"
        found[path] = variable
    return found


def _adam_step(optimizer: Any, gradient: Any, variable: Any, learning_rate: Any) -> None:
    """Update a variable as Keras's Adam does, by one kernel in place of a dozen operations."""
    import tensorflow as tf

    index = optimizer._get_variable_index(variable)
    step = tf.cast(optimizer.iterations + 1, tf.float32)
    tf.raw_ops.ResourceApplyAdam(
        var=variable.handle,
        m=optimizer._momentums[index].value.handle,
        v=optimizer._velocities[index].value.handle,
        beta1_power=tf.pow(optimizer.beta_1, step),
        beta2_power=tf.pow(optimizer.beta_2, step),
        lr=tf.cast(learning_rate, tf.float32),
        beta1=optimizer.beta_1,
        beta2=optimizer.beta_2,
        epsilon=optimizer.epsilon,
        grad=gradient,
    )


def _sgd_step(optimizer: Any, gradient: Any, variable: Any, learning_rate: Any) -> None:
    """Update a variable as Keras's SGD with momentum does, by one kernel."""
    import tensorflow as tf

    tf.raw_ops.ResourceApplyKerasMomentum(
        var=variable.handle,
        accum=optimizer.momentums[optimizer._get_variable_index(variable)].value.handle,
        lr=tf.cast(learning_rate, tf.float32),
        grad=gradient,
        momentum=optimizer.momentum,
        use_nesterov=optimizer.nesterov,
    )


@settings
class Adam(KerasOptimizer):
    """Adam (Kingma and Ba 2015), as Keras has it."""

    beta_1: Decay
    """decay of the gradients' mean a step, from 0 to below 1"""
    beta_2: Decay
    """decay of the squared gradients' mean a step, from 0 to below 1"""
    epsilon: PositiveFloat
    """what is added to the root of the squared gradients' mean, above 0"""
    amsgrad: bool
    """whether that mean never falls (Reddi and others 2018)"""

    def _kind(self, of_keras: type) -> type:
        own = {} if self.amsgrad else {"update_step": _adam_step}
        return type(of_keras.__name__, (of_keras,), own)


@settings
class AdamW(KerasOptimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    beta_1: Decay
    """decay of the gradients' mean a step, from 0 to below 1"""
    beta_2: Decay
    """decay of the squared gradients' mean a step, from 0 to below 1"""
    epsilon: PositiveFloat
    """what is added to the root of the squared gradients' mean, above 0"""
    amsgrad: bool
    """whether that mean never falls (Reddi and others 2018)"""


@settings
class Nadam(KerasOptimizer):
    """Adam with Nesterov momentum (Dozat 2015)."""

    beta_1: Decay
    """decay of the gradients' mean a step, from 0 to below 1"""
    beta_2: Decay
    """decay of the squared gradients' mean a step, from 0 to below 1"""
    epsilon: PositiveFloat
    """what is added to the root of the squared gradients' mean, above 0"""


@settings
class Lamb(KerasOptimizer):
    """Adam with a trust ratio for each parameter, for large batches (You and others 2019)."""

    beta_1: Decay
    """decay of the gradients' mean a step, from 0 to below 1"""
    beta_2: Decay
    """decay of the squared gradients' mean a step, from 0 to below 1"""
    epsilon: PositiveFloat
    """what is added to the root of the squared gradients' mean, above 0"""


@settings
class Lion(KerasOptimizer):
    """The sign of a mean of gradients (Chen and others 2023)."""

    beta_1: Annotated[float, Field(gt=0, lt=1)]
    """share of the mean in what is applied, between 0 and 1"""
    beta_2: Decay
    """decay of the gradients' mean a step, from 0 to below 1"""


@settings
class RMSprop(KerasOptimizer):
    """Gradients divided by the root of a mean of their squares (Hinton 2012)."""

    rho: Decay
    """decay of the squared gradients' mean a step, from 0 to below 1"""
    momentum: Decay
    """decay of the momentum a step, from 0 to below 1"""
    epsilon: PositiveFloat
    """what is added to the squared gradients' mean, above 0"""
    centered: bool
    """whether the gradients' variance is taken in place of the mean of their squares"""


@settings
class Adagrad(KerasOptimizer):
    """Gradients divided by the root of the sum of all their squares (Duchi and others 2011)."""

    initial_accumulator_value: NonNegativeFloat
    """what that sum begins at, at least 0"""
    epsilon: PositiveFloat
    """what is added to that sum, above 0"""


@settings
class SGD(KerasOptimizer):
    """Gradient descent with momentum, as Keras has it: with Nesterov's, decay and clipping."""

    momentum: Decay
    """decay of the momentum a step, from 0 to below 1"""
    nesterov: bool
    """whether the momentum is Nesterov's"""

    def _kind(self, of_keras: type) -> type:
        own = {"update_step": _sgd_step} if self.momentum else {}
        return type(of_keras.__name__, (of_keras,), own)


@settings
class Adamax(KerasOptimizer):
    """Adam with the largest of the gradients in place of their squares' mean (its section 7.1)."""

    beta_1: Decay
    """decay of the gradients' mean a step, from 0 to below 1"""
    beta_2: Decay
    """decay of the largest gradient a step, from 0 to below 1"""
    epsilon: PositiveFloat
    """what is added to the largest gradient, above 0"""


@settings
class Adadelta(KerasOptimizer):
    """Steps as long as the mean of those before, and of the gradients, makes them (Zeiler 2012)."""

    rho: Decay
    """decay of both means a step, from 0 to below 1"""
    epsilon: PositiveFloat
    """what is added to both means, above 0"""


@settings
class Adafactor(KerasOptimizer):
    """Squared gradients kept by row and column alone (Shazeer and Stern 2018)."""

    beta_2_decay: Annotated[float, Field(le=0)]
    """power of the step by which their mean forgets less and less, at most 0"""
    epsilon_1: PositiveFloat
    """what is added to the squared gradients, above 0"""
    epsilon_2: PositiveFloat
    """the least size of a parameter, to which its step is relative, above 0"""
    clip_threshold: PositiveFloat
    """the largest mean size of an update, above 0"""
    relative_step: bool
    """whether the rate is at most one by the root of the step"""


@settings
class Ftrl(KerasOptimizer):
    """Follow the regularised leader, for wide and sparse models (McMahan and others 2013)."""

    learning_rate_power: Annotated[float, Field(le=0)]
    """power of the sum of squared gradients by which the rate falls, at most 0"""
    initial_accumulator_value: NonNegativeFloat
    """what that sum begins at, at least 0"""
    l1_regularization_strength: NonNegativeFloat
    """weight of the parameters' absolute values, at least 0"""
    l2_regularization_strength: NonNegativeFloat
    """weight of the parameters' squares, at least 0"""
    l2_shrinkage_regularization_strength: NonNegativeFloat
    """the same, in the gradient alone, at least 0"""
    beta: NonNegativeFloat
    """what is added to the root of that sum, at least 0"""

    @checks("schedule")
    @classmethod
    def _above_zero(cls, schedule: Any) -> Any:
        falls = getattr(schedule, "alpha", 1.0) == 0 or 0 in getattr(schedule, "values", ())
        if falls or getattr(schedule, "kind", None) == "warmup_cosine":
            raise PydanticCustomError("zero", "must stay above 0, by which ftrl divides")
        return schedule


@settings
class Muon(KerasOptimizer):
    """Orthogonal updates of matrices, Adam for all else (Jordan and others 2024)."""

    momentum: Decay
    """decay of the matrices' momentum a step, from 0 to below 1"""
    nesterov: bool
    """whether it is Nesterov's"""
    ns_steps: PositiveInt
    """the iterations that make an update orthogonal"""
    muon_a: float
    """their first coefficient"""
    muon_b: float
    """their second coefficient"""
    muon_c: float
    """their third coefficient"""
    rms_rate: PositiveFloat | None
    """size of an update, before the learning rate; null: as it comes"""
    exclude_layers: list[str]
    """regular expressions: matrices whose path one is found in have Adam as well"""
    exclude_embeddings: bool
    """whether those of embeddings do"""
    adam_lr_ratio: PositiveFloat
    """Adam's learning rate, as a multiple of the other"""
    adam_beta_1: Decay
    """decay of Adam's mean of gradients a step, from 0 to below 1"""
    adam_beta_2: Decay
    """decay of Adam's mean of squared gradients a step, from 0 to below 1"""
    adam_weight_decay: NonNegativeFloat | None
    """`weight_decay` of what Adam has; null: none"""
    epsilon: PositiveFloat
    """what Adam adds to the root of the squared gradients' mean, above 0"""

    @checks("exclude_layers")
    @classmethod
    def _compile(cls, layers: list[str]) -> list[str]:
        for each in layers:
            try:
                re.compile(each)
            except re.error as error:
                raise PydanticCustomError(
                    "regex", "{text}", {"text": f"{each!r} is not a regular expression: {error}"}
                ) from None
        return layers
