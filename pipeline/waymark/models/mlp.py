"""A multilayer perceptron, written as a user's own Keras model is: one function."""

from collections.abc import Sequence
from typing import Any


def build(
    input_shape: tuple[int, ...],
    outputs: int,
    hidden: Sequence[int] = (256, 128),
    dropout: float = 0.0,
    batch_norm: bool = True,
) -> Any:
    """Return dense layers with ReLU, and a dense layer to the logits [B, outputs].

    Each hidden layer has so many units, batch normalisation before its ReLU, if asked for, and
    dropout of the share `dropout` behind it.
    """
    import keras

    model = keras.Sequential([keras.Input(input_shape), keras.layers.Flatten()])
    for units in hidden:
        model.add(keras.layers.Dense(units, use_bias=not batch_norm))
        if batch_norm:
            model.add(keras.layers.BatchNormalization())
        model.add(keras.layers.ReLU())
        if dropout:
            model.add(keras.layers.Dropout(dropout))
    model.add(keras.layers.Dense(outputs))
    return model
