"""The worked notebook in a kernel of its own; as a program it stores what comes out.

python -m tests.support.notebook
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.processes import BOUND, REPO

NOTEBOOK = REPO / "docs" / "notebook.ipynb"


@contextmanager
def executed(folder: Path, environment: dict[str, str]) -> Iterator[tuple[Any, Any]]:
    """Yield the notebook with its outputs, and the client of its kernel, which ends then."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(folder)}}
    named = {"kernel_name": "python3", "coalesce_streams": True, "record_timing": False}
    client = NotebookClient(notebook, timeout=2 * BOUND, resources=where, **named)
    with client.setup_kernel(env=environment):
        for number, cell in enumerate(notebook.cells):
            client.execute_cell(cell, number)
        yield notebook, client


def store_outputs() -> None:
    """Write the notebook with its outputs, of which a page shows the first of several forms."""
    import nbformat

    with tempfile.TemporaryDirectory() as scratch:
        with executed(Path(scratch), {**os.environ, "HOME": scratch}) as (notebook, _):
            pass
        outputs = [each for cell in notebook.cells for each in cell.get("outputs", [])]
        for data in (each["data"] for each in outputs if "data" in each):
            if len(data) > 1:
                del data["text/plain"]
        assert scratch not in nbformat.writes(notebook)
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    store_outputs()
