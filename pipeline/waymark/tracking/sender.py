"""The thread that sends a run's outbox to MLflow while training goes on."""

import threading
from typing import Any

from waymark.tracking.delivery import Delivery
from waymark.tracking.limits import reason_of
from waymark.tracking.lock import RunLocked
from waymark.tracking.outbox import Outbox
from waymark.tracking.recovery import mark_dead_runs_killed
from waymark.tracking.runs import RunRecord, mark_delivered
from waymark.tracking.store import RunStore

SEND_INTERVAL_S = 1.0  # between two sendings
RETRY_INTERVAL_S = 0.5


class Sender(threading.Thread):
    """Delivers a run, and holds its lock until nothing more can be sent."""

    def __init__(
        self, store: RunStore, record: RunRecord, box: Outbox, lock: Any, new: bool, monitor: bool
    ) -> None:
        """Deliver at once what a local run holds from before; raise RunLocked if it is taken."""
        super().__init__(name="tracking", daemon=True)
        self._store, self._box, self._lock = store, box, lock
        self._system_metrics = monitor
        self._monitor: Any = None
        self.delivery = Delivery(store, record, new)
        self.delivery.training = True
        self.delivery.created = lambda made: box.append("ids", [made.id, made.experiment_id])
        self.error: Exception | None = None  # of the last try
        self.work_available, self.give_up = threading.Event(), threading.Event()
        self._end: tuple[str, int] | None = None
        self._delivered = False
        if not (store.server or new):  # what it holds is known before the first step
            try:
                self.delivery.deliver()
                if self.delivery.owner:
                    raise RunLocked(f"run {record.id}: another process has taken it meanwhile.")
            except Exception:
                lock.release()
                raise

    def finish(self, status: str, end: int) -> None:
        """End the run as soon as all has been sent; `end` is when it ended (ms)."""
        if self._monitor:
            self._monitor.finish()
        self._end = status, end
        self.work_available.set()

    def close(self) -> str | None:
        """Send no more; return why not all was sent, if so."""
        self.give_up.set()
        self.work_available.set()
        self.join(0.5)  # all but a call that hangs ends now
        if self._delivered:
            return None
        return reason_of(self.error) if self.error else "no answer in time"

    def run(self) -> None:
        """Send; hold the run until nothing more can be sent, or two would send at once."""
        try:
            self._send()
        finally:
            self._box.close()
            self._lock.release()

    def _send(self) -> None:
        """Send what comes until the run has ended and all has arrived, or it is given up."""
        delivery, looked = self.delivery, not self._store.server
        while True:
            self.work_available.wait(SEND_INTERVAL_S if delivery.connected else 0)
            self.work_available.clear()
            if self.give_up.is_set():
                return
            end = self._end  # read first: what is recorded before it is then sent
            try:
                delivery.deliver()
                if not looked:
                    mark_dead_runs_killed(self._store)
                    looked = True
                self._watch_machine()
                self.error = None
                if end and delivery.complete:
                    mark_delivered(self._box, delivery.info, delivery.close(*end))
                    self._delivered = True
                    return
            except Exception as error:  # whatever it is, training goes on and the outbox keeps
                self.error = error
                self.give_up.wait(RETRY_INTERVAL_S)

    def _watch_machine(self) -> None:
        """Let MLflow measure CPU and memory as long as the run is this process's."""
        if self._monitor and self.delivery.owner:
            self._monitor.finish()
            self._monitor = None
        elif self._system_metrics and not (self._monitor or self.delivery.owner):
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._monitor = SystemMetricsMonitor(
                self.delivery.info.id, resume_logging=True, tracking_uri=self._store.uri
            )
            self._monitor.start()
