"""Work that needs a TensorFlow other than this process's is done in a new one."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from waymark import BadInput, Failed, api, configure, evaluate, rerun, resume, run
from waymark.config.compose import compose_config
from waymark.execution import new_process
from waymark.models.softmax import Softmax
from waymark.processes import process_state
from waymark.processes.signals import GracefulShutdown, Interrupted
from waymark.tracking.finder import select
from waymark.tracking.opening import open_store
from waymark.training import runtime
from waymark.training.runtime import NeedsNewProcess, check_tensorflow, start_tensorflow

from tests.support.processes import poll

tf: Any = start_tensorflow(2)

WHY = "TensorFlow in this process has 1 threads."
SHORT = ["steps=2", "save.every=2", "runtime.intra_op_threads=2", "progress=false"]


# What may run here


@pytest.mark.parametrize(
    ("threads", "running", "default", "fits"),
    [(0, False, 8, True), (0, True, 2, True), (0, True, 8, False), (2, True, 8, True),
     (2, False, 2, True), (1, True, 2, False), (1, False, 2, False)],
)  # fmt: skip
def test_the_threads_that_tensorflow_has(
    threads: int, running: bool, default: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zero: never set. Until it runs they can be set, but a user's number stays as it is."""
    monkeypatch.setattr(tf.config.threading, "get_intra_op_parallelism_threads", lambda: threads)
    monkeypatch.setattr(runtime, "_is_running", lambda: running)
    monkeypatch.setattr(runtime, "_default_threads", lambda: default)
    with nullcontext() if fits else pytest.raises(NeedsNewProcess, match="threads"):
        check_tensorflow(2)


def test_the_default_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert runtime._default_threads() == 3
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "7")
    assert runtime._default_threads() == 7


def changed(setter: Callable[[Any], None], value: Any, usual: Any) -> Callable[[Any], None]:
    return lambda request: (request.addfinalizer(lambda: setter(usual)), setter(value))  # type: ignore


