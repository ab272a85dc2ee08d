"""What this package is: its version, its folder, and the folder of its YAML files."""

from pathlib import Path

__version__ = "0.2.0"
FOLDER = Path(__file__).resolve().parent
# The repository that the package is part of; None where a wheel was installed.
REPOSITORY = None if (FOLDER / "conf").is_dir() else FOLDER.parent.parent
CONF = (REPOSITORY or FOLDER) / "conf"
