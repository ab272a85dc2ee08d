"""Exports: a trained model for programs that do not know Waymark, a module for each format.

from pathlib import Path

from waymark.evaluation.restore import find_checkpoint, recorded_signature
from waymark.exporting.savedmodel import write_savedmodel

with find_checkpoint("latest", "latest", {}) as found:
    signature, state = recorded_signature(found), found.read()[1]
    write_savedmodel(found.config, state, signature, Path("exported/savedmodel"))
"""
