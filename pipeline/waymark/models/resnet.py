"""A residual network for small pictures, written as a user's own Keras model is: one function."""

from typing import Any


def build(input_shape: tuple[int, ...], outputs: int, depth: int = 20, width: int = 16) -> Any:
    """Return the residual network for CIFAR (He and others 2015, 4.2), to logits [B, outputs].

    Three stages of (depth - 2) / 6 blocks have `width` filters, twice and four times as many; a
    shortcut to another shape is a 1x1 convolution. Raises ValueError for features that are no
    pictures, and for another depth.
    """
    import keras
    from keras import layers

    if len(input_shape) != 3:
        raise ValueError(f"it needs pictures [N, H, W, C]; these features are {input_shape}")
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth={depth}: must be 6n + 2, as 20, 32 and 44 are")

    def convolution(x: Any, filters: int, size: int, strides: int) -> Any:
        x = layers.Conv2D(filters, size, strides, "same", use_bias=False,
                          kernel_initializer="he_normal")(x)  # fmt: skip
        return layers.BatchNormalization()(x)

    inputs = keras.Input(input_shape)
    x = layers.ReLU()(convolution(inputs, width, 3, 1))
    for stage in range(3):
        filters = width * 2**stage
        for block in range(blocks):
            strides = 2 if stage and not block else 1
            inner = layers.ReLU()(convolution(x, filters, 3, strides))
            inner = convolution(inner, filters, 3, 1)
            shortcut = x if strides == 1 else convolution(x, filters, 1, strides)
            x = layers.ReLU()(layers.add([inner, shortcut]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(outputs)(x))
