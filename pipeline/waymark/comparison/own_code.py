"""The user's own code: the imported modules that are not Waymark's, installed, nor Python's.

Of a module in a git repository a run keeps the repository's commit and changes, of another one a
copy. What a repository ignores but a run imports is among the changes.
"""

import hashlib
import os
import re
import sys
import sysconfig
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pydantic

from waymark.comparison.repository import changes, changes_at, checkout, diffstat, git, masked_lines
from waymark.package import FOLDER, REPOSITORY

INSTALLED = ("site-packages", "dist-packages")  # folders of packages, wherever they lie
AUTOGRAPH = "__autograph_generated_file"  # what TensorFlow calls modules of its own making
COPIES = "own_code/copies.patch"  # among a run's artifacts
CHANGES = "changes.patch"  # likewise: those of the code's checkout
MOST = 10 * 2**20  # bytes of all copies, and of a repository's changes


@dataclass(frozen=True)
class RepositoryFacts:
    """What is recorded of a repository that modules of the user's were imported from."""

    name: str  # its folder's
    commit: str
    changes: str | None  # as `diffstat` tells them; None if they were not recorded
    modules: dict[str, str]  # module -> its file below the repository's folder


@dataclass(frozen=True)
class OwnFacts:
    """What environment.json tells of the user's own modules, as `own`."""

    checkout: dict[str, str]  # those in the checkout that git_commit and changes.patch are of
    repositories: list[RepositoryFacts]
    copied: list[str]  # modules in no repository
    left_out: list[str]  # those whose copy would be too large, is no text, or is not asked for

    def patches(self) -> list[str]:
        """Return the names of the artifacts that hold repositories' changes, and the copies."""
        numbered = enumerate(self.repositories)
        names = [patch_name(n) for n, each in numbered if each.changes not in (None, "none")]
        return [*names, *[COPIES] * bool(self.copied)]


OWN_FACTS = pydantic.TypeAdapter(OwnFacts)


def patch_name(number: int) -> str:
    """Return the name of the artifact with the changes of the repository of this number."""
    return f"own_code/repository-{number}.patch"


def own_facts(facts: Mapping[str, Any]) -> OwnFacts:
    """Return what environment.json tells of own modules; nothing if it is older or damaged."""
    try:
        return OWN_FACTS.validate_python(facts["own"])
    except (KeyError, pydantic.ValidationError):
        return OwnFacts({}, [], [], [])


class OwnCode:
    """What a run keeps of the user's own modules, each as it was when it was first seen."""

    def __init__(self, with_changes: bool) -> None:
        self.digests: dict[str, str] = {}  # module -> SHA-256 of its file, but of a script's
        self.patch = ""  # of the checkout, see `changes`
        self._with_changes = with_changes
        self._checkout_top = top_of(checkout().resolve())
        self._checkout: dict[str, str] = {}
        self._repositories: dict[Path, RepositoryFacts] = {}  # by their folders
        self._patches: dict[Path, str | None] = {}  # of them, None if not kept
        self._copies: dict[str, str] = {}
        self._left_out: list[str] = []
        self._known: set[str] = set()
        self._count = 0
        self.look_again()

    def look_again(self) -> bool:
        """Take in the modules that were imported since; tell whether there are any."""
        if len(sys.modules) == self._count:
            return False
        first, self._count = not self._count, len(sys.modules)
        new = {name: file for name, file in own_files().items() if name not in self._known}
        self._known |= new.keys()
        below: dict[Path | None, dict[str, Path]] = {self._checkout_top: {}} if first else {}
        for name, file in new.items():
            if name != "__main__":
                with suppress(OSError):
                    self.digests[name] = hashlib.sha256(file.read_bytes()).hexdigest()
            imported = name == "__main__" or _import_folder(name, file)
            below.setdefault(top_of(file.parent) if imported else None, {})[name] = file
        copied = below.pop(None, {})
        for top, files in below.items():
            assert top
            if top != self._checkout_top:
                copied |= {} if self._add_to_repository(top, files) else files
                continue
            self._checkout |= _relative(files, top)
            if self._with_changes and first:
                self.patch = changes(files.values()) or ""
            elif self._with_changes:
                self.patch = _with_later(self.patch, top, files)
        for name, file in copied.items():
            self._copy(name, file)
        return bool(new)

    def _add_to_repository(self, top: Path, files: Mapping[str, Path]) -> bool:
        """Take in modules of a repository; tell whether it has a commit to record."""
        if top not in self._repositories:
            printed = git("rev-parse", "--show-toplevel", "--git-common-dir", "HEAD", at=top)
            lines = (printed or "").splitlines()
            if len(lines) != 3 or Path(lines[0]).resolve() != top:
                return False
            common = (top / lines[1]).resolve()  # the repository's own, of a worktree as well
            name = common.parent.name if common.name == ".git" else common.name
            self._repositories[top] = RepositoryFacts(name.removesuffix(".git"), lines[2], None, {})
            patch = changes_at(top, files.values()) if self._with_changes else None
        else:
            patch = self._patches[top]
            if patch is not None:
                patch = _with_later(patch, top, files, self._repositories[top].commit)
        self._patches[top] = None if patch is None or len(patch) > MOST else patch
        self._repositories[top].modules.update(_relative(files, top))
        return True

    def _copy(self, name: str, file: Path) -> None:
        parts = name.split(".")
        try:
            body = file.read_bytes()
        except OSError:
            body = b"\0"
        room = MOST - sum(map(len, self._copies.values())) - len(body)
        is_text = file.suffix == ".py" and b"\0" not in body
        if not (self._with_changes and room >= 0 and is_text and all(map(str.isidentifier, parts))):
            self._left_out.append(name)
            return
        inside = "/__init__" if file.name == "__init__.py" else ""
        self._copies[name] = masked_lines(as_new_file("/".join(parts) + f"{inside}.py", body))

    def facts(self) -> dict[str, Any]:
        """Return what environment.json tells of it."""
        repositories = [
            replace(each, changes=None if patch is None else diffstat(patch))
            for each, patch in zip(self._repositories.values(), self._patches.values(), strict=True)
        ]
        copied = sorted(self._copies)
        return asdict(OwnFacts(self._checkout, repositories, copied, sorted(self._left_out)))

    def patches(self) -> dict[str, str]:
        """Return the patches to keep, by the names of their artifacts."""
        found = {patch_name(n): patch or "" for n, patch in enumerate(self._patches.values())}
        found[COPIES] = "".join(self._copies[name] for name in sorted(self._copies))
        found[CHANGES] = self.patch
        return {name: patch for name, patch in found.items() if patch}


