"""Waymark: train TensorFlow models that can be trusted, compared and repeated."""

__version__ = "0.1.0"
