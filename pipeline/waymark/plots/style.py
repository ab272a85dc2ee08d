"""What all pictures share: style, colours, the numbers beside an axis, how one is saved."""

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from waymark.errors import printable
from waymark.table import elided

STYLE = Path(__file__).with_name("waymark.mplstyle")
# Okabe and Ito's palette, in the order of the style sheet.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#cccccc"
AWAY = 4.0  # times what is usual: numbers of a run that has diverged
DASHES = ("-", "--", ":", "-.")
ENDINGS = (".png", ".svg", ".pdf")
LOG_FROM = 10.0  # a ratio of the largest to the smallest value from which an axis is logarithmic
HUGE = 1e300  # from which on Matplotlib's scale ends
LETTER = 0.6  # of a font's size, the width of a letter
INCH = 72.0  # points

Curve = Mapping[int, float]


@cache
def _style() -> Any:
    from matplotlib import rc_params_from_file

    return rc_params_from_file(STYLE, use_default_template=False)


@cache
def prepare() -> None:
    """Load what drawing needs, once in a process, where there is time for it."""
    with drawn(io.BytesIO(), 1, 1) as figure:
        figure.add_axes((0, 0, 1, 1))


@contextmanager
def drawn(
    target: Path | io.BytesIO, width: float, height: float, kind: str = "", **more: Any
) -> Iterator[Any]:
    """Yield an empty figure of this size (inches), which is saved at the end of the block."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    ending = target.suffix.lower() if isinstance(target, Path) else f".{kind}"
    with rc_context(_style()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # of scripts that the font has not
        figure = Figure(figsize=(width, height), **more)
        yield figure
        if ending in ENDINGS[1:]:
            figure.savefig(target, format=ending[1:])
        else:  # zlib's fastest level, by runs of equal bytes
            fast = {"compress_level": 1, "compress_type": 3}
            figure.savefig(target, format="png", pil_kwargs=fast)


def colours(count: int) -> list[str]:
    """Return so many different colours: those of the palette, or of more along viridis."""
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["viridis"](0.88 * i / (count - 1))) for i in range(count)]


def tick_texts(values: Sequence[float]) -> list[str]:
    """Return the numbers beside an axis, in as many digits as tell them apart."""
    for digits in range(7, 18):
        texts = [f"{value:.{digits}g}".replace("e+", "e") for value in values]
        if len(set(texts)) == len(set(values)):
            break
    return texts


def is_wide(values: np.ndarray) -> bool:
    """Tell whether an axis is logarithmic: all values above 0, the ratio of the ends LOG_FROM."""
    low, high = range_of(values) or (0.0, 0.0)
    return low > 0 and high / low >= LOG_FROM


def scaled(axis: Any, low: float, high: float, is_log: bool) -> None:
    """Choose an axis's scale for this range, and have its numbers written by `tick_texts`."""
    if not is_log:
        return numbered(axis, is_whole=False)
    from matplotlib.ticker import LogLocator, NullLocator

    getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
    subs = (1.0, 2.0, 5.0) if high / low < 500 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=8))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(_numbers())


def numbered(axis: Any, is_whole: bool = True) -> None:
    """Have a few numbers, of steps whole ones, stand beside an axis."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(
        MaxNLocator(4 if is_whole else 5, steps=[1, 2, 2.5, 5, 10], integer=is_whole)
    )
    axis.set_major_formatter(_numbers())


def _numbers() -> Any:
    from matplotlib.ticker import FuncFormatter

    class Numbers(FuncFormatter):
        def format_ticks(self, values: Any) -> list[str]:
            return tick_texts(list(values))

    return Numbers(lambda value, _: tick_texts([value])[0])


def beside(axis: Any) -> float:
    """Return how wide the numbers beside an axis are, in inches."""
    low, high = sorted(axis.get_view_interval())
    at = [place for place in axis.get_majorticklocs() if low <= place <= high]
    texts = axis.get_major_formatter().format_ticks(at)
    size = 9.0
    return LETTER * size * max(map(len, texts), default=1) / INCH


def finite(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Return a curve's steps and values, float64 [N], in order; NaN where there is no number."""
    steps = np.array(sorted(curve), np.float64)
    values = np.array([curve[step] for step in sorted(curve)], np.float64)
    return steps, np.where(np.abs(values) < HUGE, values, np.nan)


def range_of(values: np.ndarray) -> tuple[float, float] | None:
    """Return the lowest and the highest number among values; None without any."""
    known = values[np.isfinite(values)]
    return (float(known.min()), float(known.max())) if len(known) else None


def tell_of_nothing(axes: Any) -> None:
    """Write into an empty panel why there is no line."""
    axes.text(0.5, 0.5, "no finite value", transform=axes.transAxes, ha="center", va="center")


def width_of(texts: Sequence[str], size: float) -> float:
    """Return how wide the widest text is in letters of this size (points), in inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size)
    measure = text_to_path.get_text_width_height_descent
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        return float(max((measure(text, font, False)[0] for text in texts), default=0.0)) / INCH


def shortened(name: str, most: int) -> str:
    """Return a name that can be shown, of at most so many characters: its beginning and its end.

    No number is cut in two.
    """
    text = printable(name)
    if len(text) <= most:
        return text
    first = elided(text, most // 2 + 1)
    start = len(text) - (most - len(first))
    for found in re.finditer(r"[\d.]+(?:[eE][+-]?\d+)?", text):
        if found.start() < start < found.end():
            start = found.end()
    return first + text[start:]
