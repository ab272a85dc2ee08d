"""Pictures in files, which are decoded as those of a training set are."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from waymark.data.dataset import Dataset
from waymark.data.images import entries_of
from waymark.data.picture_file import ENDINGS, OtherSize, decode, reason
from waymark.errors import BadInput
from waymark.prediction.inputs import Part, is_picture, rows_of_part, taken


class Pictures:
    """Picture files, and those in folders; those in a folder named by a class are labelled."""

    from_files = True
    truth = "the folders' names"

    def __init__(
        self, paths: Sequence[Path], form: Dataset, resize: bool = False, invert: bool = False
    ) -> None:
        """Find the files; raise BadInput if there is none, or the model takes no pictures."""
        x, self.source = form.x_train, str(paths[0])
        if not is_picture(x) or x.dtype != np.uint8:
            said = f"the run's model takes {taken(form)}, no pictures"
            raise BadInput(f"predict: {self.source}: {said}.")
        height, width, channels = x.shape[1:]
        self._shape, self._resize, self._invert = (height, width, channels), resize, invert
        found: list[tuple[Path, str | None]] = []
        for path in paths:
            found += _in_folder(path) if path.is_dir() else [(path, None)]
        if not found:
            raise BadInput(f"predict: {paths[0]} holds no picture, nor does a folder in it.")
        self._paths = [path for path, _ in found]
        names = [name for _, name in found]
        strange = next((str(name) for name in names if name not in form.class_names), None)
        self.labelled = strange is None
        self._labels = np.array(names) if self.labelled else None
        none = names.count(None) == len(names)
        why = "" if none else f" ({strange!r} is not a class of the run)"
        how = "labelled by their folders" if self.labelled else f"no labels{why}"
        self.said = f"{len(found)} {'pictures' if len(found) > 1 else 'picture'}, {how}"

    def parts(self) -> Iterator[Part]:
        """Yield the pictures, uint8 [n, H, W, C]; what cannot be read is `wrong`."""
        rows = rows_of_part(int(np.prod(self._shape)))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for first in range(0, len(self._paths), rows):
                some = self._paths[first : first + rows]
                pixels, wrong = np.zeros((len(some), *self._shape), np.uint8), {}
                for place, found in enumerate(pool.map(self._one, some)):
                    if isinstance(found, str):
                        wrong[place] = found
                    else:
                        pixels[place] = found
                labels = None if self._labels is None else self._labels[first : first + rows]
                yield Part(first, pixels, labels, [*map(_shown, some)], wrong)

    def _one(self, path: Path) -> np.ndarray | str:
        try:
            found = decode(path.read_bytes(), self._shape, self._resize)
        except OtherSize as error:
            return f"{error}; --resize takes any size"
        except Exception as error:  # damage makes Pillow raise nearly anything
            return getattr(error, "strerror", None) or reason(error)
        return 255 - found if self._invert else found


def _shown(path: Path) -> str:
    return os.fsencode(path).decode(errors="backslashreplace")


def _in_folder(folder: Path) -> list[tuple[Path, str | None]]:
    """Return the pictures in a folder, and those in its folders with their names."""
    found: list[tuple[Path, str | None]] = []
    try:
        for entry in entries_of(folder):
            if not entry.is_dir():
                found += [(Path(entry.path), None)]
            else:
                inner = [each for each in entries_of(Path(entry.path)) if not each.is_dir()]
                found += [(Path(each.path), entry.name) for each in inner]
    except OSError as error:
        raise BadInput(f"{error.filename} is not a readable folder: {error.strerror}.") from None
    return [each for each in found if each[0].suffix.lower() in ENDINGS]
