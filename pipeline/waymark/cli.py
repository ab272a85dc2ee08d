"""The commands: parse, compose, call one function per command.

`runs` and `compare` do without `waymark.api`, which brings along all that training needs.
"""

import contextlib
import os
import signal
import sys
from dataclasses import astuple
from typing import Any

import click

from waymark.errors import BadInput, explain, printable
from waymark.package import __version__
from waymark.table import age, format_table, metric_value, number, size

FULL_ERROR = os.environ.get("HYDRA_FULL_ERROR", "0") != "0"  # tracebacks, as Hydra's users know
CONFIG_DIR = click.option("--config-dir", metavar="FOLDER", help="With YAML files of your own.")
OVERRIDES = click.argument("overrides", nargs=-1)


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(__version__)
@click.pass_context
def cli(context: click.Context) -> None:
    """Train TensorFlow models that can be trusted, compared and repeated.

    RUN is a run's id, the beginning of one (4 characters or more), a unique run name, or
    `latest`. OVERRIDES are Hydra's: key=value.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


@cli.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    short_help="The whole pipeline: train, save, restore, evaluate, record.",
)
@click.option("--config-from", metavar="RUN")
@click.option("--fork", metavar="RUN[@STEP]")
@CONFIG_DIR
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(config_dir: str | None, arguments: tuple[str, ...], **recorded: Any) -> int:
    """Hand over to Hydra, whose own flags (--multirun, --cfg job, --help) all work.

    With --config-from RUN the configuration is that run's, with --fork RUN[@STEP] its state too.
    """
    if any(text is not None for text in recorded.values()):
        from waymark import api

        _summary(api.run(*_with_folder(arguments, config_dir), **recorded))
        return 0
    if config_dir is not None:
        arguments = ("--config-dir", config_dir, *arguments)
    import hydra
    from omegaconf import DictConfig

    from waymark.config.compose import CONF, as_written, explained
    from waymark.config.own_hydra import composing_once, parse_flags
    from waymark.config.yaml_source import install

    arguments, statuses = tuple(as_written(arguments)), []

    def job(cfg: DictConfig) -> None:
        statuses.append(exit_status_of(lambda: _run(cfg, list(arguments))))
        if statuses[-1] > 128:  # a signal is meant for the whole sweep
            sys.exit(statuses[-1])

    flags = parse_flags(arguments)
    if flags.multirun and not (flags.cfg or flags.help or flags.hydra_help or flags.info):
        from waymark import api

        return api.sweep(*arguments).exit_status
    install(CONF)
    sys.argv = ["waymark run", *arguments]
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # so that errors reach us, not the terminal
    main = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    try:
        with explained(list(arguments)), composing_once():
            main(job)()
    except SystemExit as leaving:  # 0 after --help, 1 where Hydra has said what is wrong
        return 2 if leaving.code == 1 else int(leaving.code or 0)
    return max(statuses, default=0)


def _run(cfg: Any, arguments: list[str]) -> int:
    from hydra.core.hydra_config import HydraConfig

    from waymark.config.compose import resolved as check

    resolved = check(cfg, HydraConfig.get().runtime.choices, arguments)
    from waymark.execution.execute import run as work  # takes longer than a refusal

    steps, every = resolved.config.steps, resolved.config.save.every
    if every > steps and resolved.config.epochs is None:
        complain(f"save.every={every} is above steps={steps}: only the last step is saved.")
    _summary(work(resolved))
    return 0


@cli.command()
@OVERRIDES
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--pictures", metavar="FILE.png", help="Draw some examples of each class.")
@click.option("--clear-cache", "clear", is_flag=True, help="Remove what is kept of pictures.")
@CONFIG_DIR
def data(
    overrides: tuple[str, ...],
    as_json: bool,
    pictures: str | None,
    clear: bool,
    config_dir: str | None,
) -> int:
    """Show what a configuration would read and how it would be split; trains nothing.

    Takes the overrides of `waymark run`: data=arrays data.path=mine.npz data.validation=0.1
    """
    from waymark import api
    from waymark.config.values import json_text

    given = _with_folder(overrides, config_dir)
    if clear:
        if pictures or as_json:
            raise BadInput("--clear-cache: reads no data; give it alone, or with data.cache.")
        folder, count = api.clear_cache(*given)
        print(printable(f"removed {size(count)} from {folder}"))
        return 0
    found = api.describe_data(*given, pictures=pictures)
    print(json_text(found.plain()) if as_json else found.text(_width()))
    return 0


@cli.command()
@click.argument("run")
@OVERRIDES
@click.option("--allow-drift", is_flag=True, help="Go on in another numerical environment.")
def resume(run: str, overrides: tuple[str, ...], allow_drift: bool) -> int:
    """Continue an interrupted run, in the same MLflow run.

    steps=N extends it; settings that would change its numbers are refused.
    """
    from waymark import api
    from waymark.execution.ending import RerunDiverged

    try:
        result = api.resume(run, *overrides, allow_drift=allow_drift)
    except RerunDiverged as diverged:  # as its original may have
        return _verdict(diverged.verdict)
    if result is None:
        print("nothing left to do")
        return 0
    _summary(result)
    return _verdict(result.verdict) if result.verdict else 0


@cli.command()
@click.argument("run")
@OVERRIDES
@click.option("--threads", type=click.IntRange(min=1), help="Another number of threads.")
@click.option("--at-commit", is_flag=True, help="Run the recorded commit with its changes.")
@click.option("--trust-code", is_flag=True, help="Allow --at-commit to run what is recorded.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as one JSON object.")
@CONFIG_DIR
def rerun(
    run: str, overrides: tuple[str, ...], config_dir: str | None, as_json: bool, **options: Any
) -> int:
    """Do a recorded run again and tell whether it comes to the same bits.

    Exit status 0 if it does, 3 if not, with what differs. OVERRIDES may change save, save.*,
    log_every, eval_every, data.path, tracking.*, names and progress.
    """
    from waymark import api

    # The object stands alone on stdout.
    with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
        verdict = api.rerun(run, *_with_folder(overrides, config_dir), **options)
    return _verdict(verdict, as_json)


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
    overrides = _with_folder(arguments if checkpoint else arguments[1:], config_dir)
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
        print(format_table(CLASS_COLUMNS, lines, _width()))
    return 0


@cli.command()
@click.argument("run")
@click.argument("folder")
@OVERRIDES
@click.option("--to", "target", type=click.Choice(["keras"]), required=True)
@click.option("--step", default="latest", help="A step, `best` or `latest` (default).")
def export(run: str, folder: str, overrides: tuple[str, ...], **options: Any) -> int:
    """Write a checkpoint into FOLDER for programs without Waymark: for keras, model.keras."""
    from waymark import api

    print(printable(f"written: {api.export(run, folder, *overrides, **options)}"))
    return 0


@cli.command()
@click.argument("runs", nargs=-1, metavar="RUN RUN... [tracking.uri=URI]")
@click.option("--experiment", metavar="NAME", help="All runs of an experiment.")
@click.option("--sweep", metavar="RUN", help="The children of a parent run, or of a trial's.")
@click.option("--where", metavar="FILTER", help="MLflow's: \"params.model = 'cnn'\".")
@click.option("--plot", metavar="FILE", help="Draw the curves: FILE.png or FILE.html.")
@click.option("--csv", "as_csv", is_flag=True, help="Print the table as CSV.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
def compare(
    runs: tuple[str, ...], plot: str | None, as_csv: bool, as_json: bool, **conditions: str | None
) -> int:
    """Show what differs between runs: configuration, results, data, code, environment.

    Runs that differ only by seed are one row: mean, standard deviation, 95 % interval. Any
    runs of MLflow's can be compared, not only Waymark's.
    """
    from waymark.comparison.report import plot_path
    from waymark.comparison.runs import compare_runs

    named = [text for text in runs if not text.startswith("tracking.uri=")]
    uri = next((text.partition("=")[2] for text in runs if text not in named), None)
    if as_csv and as_json:
        raise BadInput("--csv --json: one of the two.")
    path = None if plot is None else plot_path(plot)
    found = compare_runs(named, uri, **conditions)
    if path:
        found.plot(path)
    if as_csv:
        print(found.to_csv(), end="")
    else:
        print(found.to_json() if as_json else found.text(_width()))
    return 0


@cli.command()
@OVERRIDES
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True)
def runs(overrides: tuple[str, ...], limit: int) -> int:
    """List the runs that were started last, and whether they can be resumed."""
    from waymark.listing import list_runs

    columns = ["id", "name", "model", "status", "steps", "accuracy", "age", "can"]
    rows = []
    for run in list_runs(_store_uri(overrides), limit):
        judged = metric_value(run.metric, run.value)
        if run.metric != "accuracy" and run.value is not None:
            judged = f"{run.metric} {judged}"
        facts = [run.id[:8], run.name, run.model, run.status, run.steps, judged]
        rows.append([*facts, age(run.age), "resume" if run.resumable else ""])
    print(format_table(columns, rows, _width()) if rows else "there are no runs here yet")
    return 0


def _width() -> int | None:
    """Return the terminal's width, None where the output goes elsewhere."""
    return os.get_terminal_size().columns if sys.stdout.isatty() else None


