"""Measure one worker of MLflow's scoring server, asked by 100 clients at once.

    python -m benchmarks.serving [--clients 100] [--seconds 10]

Each client sends one picture, waits for the answer, and sends the next, over one connection. The
clients are processes of this machine, so that they take some of its time.
"""

import argparse
import http.client
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from waymark import run, serve

from benchmarks.ways import processor, table

PROGRAM = "benchmarks.serving"
HEADERS = {"Content-Type": "application/json"}


def ask(address: str, body: bytes, clients: int, seconds: float) -> list[float]:
    """Return the seconds that each answer took, of so many clients for so long."""
    host, took, end = urlsplit(address).netloc, [], time.monotonic() + seconds

    def client() -> None:
        connection = http.client.HTTPConnection(host, timeout=60)
        while time.monotonic() < end:
            began = time.monotonic()
            connection.request("POST", "/invocations", body, HEADERS)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                sys.exit(f"status {answer.status}")
            took.append(time.monotonic() - began)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return took


def measured(address: str, example: Path, clients: int, seconds: float) -> list[float]:
    """Ask from a process of its own; return the seconds that each answer took."""
    words = ["--address", address, "--example", str(example), "--clients", str(clients)]
    command = [sys.executable, "-m", PROGRAM, *words, "--seconds", str(seconds)]
    return list(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--address")
    parser.add_argument("--example", type=Path)
    given = parser.parse_args()
    if given.address:
        body = given.example.read_bytes()
        json.dump(ask(given.address, body, given.clients, given.seconds), sys.stdout)
        return
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        uri = f"tracking.uri=sqlite:///{scratch}/mlruns/mlflow.db"
        for model in ("softmax", "cnn"):
            made = run(f"model={model}", "steps=20", "progress=false", "save.log_model=true", uri)
            with serve(made.run_id, uri, port=5099) as server:
                files = Path(scratch).glob("mlruns/**/serving_input_example.json")
                path = max(files, key=lambda file: file.stat().st_mtime_ns)
                path.write_text(json.dumps(json.loads(path.read_bytes())))
                measured(server.address, path, 4, 1)  # the first requests trace
                for clients in (1, given.clients):
                    took = np.array(measured(server.address, path, clients, given.seconds)) * 1e3
                    spread = [f"{np.percentile(took, q):.0f}" for q in (50, 95, 99)]
                    rate = f"{len(took) / given.seconds:.0f}"
                    rows.append([model, str(clients), rate, *spread])
    print(f"{processor()}, one worker, one picture a request:\n")
    columns = ["model", "clients", "requests a second", "median ms", "95 %", "99 %"]
    print(table(columns, rows))


if __name__ == "__main__":
    main()
