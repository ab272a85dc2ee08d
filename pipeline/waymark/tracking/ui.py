"""MLflow's UI on a store, as a process of its own."""

import subprocess
import sys

from waymark.processes.process_state import set_variable
from waymark.tracking.address import location
from waymark.tracking.finder import select
from waymark.tracking.server import Server, check_free
from waymark.tracking.store import RunStore


def start_ui(store: RunStore, host: str, port: int) -> Server:
    """Start MLflow's UI on a store, if it is local; raise BadInput where nothing can listen."""
    if store.database is None:
        return Server(store.address.display_uri, None)
    check_free(host, port)
    newest = select(store, None, None, None, 1)
    page = f"experiments/{newest[0][0].experiment_id}" if newest else "experiments"
    set_variable("MLFLOW_LOGGING_LEVEL", "CRITICAL")
    set_variable("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # ten more processes
    set_variable("PYTHONWARNINGS", "ignore")  # of what MLflow imports, for its authors
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
        *("--host", host, "--port", str(port), "--backend-store-uri", store.uri),
        *("--artifacts-destination", location(store.root / "artifacts")),
    ]
    # A session of its own: a terminal's Ctrl-C would reach MLflow's processes one by one, each
    # of which prints a traceback.
    process = subprocess.Popen(command, start_new_session=True)
    return Server(f"http://{host}:{port}/#/{page}?workflowType=machine_learning", process)
