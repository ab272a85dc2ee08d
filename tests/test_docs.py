"""The pages under docs/ are true: their snippets run, their commands and links are real."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from waymark.cli import models, records, training  # noqa: F401  (which add their commands)
from waymark.cli.group import cli
from waymark.config.compose import compose_config

from tests.support.processes import REPO, Main

PAGES = sorted((REPO / "docs").glob("*.md"))
# Those with commands: of the others, test_library and test_readme run the snippets.
WITH_COMMANDS = [page for page in PAGES if "```sh\n" in page.read_text(encoding="utf-8")]
MAX_LINES = {"README.md": 150}


@pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")  # of Keras, as it saves
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.stem)
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


def test_pages_are_short_and_link_to_what_is_there() -> None:
    readme = REPO / "README.md"
    for page in [readme, REPO / "CONTRIBUTING.md", *PAGES]:
        text = page.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= MAX_LINES.get(page.name, 200), page
        for target in re.findall(r"\]\(([^)]+)\)", text):
            if not target.startswith("https://"):
                file, _, heading = target.partition("#")
                other = page.parent / file if file else page
                assert other.exists() and (not heading or heading in headings(other)), target


def test_pages_are_a_site(tmp_path: Path) -> None:
    """MkDocs is strict: a link or heading that is not there, or a page left out, is an error."""
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert {f"{page.stem}.html" for page in PAGES} <= {file.name for file in tmp_path.iterdir()}


def test_every_page_is_in_the_list_of_pages_and_reached_from_the_readme() -> None:
    index = (REPO / "docs" / "index.md").read_text(encoding="utf-8")
    assert "(docs/index.md)" in (REPO / "README.md").read_text(encoding="utf-8")
    assert [p.name for p in PAGES if p.stem != "index" and f"]({p.name})" not in index] == []


def commands(page: Path) -> list[str]:
    """Return the commands of Waymark in the indented blocks of a page, comments left out."""
    text = re.sub(r"\\\n *", "", page.read_text(encoding="utf-8"))
    found = re.findall(r"^    (waymark [a-z].*)$", text, re.M)
    return [re.sub(r"  .*$", "", line) for line in found]


def test_what_pages_tell_to_type_is_understood(place: Path) -> None:
    """Overrides compose; options are those of the command. The blocks of ```sh are run above."""
    told = [line for page in [REPO / "README.md", *PAGES] for line in commands(page)]
    assert len(told) > 20
    for line in told:
        _, name, *words = shlex.split(line)
        command = cli.commands[name]
        options = {option for each in command.params for option in each.opts}
        used = {word for word in words if word.startswith("--")}
        assert name == "run" or used <= options, line
        if name == "run" and "model=keras" not in words:  # whose function or file is not here
            compose_config(overrides(words))


def overrides(words: list[str]) -> list[str]:
    """Return what a command line overrides, of a sweep the first choice of each."""
    pairs = [w for w in words if re.match(r"[+\w./]+=", w) and not w.startswith("hydra")]
    if "-m" not in words:
        return pairs
    return [re.sub(r"=([^\[{(,]+),.*$", r"=\1", pair) for pair in pairs]


def headings(page: Path) -> set[str]:
    """Return what links to the headings of a page end with."""
    found = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", text).strip().lower().replace(" ", "-") for text in found}
