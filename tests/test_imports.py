"""Imports: they point one way, TensorFlow and MLflow come late, and only where they belong."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from waymark import names as recorded_names

from tests.support.processes import REPO

# From the lowest on: what stands here imports nothing that stands after it, however indirectly.
ORDER = (
    *("package", "names", "users_code", "errors", "files", "config", "table", "plots", "digest"),
    *("npz", "processes", "keras_import", "keras_file", "keras_weights", "data", "tasks", "models"),
    *("schedules", "optimizers", "keras_optimizers", "checkpoints", "tracking", "training"),
    *("evaluation", "exporting", "prediction", "comparison", "execution", "sweeps", "listing"),
    *("api", "cli", "completion"),
    "__main__",
)
TRACKING = (
    *("liveness", "address", "local_store", "limits", "description", "ownership", "outbox", "runs"),
    "lock",
    *("questions", "store", "artifacts", "history", "pictures", "model_folder", "logged_models"),
    *("registry", "delivery", "recovery", "finder", "parent_run", "server", "ui", "scoring_server"),
    *("opening", "remote_store", "active_run", "delivery_process"),
)
CONFIG = (
    *("old_names", "own_hydra", "masking", "values", "functions", "yaml_source", "schema"),
    *("resolve", "record", "compose", "composer"),
)
CLI = ("group", "training", "models", "records")
WITHIN = {"tracking": TRACKING, "config": CONFIG, "cli": CLI}
# Who must not reach whom, besides.
APART = {
    "waymark.checkpoints": ("data", "models", "tracking"),
    "waymark.tracking": ("data", "models", "checkpoints"),
    "waymark.training.loop": ("tracking", "training.progress"),
    "waymark.optimizers": ("models", "data"),
    "waymark.keras_optimizers": ("models", "data"),
}


def module_of(path: Path) -> str:
    parts = path.relative_to(REPO / "pipeline").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted((REPO / "pipeline" / "waymark").rglob("*.py"))}


STORES = ("tracking", "store")  # what variables that hold a RunStore end with
METRICS = ("train/", "test/", "restored/", "best/", "sweep/")


class Imports(ast.NodeVisitor):
    """Collect what a module imports, and whether it does so as soon as it is imported itself."""

    def __init__(self) -> None:
        self.found: list[tuple[str, bool]] = []  # name, at once
        self._depth = 0

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_If(self, node: ast.If) -> None:
        # What only a type checker imports is an arrow like any other, but costs nothing.
        late = ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        self._depth += late
        self.generic_visit(node)
        self._depth -= late

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [(alias.name, self._depth == 0) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, "imports are absolute here"
        for alias in node.names:
            whole = f"{node.module}.{alias.name}"
            name = whole if whole in MODULES else str(node.module)
            self.found.append((name, self._depth == 0))

    def visit_Call(self, node: ast.Call) -> None:
        if ast.unparse(node.func) in ("importlib.import_module", "import_module", "__import__"):
            name = node.args[0]
            assert isinstance(name, ast.Constant), "a module is imported by its name, spelled out"
            self.found.append((str(name.value), self._depth == 0))
        self.generic_visit(node)


@cache
def imports(module: str) -> tuple[tuple[str, bool], ...]:
    visitor = Imports()
    visitor.visit(ast.parse(MODULES[module].read_text(encoding="utf-8")))
    return tuple(visitor.found)


def own(module: str) -> set[str]:
    """Return the modules of this package that a module imports, early or late."""
    return {name for name, _ in imports(module) if name in MODULES}


@cache
def reach(module: str) -> frozenset[str]:
    """Return all modules of this package that a module brings along, however indirectly."""
    found: set[str] = set()
    todo = [module]
    while todo:
        for name in own(todo.pop()) - found:
            found.add(name)
            todo.append(name)
    return frozenset(found)


def below(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def group(package: str) -> list[str]:
    return [module for module in MODULES if below(module, package)]


def test_this_test_sees_the_imports() -> None:
    assert {"waymark.models", "waymark.config.schema", "waymark.data.dataset"} <= own(
        "waymark.models.cnn"
    )
    assert ("tensorflow", False) in imports("waymark.models.cnn")
    assert ("tensorflow", False) in imports("waymark.training.runtime")
    assert "waymark.api" in own("waymark.cli.training")
    assert "waymark.data.randomness" in reach("waymark.execution.plan")
    assert all(below(name, "waymark") for module in MODULES for name in own(module))


@pytest.mark.parametrize("module", MODULES)
def test_every_import_from_this_package_is_there(module: str) -> None:
    for name, _ in imports(module):
        if below(name, "waymark"):
            assert name in MODULES, f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_no_module_reaches_itself(module: str) -> None:
    assert module not in reach(module)


@pytest.mark.parametrize("module", [name for name in MODULES if "." in name])
def test_imports_point_one_way(module: str) -> None:
    def place(name: str) -> tuple[int, int]:
        _, unit, *rest = name.split(".")
        return ORDER.index(unit), WITHIN[unit].index(rest[0]) if unit in WITHIN and rest else -1

    assert all("." in name for name in reach(module)), "the package itself is the last"
    assert all(place(name) <= place(module) for name in reach(module) if "." in name)


@pytest.mark.parametrize("package", APART)
def test_rooms_that_do_not_know_each_other(package: str) -> None:
    assert group(package)
    for module in group(package):
        for name in reach(module):
            for other in APART[package]:
                assert not below(name, f"waymark.{other}"), f"{module} brings along {name}"


def test_every_tag_and_metric_name_stands_in_one_file() -> None:
    names = {value for key, value in vars(recorded_names).items() if key.isupper()}
    assert {"waymark.resume", "mlflow.parentRunId", "train/loss", "restored/"} <= names
    for module, path in MODULES.items():
        if module != recorded_names.__name__:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                text = node.value if isinstance(node, ast.Constant) else None
                found = isinstance(text, str) and (text in names or text.startswith(METRICS))
                assert not found, f"{module}, line {node.lineno}: {text!r}"


def test_only_tracking_imports_mlflow() -> None:
    """Nor does anything else reach MLflow's client, or what it returns, through the store."""
    for module, path in MODULES.items():
        if not below(module, "waymark.tracking"):
            assert not any(below(name, "mlflow") for name, _ in imports(module)), module
            tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            reached = [
                node
                for node in tree
                if isinstance(node, ast.Attribute)
                and node.attr in ("client", "search", "get_or_create", "experiment", "artifacts")
                and (node.attr == "client" or ast.unparse(node.value).endswith(STORES))
            ]
            assert not reached, f"{module}, line {reached[0].lineno}"


