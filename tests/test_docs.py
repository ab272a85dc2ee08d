"""The pages under docs/ are true: their snippets run, one after the other."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import REPO, Main

PAGES = sorted((REPO / "docs").glob("*.md"))


@pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")  # of Keras, as it saves
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_snippets_run(place: Path, monkeypatch: pytest.MonkeyPatch, main: Main, page: Path) -> None:
    monkeypatch.syspath_prepend(place)
    blocks = re.findall(r"```(\w+)\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    names: dict[str, Any] = {}
    for language, block in blocks:
        if named := re.match(r"# (\S+\.(?:py|yaml))\n", block):
            path = place / named[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block)
        elif language == "python":
            exec(block, names)
        else:
            assert language == "sh", "a page holds programs, commands and files"
            for line in block.splitlines():
                program, *words = shlex.split(line)
                done = main(*words)
                assert (program, done.returncode) == ("waymark", 0), done
    assert {language for language, _ in blocks} >= {"python", "sh"}


def test_every_page_is_linked_from_the_readme_and_links_to_what_is_there() -> None:
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    assert PAGES
    for page in PAGES:
        assert f"(docs/{page.name})" in readme
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            file, _, heading = target.partition("#")
            other = page.parent / file if file else page
            assert other.exists() and (not heading or heading in headings(other)), target


def headings(page: Path) -> set[str]:
    """Return what links to the headings of a page end with."""
    found = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", text).strip().lower().replace(" ", "-") for text in found}
