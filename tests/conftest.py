"""What the whole-program tests share: the program, places to run it in, a look into MLflow."""

import gc
import hashlib
import os
import pickle
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import absl.logging
import pytest
from filelock import FileLock
from waymark.comparison.environment import NUMERICS_ENV_VARS
from waymark.config.compose import compose_config
from waymark.data import digests
from waymark.execution import execute
from waymark.tracking import delivery_process, remote_store
from waymark.tracking.delivery_process import RunDelivery
from waymark.tracking.opening import open_store

from tests.support.data import write_pictures
from tests.support.deliveries import Deliveries
from tests.support.ends import End, local_end
from tests.support.processes import FOREIGN, REPO, STEPPING, DeliveryHere, Done
from tests.support.server import Server

# Hydra resets Python's logging, which closes all handlers; TensorFlow's, made while pytest has
# sys.stderr, would take pytest's own file with it.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, help="of the random choices of fuzzes; else a new one")


def pytest_configure(config: pytest.Config) -> None:
    """Draw the seed once; the workers of pytest-xdist get the one that the header tells."""
    if hasattr(config, "workerinput"):
        config.option.seed = config.workerinput["seed"]
    elif config.option.seed is None:
        config.option.seed = secrets.randbelow(10**6)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Hand the seed to a worker of pytest-xdist."""
    node.workerinput["seed"] = node.config.option.seed


def pytest_report_header(config: pytest.Config) -> str:
    return f"fuzzes: --seed {config.option.seed}"


@pytest.fixture(scope="session")
def seed(request: pytest.FixtureRequest) -> int:
    """Return the number from which a fuzz draws all its random choices."""
    return int(request.config.option.seed)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the tests with a server come first: pytest-xdist leaves them to one worker then, since
    a worker without work takes from the end of another one's, and only one server is started.
    """
    items.sort(key=lambda item: "server" not in getattr(item, "fixturenames", ()))


def pytest_collection_finish() -> None:
    """Spare Python the search for garbage in all that was imported: a tenth of the tests' time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session")
def shared_once(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, Callable[[Path], Any]], tuple[Path, Any]]:
    """Return what makes something dear in a folder, once for all workers of pytest-xdist.

    They read it at the same time, so nothing may change it later: tests that write take a copy.
    """
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def shared_once(name: str, make: Callable[[Path], Any]) -> tuple[Path, Any]:
        folder, told = base / name, base / f"{name}.pickle"
        with FileLock(base / f"{name}.lock"):
            if not told.exists():
                shutil.rmtree(folder, ignore_errors=True)  # what failed before is made anew
                folder.mkdir()
                made = make(folder)
                told.write_bytes(pickle.dumps(made))
            return folder, pickle.loads(told.read_bytes())

    return shared_once


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return an environment with an empty home and no settings of the user's.

    What steers TensorFlow's arithmetic stays, so that the bits are those of this process.
    """
    home = tmp_path_factory.mktemp("home")
    foreign = {key for key in os.environ if key.startswith(FOREIGN)} - {*NUMERICS_ENV_VARS}
    own = {key: value for key, value in os.environ.items() if key not in foreign}
    return {**own, "HOME": str(home), "PYTHONPATH": str(REPO)}


@pytest.fixture(scope="session")
def start(environment: dict[str, str]) -> Callable[..., "subprocess.Popen[str]"]:
    """Return what starts `waymark ...` in a folder, as a process of its own."""

    def start(*arguments: str, cwd: Path, **options: Any) -> "subprocess.Popen[str]":
        settings = {"env": environment, "text": True, "stdin": subprocess.DEVNULL, **options}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [sys.executable, "-m", "waymark", *arguments]
        return subprocess.Popen(command, cwd=cwd, **{**pipes, **settings})

    return start


@pytest.fixture(scope="session")
def waymark(start: Callable[..., "subprocess.Popen[str]"]) -> Callable[..., Done]:
    """Return what runs `waymark ...` in a folder to its end."""

    def waymark(*arguments: str, cwd: Path, bound: int = 120, **options: Any) -> Done:
        with start(*arguments, cwd=cwd, **options) as process:
            try:
                out, err = process.communicate(timeout=bound)
            finally:
                process.kill()
        return Done(arguments, process.returncode, out, err)

    return waymark


