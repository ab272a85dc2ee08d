"""What a caller's process was before a function of the library, it is afterwards."""

import logging
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
from waymark.processes.process_state import same_environment, set_level, set_variable, taken_back

from tests.support.processes import after_opening

# Runs in a process that has imported nothing yet; prints what is not as it was before.
PROGRAM = """
import builtins, gc, locale, logging, multiprocessing, os, signal, sys, threading, warnings

import hydra
from hydra.core.singleton import Singleton
from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer

OmegaConf.register_new_resolver("theirs", lambda: 1)
signal.signal(signal.SIGUSR2, lambda number, frame: None)
logging.getLogger("absl").setLevel(logging.DEBUG)

def level(name):
    logger = logging.getLogger(name)
    return logger.level, logger.disabled, logger.propagate

KNOWN = ["", "absl", *(n for n in logging.root.manager.loggerDict if not n.startswith("hydra."))]
KNOWN += ["hydra.utils", "tensorflow", "matplotlib"]

def picture():
    mask = os.umask(0)
    os.umask(mask)
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    facts = {
        "environment": dict(os.environ), "folder": os.getcwd(), "umask": mask, "wakeup": wakeup,
        "path": list(sys.path), "path hooks": list(sys.path_hooks), "arguments": list(sys.argv),
        "import": builtins.__import__, "streams": (sys.stdin, sys.stdout, sys.stderr),
        "hooks": (sys.excepthook, sys.unraisablehook, sys.displayhook, threading.excepthook),
        "trace": (sys.gettrace(), sys.getprofile(), threading.gettrace(), threading.getprofile()),
        "limits": (sys.getrecursionlimit(), sys.getswitchinterval(), threading.stack_size()),
        "signals": {n: signal.getsignal(n) for n in signal.valid_signals()},
        "warnings": (list(warnings.filters), warnings.showwarning, warnings.formatwarning),
        "loggers": {name: (*level(name), list(logging.getLogger(name).handlers)) for name in KNOWN
                    if name != "tensorflow"} | {"tensorflow": level("tensorflow")},
        "logging": (logging.root.manager.disable, logging.getLoggerClass(), logging.raiseExceptions,
                    logging.getLogRecordFactory(), logging.lastResort),
        "garbage": (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count(), gc.get_debug()),
        "locale": locale.setlocale(locale.LC_ALL),
        "start method": multiprocessing.get_start_method(allow_none=True),
        "Hydra": {kind.__name__: id(one) for kind, one in Singleton._instances.items()},
        "resolvers": dict(BaseContainer._resolvers),
    }
    if "mlflow" in sys.modules:
        import mlflow
        active = mlflow.active_run()
        facts["MLflow"] = (active and active.info.run_id, mlflow.get_tracking_uri())
        facts["its loggers"] = {name: level(name) for name in ("mlflow", "alembic", "huey")}
    return facts

def check(name, function, *given, **named):
    before = picture()
    try:
        return function(*given, **named)
    finally:
        after = picture()
        for what in before:
            old, new = before[what], after[what]
            if isinstance(old, dict):
                old, new = ({k: v for k, v in one.items() if (k, v) not in other.items()}
                            for one, other in ((old, new), (new, old)))
            if old != new:
                print(f"{name}: {what}: {old} is now {new}")

from waymark import BadInput, compare, configure, evaluate, rerun, resume, run

check("configure", configure, "seed=1")
short = ["steps=4", "save.every=2", "progress=false"]
result = check("run", run, *short)
from tensorflow.keras.layers import Dense
Dense(1)
import mlflow
if (level("mlflow")[0], level("alembic")[0]) != (logging.INFO, logging.WARNING):
    print("MLflow's loggers:", level("mlflow"), level("alembic"))
mlflow.set_tracking_uri("sqlite:///mlruns/mlflow.db")
mlflow.start_run()
mlflow.autolog(log_models=False, silent=True)
check("evaluate", evaluate, result.run_id)
check("resume", resume, result.run_id, "steps=6")
check("rerun", rerun, result.run_id)
check("compare", compare, experiment="waymark")
for refused in (["steps=0"], ["data=arrays", "data.path=nothing"]):
    try:
        check("a refusal", run, *refused)
    except BadInput:
        continue
    print("not refused")
known = mlflow.MlflowClient()
theirs = known.get_run(mlflow.active_run().info.run_id).data
losses = known.get_metric_history(result.run_id, "train/loss")
if theirs.params or theirs.metrics or sorted(point.step for point in losses) != [*range(1, 7)]:
    print("not each in its own run:", theirs.params, theirs.metrics, losses)
"""


def test_the_functions_leave_the_process_as_it_was(
    place: Path, environment: dict[str, str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=place, env=environment, capture_output=True, text=True
    )
    assert after_opening(done.stdout) == [], done.stdout
    assert done.returncode == 0, done.stderr


def test_the_last_of_calls_that_overlap_takes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THEIRS", raising=False)
    monkeypatch.setenv("KEPT", "the user's")
    logger, filters = logging.getLogger("theirs"), warnings.filters[:]
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with taken_back():
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    with taken_back():
        thread.start()
        inside.wait(60)
        set_variable("THEIRS", "1")
        set_variable("KEPT", "1")
        set_level("theirs", logging.CRITICAL)
        warnings.simplefilter("ignore")
    assert (os.environ["THEIRS"], logger.level) == ("1", logging.CRITICAL)
    leave.set()
    thread.join()
    assert "THEIRS" not in os.environ and os.environ["KEPT"] == "the user's"
    assert (logger.level, warnings.filters) == (logging.NOTSET, filters)


def test_what_an_import_sets_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLD", "old")
    with same_environment():
        os.environ |= {"OLD": "new", "NEW": "new"}
    assert os.environ["OLD"] == "old" and "NEW" not in os.environ
