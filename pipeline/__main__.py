"""The command line: parse, compose, call one function per command."""

import os
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from pipeline import __version__

HERE = Path(__file__).resolve().parent
CONF = next(folder for folder in (HERE / "conf", HERE.parent / "conf") if folder.is_dir())
FULL_ERROR = os.environ.get("HYDRA_FULL_ERROR", "0") != "0"  # tracebacks, as Hydra's users know

OVERRIDES = click.argument("overrides", nargs=-1)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Train TensorFlow models that can be trusted, compared and repeated.

    RUN is a run's id, the beginning of one (4 characters or more), a unique run name, or
    `latest`. OVERRIDES are Hydra's: key=value.
    """


@cli.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    short_help="The whole pipeline: train, save, restore, evaluate, record.",
)
@click.option("--config-from", metavar="RUN")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(config_from: str | None, arguments: tuple[str, ...]) -> int:
    """Hand over to Hydra, whose own flags (--multirun, --cfg job, --help) all work.

    With --config-from RUN the configuration is that run's; key=value changes it.
    """
    if config_from is not None:
        from pipeline.run import recorded
        from pipeline.run import run as work

        _summary(work(recorded(config_from, _parsed(arguments))))
        return 0
    import hydra
    from omegaconf import DictConfig

    statuses = []

    def job(cfg: DictConfig) -> None:
        statuses.append(_guarded(lambda: _run(cfg, list(arguments))))
        if statuses[-1] > 128:  # a signal is meant for the whole sweep
            sys.exit(statuses[-1])

    _check_flags(list(arguments))
    sys.argv = ["waymark run", *arguments]
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # so that errors reach us, not the terminal
    main = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    try:
        main(job)()
    except _hydra_errors() as error:
        from pipeline.config import BadInput

        raise BadInput(_refusal(error, list(arguments))) from None
    except SystemExit as leaving:  # 0 after --help, 1 where Hydra has said what is wrong
        return 2 if leaving.code == 1 else int(leaving.code or 0)
    return max(statuses, default=0)


def _check_flags(arguments: list[str]) -> None:
    """Refuse in one sentence the flags that Hydra would refuse with a page on its usage."""
    from hydra._internal.utils import get_args_parser

    from pipeline.config import BadInput

    def refuse(message: str) -> NoReturn:
        raise BadInput(f"{message} (waymark run --hydra-help lists the flags).")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    parser.parse_args(arguments)


def _run(cfg: Any, arguments: list[str]) -> int:
    from pipeline.run import run as work

    resolved = _resolved(cfg, arguments)
    steps, every = resolved.config.steps, resolved.config.save.every
    if every > steps:
        _complain(f"save.every={every} is above steps={steps}: only the last step is saved.")
    _summary(work(resolved))
    return 0


@cli.command()
@click.argument("run")
@OVERRIDES
def resume(run: str, overrides: tuple[str, ...]) -> int:
    """Continue an interrupted run, in the same MLflow run.

    steps=N extends it; settings that would change its numbers are refused.
    """
    from pipeline.run import resume as work

    result = work(run, _parsed(overrides))
    if result is None:
        print("nothing left to do")
    else:
        _summary(result)
    return 0


@cli.command()
@click.argument("arguments", nargs=-1, metavar="RUN [OVERRIDES]")
@click.option("--step", default="latest", help="A step, `best` or `latest` (default).")
@click.option("--checkpoint", help="Score these files instead of a run's; takes model= data=.")
@click.option("--from", "source", type=click.Choice(["state", "meta"]), default="state",
              help="meta: graph and weights from the files alone, with no model code.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(
    arguments: tuple[str, ...], step: str, checkpoint: str | None, source: str, as_json: bool
) -> int:
    """Restore a checkpoint and score it on the test set; writes nothing.

    Two forms: `waymark evaluate RUN` for a run's checkpoint and
    `waymark evaluate --checkpoint PATH model=... data=...` for any files.
    """
    import json

    from pipeline import evaluate as work
    from pipeline.config import BadInput

    if checkpoint:
        resolved = _composed(list(arguments))
        found = work.evaluate_files(resolved, Path(checkpoint).expanduser(), source == "meta")
    elif not arguments or "=" in arguments[0]:
        raise BadInput("evaluate: give a RUN, or --checkpoint PATH.")
    else:
        found = work.evaluate_run(arguments[0], step, source == "meta", _parsed(arguments[1:]))
    if as_json:
        print(json.dumps(found))
    else:
        loss = f", loss {found['loss']:.5f}" if "loss" in found else ""
        print(
            f"accuracy {found['accuracy']:.4f}{loss} ({found['hits']} of {found['total']} images)"
        )
        print(f"restored from {found['source']}")
    return 0


@cli.command()
@OVERRIDES
def sync(overrides: tuple[str, ...]) -> int:
    """Deliver to MLflow what could not be delivered; rebuild lost runs from their folders."""
    from pipeline.tracking.recovery import sync as work

    lines = list(work(_store(overrides, create=True)))
    for line, _ in lines:
        print(line)
    if not lines:
        print("nothing left to deliver")
    return 0 if all(well for _, well in lines) else 1


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=5000, show_default=True)
@OVERRIDES
def ui(host: str, port: int, overrides: tuple[str, ...]) -> int:
    """Open MLflow's UI on the runs of this folder."""
    from pipeline.tracking import ui_command

    tracking = _store(overrides, create=True)
    if tracking.database is None:
        print(f"the UI of this store is at {tracking.address}")
        return 0
    print(f"http://{host}:{port}/#/experiments/1?workflowType=machine_learning", flush=True)
    command = ui_command(tracking, host, port)
    os.execv(command[0], command)