@pytest.mark.parametrize("module", MODULES)
def test_what_is_heavy_is_imported_late(module: str) -> None:
    early = [name for name, at_once in imports(module) if at_once]
    late = ("tensorflow", "keras", "mlflow", "matplotlib", "hydra", "omegaconf", "rich", "pandas")
    for heavy in late:
        assert not any(below(name, heavy) for name in early), f"{module} imports {heavy} at once"


def test_no_module_is_a_drawer_for_everything() -> None:
    names = {part for module in MODULES for part in module.split(".")}
    assert not names & {"utils", "util", "common", "base", "helpers", "misc"}


HEAVY = ("tensorflow", "keras", "mlflow", "hydra")
NOTHING_HEAVY = f"print(sorted(set(sys.modules) & set({HEAVY!r})))"


def loaded(program: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=REPO, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert loaded(f"import sys, waymark; {NOTHING_HEAVY}") == ["[]"]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["resume", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = f"""
import runpy, sys
sys.argv = ["waymark", *{arguments!r}]
try:
    runpy.run_module("waymark", run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code, end.code
{NOTHING_HEAVY}
"""
    lines = loaded(program)
    assert lines[-1] == "[]"
    assert len(lines) > 1 or "--version" in arguments


def test_modules_can_be_imported_in_any_order() -> None:
    for order in (sorted(MODULES), sorted(MODULES, reverse=True)):
        names = [name for name in order if name != "waymark.__main__"]
        program = f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
        assert loaded(program + NOTHING_HEAVY) == ["[]"]
