"""Data sets: arrays of images and labels, and the batches drawn from them.

from waymark.config.compose import compose_config

digits = compose_config(["data=mnist_5k"]).config.data.load()
print(digits.x_train.shape, digits.spec.classes, digits.digest)
"""