def own_files() -> dict[str, Path]:
    """Return the file of each imported module that is not Waymark's, installed, nor Python's."""
    found = {}
    for name, module in list(sys.modules.items()):
        try:  # without importing what a module of TensorFlow's only promises
            file = object.__getattribute__(module, "__dict__").get("__file__")
        except AttributeError:
            continue
        if not isinstance(file, str) or name.partition(".")[0] in ("waymark", "__mp_main__"):
            continue
        if name.startswith(AUTOGRAPH):
            continue
        if not _is_own_folder(os.path.dirname(file if file[:1] == "/" else os.path.abspath(file))):
            continue
        path = Path(file).resolve()
        root = _import_folder(name, path)
        installed = root and name.partition(".")[0] in _installed_in(root)
        if not installed and path.is_file():
            found[name] = path
    return dict(sorted(found.items()))


@cache
def _is_own_folder(folder: str) -> bool:
    """Tell whether what lies in a folder, wherever links lead, can be the user's own."""
    real = os.path.realpath(folder) + os.sep
    installed = any(f"{os.sep}{name}{os.sep}" in real for name in INSTALLED)
    return not installed and not real.startswith(_others())


@cache
def _others() -> tuple[str, ...]:
    """Return the folders of Python itself, of programs that are installed, and of Waymark."""
    schemes = [sysconfig.get_paths(), sysconfig.get_paths(sysconfig.get_preferred_scheme("user"))]
    names = ("stdlib", "platstdlib", "purelib", "platlib", "scripts")
    found = [scheme[name] for scheme in schemes for name in names]
    found += [os.path.dirname(sys.executable), str(FOLDER), str(FOLDER.parent / "hydra_plugins")]
    found += [str(REPOSITORY / name) for name in ("tests", "benchmarks") if REPOSITORY]
    return tuple(os.path.realpath(path) + os.sep for path in found)


@cache
def _installed_in(root: Path) -> set[str]:
    """Return the first parts of what pip has installed into a folder (`pip install --target`)."""
    texts = (record.read_text(errors="replace") for record in root.glob("*.dist-info/RECORD"))
    return {re.split("[,/.]", line)[0] for text in texts for line in text.splitlines()}


def _import_folder(name: str, file: Path) -> Path | None:
    """Return the folder below which a module's name leads to its file, None if it does not."""
    parts = tuple(name.split("."))
    stem = file.name.split(".")[0]
    place = file.parent if stem == "__init__" else file.with_name(stem)
    return place.parents[len(parts) - 1] if place.parts[-len(parts) :] == parts else None


def import_folders(modules: Mapping[str, str]) -> list[Path]:
    """Return the folders, below that of a repository, from which its modules are imported."""
    found = [_import_folder(name, Path("/", file)) for name, file in modules.items()]
    return sorted({f.relative_to("/") for f in found if f and ".." not in f.parts})


def top_of(folder: Path) -> Path | None:
    """Return the folder of the repository that a folder lies in."""
    return next((each for each in (folder, *folder.parents) if (each / ".git").exists()), None)


def _relative(files: Mapping[str, Path], top: Path) -> dict[str, str]:
    return {name: file.relative_to(top).as_posix() for name, file in files.items()}


def _with_later(patch: str, top: Path, files: Mapping[str, Path], since: str = "HEAD") -> str:
    """Return a repository's patch in which some files, imported since, are as they are now."""
    later = changes_at(top, files.values(), since, only=True) or ""
    parts = re.split(r"^(?=diff --git )", patch + later, flags=re.MULTILINE)
    sections = {part.partition("\n")[0]: part for part in parts if part}
    return "".join(sections[header] for header in sorted(sections))  # git's order


def as_new_file(name: str, body: bytes) -> str:
    """Return the patch that makes a file."""
    text = body.decode(errors="surrogateescape")
    head = f"diff --git a/{name} b/{name}\nnew file mode 100644\n"
    if not text:
        return f"{head}index 0000000..e69de29\n"
    lines = text.removesuffix("\n").split("\n")
    end = [] if text.endswith("\n") else ["\\ No newline at end of file"]
    head += f"--- /dev/null\n+++ b/{name}\n@@ -0,0 +1,{len(lines)} @@\n"
    return head + "\n".join([*(f"+{line}" for line in lines), *end, ""])