@cli.command()
@OVERRIDES
def sync(overrides: tuple[str, ...]) -> int:
    """Deliver to MLflow what could not be delivered; rebuild lost runs from their folders."""
    from waymark import api

    found = api.sync(_store_uri(overrides))
    for run in found:
        print(run.sentence)
    if not found:
        print("nothing left to deliver")
    return 0 if all(run.complete for run in found) else 1


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
@OVERRIDES
def ui(host: str, port: int, overrides: tuple[str, ...]) -> int:
    """Open MLflow's UI on the runs of this folder."""
    from waymark import api
    from waymark.processes.signals import handling

    opened, stopped = api.ui(host, port, _store_uri(overrides)), 0

    def stop(number: int, _: object) -> None:
        nonlocal stopped
        stopped = 128 + number
        opened.stop()

    with handling((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), stop):
        there = "" if opened.is_ours else "the UI of this store is at "
        print(f"{there}{opened.address}", flush=True)
        status = opened.wait()
    return stopped or abs(status)


def _store_uri(overrides: tuple[str, ...]) -> Any:
    """Return tracking.uri, the only override of some commands; raise BadInput for others."""
    if not overrides:  # Hydra takes a tenth of a second to import
        return None
    from waymark.config.compose import parse_overrides

    given = parse_overrides(overrides)
    if unknown := sorted(set(given) - {"tracking.uri"}):
        raise BadInput(f"{unknown[0]}: there is no such key; the only one here is tracking.uri.")
    return given.get("tracking.uri")


