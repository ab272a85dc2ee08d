"""A trained model on its way to MLflow: a SavedModel, and what MLflow is to know of it.

The process that trains writes the folder `models/<step>` beside its outbox. It appears by a rename,
complete; the delivery makes MLflow's model of it, and removes it.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pydantic

from waymark.errors import first_line
from waymark.files import TEMPORARY, flush

FOLDER, SAVED_MODEL, FACTS = "models", "savedmodel", "model.json"


class Damaged(ValueError):
    """Say that a folder is not as `write` wrote it."""


@dataclass(frozen=True)
class Tensor:
    """An input or output of a model: `shape` is of one example, which stands along the first axis.

    `dtype` is NumPy's name.
    """

    name: str
    dtype: str
    shape: list[int]


@dataclass(frozen=True)
class ModelFacts:
    """What MLflow is to know of a model."""

    step: int  # of the checkpoint
    digest: str  # of its state
    inputs: list[Tensor]
    outputs: list[Tensor]
    example: dict[str, list[Any]]  # of each input a batch of one example
    requirements: list[str]  # packages with their versions, as pip has them
    metadata: dict[str, Any]


FACTS_TYPE = pydantic.TypeAdapter(ModelFacts)


def write(folder: Path, write_saved_model: Callable[[Path], ModelFacts]) -> None:
    """Write a model's folder, whole or not at all.

    `write_saved_model` writes the SavedModel, and returns what is to be known of it.
    """
    new = folder.with_name(f"{TEMPORARY}{folder.name}")
    for old in (new, folder):
        shutil.rmtree(old, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        facts = write_saved_model(new / SAVED_MODEL)
        (new / FACTS).write_text(json.dumps(asdict(facts)), encoding="utf-8")
        flush(*(path for path in new.rglob("*") if path.is_file()))
        os.rename(new, folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def read(folder: Path) -> ModelFacts:
    """Return what is to be known of a model; raise Damaged."""
    try:
        return FACTS_TYPE.validate_json((folder / FACTS).read_bytes(), strict=True)
    except (OSError, ValueError) as error:
        raise Damaged(f"{folder / FACTS} cannot be read: {first_line(error)}") from None


def waiting(home: Path) -> Iterator[tuple[int, Path]]:
    """Yield the steps and folders of a run's models that MLflow has not got, oldest first."""
    found = {int(path.name): path for path in (home / FOLDER).glob("[0-9]*") if path.name.isdigit()}
    yield from sorted(found.items())
