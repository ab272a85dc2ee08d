"""The commands that use what was trained."""

import signal
from dataclasses import astuple
from typing import Any

import click

from waymark.cli.group import CONFIG_DIR, OVERRIDES, cli, with_folder
from waymark.errors import BadInput, printable
from waymark.table import format_table, metric_value, number, terminal_width


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
    values = ", ".join(f"{name} {metric_value(name, x)}" for name, x in found.metrics.items())
    hits = f"{found.hits} of {found.total} examples"
    print(f"{values} ({hits if found.hits is not None else f'{found.total} examples'})")
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

    print(printable(f"written: {api.export(run, folder, *overrides, **options)}"))
    return 0


@cli.command()
@click.argument("run")
@click.argument("name")
@OVERRIDES
@click.option("--alias", help="That the version gets, and another one loses: champion.")
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
    from waymark.processes.signals import Interrupted, handling

    def stop(number: int, _: object) -> None:
        raise Interrupted(number)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    with handling(signals, stop), api.serve(run, *overrides, **options) as server:
        print(server.address, server.curl, sep="\n", flush=True)
        return abs(server.wait())
