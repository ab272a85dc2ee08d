"""Stateless random numbers: every draw is a function of (seed, purpose, number).

There is no generator and no iterator, so there is nothing to save: what step 700 draws does
not depend on how the run got there.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorflow as tf

INITIAL, SAMPLING, DROPOUT = range(3)  # purposes


def random_key(seed: Any, purpose: int, number: Any) -> "tf.Tensor":
    """Return the int64 [2] key for `tf.random.stateless_*`; `number` is below 2**48."""
    import tensorflow as tf

    return tf.stack([tf.cast(seed, tf.int64), tf.cast(number, tf.int64) + (purpose << 48)])