def _store(overrides: tuple[str, ...], create: bool = False) -> Any:
    """Open the store that a command names, whose only override is tracking.uri."""
    from pipeline.config import BadInput
    from pipeline.tracking import Tracking

    given = _parsed(overrides)
    unknown = sorted(set(given) - {"tracking.uri"})
    if unknown:
        raise BadInput(f"{unknown[0]}: there is no such key; the only one here is tracking.uri.")
    return Tracking(given.get("tracking.uri"), create=create)


def _parsed(overrides: tuple[str, ...]) -> dict[str, Any]:
    """Return plain key=value overrides as values; raise BadInput for Hydra's other forms."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    from pipeline.config import BadInput

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise BadInput(f"{error.override}: is not of the form key=value.") from None
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond all bounds
        raise BadInput(f"{error} (in {' '.join(overrides)[:80]!r}).") from None
    for item in parsed:
        if item.is_sweep_override() or item.is_delete() or item.is_add():
            raise BadInput(f"{item.input_line}: only plain key=value can be given here.")
    return {item.key_or_group: item.value() for item in parsed}


def _composed(overrides: list[str]) -> Any:
    """Return the checked configuration for `overrides`, without starting a run."""
    import hydra
    from hydra.core.hydra_config import HydraConfig

    from pipeline.config import BadInput

    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = hydra.compose("config", overrides, return_hydra_config=True)
    except _hydra_errors() as error:
        raise BadInput(_refusal(error, overrides)) from None
    HydraConfig.instance().set_config(cfg)
    return _resolved(cfg, overrides)


def _resolved(cfg: Any, overrides: list[str]) -> Any:
    """Return the checked configuration for what Hydra composed; here the DictConfig dies."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from pipeline.config import GROUPS, BadInput, resolve

    given = {text.lstrip("+").partition("=")[0] for text in overrides}

    def source(key: str) -> str:
        above = [key[:dot] for dot, mark in enumerate(key) if mark == "."]
        return "the command line" if given & {key, *above} else "conf/"

    chosen = HydraConfig.get().runtime.choices
    choices = {group: str(chosen.get(group)) for group in GROUPS}
    own = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    try:
        values = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    except _hydra_errors() as error:
        raise BadInput(_refusal(error, overrides)) from None
    names = re.findall(r"\$\{\s*oc\.env\s*:\s*(\w+)", str(OmegaConf.to_container(own)))
    secrets = {os.environ[name] for name in names if os.environ.get(name)}
    return resolve(values, choices, source, secrets=secrets)  # type: ignore[arg-type]


def _hydra_errors() -> tuple[type[Exception], ...]:
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    return (
        *(HydraException, OmegaConfBaseException),
        *(ValueError, TypeError, AssertionError, RecursionError),
    )


