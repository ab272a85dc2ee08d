"""The commands that use what was trained."""

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

import click

from waymark.cli.group import (
    CONFIG_DIR,
    OVERRIDES,
    cli,
    complain,
    interruptible,
    status_of_server,
    with_folder,
)
from waymark.errors import BadInput, printable
from waymark.table import format_table, metric_value, number, terminal_width

OVERRIDE = re.compile(r"(\+\+?|~)?[\w.]+=")  # how one of Hydra's begins; else a path has the "="


def measured_text(metrics: Mapping[str, float], total: int) -> str:
    """Return metrics of so many examples as a line."""
    values = ", ".join(f"{name} {metric_value(name, x)}" for name, x in metrics.items())
    share = metrics.get("accuracy")
    hits = "" if share is None else f"{round(share * total)} of "
    return f"{values} ({hits}{total} examples)"


@cli.command()
@click.argument("arguments", nargs=-1, metavar="RUN [OVERRIDES]")
@click.option("--step", default="latest", help="A step, `best` or `latest` (default).")
@click.option("--checkpoint", help="Score these files instead of a run's; takes model= data=.")
@click.option("--from", "from_meta", type=click.Choice(["state", "meta"]), default="state",
              callback=lambda _context, _option, source: source == "meta",
              help="meta: graph and weights from the files alone, with no model code.")  # fmt: skip
@click.option("--per-class", is_flag=True, help="Precision, recall, F1, support of each class.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@CONFIG_DIR
def evaluate(
    arguments: tuple[str, ...],
    per_class: bool,
    as_json: bool,
    config_dir: str | None,
    **options: Any,
) -> int:
    """Restore a checkpoint and score it on the test set; writes nothing.

    Two forms: `waymark evaluate RUN` for a run's checkpoint and
    `waymark evaluate --checkpoint PATH model=... data=...` for any files.
    """
    from waymark import api
    from waymark.config.values import json_text
    from waymark.tasks.report import CLASS_COLUMNS

    checkpoint = options["checkpoint"]
    if not checkpoint and (not arguments or "=" in arguments[0]):
        raise BadInput("evaluate: give a RUN, or --checkpoint PATH.")
    run = None if checkpoint else arguments[0]
    overrides = with_folder(arguments if checkpoint else arguments[1:], config_dir)
    found = api.evaluate(run, *overrides, **options)
    if per_class and not found.per_class:
        why = "a graph tells no predictions" if options["from_meta"] else "this task has no classes"
        raise BadInput(f"--per-class: {why}.")
    if as_json:
        rows = {"per_class": [vars(each) for each in found.per_class]} if per_class else {}
        print(json_text({**found.plain(), **rows}))
        return 0
    print(measured_text(found.metrics, found.total))
    print(f"restored from {found.source}")
    if per_class:
        lines = [[number(cell) if isinstance(cell, float) else str(cell) for cell in astuple(each)]
                 for each in found.per_class]  # fmt: skip
        print(format_table(CLASS_COLUMNS, lines, terminal_width()))
    return 0


@cli.command()
@click.argument("run")
@click.argument("folder")
@OVERRIDES
@click.option("--to", "target", type=click.Choice(["savedmodel", "keras", "onnx", "tflite"]),
              required=True)  # fmt: skip
@click.option("--step", default="latest", help="A step, `best` or `latest` (default).")
def export(run: str, folder: str, overrides: tuple[str, ...], **options: Any) -> int:
    """Write a checkpoint into FOLDER for programs without Waymark: savedmodel/, model.keras, ..."""
    from waymark import api

    with interruptible():
        written = api.export(run, folder, *overrides, **options)
    print(printable(f"written: {written}"))
    return 0


@cli.command()
@click.argument("run")
@click.argument("name")
@OVERRIDES
@click.option("--alias", help="An alias of the version, as champion; another version loses it.")
@click.option("--step", default="latest", help="A step, `best` or `latest` (default).")
def register(run: str, name: str, overrides: tuple[str, ...], **options: Any) -> int:
    """Make a checkpoint a version of the model NAME in MLflow's Model Registry.

    A checkpoint that is one already stays one; the alias moves.
    """
    from waymark import api

    made = api.register(run, name, *overrides, **options)
    there = "" if made.new else ", which was there already"
    about = f"version {made.version} of {name}{there}: step {made.step} of run {made.run_id}"
    print(printable(about), printable(made.address), sep="\n")
    return 0


@cli.command()
@click.argument("run", metavar="RUN|models:/NAME@ALIAS")
@OVERRIDES
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(1, 65535), default=5001, show_default=True)
@click.option("--step", default="latest", help="A step, `best` or `latest` (default).")
def serve(run: str, overrides: tuple[str, ...], **options: Any) -> int:
    """Serve predictions over HTTP by MLflow's scoring server, until a signal comes.

    Prints its address, and a curl line that asks it about an example.
    """
    from waymark import api

    with interruptible(), api.serve(run, *overrides, **options) as server:
        print(server.address, server.curl, sep="\n", flush=True)
        return status_of_server(server.wait())


