"""What the tests of reruns share: recorded runs, and code that stands in no checkout."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from waymark import api
from waymark.comparison.repository import CHECKOUT

from tests.support.reruns import CNN, SOFTMAX


@pytest.fixture
def no_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the code stand in no checkout: asking git takes time, and somebody may edit there."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv(CHECKOUT, str(tmp_path))


@pytest.fixture
def data(small: Path) -> list[str]:
    return ["data=arrays", f"data.path={small}"]


@pytest.fixture(scope="module")
def originals(
    shared_once: Callable[..., tuple[Path, Any]], empty_store: Path, small: Path
) -> dict[str, Any]:
    """Return a folder with two finished runs, and their ids."""

    def make(folder: Path) -> dict[str, Any]:
        shutil.copytree(empty_store, folder / "mlruns")
        found: dict[str, Any] = {"folder": folder}
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setenv(CHECKOUT, str(folder))
            for name, config in (("softmax", [*SOFTMAX, "save.max_to_keep=1"]), ("cnn", CNN)):
                given = [*config, "data=arrays", f"data.path={small}", f"run_name={name}"]
                found[name] = api.run(*given).run_id
        return found

    return dict(shared_once("originals", make)[1])


@pytest.fixture
def copy(
    originals: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Be in a folder with a copy of the originals' `mlruns`; return their ids."""
    shutil.copytree(originals["folder"] / "mlruns", tmp_path / "mlruns")
    monkeypatch.chdir(tmp_path)
    return originals
