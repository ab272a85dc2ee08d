"""What this package is: its version, and the folder that it lies in."""

from pathlib import Path

__version__ = "0.1.0"
FOLDER = Path(__file__).resolve().parent