def _refusal(error: Exception, arguments: list[str]) -> str:
    """Say in one sentence what Hydra refused, naming the nearest thing that exists."""
    from hydra.errors import MissingConfigException, OverrideParseException
    from omegaconf.errors import MissingMandatoryValue

    from pipeline.config import GROUPS, nearest

    if isinstance(error, MissingConfigException) and error.options:
        group, _, member = str(error.missing_cfg_file).rpartition("/")
        options = sorted(error.options)
        hint = nearest(member, options)
        return f"{group}={member}: there is no such choice ({', '.join(options)}){hint}."
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: cannot be read as key=value; "
            f"a value with special characters stands in quotes: 'key=\"value\"'."
        )
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}: a value is missing."
    unknown = re.search(r"Could not override '([^']+)'", str(error))
    if unknown and unknown[1].split(".")[0] == "tags":
        return f"{unknown[1]}: an entry of tags is added with a plus sign, +tags.NAME=VALUE."
    if unknown and unknown[1] not in GROUPS:
        return f"{unknown[1]}: there is no such key{nearest(unknown[1], _known_keys(arguments))}."
    lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
    return "; ".join(lines[:2])


def _known_keys(arguments: list[str]) -> list[str]:
    """Return the keys that can be given beside the chosen groups (the user's own left aside)."""
    import contextlib

    import hydra
    from omegaconf import OmegaConf

    from pipeline.config import GROUPS, flatten

    chosen = [a for a in arguments if re.match(r"(model|data|optimizer|save)=\w+$", a)]
    for groups in (chosen, []):
        with contextlib.suppress(*_hydra_errors()):
            with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
                values = OmegaConf.to_container(hydra.compose("config", groups))
            return [*GROUPS, *flatten(values)]  # type: ignore[arg-type]
    return list(GROUPS)


def _summary(result: Any) -> None:
    steps = ", ".join(str(step) for step in result.checkpoints)
    trained = "-" if result.trained is None else f"{result.trained:.4f}"
    print(f"accuracy in training  {trained}")
    print(f"accuracy restored     {result.restored:.4f}")
    print(f"checkpoints kept      {steps}")
    print(f"run                   {result.run_id}")
    print(f"in the UI             {result.link}")


def _guarded(work: Any) -> int:
    """Do a command's work; turn what can go wrong into one line and an exit status."""
    from pipeline.config import BadInput

    try:
        return int(work() or 0)
    except BadInput as error:
        _complain(str(error))
        return 2
    except (KeyboardInterrupt, click.Abort):
        return 130
    except click.ClickException as error:
        _complain(error.format_message())
        return error.exit_code
    except Exception as error:
        status = getattr(error, "status", 1)  # a signal's is 128 + its number
        if status == 1:
            _complain(str(error) or type(error).__name__)
        if FULL_ERROR:
            raise
        return int(status)


def _complain(message: str) -> None:
    """Say it in one line, whatever line breaks a name or a library put into it."""
    print("waymark:", " ".join(message.split()), file=sys.stderr)


def _complete(arguments: list[str]) -> int:
    """Answer the shell: Hydra completes `run`'s overrides, the commands are ours."""
    words = os.environ.get("COMP_LINE", "").split(" ", 2)
    if arguments[1:2] == ["query=bash"] and (len(words) < 3 or words[1] != "run"):
        print(" ".join(cli.commands) if len(words) < 3 else "")
        return 0
    os.environ["COMP_LINE"] = " ".join(["waymark", *words[2:]])
    import hydra

    sys.argv = ["waymark", *arguments]
    hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(print)()
    return 0


def main() -> int:
    """Run the command line; return the exit status."""
    sys.path.append(os.getcwd())  # a user's own model or data class may lie in this folder
    try:
        if sys.argv[1:2] and sys.argv[1] in ("-sc", "--shell-completion"):
            return _guarded(lambda: _complete(sys.argv[1:]))
        return _guarded(lambda: cli.main(prog_name="waymark", standalone_mode=False))
    except KeyboardInterrupt:  # before anything was begun
        return 130


if __name__ == "__main__":
    sys.exit(main())
