"""YAML files of the user's own, and records: read as YAML allows, or refused with file and line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from waymark.config.compose import compose_config, searchpath
from waymark.config.record import from_record
from waymark.errors import BadInput

from tests.support.processes import Main

HEAD = "# @package _global_\n"
BODY = f"{HEAD}steps: 7\ntags: {{a: é}}\n"
READ = {
    "as it is": BODY.encode(),
    "byte order mark": b"\xef\xbb\xbf" + BODY.encode(),
    "UTF-16": BODY.encode("utf-16"),
    "UTF-16, big": b"\xfe\xff" + BODY.encode("utf-16-be"),
    "lines of Windows": BODY.replace("\n", "\r\n").encode(),
}
REFUSED = {
    "empty": (b"", "line 1: holds no settings"),
    "words alone": (b"# nothing here\n", "line 1: holds no settings"),
    "list": (f"{HEAD}- a\n".encode(), "line 1: holds no settings"),
    "text": (f"{HEAD}steps\n".encode(), "line 1: holds no settings"),
    "Latin-1": (f"{HEAD}steps: 7\nrun_name: caf".encode() + b"\xe9\n", "line 3: is not UTF-8"),
    "UTF-16, cut": (BODY.encode("utf-16")[:-1], "line 3: is not UTF-16"),
    "UTF-16, no mark": (HEAD.encode("utf-16-le"), "line 1: special characters"),
    "key twice": (
        f"{HEAD}steps: 7\nseed: 1\nsteps: 8\n".encode(),
        "line 4: found duplicate key steps",
    ),
    "tab": (f"{HEAD}save:\n\tevery: 8\n".encode(), "line 3: found character '\\t'"),
    "open": (f"{HEAD}steps: [7\n".encode(), "line 3: expected ',' or ']'"),
    "two": (f"{HEAD}steps: 7\n---\nsteps: 8\n".encode(), "line 3: expected a single document"),
    "object": (f"{HEAD}steps: !!python/name:os.system x\n".encode(), "line 2: could not determine"),
    "control": (f"{HEAD}steps: 7\0\n".encode(), "line 2: special characters"),
}


@pytest.fixture(autouse=True)
def as_hydra_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first command of a test find Hydra's own reader, as one in a new process does."""
    Plugins.instance()
    monkeypatch.setitem(SourcesRegistry.instance().types, "file", FileConfigSource)


def own(folder: Path, body: bytes) -> list[str]:
    """Put an experiment into a folder; return the overrides that choose it."""
    (folder / "experiment").mkdir()
    (folder / "experiment" / "own.yaml").write_bytes(body)
    return [searchpath([str(folder)]), "+experiment=own"]


@pytest.mark.parametrize("case", READ)
def test_a_users_file_is_read(case: str, tmp_path: Path) -> None:
    config = compose_config(own(tmp_path, READ[case])).config
    assert (config.steps, config.tags) == (7, {"a": "é"})


@pytest.mark.parametrize("case", REFUSED)
def test_a_users_file_is_refused_with_its_line(case: str, tmp_path: Path, main: Main) -> None:
    body, words = REFUSED[case]
    chosen = own(tmp_path, body)
    with pytest.raises(BadInput) as error:
        compose_config(chosen)
    said = f"{tmp_path}/experiment/own.yaml, {words}"
    assert str(error.value).startswith(said), str(error.value)
    for flags in (["-m", "seed=0,1"], []):
        done = main("run", "--config-dir", str(tmp_path), *flags, "+experiment=own")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"waymark: {error.value}\n"


SWEEPS = {
    "one by one": [],
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "optuna": ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2"],
}