@cli.command()
@click.argument("run")
@click.argument("arguments", nargs=-1, metavar="INPUT... [OVERRIDES]")
@click.option("-o", "--output", default="-", metavar="FILE",
              help="A .csv, .parquet or .npz file; else CSV on standard output.")  # fmt: skip
@click.option("--step", default="latest", help="A step, `best` or `latest` (default).")
@click.option("--top", type=int, metavar="K", help="Write the K best classes, not all.")
@click.option("--resize", is_flag=True, help="Resize pictures of another size.")
@click.option("--invert", is_flag=True, help="Invert pictures that are dark on light.")
@click.option("--errors", metavar="FILE.png", help="Draw the most confident mistakes.")
def predict(run: str, arguments: tuple[str, ...], **options: Any) -> int:
    """Predict by a run's checkpoint: of an npz, a folder, a table, or pictures.

    Where labels are known (y_test, the target's column, a folder for each class), it prints the
    metrics as well. A picture that cannot be read is named, and the exit status is 1 then.
    """
    from waymark import api

    overrides = [text for text in arguments if OVERRIDE.match(text) and not os.path.exists(text)]
    inputs = [text for text in arguments if text not in overrides]
    with interruptible():
        found = api.predict(run, inputs, *overrides, **options)
    say = sys.stderr if options["output"] == "-" else sys.stdout
    if found.metrics:
        print(measured_text(found.metrics, found.total), file=say)
    print(printable(f"restored from {found.source}"), file=say)
    if found.written:
        print(printable(f"written: {found.written}, {found.total} predictions"), file=say)
    if options["errors"]:
        drawn = f"{options['errors']}, {found.drawn} mistakes"
        print(printable(f"written: {drawn}" if found.drawn else "no mistakes to draw"), file=say)
    if found.wrong:
        files = "1 file was" if len(found.wrong) == 1 else f"{len(found.wrong)} files were"
        complain(f"{files} left out.")
    return 1 if found.wrong else 0


@cli.command()
@click.argument("run")
@OVERRIDES
@click.option("--against", required=True, metavar="RUN", help="It may not be worse than this run.")
@click.option("--max-drop", "drops", multiple=True, metavar="METRIC=AMOUNT",
              help="How much worse a metric may be; without this, 0 of the metric by which "
              "the run is judged.")  # fmt: skip
@click.option("--significant", is_flag=True, help="Fail only if the whole 95 % interval is worse.")
@click.option("--step", default="latest", help="The step of both, `best` or `latest` (default).")
@click.option("--markdown", is_flag=True, help="Print a table for a pull request.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def gate(
    run: str,
    overrides: tuple[str, ...],
    drops: tuple[str, ...],
    markdown: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Exit with status 3 if a run is worse than another one on the same test set."""
    from waymark import api
    from waymark.config.values import json_text

    if markdown and as_json:
        raise BadInput("--markdown --json: one of the two.")
    found = api.gate(run, *overrides, max_drop=_amounts(drops), **options)
    print(json_text(found.plain()) if as_json else found.markdown() if markdown else found.text())
    return 0 if found.passed else 3


def _amounts(drops: tuple[str, ...]) -> dict[str, float]:
    """Return the allowed drops by metric; raise BadInput for another form, and for two of one."""
    found: dict[str, float] = {}
    for text in drops:
        name, _, amount = text.partition("=")
        try:
            value = float(amount)
        except ValueError:
            raise BadInput(f"--max-drop {text}: must be METRIC=AMOUNT, accuracy=0.002.") from None
        if name in found:
            raise BadInput(f"--max-drop: names {name} twice.")
        found[name] = value
    return found
