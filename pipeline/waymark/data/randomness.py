"""Stateless random numbers: every draw is a function of (seed, purpose, number).

There is no generator and no iterator, so there is nothing to save: what step 700 draws does
not depend on how the run got there.
"""

from typing import Any

INITIAL, SAMPLING, DROPOUT = range(3)  # purposes

Tensor = Any  # TensorFlow's, which is imported late and has no types


def random_key(seed: Any, purpose: int, number: Any) -> Tensor:
    """Return the int64 [2] key for `tf.random.stateless_*`; `number` is below 2**48."""
    import tensorflow as tf

    return tf.stack([tf.cast(seed, tf.int64), tf.cast(number, tf.int64) + (purpose << 48)])
