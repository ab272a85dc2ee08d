"""The commands that show and deliver what was recorded.

`runs` and `compare` do without `waymark.api`, which brings along all that training needs.
"""

import signal
from dataclasses import asdict

import click

from waymark.cli.group import OVERRIDES, cli, show, status_of_server, store_uri
from waymark.errors import BadInput
from waymark.table import age, coloured, metric_value, one_line_each, terminal_width

STATUSES = ("RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED")  # MLflow's
STYLES = {"RUNNING": "cyan", "FINISHED": "green", "FAILED": "red", "KILLED": "yellow"}


@cli.command()
@click.argument("runs", nargs=-1, metavar="RUN RUN... [tracking.uri=URI]")
@click.option("--experiment", metavar="NAME", help="All runs of an experiment.")
@click.option("--sweep", metavar="RUN", help="All trials of a sweep, or of a trial's sweep.")
@click.option("--where", metavar="FILTER", help="Runs that MLflow finds: \"params.model = 'cnn'\".")
@click.option(
    "--sort",
    metavar="NAME",
    help="Sort by a metric, best first, by a setting, duration or steps/s.",
)
@click.option("--metrics", metavar="NAME,NAME", help="Show only these metrics.")
@click.option("--top", type=click.IntRange(min=1), help="Show only the best rows.")
@click.option("--plot", metavar="FILE", help="Draw the curves: FILE.png, .svg, .pdf or .html.")
@click.option("--csv", "as_csv", is_flag=True, help="Print the table as CSV.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
def compare(
    runs: tuple[str, ...],
    sort: str | None,
    metrics: str | None,
    top: int | None,
    plot: str | None,
    as_csv: bool,
    as_json: bool,
    **conditions: str | None,
) -> int:
    """Show what differs between runs: configuration, results, data, code, environment.

    Up to four runs stand side by side; more of them are a line each, the best first. Runs that
    differ only by seed are one: means and their 95 % intervals. Any runs of MLflow's can be
    compared, not only Waymark's.
    """
    from waymark.comparison.report import plot_path
    from waymark.comparison.runs import compare_runs

    named = [text for text in runs if not text.startswith("tracking.uri=")]
    uri = next((text.partition("=")[2] for text in runs if text not in named), None)
    if as_csv and as_json:
        raise BadInput("--csv --json: one of the two.")
    path = None if plot is None else plot_path(plot)
    found = compare_runs(named, uri, **conditions)
    if sort is not None or metrics is not None or top:
        shown = [] if metrics is None else [name.strip() for name in metrics.split(",")]
        found = found.arranged(sort, shown, top)
    if path:
        found.plot(path)
    if as_csv:
        print(found.to_csv(), end="")
    elif as_json:
        print(found.to_json())
    else:
        show(found.text(terminal_width()))
    return 0


@cli.command()
@OVERRIDES
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--experiment", metavar="NAME", help="List only runs of this experiment.")
@click.option("--status", type=click.Choice(STATUSES, case_sensitive=False))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def runs(
    overrides: tuple[str, ...],
    limit: int,
    experiment: str | None,
    status: str | None,
    as_json: bool,
) -> int:
    """List the latest runs, trials below their sweep, and what can be done with each."""
    from waymark.listing import as_tree, list_runs

    found = list_runs(store_uri(overrides), limit, experiment, status)
    if as_json:
        from waymark.config.values import json_text

        for run in found:
            print(json_text({**asdict(run), "todo": run.todo}))
        return 0
    columns = ["id", "name", "model", "status", "steps", "accuracy", "age", "to do"]
    rows = []
    for run, is_trial in as_tree(found):
        judged = metric_value(run.metric, run.value)
        if run.metric != "accuracy" and run.value is not None:
            judged = f"{run.metric} {judged}"
        name = f"  {run.name}" if is_trial else run.name
        facts = [run.id[:8], name, run.model, run.status, run.steps, judged]
        rows.append([*facts, age(run.age), run.todo])
    if rows:
        if not any(row[-1] for row in rows):
            columns, rows = columns[:-1], [row[:-1] for row in rows]
        print(coloured(one_line_each(columns, rows, terminal_width()), STYLES))
    else:
        print(
            "there are no runs here yet"
            if not (experiment or status)
            else "the selection matched 0 runs"
        )
    return 0


@cli.command()
@OVERRIDES
def sync(overrides: tuple[str, ...]) -> int:
    """Deliver to MLflow what could not be delivered; rebuild lost runs from their folders."""
    from waymark import api

    found = api.sync(store_uri(overrides))
    for run in found:
        print(run.sentence)
    if not found:
        print("nothing left to deliver")
    return 0 if all(run.complete for run in found) else 1


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
@click.argument("words", nargs=-1, metavar="[RUN] [tracking.uri=URI]")
def ui(host: str, port: int, words: tuple[str, ...]) -> int:
    """Open MLflow's UI on the runs of this folder, on one of them, or on the trials of a sweep."""
    from waymark import api
    from waymark.processes.signals import handling

    named = [word for word in words if not word.startswith("tracking.uri=")]
    if len(named) > 1:
        raise BadInput(f"ui takes one RUN; got {len(named)}: {' '.join(named)}.")
    uri = store_uri(tuple(word for word in words if word not in named))
    opened, stopped = api.ui(host, port, uri, *named), 0

    def stop(number: int, _: object) -> None:
        nonlocal stopped
        stopped = 128 + number
        opened.stop()

    with handling((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), stop):
        there = "" if opened.is_ours else "the UI of this store is at "
        print(f"{there}{opened.address}", flush=True)
        status = opened.wait()
    return stopped or status_of_server(status)
