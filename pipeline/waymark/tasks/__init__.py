"""Tasks: what the labels are, and so what a model is trained for.

from waymark.config.compose import compose_config
from waymark.data import splits

config = compose_config(["data=mnist_5k"]).config
digits = splits.load(config.data, config.task)
print(digits.y_train.dtype, digits.spec.classes)
"""
