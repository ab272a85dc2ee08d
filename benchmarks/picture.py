"""Draw what the benchmarks wrote: for each job a bar for each program, medians and ranges.

    python -m benchmarks.picture

Reads the JSON files beside it; writes docs/pictures/speed.png.
"""

import json
import statistics
from collections.abc import Mapping, Sequence

from waymark.plots.style import COLOURS, drawn

from benchmarks.ways import HERE

FILE = HERE.parent / "docs" / "pictures" / "speed.png"
OWN, OTHER = COLOURS[1], "#9aa5b1"  # colours: of Waymark, of all others
LOOP = {  # way -> what it is called in the picture
    "+ evaluation: all of Waymark": "waymark",
    "reference_tf1": "reference_tf1",
    "bare_loop: one call": "bare_loop",
}

Bars = Mapping[str, Sequence[float]]  # program -> its measurements


def panels(found: Mapping[str, dict]) -> dict[str, Bars]:
    """Return for each job, with its unit, the measurements of each program."""
    whole, loop = found["whole"], found["loop"]
    small = [program for program in whole if not program.endswith(", cnn")]
    large = [program for program in whole if program not in small]
    peaks = {
        program.removesuffix(", cnn"): [job["peak_of_all"] / 1000 for job in whole[program]]
        for program in large
    }
    return {
        "softmax, 1000 steps, whole process: s": {
            program: [job["wall"] for job in whole[program]] for program in small
        },
        "softmax, the loop: ms a step": walls(loop["softmax"]),
        "8 softmax trials, one process: s": {
            way: each["wall"] for way, each in found["trials"].items()
        },
        "CNN, the loop: ms a step": walls(loop["cnn"]),
        "CNN, 10,000 images evaluated: s": {
            way: [seconds for seconds, _ in each] for way, each in found["scoring"].items()
        },
        "CNN, peak memory, all processes: GB": peaks,
    }


def walls(ways: Mapping[str, Sequence[Sequence[float]]]) -> Bars:
    return {name: [wall for wall, _ in ways[way]] for way, name in LOOP.items()}


def draw() -> None:
    """Draw the picture from the JSON files."""
    programs = ("loop", "whole", "scoring", "trials")
    facts = {name: json.loads((HERE / f"{name}.json").read_text()) for name in programs}
    found = panels({name: each["numbers"] for name, each in facts.items()})
    FILE.parent.mkdir(exist_ok=True)
    with drawn(FILE, 11, 6.5, layout="constrained") as figure:
        for axes, (title, bars) in zip(figure.subplots(3, 2).flat, found.items(), strict=True):
            middle = [statistics.median(values) for values in bars.values()]
            below = [m - min(values) for m, values in zip(middle, bars.values(), strict=True)]
            above = [max(values) - m for m, values in zip(middle, bars.values(), strict=True)]
            colours = [OWN if name.startswith("waymark") else OTHER for name in bars]
            shown = axes.barh([*bars], middle, color=colours, xerr=[below, above], capsize=3)
            axes.bar_label(shown, [f"{value:.2f}" for value in middle], padding=4)
            axes.set_title(title)
            axes.grid(False)
            axes.margins(x=0.2)
            axes.invert_yaxis()  # the first on top
        machine = "{processor}, {cores} cores, {data}".format(**facts["whole"])
        figure.suptitle(f"Less is better: medians, smallest and largest of five. {machine}")


if __name__ == "__main__":
    draw()
