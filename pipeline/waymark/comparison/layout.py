"""How a comparison's table is laid out: runs across or down, as wide as the terminal at most."""

from collections.abc import Sequence
from dataclasses import dataclass

from waymark.errors import printable
from waymark.table import elided, format_table

ACROSS = 4  # rows that stand side by side, at most; more of them stand one below the other
LEAST = 12  # characters of a column of a run that stands beside others


@dataclass(frozen=True)
class Column:
    """One column: a number or a setting of each row."""

    name: str
    cells: list[str]
    rank: int = 0  # of columns that are too wide together the one with the highest is left out


def laid_out(columns: Sequence[Column], width: int | None) -> tuple[str, list[str]]:
    """Return the table as text of at most `width` characters a line, and the columns left out.

    Up to ACROSS rows stand side by side, each setting and metric on a line of its own. With None
    the width is not limited.
    """
    count = len(columns[0].cells)
    if count <= ACROSS:
        return _across(columns, width), []
    kept = list(columns)
    while width is not None and len(kept) > 1 and _width(kept) > width:
        kept.remove(max(reversed(kept), key=lambda column: column.rank))
    rows = [[column.cells[i] for column in kept] for i in range(count)]
    left_out = [column.name for column in columns if column not in kept]
    if width is not None and _width(kept) > width:
        rows = [[elided(cell, width) for cell in row] for row in rows]
    return format_table([column.name for column in kept], rows, width), left_out


def _across(columns: Sequence[Column], width: int | None) -> str:
    """Return the table with a line for each column; what of a cell is too long is left out."""
    labels, *others = columns
    first = max(len(printable(column.name)) for column in columns)
    lines = [[column.name, *column.cells] for column in others]
    heads = [labels.name, *labels.cells]
    if width is not None:
        each = max(LEAST, (width - first) // len(labels.cells) - 2)
        heads, *lines = [[name, *(elided(cell, each) for cell in cells)] for name, *cells in
                         (heads, *lines)]  # fmt: skip
    return format_table(heads, lines, width)


def _width(columns: Sequence[Column]) -> int:
    """Return how many characters a line of the table takes."""
    from rich.cells import cell_len

    widest = [
        max(cell_len(printable(text)) for text in (column.name, *column.cells))
        for column in columns
    ]
    return sum(widest) + 2 * (len(columns) - 1)