@pytest.fixture(autouse=True)
def own_modules_forgotten(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let no module that a test wrote and imported be part of what another test's runs record."""
    before = set(sys.modules)
    yield
    for name in sys.modules.keys() - before:
        file = getattr(sys.modules[name], "__dict__", {}).get("__file__")
        if str(file).startswith(str(tmp_path_factory.getbasetemp())):
            del sys.modules[name]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep digests of data sets in a folder of the tests, not of the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digests, "folder", lambda: folder)
        yield folder


@pytest.fixture(scope="session", autouse=True)
def start_program() -> Iterator[Callable[[int], Any]]:
    """Let this process's runs be delivered by forks of a process that has imported MLflow.

    Return what starts a delivery process as users have it.
    """
    deliveries, usual = Deliveries(), remote_store.start_program
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote_store, "start_program", deliveries.start)
        yield usual
    deliveries.close()


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Return what runs `waymark ...` in this process, whose TensorFlow has two threads."""
    from waymark import __main__ as program

    def main(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["waymark", *arguments])
        monkeypatch.setattr(sys, "path", list(sys.path))
        capfd.readouterr()
        try:
            status = program.main()
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        return Done(arguments, status, *capfd.readouterr())

    return main


@pytest.fixture
def delivery_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let this process deliver what it records, so that what the test replaces is replaced."""
    real = RunDelivery.step

    def step(run: RunDelivery) -> None:
        with STEPPING:
            real(run)

    with monkeypatch.context() as patch:
        patch.setattr(RunDelivery, "step", step)
        for name in ("SEND_INTERVAL_S", "MAX_SEND_INTERVAL_S"):  # a short run sends as a long one
            patch.setattr(delivery_process, name, 0.05)
        patch.setattr(remote_store, "_process", None)
        patch.setattr(remote_store, "start_program", DeliveryHere)
        yield
        if remote_store._process:
            remote_store._process.kill()


@pytest.fixture(scope="session")
def empty_store(shared_once: Callable[..., tuple[Path, Any]]) -> Path:
    """Return an `mlruns` with a store and no run: making one takes seconds, copying it none."""

    def make(folder: Path) -> None:

        open_store(f"sqlite:///{folder}/mlruns/mlflow.db", create=True)

    return shared_once("empty-store", make)[0] / "mlruns"


@pytest.fixture(scope="session")
def undisturbed(
    shared_once: Callable[..., tuple[Path, Any]], empty_store: Path, small: Path
) -> Callable[..., End]:
    """Return what trains in one piece, on `small`, once for all tests; it tells how that ended."""

    def undisturbed(*overrides: str) -> End:
        def make(folder: Path) -> End:
            shutil.copytree(empty_store, folder / "mlruns")
            words = [*overrides, "data=arrays", f"data.path={small}", "progress=false"]
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                patch.delenv("MLFLOW_TRACKING_URI", raising=False)
                result = execute.run(compose_config([*dict.fromkeys(words)]))
            return local_end(folder, result.run_id)

        name = hashlib.sha256(" ".join(overrides).encode()).hexdigest()[:12]
        return shared_once(f"undisturbed-{name}", make)[1]

    return undisturbed


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> Path:
    """Return the current folder of this test, with a store and no run in it."""
    shutil.copytree(empty_store, tmp_path / "mlruns")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def mounted() -> Iterator[Callable[[Path, str], Path]]:
    """Return what mounts a file system in memory at a new folder; skip without the right to."""
    places = []

    def mounted(place: Path, options: str) -> Path:
        place.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("mounting a small file system takes root")
        places.append(place)
        return place

    yield mounted
    for place in places:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture(scope="session")
def client() -> Callable[[Path], Any]:
    """Return what opens MLflow's client on the store of a folder."""
    from mlflow.tracking import MlflowClient

    return lambda folder: MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an npz of 200 and 60 noisy pictures, 8x8, of ten things."""
    return write_pictures(tmp_path_factory.mktemp("data") / "small.npz", 200, 60)


@pytest.fixture(scope="session")
def server(
    tmp_path_factory: pytest.TempPathFactory,
    empty_store: Path,
    environment: dict[str, str],
) -> Iterator[tuple[str, Path]]:
    """Serve MLflow with proxied artifacts; yield a URI with a password in it, and its folder."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store / "mlflow.db", folder / "mlflow.db")
    with Server(folder, environment) as server:
        # Drawn, not written here: a run records the changes of this very file.
        yield f"http://me:{secrets.token_hex(8)}@127.0.0.1:{server.port}", folder
