"""What is shown to people: numbers and settings, formatted and never cut, and rows as a table."""

import html
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from textwrap import TextWrapper

from waymark.errors import printable

# A number with a point or an exponent, on its own or in a list.
FRACTION = re.compile(r"(?<![\w.])[+-]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][+-]?\d+)?(?![\w.])")
DIGITS = 4  # that are shown of a number
ROWS = 20  # that are shown in a notebook
LEAST = 8  # characters of a cell that is shortened
SHORT_NAMES = {"learning_rate": "lr", "batch_size": "bs", "weight_decay": "wd"}
ANSI = {"red": 31, "green": 32, "yellow": 33, "cyan": 36}
UNITS = (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1))


def format_table(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None) -> str:
    """Return a table as text; where it is wider than `width`, each row as lines of its own."""
    from rich.cells import cell_len, set_cell_size

    columns, *safe = [[printable(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(map(cell_len, cells)) for cells in zip(columns, *safe, strict=True)]
    lines = ["  ".join(map(set_cell_size, row, widths)).rstrip() for row in (columns, *safe)]
    if width is None or max(map(len, lines)) <= width:
        return "\n".join(lines)
    longest = max(map(len, columns))
    blocks = [
        "\n".join(f"{column:{longest}}  {cell}" for column, cell in zip(columns, row, strict=True))
        for row in safe
    ]
    return "\n\n".join(blocks)


def one_line_each(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None) -> str:
    """Return a table with one line for each row, of `width` characters at most.

    Where that is too few, the longest texts are shortened with an ellipsis.
    """
    cells = [[printable(cell) for cell in row] for row in (columns, *rows)]
    most = [max(map(len, column)) for column in zip(*cells, strict=True)]
    while width is not None and sum(most) + 2 * (len(most) - 1) > width and max(most) > LEAST:
        most[most.index(max(most))] -= 1
    heads, *others = [[elided(cell, size) for cell, size in zip(row, most, strict=True)]
                      for row in cells]  # fmt: skip
    return format_table(heads, others, None)


def html_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()
) -> str:
    """Return a table for a notebook as HTML, its first ROWS rows, with notes below it."""
    more = [f"and {len(rows) - ROWS} more rows"] if len(rows) > ROWS else []
    lines = [("th", columns)] * bool(columns) + [("td", row) for row in rows[:ROWS]]
    style = 'style="text-align: left"'
    cells = ["".join(f"<{tag} {style}>{_escaped(cell)}</{tag}>" for cell in line)
             for tag, line in lines]  # fmt: skip
    table = "".join(f"<tr>{line}</tr>" for line in cells)
    below = "".join(f"<div>{_escaped(note)}</div>" for note in [*more, *notes])
    return f"<table>{table}</table>{below}"


def _escaped(text: str) -> str:
    return html.escape(printable(text))


def coloured(text: str, colours: Mapping[str, str]) -> str:
    """Return a text with some words in colours of the terminal, as it is where there is none."""
    from rich.console import Console

    console = Console()
    if console.color_system is None or console.no_color:
        return text
    words = "|".join(map(re.escape, colours))
    return re.sub(rf"\b({words})\b", lambda m: f"\x1b[{ANSI[colours[m[0]]]}m{m[0]}\x1b[0m", text)


def wrapped(lines: Iterable[str], width: int | None) -> list[str]:
    """Return lines in parts of at most `width` characters; a word that is longer stays whole."""
    if width is None:
        return list(lines)
    form = TextWrapper(
        width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    return [part for line in lines for part in form.wrap(line)]


def terminal_width() -> int | None:
    """Return the terminal's width, None where standard output goes elsewhere."""
    return os.get_terminal_size().columns if sys.stdout.isatty() else None


def duration(seconds: float) -> str:
    """Return a time in the two largest units that say something."""
    for unit, size, smaller, below in UNITS:
        if seconds >= size:
            return f"{int(seconds // size)} {unit} {int(seconds % size // below)} {smaller}"
    return f"{seconds:.1f} s"


def size(count: int) -> str:
    """Return a number of bytes in the unit that says most."""
    for unit, of in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= of:
            return f"{number(count / of)} {unit}"
    return f"{count} bytes"


def age(seconds: float) -> str:
    """Return how long ago something was in its largest unit; another clock may be ahead of ours."""
    if seconds < 0:
        return "in the future"
    whole = ((unit, int(seconds // size)) for unit, size, _, _ in UNITS)
    return next((f"{count} {unit}" for unit, count in whole if count), f"{int(seconds)} s")


def number(value: float) -> str:
    """Return a measured value in four significant digits; an int whole."""
    return str(value) if isinstance(value, int) else f"{value:#.{DIGITS}g}".rstrip(".")


def metric_value(name: str, value: float | None) -> str:
    """Return the value of a metric, an accuracy in four decimals; `-` for none."""
    if value is None:
        return "-"
    return f"{value:.4f}" if name == "accuracy" else number(value)


def rate(value: float) -> str:
    """Return how many a second or minute in three digits, in whole ones from 100 up."""
    return f"{value:#.3g}".rstrip(".") if value < 100 else number(round(value))


def setting(text: str, digits: int = DIGITS) -> str:
    """Return the text of a setting, longer fractions in so many significant digits."""

    def short(match: re.Match[str]) -> str:
        written = match[0]
        figures = re.sub("[eE].*|[^0-9]", "", written).lstrip("0")
        exact = len(figures) <= digits or not math.isfinite(float(written))
        return written if exact else f"{float(written):.{digits}g}"

    alone = FRACTION.fullmatch(text) or text[:1] in ("[", "{")
    return FRACTION.sub(short, text) if alone else text


def short_setting(text: str) -> str:
    """Return the text of a setting as `setting` has it, a small fraction as 1e-3 if shorter."""
    shown = setting(text)
    if not (FRACTION.fullmatch(shown) and 0 < abs(float(shown)) < 1):
        return shown
    return min(shown, f"{Decimal(shown).normalize():e}", key=len)


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Return for each key a usual short name or its last part; itself where that is another's."""
    last = {key: key.rpartition(".")[2] for key in keys}
    last = {key: SHORT_NAMES.get(name, name) for key, name in last.items()}
    names = list(last.values())
    return {key: name if names.count(name) == 1 else key for key, name in last.items()}


def settings_apart(texts: Iterable[str]) -> dict[str, str]:
    """Return each text as `setting` has it, in as many more digits as tell them apart."""
    different = set(texts)
    for digits in range(DIGITS, 18):
        shown = {text: setting(text, digits) for text in different}
        if len(set(shown.values())) == len(different):
            break
    return shown


def elided(text: str, most: int) -> str:
    """Return a text of at most so many characters, `…` for the rest; no number is cut in two."""
    if len(text) <= most:
        return text
    end = most - 1
    for found in re.finditer(r"[+-]?\d[\d.]*(?:[eE][+-]?\d+)?", text):
        if found.start() < end < found.end():
            end = found.start()
    return f"{text[:end]}…"
