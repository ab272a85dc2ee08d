"""Every public function, method and class says what it is for."""

import ast
import re
import textwrap
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "pipeline"
FILES = sorted(SOURCE.rglob("*.py"))


def undocumented(body: list[ast.stmt], prefix: str) -> list[str]:
    """Return the dotted names of public functions and classes without a docstring."""
    found = []
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_"):
            continue
        overloaded = any("overload" in ast.unparse(each) for each in node.decorator_list)
        if not ast.get_docstring(node) and not overloaded:
            found.append(f"{prefix}{node.name}")
        if isinstance(node, ast.ClassDef):
            found += undocumented(node.body, f"{prefix}{node.name}.")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_what_is_public_is_documented(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    assert undocumented(tree.body, "") == []


def test_this_test_sees_what_is_not_documented() -> None:
    source = "def a(): pass\nclass B:\n    'Text.'\n    def c(self): pass\n    def _d(self): pass\n"
    assert undocumented(ast.parse(source).body, "") == ["a", "B.c"]


# In this order: those at the end read what execution and sweeps have recorded.
PACKAGES = (
    *("config", "data", "tasks", "models", "checkpoints", "training", "processes"),
    *("execution", "sweeps", "evaluation", "exporting", "prediction", "comparison", "tracking"),
    *("plots", "cli"),
)


def test_the_synopsis_of_each_package_runs(place: Path) -> None:
    folders = {path.parent.name for path in (SOURCE / "waymark").glob("*/__init__.py")}
    assert folders == set(PACKAGES)
    for name in PACKAGES:
        tree = ast.parse((SOURCE / "waymark" / name / "__init__.py").read_text(encoding="utf-8"))
        code = re.search(r"(?ms)^ *(from|import) .*", ast.get_docstring(tree) or "")
        assert code, name
        exec(textwrap.dedent(code[0]), {})
