"""Environment: what a run ran on, as JSON, and its code's changes without secrets."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import distributions, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import waymark
from waymark.comparison import environment as module
from waymark.comparison import own_code, repository
from waymark.comparison.environment import describe_environment, differences, numerical
from waymark.comparison.own_code import OwnCode, OwnFacts, as_new_file, own_facts, own_files
from waymark.comparison.repository import changes, git_commit
from waymark.config.schema import FORMAT
from waymark.training.runtime import start_tensorflow

from tests.support.processes import git

tf: Any = start_tensorflow(2)


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the code seem to stand in a folder that is no checkout, and be there."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    root = tmp_path / "code"
    (root / "waymark").mkdir(parents=True)
    monkeypatch.setattr(module, "FOLDER", root / "waymark")
    monkeypatch.setattr(repository, "REPOSITORY", root)
    monkeypatch.chdir(root)
    return root


def checkout(folder: Path, text: str = "one\n") -> str:
    """Make a checkout with one committed file, model.py; return the commit."""
    folder.mkdir(exist_ok=True)
    (folder / "model.py").write_text(text)
    git(folder, "init", "--quiet")
    git(folder, "add", "model.py")
    git(folder, "commit", "--quiet", "--message=first")
    return git(folder, "rev-parse", "HEAD")


# environment.json


def test_everything_is_there_and_is_json() -> None:
    facts = describe_environment(2)
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["format"], facts["intra_op_threads"]) == (FORMAT, 2)
    assert facts["python"] == platform.python_version()
    assert facts["waymark"] == waymark.__version__
    for name in ("tensorflow", "numpy", "mlflow", "hydra-core"):
        assert facts["packages"][name] == version(name)
    assert list(facts["packages"]) == sorted(facts["packages"])
    build = facts["tensorflow"]
    assert build["version"] == tf.version.VERSION
    assert set(build) == {"version", "git", "cuda", "onednn", "deterministic_ops"}
    assert facts["cpu"]["machine"] == platform.machine()
    assert facts["cores"] == os.cpu_count()
    assert {"platform", "gpus", "git_commit", "command", "settings", "code"} <= set(facts)


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no /proc/cpuinfo")
def test_the_instruction_set_is_there() -> None:
    cpu = describe_environment(1)["cpu"]
    assert cpu["model"] is None or isinstance(cpu["model"], str)
    if platform.machine() == "x86_64":
        assert "sse2" in cpu["instructions"]
    assert not {"hypervisor", "rdrand", "fsgsbase", "flush_l1d"} & set(cpu["instructions"])


@pytest.mark.skipif(
    not Path("/sys/devices/system/cpu/cpu0/cache/index0/size").exists(),
    reason="this machine does not tell its caches",
)
def test_the_caches_are_there() -> None:
    caches = describe_environment(1)["cpu"]["caches"]
    assert {"L1 Data", "L2 Unified"} <= set(caches)
    assert all(re.fullmatch(r"\d+[KMG]", size) for size in caches.values())


def test_a_machine_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert set(module._cpu()) == {"machine", "model", "caches"}


def test_what_changes_tensorflows_bits_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    monkeypatch.setenv("TF_VAR_password", "Terraform's")
    facts = describe_environment(5)
    assert facts["settings"] == {"TF_ENABLE_ONEDNN_OPTS": "0"}
    assert facts["tensorflow"]["deterministic_ops"] is False
    assert facts["intra_op_threads"] == 5


def test_the_command_is_there_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "tracking.uri='postgresql://me:hunter2@host/db'"
    monkeypatch.setattr(sys, "argv", ["/usr/bin/waymark", "run", "steps=3", uri])
    command = describe_environment(1)["command"]
    assert command[:3] == ["waymark", "run", "steps=3"]
    assert "hunter2" not in json.dumps(command)
    assert "host/db" in command[3]


def test_a_damaged_package_does_not_stop_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let pip have left a folder without metadata, as it does when it is interrupted."""
    texts = {
        "used/good-1.dist-info": "Metadata-Version: 2.4\nName: good\nVersion: 1\n\nVersion: none\n",
        "used/bad.dist-info": "Name: bad\n",
        "behind/good-2.dist-info": "Name: good\nVersion: 2\n",
        "behind/old-3.egg-info": "name:old\nVersion:   3\n",
        "behind/empty.dist-info": None,
    }
    for place, text in texts.items():
        folder = tmp_path / place
        folder.mkdir(parents=True)
        if text:
            (folder / ("PKG-INFO" if "egg" in place else "METADATA")).write_text(text)
    (tmp_path / "used/alone-4.egg-info").write_text("Name: alone\nVersion: 4\n")
    for name in ("behind", "used"):
        monkeypatch.syspath_prepend(tmp_path / name)
    packages = describe_environment(1)["packages"]
    assert {"good": "1", "bad": None, "old": "3", "alone": "4"}.items() <= packages.items()
    parsed = []
    for each in distributions():
        with suppress(FileNotFoundError):  # of importlib_metadata, where it has been imported
            parsed.insert(0, each.metadata)
    assert packages == {each["Name"]: each.get("Version") for each in parsed if each.get("Name")}


