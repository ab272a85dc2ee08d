"""What predictions are asked for: files of one kind, which are read in parts, in their order."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeGuard

import numpy as np

from waymark.data.dataset import Dataset
from waymark.data.picture_file import ENDINGS
from waymark.data.rows import Array, Features, Inputs, entries, npy_files
from waymark.data.sources import expand
from waymark.errors import BadInput, listed
from waymark.training import score

PART_BYTES = 2**23  # of features, but for one batch; of a part there are a few copies
MOST_BATCHES = 40  # of a part
Kind = Literal["arrays", "pictures", "table"]
NAMES: Mapping[Kind, str] = {
    "arrays": "an npz or npy files",
    "pictures": "pictures",
    "table": "a CSV or Parquet file",
}
MAGIC = (b"PK\x03\x04", b"PK\x05\x06", b"\x93NUMPY")  # with which npz and npy files begin


@dataclass(frozen=True, eq=False)
class Part:
    """Some examples, as many as whole batches have, but for the last part.

    Features are [n, ...], as the model's data were read; of several inputs a mapping. What `wrong`
    names, by its place, could not be read, and has features 0.
    """

    first: int  # the number of its first example, from 0
    features: Any
    labels: np.ndarray | None = None  # [n, ...], as they were read, where they are known
    files: Sequence[str] = ()  # that the examples come from, one each, if they do
    wrong: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        features = self.features
        return len(next(iter(features.values())) if isinstance(features, dict) else features)


class Reader(Protocol):
    """Inputs that have been looked into."""

    source: str  # for messages
    from_files: bool  # whether each example is a file
    said: str  # what is read
    labelled: bool  # whether labels are known
    truth: str  # for messages: what holds the labels

    def parts(self) -> Iterator[Part]:
        """Yield the examples; raise BadInput for what cannot be read."""


@dataclass(frozen=True)
class Given:
    """The paths that were given, and what they are."""

    kind: Kind
    paths: Sequence[Path]


def look(inputs: Sequence[str | Path]) -> Given:
    """Tell what kind of inputs some paths are, by their names and first bytes; raise BadInput."""
    if not inputs:
        raise BadInput("predict: give an INPUT: pictures, an npz, a folder, a CSV or Parquet file.")
    paths = [expand(str(each)) for each in inputs]
    kinds = [_kind(path) for path in paths]
    for path, kind in zip(paths, kinds, strict=True):
        if kind != kinds[0]:
            raise BadInput(
                f"predict: {paths[0]} is {NAMES[kinds[0]]}, and {path} {NAMES[kind]}; allowed are "
                f"inputs of one kind."
            )
    if kinds[0] != "pictures" and len(paths) > 1:
        raise BadInput(f"predict: {paths[1]}: of several inputs, all must be pictures.")
    return Given(kinds[0], paths)


def _kind(path: Path) -> Kind:
    try:
        if path.is_dir():
            return "arrays" if npy_files(path) else "pictures"
        if path.exists() and not path.is_file():
            raise BadInput(f"predict: {path} is neither a file nor a folder.")
        if path.exists() and path.suffix.lower() in ENDINGS:
            return "pictures"
        with path.open("rb") as file:
            start = file.read(8)
    except (OSError, ValueError) as error:  # the latter: a zero byte
        why = getattr(error, "strerror", None) or error
        raise BadInput(f"predict: {path} cannot be read: {why}.") from None
    arrays = path.suffix in (".npz", ".npy") or start.startswith(MAGIC)
    return "arrays" if arrays else "table"


def rows_of_part(row_bytes: int) -> int:
    """Return how many examples a part has, of so many bytes each: those of whole batches."""
    batches = PART_BYTES // max(1, row_bytes * score.IMAGES_PER_BATCH)
    return score.IMAGES_PER_BATCH * max(1, min(batches, MOST_BATCHES))


def shown(array: Array) -> str:
    """Return the dtype and the shape of examples, of which `array` has one."""
    return f"{array.dtype}[{', '.join(['N', *map(str, array.shape[1:])])}]"


def is_picture(features: Features) -> TypeGuard[Array]:
    """Tell whether features [N, H, W, C] are grey or coloured pictures."""
    return not isinstance(features, Inputs) and features.ndim == 4 and features.shape[3] in (1, 3)


def taken(form: Dataset) -> str:
    """Return what a model takes that was trained on data of such a form."""
    found = [f"{name[1:]} {shown(x)}".strip() for name, x in entries("", form.x_train).items()]
    return listed(found)
