"""Checkpoints as NumPy archives: one named array per entry of the state."""

import zipfile
from pathlib import Path
from typing import ClassVar

import numpy as np

from pipeline.checkpoints import SaveFormat, State
from pipeline.config import settings


@settings
class Npz(SaveFormat):
    """`weights-<step>.npz`, read by plain `np.load` without pickle."""

    stem: ClassVar[str] = "weights"

    def write(self, path: Path, state: State) -> list[Path]:
        file = path.with_name(f"{path.name}.npz")
        np.savez(file, allow_pickle=False, **state)  # type: ignore[arg-type]
        return [file]

    def read(self, path: Path) -> State:
        return read_npz(path.with_name(f"{path.name}.npz"))


def read_npz(file: Path) -> State:
    """Return the arrays of an npz file; raise ValueError, OSError or BadZipFile."""
    with zipfile.ZipFile(file) as archive:
        promised = sum(member.file_size for member in archive.infolist())
        if promised > 2 * file.stat().st_size + 1024 and promised > 2**30:
            raise ValueError(f"it promises {promised} bytes, far more than the file holds")
    with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
