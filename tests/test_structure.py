"""The shape of the code: sizes that can be read at once, and objects that are whole when made."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "pipeline"
FILES = sorted(SOURCE.rglob("*.py"))
LINES, FUNCTION = 400, 60  # at most, of a file and of a function
# Pydantic's classes, which build on demand.
ON_DEMAND = ("keras.py", "keras_optimizers.py")
INITIALISERS = ("__init__", "__post_init__", "__new__")


def long_functions(tree: ast.AST) -> list[str]:
    return [
        f"{node.name}: {count}"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (count := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION
    ]


def assigned(node: ast.AST) -> Iterator[str]:
    """Yield the names of the attributes of `self` that are assigned somewhere below a node."""
    for each in ast.walk(node):
        stored = isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store)
        if stored and ast.unparse(each.value) == "self":
            yield each.attr


def born_late(tree: ast.AST) -> list[str]:
    """Return the attributes that a class's methods make after its objects were made.

    Those of a base class in the same file count as made; one of another file may make any.
    """
    classes = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}

    def made(node: ast.ClassDef) -> set[str]:
        found: set[str] = set()
        for base in node.bases:
            found |= made(classes[base.id]) if getattr(base, "id", "") in classes else set()
        for item in node.body:
            if isinstance(item, ast.FunctionDef) and item.name in INITIALISERS:
                found |= {*assigned(item)}
            elif isinstance(item, ast.AnnAssign | ast.Assign):
                targets = [item.target] if isinstance(item, ast.AnnAssign) else item.targets
                found |= {each.id for each in targets if isinstance(each, ast.Name)}
        return found

    return [
        f"{node.name}.{name}"
        for node in classes.values()
        if all(ast.unparse(base) in classes for base in node.bases)
        for item in node.body
        if isinstance(item, ast.FunctionDef) and item.name not in INITIALISERS
        for name in assigned(item)
        if name not in made(node)
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_files_functions_and_objects(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert text.count("\n") <= LINES
    assert long_functions(tree) == []
    assert born_late(tree) == [] or file.name in ON_DEMAND


def test_this_test_sees_what_is_wrong() -> None:
    source = "class A:\n    b = 1\n    def __init__(self):\n        self.c = 1\n"
    source += "    def d(self):\n        self.b = self.c = self.e = 2\n"
    assert born_late(ast.parse(source)) == ["A.e"]
    assert long_functions(ast.parse("def f():\n" + "    pass\n" * FUNCTION)) == [
        f"f: {FUNCTION + 1}"
    ]
    assert not long_functions(ast.parse("def f():\n" + "    pass\n" * (FUNCTION - 1)))
