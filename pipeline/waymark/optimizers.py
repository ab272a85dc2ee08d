"""Adam and SGD with momentum, as TensorFlow's fused kernels on float32 variables.

An optimizer is a settings dataclass with two methods (a user's own needs nothing else):

    slots(parameters)   name -> first value of what it remembers between steps
    apply(parameters, slots, gradients, learning_rate)   one update, in place, on tf.Variables

`parameters` and `gradients` have the same names, shapes and dtypes (Waymark's models: float32);
`learning_rate` is a float32 [] tensor: the value of the field of this name, or what the field
`schedule`, if there is one, makes of it at this step. One compiled function serves every value. An
`apply` without the last argument is called without it, and takes no schedule.

An optimizer that averages the parameters says so by

    averages()          name of a parameter -> name of the slot that is scored in its place

which is asked for after slots().
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, PositiveFloat

from waymark.config.schema import settings
from waymark.schedules import Schedule

Tensors = Mapping[str, Any]  # name -> tf.Tensor
Variables = Mapping[str, Any]  # name -> tf.Variable
Decay = Annotated[float, Field(ge=0, lt=1)]


@settings
class Optimizer:
    """What all of Waymark's optimizers are told."""

    # The defaults stand in conf/config.yaml; these are for code that makes an optimizer itself.
    learning_rate: PositiveFloat
    """factor of a step, above 0; unless given the model's: softmax and Keras models 1e-3, linear
    1e-2, cnn 1e-4"""
    schedule: Schedule | None = None
    """how it changes from step to step, by Keras's arithmetic: `cosine` (`decay_steps`, `alpha`),
    `warmup_cosine` (also `warmup_steps`), `exponential` (`decay_steps`, `decay_rate`, `staircase`)
    or `piecewise` (`boundaries`, `values`); null: not at all"""
    weight_decay: NonNegativeFloat | None = None
    """share, times the learning rate, by which each parameter shrinks a step; null: none (`adamw`
    and `muon`: 0.004)"""
    clipnorm: PositiveFloat | None = None
    """the longest a parameter's gradient may be; null: any length"""

    def clip_and_shrink(self, parameters: Variables, gradients: Tensors, rate: Any) -> Tensors:
        """Return the gradients, clipped; let the parameters shrink, in place."""
        import tensorflow as tf

        if self.clipnorm is not None:
            longest = self.clipnorm
            gradients = {name: tf.clip_by_norm(each, longest) for name, each in gradients.items()}
        if self.weight_decay is not None:
            for variable in parameters.values():
                variable.assign_sub(variable * self.weight_decay * rate)
        return gradients


@settings
class Adam(Optimizer):
    """Adam (Kingma and Ba 2015), the arithmetic of `tf.compat.v1.train.AdamOptimizer`.

    The slots bear that class's names, so that its programs can go on from a checkpoint.
    """

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
        gradients = self.clip_and_shrink(parameters, gradients, rate)
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
class Sgd(Optimizer):
    """Gradient descent with momentum, as `tf.compat.v1.train.MomentumOptimizer`."""

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
        gradients = self.clip_and_shrink(parameters, gradients, rate)
        for name, variable in parameters.items():
            tf.raw_ops.ResourceApplyMomentum(
                var=variable.handle,
                accum=slots[f"{name}/Momentum"].handle,
                lr=rate,
                grad=gradients[name],
                momentum=self.momentum,
            )
