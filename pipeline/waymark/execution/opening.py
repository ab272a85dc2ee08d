"""What a run says on standard output before it trains: its data, its model, its environment."""

import sys
from collections.abc import Mapping
from math import prod
from typing import Any

from waymark.config.resolve import Resolved
from waymark.data.dataset import Dataset
from waymark.data.rows import entries
from waymark.data.summary import shared_with_training
from waymark.errors import printable
from waymark.table import format_table

Shapes = Mapping[str, tuple[int, ...]]  # of what a model computes with


def data_lines(data: Dataset) -> list[str]:
    """Return a line that tells of the data, and one for each set that shares examples with train.

    The first one has the form of an example, the number of classes, and the size of each set.
    """
    arrays = entries("", data.x_train)
    forms = [f"{name[1:]} {_example(array.shape[1:])}".strip() for name, array in arrays.items()]
    outputs = data.spec.outputs
    kind = "classes" if data.has_classes else "outputs" if outputs > 1 else "output"
    told = [", ".join([*forms, f"{outputs} {kind}"]), *filter(None, [data.summary])]
    lines = [printable(f"data         {data.name}: {'; '.join(told)}")]
    for part, count in shared_with_training(data).items():
        total = len(data.examples(part)[0])
        lines.append(f"{count} of {total} {part} examples stand in the training set as well")
    return lines


def tell_of_saves(steps: int, every: int) -> None:
    """Say on standard error if `save.every` lets no step but the last one be saved."""
    if every > steps:
        said = f"save.every={every} is above steps={steps}: only the last step is saved."
        print(f"waymark: {said}", file=sys.stderr)


def model_lines(resolved: Resolved, shapes: Shapes, table: bool) -> list[str]:
    """Return a line with the number of parameters, and a `table` of all of them if so asked."""
    counts = {name: prod(shape) for name, shape in shapes.items()}
    name = resolved.choices.get("model", type(resolved.config.model).__name__)
    lines = [printable(f"model        {name}: {sum(counts.values()):,} parameters")]
    if table:
        rows = [[name, _form(shapes[name]), f"{count:,}"] for name, count in counts.items()]
        lines.append(format_table(["parameter", "shape", "count"], rows, None))
    return lines


def environment_line(resolved: Resolved, facts: Mapping[str, Any]) -> str:
    """Return a line that tells of threads, devices and precision, by what is recorded of them."""
    config, cpu = resolved.config, facts["cpu"]
    threads = config.runtime.intra_op_threads
    devices = [each["name"] or "GPU" for each in facts["gpus"]] or [cpu["model"] or cpu["machine"]]
    counted = "1 thread" if threads == 1 else f"{threads} threads"
    return printable(f"environment  {counted}, {', '.join(devices)}, {config.precision}")


def _example(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} features" if len(shape) == 1 else _form(shape)


def _form(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
