"""Run all benchmarks that `make bench` promises; then print every ratio that is aimed at.

    MNIST_NPZ=/path/to/mnist.npz python -m benchmarks

With real MNIST where MNIST_NPZ names it, else with the embedded digits.
"""

import json
import subprocess
import sys

from benchmarks.ways import COLUMNS, HERE, table

PROGRAMS = ("loop", "whole", "scoring", "trials", "growth")


def main() -> None:
    rows = []
    for name in PROGRAMS:
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
        rows += json.loads((HERE / f"{name}.json").read_text())["targets"]
    print(table(COLUMNS, rows))


if __name__ == "__main__":
    main()
