"""Write the tables of docs/configuration.md from schema and YAML: `make reference`."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.support.processes import REPO

PAGE = REPO / "docs" / "configuration.md"
BEGIN, END = "<!-- what follows is written by `make reference` -->\n", "\n<!-- until here -->"
PARTS = {  # of the settings: whose class has their own ones
    **{"data": "data.sources.Loader", "optimizer": "optimizers.Optimizer"},
    **{"save": "checkpoints.SaveFormat", "runtime": "config.schema.Runtime"},
    **{"tracking": "config.schema.Tracking", "record": "config.schema.Record"},
    "objective": "config.schema.Objective",
}
GROUPS = {"model": "Models", "data": "Data", "task": "Tasks", "save": "Save formats"}
SAID = {"optimizer.learning_rate": "the model's"}  # defaults that no single file has


def explained_fields() -> dict[str, dict[str, str]]:
    """Return for each settings class, by its dotted name in Waymark, the text below each field."""
    found: dict[str, dict[str, str]] = {}
    package = REPO / "pipeline" / "waymark"
    for path in set(package.rglob("*.py")) - set((package / "tracking").rglob("*.py")):
        module = ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            decorators = node.decorator_list if isinstance(node, ast.ClassDef) else []
            if isinstance(node, ast.ClassDef) and "settings" in map(ast.unparse, decorators):
                fields = found.setdefault(f"{module}.{node.name}", {})
                for field, text in zip(node.body, [*node.body[1:], ast.Pass()], strict=True):
                    if isinstance(field, ast.AnnAssign) and "ClassVar" not in ast.unparse(field):
                        said = ast.literal_eval(text.value) if isinstance(text, ast.Expr) else ""
                        fields[ast.unparse(field.target)] = " ".join(said.split())
    return found


def in_yaml(value: Any) -> str:
    """Return a default as a user would type it."""
    if value == "???":
        return "to be given"
    if isinstance(value, float):
        return f"{value:g}".replace("e-0", "e-")
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000)
    return text.removesuffix("\n").removesuffix("\n...")


def table(head: str, rows: Iterator[list[str]]) -> str:
    lines = [head, "|---" * head.count(" | ") + "|---|"]
    for row in rows:
        assert "|" not in "".join(row), row  # it would end a cell, in code as well
        lines.append("|" + "|".join(f" {cell} " if cell else " " for cell in row) + "|")
    return "\n".join(lines)


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def settings_rows(texts: dict[str, dict[str, str]]) -> Iterator[list[str]]:
    """Yield key, default and meaning of all settings, those of a group's members below its key."""
    config = read(REPO / "conf" / "config.yaml")
    chosen = {name: member for each in config["defaults"][1:] for name, member in each.items()}
    for key, text in texts["config.schema.Config"].items():
        if key in chosen or key not in PARTS:
            yield [f"`{key}`", in_yaml(chosen.get(key, config.get(key))), text]
        for part, meaning in texts.get(PARTS.get(key, ""), {}).items():
            name = f"{key}.{part}"
            yield [f"`{name}`", SAID.get(name) or in_yaml(config[key][part]), meaning]


def members(group: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield name, class and own defaults of each member of a group of the configuration."""
    for path in sorted((REPO / "conf" / group).glob("*.yaml")):
        values = read(path)
        values = values.get(group, values)
        target = values.pop("_target_", "").removeprefix("waymark.")
        values.pop("defaults", None)
        yield path.stem, target, values


def member_rows(group: str, texts: dict[str, dict[str, str]]) -> Iterator[list[str]]:
    """Yield what each member has of its own; of a class that was shown, what is another default."""
    shown: dict[str, dict[str, Any]] = {}
    for name, target, values in members(group):
        seen = shown.setdefault(target, {})
        own = {k: v for k, v in values.items() if k not in seen or seen[k] != v}
        seen.update(values)
        cells = [f"`{name}`", *[""] * max(0, len(own) - 1)]
        if not own:
            yield [f"`{name}`", "", "", ""]
        for cell, (key, value) in zip(cells, own.items(), strict=False):
            yield [cell, f"`{key}`", in_yaml(value), texts[target].get(key, "[above](#settings)")]


def optimizer_rows() -> Iterator[list[str]]:
    for name, target, values in members("optimizer"):
        said = ", ".join(f"`{key}` {in_yaml(value)}" for key, value in values.items())
        yield [f"`{name}`", "Waymark's" if target.startswith("optimizers.") else "Keras's", said]


def schedule_rows(texts: dict[str, dict[str, str]]) -> Iterator[list[str]]:
    for name, _, values in members("optimizer/schedule"):
        class_of = "schedules." + "".join(word.title() for word in name.split("_"))
        cell = f"`{name}`"
        for key, value in values.items():
            if key not in ("kind", "schedule"):
                yield [cell, f"`{key}`", in_yaml(value), texts[class_of][key]]
                cell = ""


def generated() -> str:
    """Return all tables with their headings."""
    texts = explained_fields()
    keras = texts["keras_optimizers.KerasOptimizer"].items()
    common = read(REPO / "conf" / "keras_optimizer.yaml")
    keras_rows = ([f"`{key}`", in_yaml(common[key]), text] for key, text in keras)
    parts = ["## Settings", table("| key | default | meaning |", settings_rows(texts))]
    for group, title in GROUPS.items():
        head = f"| `{group}=` | setting | default | meaning |"
        parts += [f"## {title}", table(head, member_rows(group, texts))]
    parts += [
        *("## Optimizers", table("| `optimizer=` | whose | settings |", optimizer_rows())),
        "All of Keras's have besides:",
        table("| setting | default | meaning |", keras_rows),
        "## Schedules",
        table("| `optimizer.schedule=` | setting | default | meaning |", schedule_rows(texts)),
    ]
    return "\n\n".join(parts) + "\n"


def renewed(page: str) -> str:
    """Return the text of the page with its tables as they should be."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + "\n" + generated() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
