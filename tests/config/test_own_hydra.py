"""A program that uses Hydra itself calls Waymark: neither disturbs the other."""

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from omegaconf import DictConfig, OmegaConf
from omegaconf.basecontainer import BaseContainer
from waymark import BadInput, configure, evaluate, run
from waymark.config.own_hydra import own_resolvers, own_singletons

from tests.support.processes import Main

SHORT = ["steps=2", "save.every=2", "runtime.intra_op_threads=2", "progress=false"]
QUIET = ["hydra/job_logging=disabled", "hydra/hydra_logging=disabled", "hydra.output_subdir=null"]


@dataclass
class Settings:
    """The configuration of the user's own program, whose names are Waymark's as well."""

    seed: int = 3
    steps: str = "none"


@pytest.fixture
def application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the folder of an application of the user's, with all that it registers in Hydra."""
    store, resolvers = ConfigStore.instance(), dict(BaseContainer._resolvers)
    repository = deepcopy({key: value for key, value in store.repo.items() if key != "hydra"})
    theirs = {kind: one for kind, one in Singleton._instances.items() if kind is not GlobalHydra}
    monkeypatch.setattr(Singleton, "_instances", theirs)
    store.store(name="config", node=Settings)
    store.store(group="model", name="softmax", node=Settings)
    store.store(group="data", name="mnist_5k", node=Settings)
    OmegaConf.register_new_resolver("seven", lambda: 7)
    OmegaConf.register_new_resolver("now", lambda form: "the user's", replace=True)
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "app.yaml").write_text("seed: 3\nmodel: mine\n")
    yield tmp_path / "app"
    store.repo = {"hydra": store.repo["hydra"], **repository}
    BaseContainer._resolvers = resolvers


def state() -> tuple[Any, ...]:
    """Return what Hydra and OmegaConf keep in the process."""
    facts = {kind: (id(one), repr(vars(one))) for kind, one in Singleton._instances.items()}
    return facts, dict(BaseContainer._resolvers)


def test_composing_neither_needs_nor_touches_the_state_of_the_process(application: Path) -> None:
    with hydra.initialize_config_dir(str(application), version_base=None, job_name="theirs"):
        before = state()
        config = configure("steps=${seven:}", "run_name=${now:%Y}")
        with pytest.raises(BadInput, match="nearest is steps"):
            configure("stesp=3")
        assert state() == before
        assert hydra.compose("app", ["seed=4"]) == {"seed": 4, "model": "mine"}
    assert (config.steps, config.model.init_stddev, config.batch_size) == (7, 0.01, 100)
    assert config.run_name is not None and config.run_name.isdecimal()  # as on the command line


def test_other_threads_keep_their_state_while_one_composes(application: Path) -> None:
    def look() -> list[Any]:
        return [id(GlobalHydra.instance()), "model" in ConfigStore.instance().repo,
                OmegaConf.has_resolver("python_version")]  # fmt: skip

    BaseContainer._resolvers.pop("python_version", None)
    before = look()
    with own_singletons(), own_resolvers(), ThreadPoolExecutor(1) as other:
        assert look() == [id(GlobalHydra.instance()), False, True] != before
        assert other.submit(look).result() == before
    assert look() == before


def test_two_threads_may_run_at_once(place: Path) -> None:
    both = threading.Barrier(2)

    def work(seed: int) -> str:
        both.wait()
        return run(*SHORT, f"seed={seed}").state_digest

    with ThreadPoolExecutor(2) as pool:
        digests = list(pool.map(work, (1, 2)))
    assert digests == [run(*SHORT, f"seed={seed}").state_digest for seed in (1, 2)]


@pytest.mark.parametrize("seeds", [[], ["seed=1,2", "--multirun"]], ids=["run", "multirun"])
def test_a_hydra_application_may_run_and_evaluate(
    seeds: list[str], application: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    @hydra.main(version_base=None, config_path=str(application), config_name="app")
    def main(cfg: DictConfig) -> None:
        result = run(*SHORT, f"seed={cfg.seed}")
        assert evaluate(result.run_id).accuracy == result.restored_accuracy
        assert HydraConfig.get().job.name == "theirs"
        found.append((cfg.seed, configure(*SHORT).seed))

    folders = [f"hydra.run.dir={place}", f"hydra.sweep.dir={place}", "hydra.job.name=theirs"]
    monkeypatch.setattr(sys, "argv", ["theirs", *QUIET, *folders, *seeds])
    main()
    assert found == ([(1, 0), (2, 0)] if seeds else [(3, 0)])


@pytest.mark.parametrize("words", [["batch_size=0"], ["steps=1", "progress=false"]])
def test_a_command_composes_once(
    words: list[str], place: Path, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed = []
    load = ConfigLoaderImpl._load_configuration_impl

    def counted(*given: Any, **named: Any) -> Any:
        composed.append(given)
        return load(*given, **named)

    monkeypatch.setattr(ConfigLoaderImpl, "_load_configuration_impl", counted)
    mode = Hydra.get_mode
    assert main("run", *words).returncode == (2 if words[0] == "batch_size=0" else 0)
    assert len(composed) == 1 and Hydra.get_mode is mode