def test_a_package_that_is_installed_meanwhile_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Install, renew and remove a package while this process goes on."""
    monkeypatch.syspath_prepend(tmp_path)
    seen = [describe_environment(1)["packages"].get("later")]
    for text in ("1", "2", None):
        for old in tmp_path.glob("*.dist-info"):
            shutil.rmtree(old)
        if text:
            folder = tmp_path / f"later-{text}.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Name: later\nVersion: {text}\n")
        seen.append(describe_environment(1)["packages"].get("later"))
    assert seen == [None, "1", "2", None]


# GPUs


GPU = {
    "name": "Card", "compute_capability": "8.0", "driver": "535.104.05", "cuda": "12.5.1",
    "cudnn": "9",
}  # fmt: skip
DRIVERS = [
    ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 2023\nGCC 12.2.0 x\n"),
    ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.104.05  Release Build\n"),
]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let TensorFlow seem to have a GPU; return its details, which a test may change."""
    details = {"device_name": "Card", "compute_capability": (8, 0)}
    build = {"is_cuda_build": True, "cuda_version": "12.5.1", "cudnn_version": "9"}
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [SimpleNamespace()])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda device: details)
    monkeypatch.setattr(tf.sysconfig, "get_build_info", lambda: build)
    monkeypatch.setattr(module, "_cpu", dict)  # these read files, too
    monkeypatch.setattr(module, "_packages", lambda installed: {})
    module._driver.cache_clear()
    yield details
    module._driver.cache_clear()


@pytest.mark.parametrize("text", DRIVERS)
def test_what_is_recorded_of_a_gpu(text: str, card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path: text)
    assert describe_environment(1)["gpus"] == [GPU]


def test_what_nothing_tells_of_a_gpu_is_null(card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    card.clear()
    monkeypatch.setattr(module, "program_output", lambda *command: "535.104.05\n535.104.05\n")
    monkeypatch.setattr(Path, "read_text", lambda path: (_ for _ in ()).throw(FileNotFoundError()))
    unknown = {"name": None, "compute_capability": None}
    assert describe_environment(1)["gpus"] == [{**GPU, **unknown}]
    module._driver.cache_clear()
    monkeypatch.setattr(module, "program_output", lambda *command: None)
    assert describe_environment(1)["gpus"] == [{**GPU, **unknown, "driver": None}]


OLD = "/physical_device:GPU:0"


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ([GPU], [GPU], []),
        ([GPU], [{**GPU, "driver": "550.1"}], [("gpus.0.driver", "535.104.05", "550.1")]),
        ([GPU, GPU], [GPU, {**GPU, "cudnn": "8"}], [("gpus.1.cudnn", "9", "8")]),
        ([GPU], [{**GPU, "driver": None}], []),
        ([dict.fromkeys(GPU)], [GPU], []),
        ([OLD], [GPU], []),  # as it was recorded before
        ([OLD, OLD], [GPU], [("gpus", f"{OLD}, {OLD}", "Card")]),
        ([], [GPU], [("gpus", "none", "Card")]),
        ([{**GPU, "name": None}], [], [("gpus", "unknown", "none")]),
        ([5], [GPU], []),
        ("damaged", [GPU], []),
    ],
)
def test_gpus_are_compared(old: Any, new: Any, found: Any) -> None:
    assert differences({"gpus": old}, {"gpus": new}) == found
    assert numerical(found) == found


# The commit and its changes


def test_outside_of_a_checkout_there_is_none(code: Path) -> None:
    assert (git_commit(), changes()) == (None, None)
    assert describe_environment(1)["git_commit"] is None


