"""Measure the test accuracies that docs/speed.md states: 1000 steps on MNIST, several seeds.

    python -m benchmarks.accuracy data.path=/path/to/mnist.npz

Takes overrides for every run; prints one table. The pictures of one of the CNNs stay in
docs/pictures/ for the pages.
"""

import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
SEEDS = {"softmax": 5, "cnn": 3, "cnn precision=mixed_bfloat16": 3}


def accuracy(model: str, seed: int, overrides: list[str], folder: str) -> float:
    """Run Waymark, recorded in `folder`; return the accuracy restored."""
    command = [sys.executable, "-m", "waymark", "run", "data=mnist", *f"model={model}".split()]
    command += [f"seed={seed}", "progress=false", f"tracking.uri=sqlite:///{folder}/mlflow.db"]
    done = subprocess.run([*command, *overrides], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    found = re.search(r"(?m)^test accuracy, restored +(\S+)$", done.stdout)
    assert found, done.stdout
    return float(found[1])


def main(overrides: list[str]) -> None:
    print("| model | seeds | accuracies | mean |\n|---|---|---|---|")
    for model, seeds in SEEDS.items():
        with tempfile.TemporaryDirectory() as folder:
            found = [accuracy(model, seed, overrides, folder) for seed in range(seeds)]
            if model == "cnn":
                PICTURES.mkdir(exist_ok=True)
                for picture in Path(folder).glob("artifacts/*/*/artifacts/evaluation/*.png"):
                    shutil.copy(picture, PICTURES / picture.name)
        numbers = " ".join(f"{value:.4f}" for value in found)
        print(f"| {model} | 0-{seeds - 1} | {numbers} | {statistics.mean(found):.4f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
