"""An environment with a few of the installed packages: a folder of links."""

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement


def link_packages(folder: Path, *packages: str) -> None:
    """Link packages into a folder, with what they need, and nothing else."""
    todo, seen = [*packages], set()
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:  # of another platform
            continue
        needed = map(Requirement, found.requires or ())
        todo += [r.name for r in needed if not r.marker or r.marker.evaluate({"extra": ""})]
        for top in {file.parts[0] for file in found.files or ()} - {".."}:
            source = Path(str(found.locate_file(top)))
            if source.exists() and not (folder / top).exists():
                (folder / top).symlink_to(source)
