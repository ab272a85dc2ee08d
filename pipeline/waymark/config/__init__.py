"""The configuration: what may be set, how it is read, what a run recorded.

from waymark.config.compose import compose_config

resolved = compose_config(["model=cnn", "steps=50"])
print(resolved.config.steps, resolved.params(), resolved.record())
"""