def _with_folder(overrides: tuple[str, ...], config_dir: str | None) -> tuple[str, ...]:
    """Return overrides with the one for a folder of the user's own YAML, if there is one."""
    from waymark.config.compose import searchpath

    return overrides if config_dir is None else (*overrides, searchpath([config_dir]))


def _summary(result: Any) -> None:
    steps = ", ".join(map(str, result.checkpoints))
    name, restored = next(iter(result.restored.items()))
    values = {"in training": result.training.get(name), "restored": restored}
    for when, value in values.items():
        print(f"{f'{name} {when}':<20}  {metric_value(name, value)}")
    print(f"checkpoints kept      {steps}")
    print(f"run                   {result.run_id}")
    print(f"in the UI             {result.link}")


def _verdict(verdict: Any, as_json: bool = False) -> int:
    print(verdict.dump(indent=None) if as_json else "\n".join(map(printable, verdict.lines())))
    return 0 if verdict.identical else 3


def exit_status_of(work: Any) -> int:
    """Do a command's work; turn what can go wrong into one line and an exit status."""
    try:
        return int(work() or 0)
    except BadInput as error:
        complain(str(error))
        return 2
    except (KeyboardInterrupt, click.Abort):
        return 130
    except click.ClickException as error:
        complain(error.format_message())
        return error.exit_code
    except Exception as error:
        status = getattr(error, "status", 1)  # a signal's is 128 + its number
        if status == 1:
            complain(explain(error))
        if FULL_ERROR:
            raise
        return int(status)


def complain(message: str) -> None:
    """Say it in one line, whatever line breaks a name or a library put into it."""
    print("waymark:", " ".join(message.split()), file=sys.stderr)
