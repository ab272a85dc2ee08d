"""The commands that train, and the one that shows what they would read."""

import contextlib
import os
import sys
from typing import Any

import click

from waymark.cli.group import (
    CONFIG_DIR,
    OVERRIDES,
    cli,
    exit_status_of,
    with_folder,
)
from waymark.errors import BadInput, printable
from waymark.table import size, terminal_width


@cli.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    short_help="The whole pipeline: train, save, restore, evaluate, record.",
)
@click.option("--config-from", metavar="RUN")
@click.option("--fork", metavar="RUN[@STEP]|models:/NAME@ALIAS")
@click.option("--summary", is_flag=True)
@CONFIG_DIR
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(config_dir: str | None, arguments: tuple[str, ...], summary: bool, **recorded: Any) -> int:
    """Hand over to Hydra, whose own flags (--multirun, --cfg job, --help) all work.

    With --config-from RUN the configuration is that run's, with --fork RUN[@STEP] its state too.
    With --summary a table of the model's parameters is printed before the run trains.
    """
    several = bool({"-m", "--multirun"} & {*arguments})
    for option, given in {"--summary": summary, "--config-from": recorded["config_from"]}.items():
        if given and several:
            raise BadInput(f"{option}: is for one run, so it does not go with -m.")
    if any(text is not None for text in recorded.values()):
        from waymark import api

        if several:
            folder = [] if config_dir is None else ["--config-dir", config_dir]
            return api.sweep(*folder, *arguments, fork=recorded["fork"]).exit_status
        _summary(api.run(*with_folder(arguments, config_dir), summary=summary, **recorded))
        return 0
    if config_dir is not None:
        arguments = ("--config-dir", config_dir, *arguments)
    import hydra
    from omegaconf import DictConfig

    from waymark.config.compose import CONF, as_written, compose_config, explained
    from waymark.config.own_hydra import composing_once, parse_flags
    from waymark.config.schema import OPTIMIZERS_OF_KERAS
    from waymark.config.yaml_source import install

    arguments, statuses = tuple(as_written(arguments)), []

    def job(cfg: DictConfig) -> None:
        statuses.append(exit_status_of(lambda: _run(cfg, list(arguments), summary)))
        if statuses[-1] > 128:  # a signal is meant for the whole sweep
            sys.exit(statuses[-1])

    flags = parse_flags(arguments)
    if flags.multirun and not (flags.cfg or flags.help or flags.hydra_help or flags.info):
        from waymark import api

        return api.sweep(*arguments).exit_status
    if flags.cfg and flags.overrides and not flags.multirun:
        with contextlib.suppress(BadInput):  # Hydra shows what it can
            words = tuple(flags.overrides)
            chosen = compose_config(with_folder(words, flags.config_dir)).choices["optimizer"]
            if chosen in OPTIMIZERS_OF_KERAS.values():  # beside the others, not behind a flag
                last = len(arguments) - arguments[::-1].index(words[-1])
                arguments = (*arguments[:last], f"optimizer={chosen}", *arguments[last:])
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


def _run(cfg: Any, arguments: list[str], summary: bool) -> int:
    from hydra.core.hydra_config import HydraConfig

    from waymark.config.compose import resolved as check

    resolved = check(cfg, HydraConfig.get().runtime.choices, arguments)
    from waymark.execution.execute import run as work  # takes longer than a refusal

    _summary(work(resolved, summary=summary))
    return 0


@cli.command()
@OVERRIDES
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--pictures", metavar="FILE.png", help="Draw some examples of each class.")
@click.option("--clear-cache", "clear", is_flag=True, help="Remove the cache of decoded pictures.")
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

    given = with_folder(overrides, config_dir)
    if clear:
        if pictures or as_json:
            raise BadInput("--clear-cache: reads no data; give it alone, or with data.cache.")
        folder, count = api.clear_cache(*given)
        print(printable(f"removed {size(count)} from {folder}"))
        return 0
    found = api.describe_data(*given, pictures=pictures)
    print(json_text(found.plain()) if as_json else found.text(terminal_width()))
    return 0


@cli.command()
@click.argument("run")
@OVERRIDES
@click.option("--allow-drift", is_flag=True, help="Continue in another numerical environment.")
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
        return 0
    _summary(result)
    return _verdict(result.verdict) if result.verdict else 0


@cli.command()
@click.argument("run")
@OVERRIDES
@click.option("--threads", type=click.IntRange(min=1), help="Use another number of threads.")
@click.option("--at-commit", is_flag=True, help="Run the recorded commit with its changes.")
@click.option("--trust-code", is_flag=True, help="Allow --at-commit to run what is recorded.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as one JSON object.")
@CONFIG_DIR
def rerun(
    run: str, overrides: tuple[str, ...], config_dir: str | None, as_json: bool, **options: Any
) -> int:
    """Repeat a recorded run; report whether the results are bit-identical.

    Exit status 0 if it does, 3 if not, with what differs. OVERRIDES may change save, save.*,
    log_every, eval_every, data.path, tracking.*, names and progress.
    """
    from waymark import api

    # The object stands alone on stdout.
    with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
        verdict = api.rerun(run, *with_folder(overrides, config_dir), **options)
    return _verdict(verdict, as_json)


def _summary(result: Any) -> None:
    lines = result.summary()
    longest = max(map(len, lines))
    for label, text in lines.items():
        print(printable(f"{label:<{longest}}  {text}"))


def _verdict(verdict: Any, as_json: bool = False) -> int:
    print(verdict.dump(indent=None) if as_json else "\n".join(map(printable, verdict.lines())))
    return 0 if verdict.identical else 3
