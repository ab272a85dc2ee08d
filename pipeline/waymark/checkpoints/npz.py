"""Checkpoints as NumPy archives: one named array per entry of the state."""

import zipfile
from pathlib import Path
from typing import ClassVar

import numpy as np

from waymark.checkpoints import SaveFormat, State
from waymark.config.schema import settings
from waymark.npz import read_npz


@settings
class Npz(SaveFormat):
    """`weights-<step>.npz`, read by plain `np.load` without pickle."""

    stem: ClassVar[str] = "weights"
    endings: ClassVar[tuple[str, ...]] = (".npz",)

    def write(self, path: Path, state: State) -> list[Path]:
        """Write arrays of any dtype and shape, each under its name; return the one file."""
        file = path.with_name(f"{path.name}.npz")
        # np.savez cannot take arrays called `file` or `allow_pickle`.
        with zipfile.ZipFile(file, "w") as archive:
            for name, array in state.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
        return [file]

    def read(self, path: Path) -> State:
        """Read arrays as they were written; raise what `waymark.npz.read_npz` raises."""
        return read_npz(path.with_name(f"{path.name}.npz"))
