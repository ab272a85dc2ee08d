"""MLflow's UI on a store, as a process of its own."""

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from waymark import names
from waymark.processes.process_state import set_variable
from waymark.tracking.address import location, page_of
from waymark.tracking.server import Server
from waymark.tracking.store import RunStore


def start_ui(store: RunStore, host: str, port: int, page: str) -> Server:
    """Start MLflow's UI on a local store; its address is that of a `page`, as "#/experiments"."""
    if store.database is None:
        return Server(f"{store.address.display_uri}/{page}", None)
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
    return Server(f"http://{host}:{port}/{page}", process)


def view_page(
    store: RunStore, experiment: str, key: str, state: Mapping[str, Any], name: str
) -> str:
    """Return the page with the runs of an experiment in a view; `state` is what the UI keeps of it.

    It lies in a tag of the experiment; one with a `name` is in the UI's list of saved views. Where
    the store does not take it, it is the page as MLflow shows it.
    """
    options, now = [], int(time.time() * 1000)
    with suppress(Exception):  # of MLflow, the network: the runs are there all the same
        text, tag = json.dumps(state), f"{names.VIEW}{key}"
        saved = {"name": name, "createdAt": now, "updatedAt": now, "state": text} if name else {}
        known = json.loads(store.client.get_experiment(experiment).tags.get(tag, "{}"))
        if {k: known.get(k) for k in state} != state:
            store.client.set_experiment_tag(experiment, tag, json.dumps({**saved, **state}))
        options = [f"viewStateShareKey={key}"]
    return page_of(f"experiments/{experiment}/runs", *options)