@pytest.mark.parametrize(
    "how",
    ["one by one", *(pytest.param(how, marks=pytest.mark.long) for how in ("joblib", "optuna"))],
)
def test_a_sweep_reads_a_users_files_as_a_run_does(
    how: str, place: Path, main: Main, waymark: Main, client: Callable[[Path], Any]
) -> None:
    if how == "optuna":
        pytest.importorskip("optuna")
    own(place, READ["byte order mark"])
    (place / "model").mkdir()
    (place / "model" / "mine.yaml").write_text("defaults: [softmax]\n", encoding="utf-16")
    bad = place / "model" / "bad.yaml"
    bad.write_text("defaults: [softmax]\nfeatures: 1\nfeatures: 2\n")
    (place / "model" / "worse.yaml").write_bytes(bad.read_bytes())
    command = ["run", "-m", "--config-dir", str(place), "+experiment=own", *SWEEPS[how]]
    command += ["save=npz", "save.every=1", "runtime.intra_op_threads=2"]
    done = main(*command, "model=bad,worse")
    assert (done.returncode, done.stdout) == (2, "")
    words = f"waymark: {place}/model/NAME.yaml, line 3: found duplicate key features.\n"
    assert done.stderr in [words.replace("NAME", name) for name in ("bad", "worse")]
    assert client(place).search_runs(["1"]) == []

    done = waymark(*command, "model=mine", "seed=0,1", cwd=place, bound=240)
    assert (done.returncode, done.stderr) == (0, "")
    found = client(place).search_runs(["1"])
    trials = [run for run in found if run.data.tags.get("waymark.kind") != "sweep"]
    assert len(trials) == 2 or how == "optuna"  # which may propose one of them twice
    for run in trials:
        assert (run.data.params["steps"], run.data.tags["a"]) == ("7", "é")


def test_a_users_file_that_is_for_no_group_says_so(tmp_path: Path) -> None:
    chosen = own(tmp_path, b"steps: 7\n")
    with pytest.raises(BadInput, match=r"^experiment=own: .*`# @package _global_`\.$"):
        compose_config(chosen)


def test_what_a_users_file_leaves_open_must_be_given(tmp_path: Path, main: Main) -> None:
    chosen = own(tmp_path, f"{HEAD}steps: ???\nsave:\n  every: ???\n".encode())
    after = f"{HEAD}defaults: [own, _self_]\nsave:\n  every: 5\n"
    (tmp_path / "experiment" / "next.yaml").write_text(after)
    place = f"{tmp_path}/experiment/own.yaml"
    for given, key in ([], "steps"), (["steps=3"], "save.every"):
        with pytest.raises(BadInput) as error:
            compose_config([*chosen, *given])
        assert str(error.value) == f"{key} ({place}): a value is missing."
    assert compose_config([*chosen, "steps=3", "save.every=2"]).config.save.every == 2
    assert compose_config([chosen[0], "+experiment=next", "steps=3"]).config.save.every == 5
    done = main("run", "--config-dir", str(tmp_path), "-m", "+experiment=own", "seed=0,1")
    assert (done.returncode, done.stderr) == (2, f"waymark: steps ({place}): a value is missing.\n")


RECORD = compose_config([]).record()
SAME = {
    "byte order mark": b"\xef\xbb\xbf" + RECORD.encode(),
    "UTF-16": RECORD.encode("utf-16"),
    "lines of Windows": RECORD.replace("\n", "\r\n").encode(),
}
DAMAGED = {
    "empty": (b"", "line 1: it holds no settings"),
    "Latin-1": (RECORD.replace("steps: 1000", "steps: \xe9").encode("latin-1"), "is not UTF-8"),
    "key twice": (f"{RECORD}steps: 5\n".encode(), ": the key steps stands twice"),
    "inner key twice": (RECORD.replace("  every: 50", "  every: 50\n  every: 5").encode(), "every"),
    "tab": (RECORD.replace("  every", "\tevery").encode(), "found character '\\t'"),
}


@pytest.mark.parametrize("case", SAME)
def test_a_record_is_read(case: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(SAME[case])
    assert from_record(tmp_path / "config.yaml", {}, [], ()).record() == RECORD


@pytest.mark.parametrize("case", DAMAGED)
def test_a_record_is_refused_with_its_line(case: str, tmp_path: Path) -> None:
    body, words = DAMAGED[case]
    (tmp_path / "config.yaml").write_bytes(body)
    with pytest.raises(
        BadInput, match=r"config\.yaml is not a readable record.* line \d+: "
    ) as error:
        from_record(tmp_path / "config.yaml", {}, [], ())
    assert words in str(error.value)
