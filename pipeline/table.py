"""Rows of text as a table on a terminal."""

import io
from collections.abc import Mapping, Sequence

from pipeline.config import Sentence

UNITS = (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1))


def rendered(rows: Sequence[Mapping[str, str]], width: int | None) -> str:
    """Return rows with the same columns as a table of text, so many characters wide."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = io.StringIO()
    table = Table(box=None, pad_edge=False)
    for column in rows[0]:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(Sentence(cell))) for cell in row.values()))
    Console(file=out, width=width or 10_000).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def duration(seconds: float) -> str:
    """Return a time in the two largest units that say something."""
    for unit, size, smaller, below in UNITS:
        if seconds >= size:
            return f"{int(seconds // size)} {unit} {int(seconds % size // below)} {smaller}"
    return f"{seconds:.1f} s"
