"""Signals: each one is seen, also inside a long call into TensorFlow."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from waymark.cli.group import status_of_server
from waymark.processes.signals import GracefulShutdown, Interrupted
from waymark.training.runtime import start_tensorflow


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Collect the statuses with which this process would have ended at once."""
    statuses: list[int] = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    yield statuses


def test_three_signals_within_one_call_into_tensorflow_are_all_seen(exits: list[int]) -> None:
    tf = start_tensorflow(2)
    limit = tf.Variable(10**9, dtype=tf.int64)

    @tf.function(autograph=False)
    def long() -> tf.Tensor:
        return tf.while_loop(
            lambda i: i < limit.read_value(), lambda i: [i + 1], [tf.constant(0, tf.int64)]
        )[0]

    long.get_concrete_function()
    inside, seen = threading.Event(), []

    def work() -> float:
        inside.set()
        long()
        return time.monotonic()

    def disturb() -> None:
        assert inside.wait(60)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            time.sleep(0.1)
            before = (stop.signal, len(exits))
            signal.pthread_kill(threading.main_thread().ident or 0, number)
            end = time.monotonic() + 30
            while (stop.signal, len(exits)) == before and time.monotonic() < end:
                time.sleep(0.005)
            seen.append(time.monotonic())
        limit.assign(0)  # only now does the call come to its end

    with GracefulShutdown() as stop:
        stop.can_finish_gracefully = True
        other = threading.Thread(target=disturb)
        other.start()
        ended = stop.run(work)
        other.join()
        assert stop.signal == signal.SIGTERM
        assert exits == [130, 143]
        assert seen[-1] < ended
        with pytest.raises(Interrupted, match="stopped by SIGTERM") as stopped:
            stop.check()
    assert stopped.value.status == 143


def test_a_signal_that_another_thread_takes_is_seen(exits: list[int]) -> None:
    """The system gives a process's signal to any of its threads: nothing wakes the main one."""

    def work() -> None:
        time.sleep(0.3)  # until the main thread waits
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        end = time.monotonic() + 30
        while stop.signal is None and time.monotonic() < end:
            time.sleep(0.005)
        seen.append(stop.signal)

    seen: list[int | None] = []
    with GracefulShutdown() as stop:
        stop.can_finish_gracefully = True
        stop.run(work)
    assert (seen, exits) == ([signal.SIGTERM], [])


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_before_there_is_anything_to_save_a_signal_ends_at_once(
    exits: list[int], number: signal.Signals, status: int
) -> None:
    given = signal.signal(number, signal.SIG_DFL)  # these tests may run under nohup
    try:
        with GracefulShutdown():
            signal.raise_signal(number)
            assert exits == [status]
            assert signal.getsignal(number) != signal.SIG_DFL
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, given)


def test_a_hangup_that_is_ignored_stays_so(exits: list[int]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with GracefulShutdown():
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
        assert exits == [143]
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("status", "exit_status"), [(0, 0), (1, 1), (-9, 137), (-2, 130)])
def test_the_end_of_a_server_by_a_signal_is_told(
    status: int, exit_status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of_server(status) == exit_status
    said = f"waymark: MLflow's server was ended by signal {-status}.\n" if status < 0 else ""
    assert capsys.readouterr().err == said


def test_an_interrupt_never_ends_a_kernel(
    exits: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("waymark.processes.signals.in_notebook", lambda: True)
    with GracefulShutdown() as stop:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        stop.can_finish_gracefully = True
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert (stop.signal, exits) == (signal.SIGINT, [])
        assert capsys.readouterr().err == "\nSIGINT: stopping after this step\n"
