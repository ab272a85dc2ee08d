"""The worked notebook in a kernel of its own: what its cells show, and that nothing outlives it."""

import json
import re
import signal
import sys
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
from waymark.tracking.finder import find
from waymark.tracking.opening import open_store

from tests.support.notebook import NOTEBOOK, executed
from tests.support.processes import poll

TRAIN_LONG = 'run("data=arrays", "data.path=spirals.npz", "steps=100000000", "save.every=50")'


@pytest.fixture
def jupyter(place: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the environment of a kernel without a user's settings."""
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(place / "jupyter"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    return environment


def shown(outputs: list[Any]) -> str:
    """Return what outputs of a cell show as HTML."""
    return "".join(each.data.get("text/html", "") for each in outputs if "data" in each)


def printed(cell: Any, stream: str = "stdout") -> str:
    return "".join(each.text for each in cell.outputs if each.get("name") == stream)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_cells_do_what_they_say_and_nothing_outlives_the_kernel(
    place: Path, jupyter: dict[str, str]
) -> None:
    from nbformat.v4 import new_code_cell

    with executed(place, jupyter) as (notebook, client):
        cells = {cell.source.split("\n")[-1]: cell for cell in notebook.cells}
        kernel = psutil.Process(client.km.provisioner.pid)
        assert kernel.exe() == str(Path(sys.executable).resolve())
        below = kernel.children(recursive=True)
        delivering = [
            each for each in below if "waymark.tracking.delivery_process" in each.cmdline()
        ]
        checkpoints = {*place.glob("mlruns/**/checkpoints/*.json")}

        def interrupt() -> None:
            poll(lambda: {*place.glob("mlruns/**/checkpoints/*.json")} - checkpoints)
            kernel.send_signal(signal.SIGINT)  # as the button ■ does

        other, cell = Thread(target=interrupt), new_code_cell(TRAIN_LONG)
        notebook.cells.append(cell)
        client.allow_errors = True
        other.start()
        client.execute_cell(cell, len(notebook.cells) - 1)
        other.join()
    assert len(delivering) == 1, "one process delivers all runs of a kernel"
    for process in (kernel, *below):
        poll(lambda process=process: not process.is_running())

    (error,) = (each for each in cell.outputs if each.output_type == "error")
    assert error.traceback == ["stopped by SIGINT"], "one sentence"
    assert "resume with: waymark resume " in printed(cell, "stderr")
    ended = re.findall(r"(?m)^run (\w+) ", printed(cell))
    trained = cells["result"]
    (run_id,) = re.findall(r"(?m)^run (\w+) ", printed(trained))
    *_, bar, result = trained.outputs
    assert ">300/300<" in shown([bar]) and f">{run_id}<" in shown([result])
    store = open_store(f"sqlite:///{place}/mlruns/mlflow.db")
    assert [find(store, key).status for key in (run_id, *ended)] == ["FINISHED", "KILLED"]
    assert (find(store, run_id).folder / "evaluation" / "loss.png").exists()
    assert f"identical to run {run_id}" in shown(cells["verdict"].outputs)
    for name in ("found", "comparison"):
        assert all(f">width={width}" in shown(cells[name].outputs) for width in (8, 32))


def test_the_stored_outputs_are_small_and_come_from_the_cells() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert NOTEBOOK.stat().st_size < 100_000
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [each["output_type"] for cell in cells for each in cell["outputs"]]
    assert {*kinds} == {"stream", "display_data", "execute_result"}, "no error"
    silent = [cell for cell in cells if not cell["outputs"]]
    assert len(silent) == 1, "only the one that writes the data"