SETTINGS = {
    "run_functions_eagerly": changed(tf.config.run_functions_eagerly, True, False),
    "JIT": changed(tf.config.optimizer.set_jit, "autoclustering", ""),
    "optimizations": changed(
        tf.config.optimizer.set_experimental_options,
        {"layout_optimizer": True},
        {"layout_optimizer": False},
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_change_bits(name: str, request: pytest.FixtureRequest) -> None:
    check_tensorflow(2)
    SETTINGS[name](request)
    with pytest.raises(NeedsNewProcess, match=name):
        check_tensorflow(2)


def test_a_graph_and_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    with tf.Graph().as_default(), pytest.raises(NeedsNewProcess, match="eagerly"):
        check_tensorflow(2)
    monkeypatch.setattr(runtime, "_forked", True)
    with pytest.raises(NeedsNewProcess, match="fork"):
        check_tensorflow(2)


@pytest.mark.parametrize(
    ("needed", "enabled", "running", "asked", "fits"),
    [
        (False, False, True, "", True),
        (False, True, False, "0", False),  # a user's own setting stays as it is
        (False, True, True, "1", True),
        (True, False, False, "", True),  # it can still be turned on
        (True, False, True, "", False),
        (True, True, True, "", True),
        (False, False, True, "true", False),  # the variable came too late
    ],
)
def test_op_determinism(
    needed: bool,
    enabled: bool,
    running: bool,
    asked: str,
    fits: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tensorflow.python.framework import config

    monkeypatch.setattr(process_state, "command_line", True)
    monkeypatch.setattr(config, "is_op_determinism_enabled", lambda: enabled)
    monkeypatch.setattr(runtime, "_is_running", lambda: running)
    monkeypatch.setenv("TF_DETERMINISTIC_OPS", asked)
    with nullcontext() if fits else pytest.raises(NeedsNewProcess, match="op determinism"):
        check_tensorflow(2, needed)
    monkeypatch.setattr(process_state, "command_line", False)  # a caller's, who has other work
    with nullcontext() if fits and not needed else pytest.raises(NeedsNewProcess):
        check_tensorflow(2, needed)


# The functions


@pytest.fixture
def graph() -> AbstractContextManager[Any]:
    """Return what lets nothing in it be computed in this process."""
    graph: AbstractContextManager[Any] = tf.Graph().as_default()
    return graph


def test_a_run_in_a_new_process_is_the_same(place: Path, graph: Any) -> None:
    here = run(*SHORT)
    with graph:
        there = run(*SHORT)
    of_this_run = ("run_id", "folder", "link", "seconds", "steps_per_second", "next_commands")
    assert there == replace(here, **{name: getattr(there, name) for name in of_this_run})
    command = [json.loads((r.folder / "environment.json").read_text()) for r in (here, there)]
    assert command[0]["command"] == command[1]["command"]
    assert command[0]["tensorflow"] == command[1]["tensorflow"]


def test_all_functions_go_to_a_new_process_before_they_record(
    place: Path, graph: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, called = run(*SHORT), []
    monkeypatch.setattr(
        new_process, "call", lambda why, function, *_: called.append(function.__name__)
    )
    (weights,) = result.folder.glob("checkpoints/*.index")
    with graph:
        run(*SHORT)
        run(config=configure(*SHORT))
        run("seed=1", config_from=result.run_id)
        resume(result.run_id, "steps=4")
        evaluate(result.run_id)
        evaluate(None, *SHORT, checkpoint=weights.with_suffix(""))
        rerun(result.run_id)
    rest = ["resume", "evaluate_run", "evaluate_files", "rerun"]
    assert called == ["run", "run", "run", *rest]
    ((record, _),) = select(open_store(None), None, None, None)
    assert (record.id, record.status) == (result.run_id, "FINISHED")


class OfAScript(Softmax):  # type: ignore[misc]
    """A class that only this program has."""


def test_what_another_process_cannot_have_is_refused(
    place: Path, graph: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OfAScript, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "OfAScript", OfAScript, raising=False)
    config = replace(configure(*SHORT), model=OfAScript(init_stddev=0.01))
    with graph, pytest.raises(BadInput, match="OfAScript") as refused:
        run(config=config)
    assert str(refused.value).startswith("TensorFlow does not execute eagerly in this process. ")
    assert select(open_store(None), None, None, None) == []


def test_work_within_work_does_not_wait_for_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.execute, "run", lambda *_: GracefulShutdown().run(lambda: inner()))

    def inner() -> Any:
        return api._done(lambda: "inner")

    assert run(*SHORT) == "inner"  # type: ignore[comparison-overlap]
    assert api._done(lambda: "after") == "after"


# The new process


def test_a_result_and_the_state_of_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "theirs.py").write_text(
        "import os, sys\n"
        "def work(*given):\n"
        "    print('a line')\n    print('a warning', file=sys.stderr)\n"
        "    return given, os.getcwd(), sys.argv, os.environ['THEIRS']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("THEIRS", "value")
    import theirs  # type: ignore[import-not-found]

    resolved = compose_config(SHORT)
    found = new_process.call(WHY, theirs.work, 1, resolved)
    assert found == ((1, resolved), str(tmp_path), sys.argv, "value")
    assert capfd.readouterr() == ("a line\n", "a warning\n")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (BadInput("no"), BadInput),
        (Failed("no"), Failed),
        (Interrupted(signal.SIGTERM), Interrupted),
    ],
)
def test_an_error_comes_back(
    error: Exception, kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "raising.py").write_text("def work(error):\n    raise error\n")
    monkeypatch.syspath_prepend(tmp_path)
    import raising  # type: ignore[import-not-found]

    with pytest.raises(kind) as raised:
        new_process.call(WHY, raising.work, error)
    assert str(raised.value) == str(error)


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGKILL, Failed), (signal.SIGTERM, Interrupted)]
)
def test_a_process_that_a_signal_ends(number: int, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=f"{signal.Signals(number).name}|signal {number:d}"):
        new_process.call(WHY, signal.raise_signal, number)


def test_elsewhere_than_in_the_main_thread() -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(new_process.call(WHY, int, "7")))
    thread.start()
    thread.join()
    assert found == [7]


def test_it_ends_with_the_process_that_began_it(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    (tmp_path / "waiting.py").write_text(
        "import os, signal\n"
        "def work():\n    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
        "    open('begun', 'w').write(str(os.getpid()))\n"
        "    signal.sigwait([signal.SIGTERM])\n    open('ended', 'w').close()\n"
    )
    program = (
        "from waiting import work; from waymark.execution import new_process as n; n.call('', work)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        poll(lambda: (tmp_path / "begun").exists())
        process.kill()
    poll(lambda: (tmp_path / "ended").exists())
