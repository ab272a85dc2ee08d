"""What a trained model takes and returns, in terms of its raw data: `signature.json` of a run.

    signature = signature_of(data, config.task, config.data)
    print(signature.spec, signature.inputs, signature.output_names)

It holds all that is needed to use the model without the data it was trained on.
"""

import keyword
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pydantic

from waymark.config.values import json_text
from waymark.data.columns import EncodedColumn
from waymark.data.dataset import Dataset, ImageSpec
from waymark.data.rows import entries
from waymark.errors import BadInput

FILE = "signature.json"
ONE = "inputs"  # what the input is called where there is only one


@dataclass(frozen=True)
class Feature:
    """Features of one name as a data set has them, before they are scaled."""

    name: str  # '' if there are no others
    shape: tuple[int, ...]  # of one example
    dtype: str
    divide: bool  # whether they are divided by 255


@dataclass(frozen=True)
class Input:
    """What a client sends under one name."""

    name: str  # of the feature or column, as in the data; '' if there are no others
    shape: tuple[int, ...]  # of one example
    dtype: str  # NumPy's name, or `string`


@dataclass(frozen=True)
class Signature:
    """What a trained model takes and returns."""

    task: str  # its kind: classification, multilabel, regression; '' of a task of the user's own
    outputs: int  # of the model, for one example
    output_names: tuple[str, ...]
    """the classes or labels, where they are numbers as texts; of regression the target columns, if
    they are known"""
    features: tuple[Feature, ...]
    feature_names: tuple[str, ...]
    """of the columns of features [N, D], where they are known"""
    statistics: tuple[str, ...]
    """entries of the state by which features are standardised"""
    columns: tuple[EncodedColumn, ...]
    """of a table, in the order of their features"""

    @property
    def spec(self) -> ImageSpec:
        """Return what the model was built for."""
        shapes = {each.name: each.shape for each in self.features}
        return ImageSpec(shapes.get("", shapes), self.outputs)

    @property
    def divide(self) -> bool | frozenset[str]:
        """Tell whether features are divided by 255, or which inputs are; see `models.scale`."""
        if self.features[0].name == "":
            return self.features[0].divide
        return frozenset(each.name for each in self.features if each.divide)

    @property
    def takes_columns(self) -> bool:
        """Tell whether a client sends each column of a table by itself, as texts are among them."""
        return any(column.kind == "category" for column in self.columns)

    @property
    def inputs(self) -> Mapping[str, Input]:
        """Return what a client sends, [B, *shape], by names that are Python's identifiers.

        Of one input that is `inputs`. Of a table with categories each column is an input [B]: texts
        of a category, '' where one is missing, else float32, NaN where one is missing; of another
        table a row, float32 [B, D].
        """
        if not self.takes_columns:
            return self.tensors
        return _named(
            Input(column.name, (), "string" if column.kind == "category" else "float32")
            for column in self.columns
        )

    @property
    def tensors(self) -> Mapping[str, Input]:
        """Return the features, [B, *shape], by such names; those of a table are encoded already."""
        return _named(Input(each.name, each.shape, each.dtype) for each in self.features)

    def dump(self) -> str:
        """Return the content of `signature.json`."""
        return json_text(asdict(self), indent=1)


def _named(inputs: Iterable[Input]) -> dict[str, Input]:
    named: dict[str, Input] = {}
    for each in inputs:
        named[_identifier(each.name or ONE, named)] = each
    return named


def _identifier(name: str, taken: Mapping[str, Any]) -> str:
    """Return a name as TensorFlow takes it for an argument, which is none of the taken."""
    found = re.sub(r"[^0-9A-Za-z_]", "_", name)
    if not found[0].isalpha() or keyword.iskeyword(found) or found == "self":
        found = f"x{found}" if found.startswith("_") else f"x_{found}"
    count = 2
    free = found
    while free in taken:
        free, count = f"{found}_{count}", count + 1
    return free


def signature_of(data: Dataset, task: Any, loader: Any) -> Signature:
    """Return the signature of a model that was trained on a data set that `loader` read."""
    divide = data.divide
    features = [
        Feature(
            name[1:],
            tuple(array.shape[1:]),
            array.dtype.name,
            divide if isinstance(divide, bool) else name[1:] in divide,
        )
        for name, array in entries("", data.x_train).items()
    ]
    kind, outputs, names = getattr(task, "kind", ""), data.spec.outputs, data.class_names
    targets = getattr(loader, "target", None)
    if not names and isinstance(targets, list):
        names = tuple(targets)
    if not names and kind == "regression" and isinstance(targets, str):
        names = (targets,)
    if not names and kind in ("classification", "multilabel"):
        names = tuple(map(str, range(outputs)))
    return Signature(
        kind,
        outputs,
        names,
        tuple(features),
        data.feature_names,
        tuple(data.statistics),
        data.encoding,
    )


def read_signature(content: bytes, said: str) -> Signature:
    """Return what a `signature.json` holds; raise BadInput for what Waymark does not write."""
    try:
        return pydantic.TypeAdapter(Signature).validate_json(content)
    except ValueError:
        raise BadInput(f"{said}: is damaged.") from None
