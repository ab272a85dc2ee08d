"""Draw a terminal in which a run is killed, resumed and done again: docs/pictures/terminal.svg.

    python -m benchmarks.terminal

The commands are run, in an empty folder, and what they print is drawn as it is; a line that is
too long ends with an ellipsis.
"""

import os
import re
import subprocess
import sys
import tempfile
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

FILE = Path(__file__).parents[1] / "docs" / "pictures" / "terminal.svg"
COLUMNS = 108
RUN = ["run", "steps=3000", "save.every=500", "eval_every=500"]
KILLED_AT = "Step: 2000"


def start(words: list[str], folder: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "COLUMNS": str(COLUMNS), "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(
        [sys.executable, "-m", "waymark", *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def killed(words: list[str], folder: str) -> list[str]:
    """Return what a command printed until a line, at which it was killed."""
    lines = []
    with start(words, folder) as process:
        assert process.stdout
        for line in process.stdout:
            lines.append(line.rstrip())
            if line.startswith(KILLED_AT):
                process.kill()
                break
    return lines


def done(words: list[str], folder: str) -> list[str]:
    """Return what a command printed that ended well."""
    output, _ = (process := start(words, folder)).communicate()
    assert process.returncode == 0, output
    return [line.rstrip() for line in output.splitlines()]


def main() -> None:
    console = Console(record=True, width=COLUMNS, file=StringIO(), color_system="truecolor")

    def told(words: list[str], lines: list[str]) -> None:
        console.print(Text.assemble(("$ ", "bold green"), ("waymark " + " ".join(words), "bold")))
        for line in lines:
            console.print(Text(line), overflow="ellipsis", no_wrap=True)

    with tempfile.TemporaryDirectory() as folder:
        told(RUN, [*killed(RUN, folder), ""])
        console.print(Text("# killed by SIGKILL", style="bold red"))
        for words in (["resume", "latest"], ["rerun", "latest"]):
            told(words, done(words, folder))
    svg = console.export_svg(title="killed, resumed, done again")
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.S)  # they would be fetched from elsewhere
    FILE.write_text("\n".join(line.rstrip() for line in svg.splitlines() if line.strip()) + "\n")


if __name__ == "__main__":
    main()
