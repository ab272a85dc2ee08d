"""What README and reference pages say is what the program does: snippets, keys, dependencies."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml
from waymark.config.compose import PACKAGES, compose_config
from waymark.data.sources import Mnist5k
from waymark.execution.execute import Result, run

from tests.support import reference

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def first_cells(text: str) -> list[str]:
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    return [row.split(" | ")[0].removeprefix("| ") for row in rows]


@pytest.mark.parametrize("save", ["ckpt", "npz"])
def test_snippets_read_what_a_run_saved(
    save: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    result: Result = run(compose_config(["progress=false", f"save={save}"]))
    data = Mnist5k(sampling="replacement").load()
    images = data.x_test.reshape(len(data.x_test), -1).astype(np.float32) / np.float32(255)
    names = {"images": images, "one_hot": np.eye(10, dtype=np.float32)[data.y_test]}
    text = page("files-of-a-run").replace("RUN_ID", result.run_id)
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == 3
    capsys.readouterr()
    if save == "ckpt":
        exec(blocks[0] + blocks[1], names)
        deviation, accuracy = capsys.readouterr().out.split()
        assert 0.01 < float(deviation) < 1
        assert np.float32(accuracy) == np.float32(result.restored_accuracy)
    else:
        exec(blocks[2], names)
        assert np.mean(names["predictions"] == data.y_test) == result.restored_accuracy


def test_every_setting_is_explained_where_it_is_declared() -> None:
    classes = reference.explained_fields()
    known = {"Config", "Runtime", "SaveFormat", "Ckpt", "Cnn", "Adam", "Arrays"}
    assert known <= {name.rpartition(".")[2] for name in classes}
    fields = [(name, *field) for name, texts in classes.items() for field in texts.items()]
    assert [(name, key) for name, key, text in fields if not text] == []


def test_the_tables_of_settings_are_those_of_schema_and_yaml() -> None:
    said = page("configuration")
    assert said == reference.renewed(said), "make reference"


def test_the_table_of_keys_is_the_configuration() -> None:
    cells = first_cells(section(page("configuration"), "Settings"))
    named = {key for cell in cells for key in re.findall(r"`([a-z_.]+)`", cell)}
    config = yaml.safe_load((ROOT / "conf" / "config.yaml").read_text())
    groups = {next(iter(d)) for d in config["defaults"] if isinstance(d, dict)}
    keys = {group.replace("/", ".") for group in groups if not group.startswith("override")}
    for key, value in config.items():
        if key in ("defaults", "hydra"):
            continue
        keys |= {f"{key}.{k}" for k in value} if isinstance(value, dict) and value else {key}
    assert named == keys


def test_the_table_of_dependencies_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [extra for name, extra in project["optional-dependencies"].items() if name != "dev"]
    texts = sum(extras, project["dependencies"])
    needed = {re.match(r"[\w-]+", text)[0].lower() for text in texts}  # type: ignore[index]
    cells = ", ".join(first_cells(section(page("install"), "Packages")))
    assert set(cells.split(", ")) - {"package"} == needed


def test_what_is_missing_is_installed_by_the_names_of_packages() -> None:
    """A package index may know another program by the name of this one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert list(PACKAGES.values()) == [extras[n] for n in ("joblib", "ray", "slurm", "optuna")]
    files = [*ROOT.glob("*.md"), *ROOT.glob("*.toml"), ROOT / "Makefile"]
    for folder in ("conf", "docs", "pipeline", "tests", "benchmarks"):
        files += [p for p in (ROOT / folder).rglob("*") if p.suffix in (".py", ".yaml", ".md")]
    wrong = re.compile(r"pip install (-\S+ )*['\"]?waymark\b|['`]waymark\[")
    assert not [path for path in files if wrong.search(path.read_text(encoding="utf-8"))]


def test_every_make_target_is_explained() -> None:
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.M)
    assert targets
    explained = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for target in targets:
        assert re.search(rf"make {target}\b|`{target}`", explained), target
    for target in re.findall(r"^(?:time )?make ([a-z-]+)", (ROOT / ".ci/run").read_text(), re.M):
        assert f"make {target}" in README, target


def test_make_starts_no_script_whose_first_line_names_the_folder() -> None:
    """A shell reads that line: a quote or a dollar sign in the folder's name breaks it."""
    started = re.findall(r"\$\(BIN\)/(\S+)", (ROOT / "Makefile").read_text())
    assert set(started) == {"python"}


def test_every_command_is_explained_and_the_other_way_round() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "waymark", "--help"], capture_output=True, text=True, check=True
    )
    commands = re.findall(r"^  (\w+)  ", done.stdout.split("Commands:")[1], re.M)
    assert set(re.findall(r"^\| `waymark (\w+)", page("commands"), re.M)) == set(commands)


def test_every_folder_of_the_code_is_explained() -> None:
    named = {cell.strip("`") for cell in first_cells(section(README, "The code"))}
    inside = [p for p in (ROOT / "pipeline").glob("*/*") if (p / "__init__.py").is_file()]
    folders = [*(ROOT / name for name in ("conf", "benchmarks", "tests", "mlruns")), *inside]
    assert {f"{folder.relative_to(ROOT)}/" for folder in folders} <= named
