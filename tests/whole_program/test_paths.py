"""Folders of any name that the system allows: stores, checkpoints, data, pictures."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import url2pathname

import hypothesis
import numpy as np
import pytest
import waymark
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from waymark.checkpoints.external import read_parameters
from waymark.checkpoints.tf_bundle import read_bundle
from waymark.config.compose import compose_config
from waymark.errors import BadInput
from waymark.tracking.finder import select
from waymark.tracking.opening import open_store
from waymark.training.runtime import start_tensorflow

from tests.support.processes import Main

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
    save: Any = compose_config([]).config.save
    for path in (folder / "model_ckpt-7", tmp_path / f"{name[:50]}-7"):
        save.write(path, state)
        found = read_bundle(path)
        assert found.keys() == state.keys()
        assert all((found[key] == state[key]).all() for key in state)


def test_where_links_cannot_be_made_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save: Any = compose_config([]).config.save
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


@pytest.mark.parametrize("command", [["run"], ["run", "-m", "seed=1,2"]])
def test_a_folder_whose_name_hydra_takes_for_an_interpolation_is_refused(
    command: list[str], place: Path, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "a${b").mkdir()
    monkeypatch.chdir(place / "a${b")
    done = main(*command, *SHORT)
    assert done.returncode == 2
    assert done.stderr.startswith("waymark: the current folder, '")
    assert "a${b'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("key", ["data.path", "init_from"])
def test_a_path_that_cannot_be_recorded_is_refused_before_training(key: str, place: Path) -> None:
    """The command line cannot hold it; a typed configuration can."""
    typed: Any = waymark.configure("data=arrays", "data.path=x.npz")
    path = "\udcff.npz"
    data = {"data": replace(typed.data, path=path)} if key == "data.path" else {key: path}
    with pytest.raises(BadInput, match=f"^{key}=.*: is not UTF-8 and cannot be recorded"):
        waymark.run(config=replace(typed, **data))
    assert [path.name for path in place.iterdir()] == ["mlruns"]
    assert select(open_store(None), None, None, None) == []


# Whatever the name

special = st.sampled_from("[]*?{}\\%#'\"\n\t .~$:@&;|=,^!<>()+-0a")
other = st.characters(exclude_characters="/\0", exclude_categories=["Cs"])
letters = special | st.sampled_from("가é\udcff\udc80") | other
names = st.text(letters, min_size=1, max_size=40) | st.text(special, min_size=1, max_size=8)
names |= st.builds(lambda text, count: (text * count)[:200], names, st.integers(2, 200))
names = names.filter(lambda n: n not in (".", "..") and len(os.fsencode(n)) < 200)


def is_utf8(name: str) -> bool:
    return name.encode(errors="replace").decode() == name


@pytest.mark.long
def test_any_name_is_fine_for_stores_and_checkpoints(
    seed: int, empty_store: Path, tmp_path: Path
) -> None:
    state = {"weights": np.arange(6, dtype=np.float32).reshape(2, 3)}
    save: Any = compose_config([]).config.save

    @hypothesis.seed(seed)
    @settings(max_examples=200, deadline=None, database=None)
    @given(names)
    def check(name: str) -> None:
        with TemporaryDirectory(dir=tmp_path) as outer:
            folder = Path(outer) / name
            folder.mkdir()
            save.write(folder / "model_ckpt-7", state)
            save.update_state_file(folder, 7, [7])
            np.savez(f"{folder}/w.npz", **state)
            for path in (folder, folder / "model_ckpt-7", folder / "w.npz"):
                found = read_parameters(path, {"weights": (2, 3)}, "init_from")
                assert (found["weights"] == state["weights"]).all()
            address = f"sqlite:///{folder}/mlruns/mlflow.db"
            if not is_utf8(name):
                with pytest.raises(BadInput, match="not UTF-8"):
                    open_store(address, create=True)
                assert not (folder / "mlruns").exists()
                return
            shutil.copytree(empty_store, folder / "mlruns")
            tracking = open_store(address)
            assert tracking.root == folder / "mlruns"
            assert open_store(tracking.uri).database == tracking.database
            made = tracking.client.create_run(tracking.experiment("x"))
            below = f"artifacts/{made.info.experiment_id}/{made.info.run_id}/artifacts"
            assert url2pathname(made.info.artifact_uri) == f"{tracking.root}/{below}"
            assert tracking.record(made).folder == tracking.root / below
            assert [path.name for path in Path(outer).iterdir()] == [name]

    check()


@pytest.mark.long
def test_the_program_works_under_any_name(
    seed: int, empty_store: Path, small: Path, tmp_path: Path, main: Main
) -> None:
    before = Path.cwd()

    @hypothesis.seed(seed)
    @settings(
        max_examples=20, deadline=None, database=None, phases=[Phase.generate, Phase.explicit]
    )
    @given(names.filter(lambda name: is_utf8(name) and "${" not in name))
    def check(name: str) -> None:
        with TemporaryDirectory(dir=tmp_path) as outer:
            folder = Path(outer) / name
            shutil.copytree(empty_store, folder / "mlruns")
            shutil.copy(small, folder / "small.npz")
            os.chdir(folder)
            try:
                data = ["data=arrays", "data.path=small.npz", "batch_size=20"]
                for command in (
                    ["run", *SHORT, *data],
                    ["evaluate", "latest"],
                    ["evaluate", "latest", "--from", "meta"],
                    ["resume", "latest", "steps=30", "progress=false"],
                    ["runs"],
                ):
                    done = main(*command)
                    assert done.returncode == 0, done
                assert {p.name for p in folder.iterdir()} == {"mlruns", "small.npz"}
                assert [path.name for path in Path(outer).iterdir()] == [name]
            finally:
                os.chdir(before)

    check()