def test_without_git_there_is_none(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout(code)
    monkeypatch.setenv("PATH", "")
    assert (git_commit(), changes()) == (None, None)


def test_git_that_does_not_answer_is_left(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(command: list[str], **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", slow)
    assert (git_commit(), changes()) == (None, None)


def test_a_checkout_without_a_commit(code: Path) -> None:
    git(code, "init", "--quiet")
    assert (git_commit(), changes()) == (None, None)


def test_a_clean_checkout_has_no_changes(code: Path) -> None:
    commit = checkout(code)
    assert (git_commit(), changes()) == (commit, None)


def test_waymarks_own_checkout_goes_before_the_current_folder(
    code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    other = checkout(elsewhere, "other\n")
    monkeypatch.chdir(elsewhere)
    assert git_commit() == other  # Waymark is installed; the user's code is a checkout
    own = checkout(code)
    assert git_commit() == own


def test_in_a_hook_of_another_repository_the_folders_own_one_counts(
    code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, commit = tmp_path / "other", checkout(code)
    checkout(other, "other\n")
    (code / "model.py").write_text("two\n")
    before = changes()
    assert before
    paths = {"DIR": ".git", "COMMON_DIR": ".git", "WORK_TREE": ".", "INDEX_FILE": ".git/index"}
    for name, path in {**paths, "OBJECT_DIRECTORY": ".git/objects"}.items():
        with monkeypatch.context() as patch:
            patch.setenv(f"GIT_{name}", str(other / path))
            assert (git_commit(), changes()) == (commit, before), name


@pytest.mark.parametrize(
    "setting", ["LITERAL_PATHSPECS=1", "GLOB_PATHSPECS=1", "NOGLOB_PATHSPECS=1", "DIFF_OPTS=-u0"]
)
def test_changes_are_the_same_whatever_git_is_told(
    setting: str, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout(code, "one\ntwo\n")
    (code / "model.py").write_text("one\n2\n")
    (code / "new.py").write_text("new\n")
    before = changes()
    assert before and "+new\n" in before
    monkeypatch.setenv(*f"GIT_{setting}".split("="))
    assert changes() == before


def test_changes_are_a_patch_that_applies(code: Path) -> None:
    checkout(code, "one\ntwo\nthree\n")
    (code / "model.py").write_text("one\n2\nthree\nzwölf €\n", encoding="utf-8")
    git(code, "config", "color.ui", "always")
    git(code, "config", "diff.external", "false")
    patch = changes()
    assert patch is not None
    git(code, "checkout", "--quiet", "model.py")
    (code / "changes.patch").write_text(patch, encoding="utf-8")
    git(code, "apply", "changes.patch")
    assert (code / "model.py").read_text(encoding="utf-8") == "one\n2\nthree\nzwölf €\n"


SECRETS = [
    "api_key = 'hunter2'",
    "API-KEY: hunter2",
    "AWS_SECRET_ACCESS_KEY=hunter2",
    "    client = connect(token='hunter2')",
    "PASSWORD = hunter2",
    "passwd=hunter2",
    "uri = 'postgresql://me:hunter2@host/db'",
    "key = 'AKIAHUNTER2HUNTER2AB'.lower()  # hunter2",
    "gh = 'ghp_hunter2hunter2hunter2hunter2'",
    "oa = 'sk-hunter2hunter2hunter2'",
    "credentials: hunter2",
    "-----BEGIN RSA PRIVATE KEY----- hunter2",
    "Authorization: Bearer hunter2hunter2hunter2",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("staged", [False, True])
def test_lines_that_look_like_keys_are_masked(secret: str, staged: bool, code: Path) -> None:
    checkout(code, f"one\nold {secret}\nthree\n" if "old" in secret else f"one\n{secret}\nthree\n")
    (code / "model.py").write_text(f"one\n{secret} \nthree\nsteps = 4\nseed = {secret}\n")
    if staged:
        git(code, "add", "model.py")
    patch = changes()
    assert patch is not None
    assert "hunter2" not in patch.lower()
    lines = patch.splitlines()
    assert "+steps = 4" in lines
    assert " one" in lines
    assert [line for line in lines if "masked" in line] == ["-(masked)", "+(masked)", "+(masked)"]


def test_the_body_of_a_private_key_is_masked(code: Path) -> None:
    body = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cK/"
    checkout(code, f"{body}\n")
    key = ["-----BEGIN PRIVATE KEY-----", body[::-1], f"    {body[::-1]}", f"'{body[1:]}+A=='"]
    (code / "model.py").write_text("\n".join([*key, "-----END PRIVATE KEY-----", "steps = 4", ""]))
    patch = changes()
    assert patch is not None
    assert not {part for line in (body, body[::-1]) for part in (line[:20], line[-20:])
                if part in patch}  # fmt: skip
    assert patch.endswith("+steps = 4\n")


def test_usual_lines_are_not_masked(code: Path) -> None:
    text = """\
        learning_rate = 0.1
        # see https://example.org/a/b:c?d=e@f
        weights = tf.Variable(initial, name="weights")
        from waymark.checkpoints.store import CheckpointStore
        accuracy = {"test/accuracy": 0.9115}
        digest = "0e603cdc5e54a5e45c9c13d807e3f9dc3e5b45b93226fa87981e96782191e431"
        ==============================================================================
        key = random_key(seed, BATCH, step)
    """
    checkout(code, "\n")
    (code / "model.py").write_text(text)
    patch = changes()
    assert patch is not None
    assert "masked" not in patch
    assert all(f"+{line}" in patch for line in text.splitlines())


def test_a_file_that_is_no_text(code: Path) -> None:
    checkout(code)
    (code / "model.py").write_bytes(bytes(range(256)) * 4 + b"password\xff\xfe")
    patch = changes()
    assert patch is not None
    json.dumps(patch).encode("utf-8")


# The user's own code


def test_which_modules_are_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an editable install leads to is; what pip has put into a folder on the path is not."""
    target, site = tmp_path / "target", tmp_path / "site-packages"
    for folder in (target, site, target / "theirs-1.dist-info"):
        folder.mkdir()
    (target / "theirs-1.dist-info" / "RECORD").write_text("theirs.py,sha256=x,1\n")
    files = {"theirs": target, "mine_beside": target, "mine": tmp_path, "installed": site}
    for name, folder in files.items():
        (folder / f"{name}.py").touch()
        loaded = SimpleNamespace(__file__=str(folder / f"{name}.py"))
        monkeypatch.setitem(sys.modules, name, loaded)
    (site / "linked").symlink_to(tmp_path)  # as some install what may be edited
    linked = SimpleNamespace(__file__=str(site / "linked" / "mine.py"))
    monkeypatch.setitem(sys.modules, "linked", linked)
    monkeypatch.setitem(sys.modules, "promised", None)
    expected = {"mine": tmp_path / "mine.py", "linked": tmp_path / "mine.py"}
    assert own_files() == {**expected, "mine_beside": target / "mine_beside.py"}


BODIES = [b"", b"a = 1\n", b"a = 1", b"a = 1\r\n\x0cb = 2\n", b"# coding: latin-1\n'\xe9'\n"]
BODIES.append(b"diff --git a/x b/x\n--- a/x\n\n\n")


@pytest.mark.skipif(not shutil.which("git"), reason="git is not here")
def test_a_copy_is_a_patch_that_makes_the_file(code: Path) -> None:
    git(code, "init", "--quiet")
    names = [f"pkg{number}/m\u00fc.py" for number in range(len(BODIES))]
    patches = [as_new_file(*pair) for pair in zip(names, BODIES, strict=True)]
    (code / "patch").write_bytes("".join(patches).encode(errors="surrogateescape"))
    git(code, "apply", "--whitespace=nowarn", "patch")
    assert [(code / name).read_bytes() for name in names] == BODIES


def test_a_copy_has_no_secrets_and_an_end(
    code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = tmp_path / "small.py", tmp_path / "large.py"
    small.write_text("steps = 4\npassword = 'hunter2'\n")
    large.write_text("#" * (own_code.MOST + 1))
    monkeypatch.setattr(own_code, "own_files", lambda: {"large": large, "small": small})
    own = OwnCode(with_changes=True)
    (patch,) = own.patches().values()
    assert patch.splitlines()[-2:] == ["+steps = 4", "+(masked)"]
    assert own_facts({"own": own.facts()}) == OwnFacts({}, [], ["small"], ["large"])
    assert own.digests.keys() == {"large", "small"}
    assert OwnCode(with_changes=False).patches() == {}
