"""A notebook in a kernel of its own: cells that train twice and compare."""

import sys
from pathlib import Path

import psutil
import pytest
from waymark.tracking.finder import find
from waymark.tracking.opening import open_store

from tests.support.processes import BOUND, THREADS, poll

WORDS = ["data=arrays", "data.path=small.npz", "save=npz", "steps=20", "eval_every=10", THREADS]
CELLS = [
    "import waymark",
    f"first = waymark.run(*{WORDS!r})",
    f"second = waymark.run(*{WORDS!r}, 'batch_size=20')",
    "print(waymark.compare(first.run_id, second.run_id).text())\n"
    "[first.run_id, second.run_id, first.restored_accuracy]",
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_cells_train_and_compare_and_nothing_outlives_the_kernel(
    place: Path, small: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(place / "jupyter"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    import nbformat
    from nbclient import NotebookClient

    (place / "small.npz").write_bytes(small.read_bytes())
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in CELLS])
    where = {"metadata": {"path": str(place)}}
    client = NotebookClient(notebook, timeout=2 * BOUND, kernel_name="python3", resources=where)
    with client.setup_kernel(env=environment):
        for number, cell in enumerate(notebook.cells):
            client.execute_cell(cell, number)
        assert client.km is not None
        kernel = psutil.Process(client.km.provisioner.pid)
        assert kernel.exe() == str(Path(sys.executable).resolve())
        below = kernel.children(recursive=True)
        delivering = [
            each for each in below if "waymark.tracking.delivery_process" in each.cmdline()
        ]
    assert len(delivering) == 1, "one process delivers all runs of a kernel"
    printed = ["".join(o.text for o in cell.outputs if "text" in o) for cell in notebook.cells]
    first, second, accuracy = eval(notebook.cells[-1].outputs[-1].data["text/plain"])
    assert printed[1].startswith(f"run {first} (") and printed[2].startswith(f"run {second} (")
    assert all(word in printed[3] for word in (first[:8], second[:8], "batch_size"))
    store = open_store(f"sqlite:///{place}/mlruns/mlflow.db")
    for run_id in (first, second):
        record = find(store, run_id)
        assert record.status == "FINISHED"
        assert (record.folder / "evaluation" / "loss.png").exists()
    assert store.summary(find(store, first)).metrics["restored/accuracy"] == accuracy
    for process in (kernel, *below):
        poll(lambda process=process: not process.is_running())
