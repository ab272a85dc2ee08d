"""Run all benchmarks that `make bench` promises; then print and draw what came of them.

    MNIST_NPZ=/path/to/mnist.npz python -m benchmarks

With real MNIST where MNIST_NPZ names it, else with the embedded digits. At the end there are two
tables: who is faster at what, with the processor's name, and every ratio that is aimed at.
"""

import json
import subprocess
import sys

from benchmarks import picture
from benchmarks.ways import AHEAD, COLUMNS, HERE, Target, table

PROGRAMS = ("loop", "whole", "commands", "scoring", "trials", "growth", "streaming", "keras_models")


def summary() -> str:
    """Return the tables of what the programs have written, under the machine that they ran on."""
    found = [json.loads((HERE / f"{name}.json").read_text()) for name in PROGRAMS]
    targets = [Target(**target) for facts in found for target in facts["targets"]]
    ahead = table(AHEAD, filter(None, (target.ahead() for target in targets)))
    machine = "{processor}, {cores} cores, {data}".format(**found[0])
    return f"{machine}:\n\n{ahead}\n{table(COLUMNS, [target.row() for target in targets])}"


def main() -> None:
    for name in PROGRAMS:
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
    print(summary())
    picture.draw()


if __name__ == "__main__":
    main()
