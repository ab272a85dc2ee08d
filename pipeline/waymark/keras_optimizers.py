"""Keras's optimizers, on variables of Waymark's loop: each class bears the name of Keras's own.

What each setting means is told by Keras's documentation. All that an optimizer remembers, its
learning rate too, is in its slots, under Keras's paths.
"""

from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, PositiveFloat

from waymark.config.schema import settings
from waymark.errors import BadInput, first_line
from waymark.keras_import import import_keras, named_afresh
from waymark.optimizers import Decay, Tensors, Variables

Steps = Annotated[int, Field(ge=2)]


@settings
class KerasOptimizer:
    """What all of them are told, and how they work on tf.Variables."""

    learning_rate: PositiveFloat
    """factor of a step, above 0"""
    weight_decay: NonNegativeFloat | None
    """share, times the learning rate, by which each parameter shrinks a step; null: none"""
    clipnorm: PositiveFloat | None
    """the longest a parameter's gradient may be; null: any length"""
    global_clipnorm: PositiveFloat | None
    """the longest all gradients together may be; null: any length"""
    clipvalue: PositiveFloat | None
    """the most that one number of a gradient may be; null: any"""
    gradient_accumulation_steps: Steps | None
    """so many steps' gradients are averaged for one update; null: each makes one"""

    def slots(self, parameters: Tensors) -> dict[str, Any]:
        """Build the optimizer for parameters; return the first values of its variables."""
        keras, name = import_keras(), type(self).__name__

        def build() -> None:
            self._optimizer = getattr(keras.optimizers, name)(
                **self.__getstate__(), name=name.lower()
            )
            self._parameters = {
                key: keras.Variable(value, dtype=value.dtype.name, name=key.replace("/", "_"))
                for key, value in parameters.items()
            }
            self._optimizer.build(list(self._parameters.values()))

        try:
            named_afresh(build)
        except (ValueError, TypeError) as error:
            raise BadInput(f"optimizer={name.lower()}: {first_line(error)}") from None
        variables = self._optimizer.variables
        values = {variable.path: variable.value.read_value() for variable in variables}
        if len(values) < len(variables):
            raise BadInput(
                f"optimizer={name.lower()}: two parameters have names that are one without /: "
                f"{', '.join(sorted(parameters))}."
            )
        return values

    def variables(self) -> Variables:
        """Return the tf.Variables on which the optimizer that `slots` built works."""
        own = {variable.path: variable.value for variable in self._optimizer.variables}
        return {name: variable.value for name, variable in self._parameters.items()} | own

    def apply(self, parameters: Variables, slots: Variables, gradients: Tensors) -> None:
        """Update what `variables` returned, in place."""
        given = [gradients[name] for name in self._parameters]
        self._optimizer.apply(given, list(self._parameters.values()))

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process makes it from: the settings."""
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}


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
