"""The TF1 tutorial's models, as TensorFlow 1 builds them."""

from typing import Any


def tutorial_cnn(images: Any, w: list[Any]) -> Any:
    """Build the graph: each convolution, then bias, then ReLU, and pooling last."""
    import tensorflow as tf

    v1: Any = tf.compat.v1
    for filters, bias in (w[0:2], w[2:4]):
        images = v1.nn.conv2d(images, filters, strides=[1, 1, 1, 1], padding="SAME")
        images = tf.nn.relu(tf.nn.bias_add(images, bias))
        images = v1.nn.max_pool(images, [1, 2, 2, 1], [1, 2, 2, 1], "SAME")
    x = tf.reshape(images, [-1, w[4].shape[0]])
    x = tf.nn.relu(tf.matmul(x, w[4]) + w[5])
    return tf.matmul(x, w[6]) + w[7]
