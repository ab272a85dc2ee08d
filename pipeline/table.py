"""Rows of text as a table on a terminal."""

import io
from collections.abc import Sequence

from pipeline.config import Sentence

UNITS = (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1))


def rendered(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None) -> str:
    """Return a table as text; where it is wider than `width`, each row as lines of its own."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    columns, *safe = [[str(Sentence(cell)) for cell in row] for row in (columns, *rows)]
    table, out = Table(box=None, pad_edge=False), io.StringIO()
    for column in columns:
        table.add_column(Text(column))
    for row in safe:
        table.add_row(*map(Text, row))
    Console(file=out, width=100_000).print(table)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    if width is None or max(map(len, lines)) <= width:
        return "\n".join(lines)
    longest = max(map(len, columns))
    blocks = [
        "\n".join(f"{column:{longest}}  {cell}" for column, cell in zip(columns, row, strict=True))
        for row in safe
    ]
    return "\n\n".join(blocks)


def duration(seconds: float) -> str:
    """Return a time in the two largest units that say something."""
    for unit, size, smaller, below in UNITS:
        if seconds >= size:
            return f"{int(seconds // size)} {unit} {int(seconds % size // below)} {smaller}"
    return f"{seconds:.1f} s"
