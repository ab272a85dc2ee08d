"""Adam and SGD with momentum, as TensorFlow's fused kernels on float32 variables.

An optimizer is a settings dataclass with two methods (a user's own needs nothing else):

    slots(parameters)   name -> first value of what it remembers between steps
    apply(parameters, slots, gradients, learning_rate)   one update, in place, on tf.Variables

`parameters` and `gradients` have the same names, shapes and dtypes (Waymark's models: float32);
`learning_rate` is a float32 [] tensor with the value of the field of this name, so that one
compiled function serves every value. An `apply` without the last argument is called without it.
"""

import inspect
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, PositiveFloat

from waymark.config.schema import settings

Tensors = Mapping[str, Any]  # name -> tf.Tensor
Variables = Mapping[str, Any]  # name -> tf.Variable
Decay = Annotated[float, Field(ge=0, lt=1)]


def takes_learning_rate(optimizer: Any) -> bool:
    """Tell whether an optimizer's `apply` has the argument `learning_rate`."""
    try:
        return "learning_rate" in inspect.signature(optimizer.apply).parameters
    except (TypeError, ValueError):  # of a compiled extension, which may not tell
        return False


@settings
class Adam:
    """Adam (Kingma and Ba 2015), the arithmetic of `tf.compat.v1.train.AdamOptimizer`.

    The slots bear that class's names, so that its programs can go on from a checkpoint.
    """

    learning_rate: PositiveFloat
    """factor of a step, above 0"""
    beta1: Decay
    """decay of the gradients' mean a step, from 0 to below 1"""
    beta2: Decay
    """decay of the squared gradients' mean a step, from 0 to below 1"""
    epsilon: PositiveFloat
    """what is added to the root of the squared gradients' mean, above 0"""

    def slots(self, parameters: Tensors) -> dict[str, Any]:
        """Return both moments of each parameter, zeros, and both powers of beta, float32 []."""
        import tensorflow as tf

        moments = {
            f"{name}/Adam{suffix}": tf.zeros_like(value)
            for name, value in parameters.items()
            for suffix in ("", "_1")
        }
        powers = {"beta1_power": tf.constant(self.beta1), "beta2_power": tf.constant(self.beta2)}
        return moments | powers

    def apply(
        self, parameters: Variables, slots: Variables, gradients: Tensors, learning_rate: Any = None
    ) -> None:
        """Update `parameters` and `slots` in place; without `learning_rate` by the field's."""
        import tensorflow as tf

        rate = self.learning_rate if learning_rate is None else learning_rate
        power1, power2 = slots["beta1_power"], slots["beta2_power"]
        for name, variable in parameters.items():
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=slots[f"{name}/Adam"].handle,
                v=slots[f"{name}/Adam_1"].handle,
                beta1_power=power1.read_value(),
                beta2_power=power2.read_value(),
                lr=rate,
                beta1=self.beta1,
                beta2=self.beta2,
                epsilon=self.epsilon,
                grad=gradients[name],
            )
        power1.assign(power1 * self.beta1)
        power2.assign(power2 * self.beta2)


@settings
class Sgd:
    """Gradient descent with momentum, as `tf.compat.v1.train.MomentumOptimizer`."""

    learning_rate: PositiveFloat
    """factor of a step, above 0"""
    momentum: Decay
    """decay of the momentum a step, from 0 to below 1"""

    def slots(self, parameters: Tensors) -> dict[str, Any]:
        """Return the momentum of each parameter, zeros of its shape."""
        import tensorflow as tf

        return {f"{name}/Momentum": tf.zeros_like(value) for name, value in parameters.items()}

    def apply(
        self, parameters: Variables, slots: Variables, gradients: Tensors, learning_rate: Any = None
    ) -> None:
        """Update `parameters` and `slots` in place; without `learning_rate` by the field's."""
        import tensorflow as tf

        rate = self.learning_rate if learning_rate is None else learning_rate
        for name, variable in parameters.items():
            tf.raw_ops.ResourceApplyMomentum(
                var=variable.handle,
                accum=slots[f"{name}/Momentum"].handle,
                lr=rate,
                grad=gradients[name],
                momentum=self.momentum,
            )
