"""Folders of any name that the system allows: stores, checkpoints, data, pictures."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.checkpoints.bundle import read_bundle
from pipeline.compose import composed
from pipeline.runtime import start_tensorflow

Main = Callable[..., subprocess.CompletedProcess[str]]

SHORT = ["+experiment=smoke", "progress=false", "runtime.intra_op_threads=2"]
NAMES = ["a[1]*", "back\\slash", "\udcff", "[new\nline", "{1,2}? ", "'\"#%25.", "가" * 85]


@pytest.fixture(scope="module", autouse=True)
def tensorflow() -> Any:
    return start_tensorflow(2)


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_is_written_and_read(name: str, tmp_path: Path) -> None:
    """In a folder of this name, and as a file whose own name begins so."""
    state = {"weights": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.array(7)}
    folder = tmp_path / name
    folder.mkdir()
    save: Any = composed([]).config.save
    for path in (folder / "model_ckpt-7", tmp_path / f"{name[:50]}-7"):
        save.write(path, state)
        found = read_bundle(path)
        assert found.keys() == state.keys()
        assert all((found[key] == state[key]).all() for key in state)


def test_where_links_cannot_be_made_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save: Any = composed([]).config.save
    save.write(tmp_path / "a[1]", {"w": np.zeros(2)})
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match="TMPDIR"):
        read_bundle(tmp_path / "a[1]")


@pytest.mark.parametrize("name", ["a[1]\\*{", "x? %25 '.\n\""])
def test_the_program_works_in_a_folder_of_any_name(
    name: str, place: Path, small: Path, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    def good(*arguments: str) -> str:
        done = main(*arguments)
        assert done.returncode == 0, done
        return done.stdout

    def quoted(path: Path) -> str:
        return '"' + str(path).replace('"', '\\"') + '"'

    there = place / name
    there.mkdir()
    (place / "mlruns").rename(there / "mlruns")
    (place / "link").symlink_to(there)
    monkeypatch.chdir(place / "link")
    (there / "small.npz").write_bytes(small.read_bytes())
    data = ["data=arrays", f"data.path={quoted(there / 'small.npz')}", "batch_size=20"]
    good("run", *SHORT, *data)
    good("evaluate", "latest")
    scored = good("evaluate", "latest", "--from", "meta").splitlines()[0]
    (index,) = there.glob("mlruns/artifacts/*/*/artifacts/checkpoints/*-20.index")
    for path in (index, index.parent):
        good("evaluate", "--checkpoint", str(path), *data)
        done = good("evaluate", "--checkpoint", str(path), "--from", "meta", *data)
        assert done.startswith(scored)
    good("resume", "latest", "steps=30", "progress=false")
    good("run", *SHORT, *data, f"init_from={quoted(index.with_suffix(''))}")
    good("compare", "--experiment", "waymark", "--plot", f"{name}.png")
    assert {path.name for path in there.iterdir()} == {"mlruns", "small.npz", f"{name}.png"}
