"""The console script: where PYTHONPATH leads to another `pipeline`, Waymark's own comes first."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from waymark.__main__ import program  # noqa: F401
