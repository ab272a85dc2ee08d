"""Masking: only secrets, each at its place; what a rerun needs is given again."""

import os
import random
import re
import secrets
import string
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf
from waymark import api, errors
from waymark.config import masking
from waymark.config.compose import CONF, compose_config, from_config, parse_overrides
from waymark.config.composer import Composer
from waymark.config.masking import without_password
from waymark.config.own_hydra import load
from waymark.config.record import from_record
from waymark.config.resolve import Resolved
from waymark.config.values import flatten
from waymark.config.yaml_source import yaml_class
from waymark.errors import BadInput
from waymark.execution.plan import RESUME_FIXED
from waymark.sweeps.trial import identity

SECRET = (
    *("TOKEN", "HF_TOKEN", "GITHUB_TOKEN_2", "TOKENIZERS_PARALLELISM", "SECRET_NAME", "my_secret"),
    *("DB_PASSWORD", "PASSWORD1", "X_PASSWD", "PASSPHRASE", "AWS_CREDENTIALS", "MY_API_KEY_ID"),
    *("AWS_ACCESS_KEY_ID", "PRIVATE_KEY_FILE", "DB_PASS", "SMTP_PWD", "WANDB_KEY", "A_key"),
)
PLAIN = (
    *("USER", "PWD", "OLDPWD", "HOME", "SLURM_ARRAY_TASK_ID", "KEY", "PASS", "KEYBOARD", "DIR"),
    *("MONKEY", "COMPASS", "KEY_FILE", "PASS_COUNT", "PWD_2", "APIKEY", "SEED", "TOKE", "_PAS"),
)
VARIABLES = {
    **{"HUB_TOKEN": "hunter2", "A_SECRET": "e", "N_KEY": "7", "RATE_KEY": "0.5", "ON_KEY": "true"},
    **{
        "WHO_SECRET": "steps",
        "MAP_SECRET": "{a: 5, b: text}",
        "EMPTY_TOKEN": "",
        "ODD_KEY": "a${b",
    },
    **{"ID": "2", "WHO": "max", "ONE": "e"},
}
BASE = compose_config([])


@pytest.fixture(autouse=True)
def _variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(errors, "_known", {})
    monkeypatch.setattr(masking, "_settings", {})


def test_names_say_what_is_secret() -> None:
    assert [name for name in SECRET if not masking.is_secret(name)] == []
    assert [name for name in PLAIN if masking.is_secret(name)] == []


def recorded(resolved: Resolved) -> dict[str, Any]:
    """Return what a record holds beside, or other than, the defaults."""
    body = yaml.safe_load(resolved.record())
    body.pop("masked", None)
    before = flatten(yaml.safe_load(BASE.record()))
    return {key: value for key, value in flatten(body).items() if before.get(key) != value}


# Overrides; what is recorded; what the run gets.
PLACES: dict[str, tuple[list[str], dict[str, Any], dict[str, Any]]] = {
    "number": (['seed="${oc.decode:${oc.env:ID}}"'], {"seed": 2}, {"seed": 2}),
    "name": (
        ["experiment_name=${oc.env:WHO}", "run_name=max-${oc.env:HUB_TOKEN}"],
        {"experiment_name": "max", "run_name": "max-***(HUB_TOKEN)"},
        {"experiment_name": "max", "run_name": "max-***(HUB_TOKEN)"},
    ),
    "folder": (["init_from=${oc.env:WHO}/x.npz"], {"init_from": "max/x.npz"}, {}),
    "one character": (
        ["init_from=the/${oc.env:A_SECRET}/${oc.env:ONE}"],
        {"init_from": "the/***(A_SECRET)/e"},
        {"init_from": "the/e/e"},
    ),
    "secret number": (
        ['seed="${oc.decode:${oc.env:N_KEY}}"', "steps=7"],
        {"seed": "***(N_KEY)", "steps": 7},
        {"seed": 7, "steps": 7},
    ),
    "number as it stands": (
        ["seed=${oc.env:N_KEY}", "tracking.flush_seconds=${oc.env:RATE_KEY}"],
        {"seed": "***(N_KEY)", "tracking.flush_seconds": "***(RATE_KEY)"},
        {"seed": 7, "tracking.flush_seconds": 0.5},
    ),
    "by another key": (
        ["init_from=${tags.key}/x", "+tags.key=${oc.env:HUB_TOKEN}"],
        {"init_from": "***(HUB_TOKEN)/x", "tags.key": "***(HUB_TOKEN)"},
        {"init_from": "hunter2/x"},
    ),
    "name of a name": (
        ["+tags.a=HUB_TOKEN", '+tags.b="${oc.env:${tags.a}}"'],
        {"tags.a": "HUB_TOKEN", "tags.b": "***(HUB_TOKEN)"},
        {},
    ),
    "default": (
        ['+tags.a="${oc.env:NO_TOKEN,none}"', '+tags.b="${oc.env:NO_TOKEN,${oc.env:A_SECRET}}"'],
        {"tags.a": "none", "tags.b": "***(A_SECRET)"},
        {},
    ),
    "two": (
        ["init_from=${oc.env:HUB_TOKEN}-${oc.env:N_KEY}-${oc.env:ID}"],
        {"init_from": "***(HUB_TOKEN)-***(N_KEY)-2"},
        {"init_from": "hunter2-7-2"},
    ),
    "key that is selected": (
        ['+tags.a="${oc.select:${oc.env:WHO_SECRET}}"'],
        {"tags.a": "***(WHO_SECRET)"},
        {},
    ),
    "mapping": (
        ['tags="${oc.decode:${oc.env:MAP_SECRET}}"'],
        {"tags.a": "***(MAP_SECRET)", "tags.b": "***(MAP_SECRET)"},
        {},
    ),
    "list": (
        ["trusted_modules=[json,'${oc.env:WHO}','${oc.env:HUB_TOKEN}']"],
        {"trusted_modules": ["json", "max", "***(HUB_TOKEN)"]},
        {"trusted_modules": ["json", "max", "hunter2"]},
    ),
    "address": (
        ['init_from="https://me:${oc.env:HUB_TOKEN}@host/x?token=${oc.env:N_KEY}&a=7"'],
        {"init_from": "https://me:***(HUB_TOKEN)@host/x?token=***(N_KEY)&a=7"},
        {"init_from": "https://me:hunter2@host/x?token=7&a=7"},
    ),
    "address in full": (
        ['init_from="https://me:hunter3@host/hunter3"'],
        {"init_from": "https://me:***@host/hunter3"},
        {"init_from": "https://me:hunter3@host/hunter3"},
    ),
    "address, not secret": (
        ["init_from=https://me:${oc.env:WHO}@host"],
        {"init_from": "https://me:***@host"},
        {},
    ),
    "nothing": (["run_name=${oc.env:EMPTY_TOKEN}"], {"run_name": "***(EMPTY_TOKEN)"}, {}),
    "as an interpolation": (
        ["init_from=${oc.env:ODD_KEY}"],
        {"init_from": "***(ODD_KEY)"},
        {"init_from": "a${b"},
    ),
}


def at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize("case", PLACES)
def test_secrets_are_masked_at_their_place(case: str) -> None:
    overrides, record, config = PLACES[case]
    resolved = compose_config(overrides)
    assert recorded(resolved) == record
    assert {key: at(resolved.config, key) for key in config} == config
    masked = {key: value for key, value in record.items() if "***" in str(value)}
    assert sorted(resolved.hidden) == sorted(masked)
    params = {
        key: str(value)
        for key, value in masked.items()
        if key != "run_name" and not key.startswith("tags.")
    }
    assert {key: value for key, value in resolved.params().items() if "***" in value} == params


def test_what_a_resolver_makes_of_a_secret_is_masked() -> None:
    """Also one that cannot do with a mask, and one that OmegaConf asks only once."""
    for name, function in {"test.half": lambda text: text[:3], "test.int": int}.items():
        OmegaConf.register_new_resolver(name, function, use_cache=True)
    try:
        resolved = compose_config(['run_name="${test.half:${oc.env:HUB_TOKEN}}-x"',
                             'seed="${test.int:${oc.env:N_KEY}}"'])  # fmt: skip
    finally:
        OmegaConf.clear_resolver("test.half")
        OmegaConf.clear_resolver("test.int")
    masks = {"run_name": "***(HUB_TOKEN)", "seed": "***(N_KEY)"}
    assert (recorded(resolved), resolved.config.seed) == (masks, 7)


def test_a_sweeps_trials_are_masked_alike() -> None:
    overrides = ["init_from=${oc.env:HUB_TOKEN}", "+tags.a=7", "seed=7"]
    loaded: list[Any] = []

    class Loader:
        def get_group_options(self, key: str) -> list[str]:
            return []

        def load_sweep_config(self, _: Any, rest: list[str]) -> Any:
            loaded.append(rest)
            return load(CONF, rest, yaml_class(CONF))

    compose = Composer(Loader(), None)
    for _ in range(2):
        resolved = compose(overrides)
        assert recorded(resolved) == {"init_from": "***(HUB_TOKEN)", "tags.a": "7", "seed": 7}
    assert len(loaded) == 1


def test_a_configuration_that_was_handed_out_comes_back() -> None:
    given = ["data=arrays", "data.path=${oc.env:A_SECRET}", "+tags.a=${oc.env:N_KEY}"]
    config = api.configure("init_from=${oc.env:HUB_TOKEN}/x", *given)
    assert (config.init_from, config.data.path) == ("hunter2/x", "e")
    resolved = from_config(replace(config, steps=5, run_name="e"))
    body = yaml.safe_load(resolved.record())
    assert body["init_from"] == "***(HUB_TOKEN)/x"
    assert body["data"]["path"] == "***(A_SECRET)"
    assert body["tags"] == {"a": "***(N_KEY)"}
    assert (body["run_name"], body["steps"], body["precision"]) == ("e", 5, "float32")


@pytest.mark.parametrize("override", [
    "steps=${oc.env:HUB_TOKEN}",
    'steps="${oc.decode:${oc.env:ODD_KEY}}"',
    "steps=a-${oc.env:HUB_TOKEN}",
    "model._target_=${oc.env:HUB_TOKEN}.x",
    "on_nan=${oc.env:A_SECRET}",
    "+model.x=${oc.env:HUB_TOKEN}",
    "tracking=${oc.env:HUB_TOKEN}",
])  # fmt: skip
def test_what_is_wrong_is_told_without_the_secret(override: str) -> None:
    with pytest.raises(BadInput) as error:
        compose_config([override])
    said = str(error.value)
    assert not [each for each in ("hunter2", "a${b", "'e'") if each in said], said


def test_messages_of_others_are_without_secrets_too() -> None:
    from waymark.errors import first_line

    compose_config(["init_from=${oc.env:HUB_TOKEN}/${oc.env:A_SECRET}"])
    error = OSError("no such file: hunter2/e; hunter2")
    assert first_line(error) == "no such file: ***(HUB_TOKEN)/***(A_SECRET); ***(HUB_TOKEN)"


@pytest.mark.parametrize(
    ("uri", "masked"),
    [
        ("http://me:***(A_TOKEN)@host/x@y", "http://me:***(A_TOKEN)@host/x@y"),
        ("http://me:***(A_TOKEN)b@host", "http://me:***(A_TOKEN)@host"),
        ("http://host?password=***(A_TOKEN)b&x=1", "http://host?password=***(A_TOKEN)&x=1"),
        ("http://host?password=b&x=1", "http://host?password=***&x=1"),
    ],
)
def test_a_mask_in_an_address_stays(uri: str, masked: str) -> None:
    assert without_password(uri) == masked


def test_trials_that_differ_in_a_secret_are_two(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ['seed="${oc.decode:${oc.env:N_KEY}}"', "data=arrays", f"data.path={small}",
                 "batch_size=5", "+tags.a=${oc.env:HUB_TOKEN}"]  # fmt: skip
    one = identity(compose_config(overrides))
    monkeypatch.setenv("HUB_TOKEN", "another")
    assert identity(compose_config(overrides)) == one
    monkeypatch.setenv("N_KEY", "8")
    assert identity(compose_config(overrides)) != one


# Records


@pytest.fixture
def path(tmp_path: Path) -> Path:
    resolved = compose_config(["init_from=${oc.env:HUB_TOKEN}/x", "seed=${oc.env:N_KEY}",
                         "run_name=${oc.env:A_SECRET}", "+tags.a=a***b"])  # fmt: skip
    (tmp_path / "config.yaml").write_text(resolved.record())
    return tmp_path / "config.yaml"


def test_a_record_takes_nothing_from_the_environment(path: Path) -> None:
    with pytest.raises(BadInput) as error:
        from_record(path, {}, [], RESUME_FIXED)
    again = """give 'seed=${oc.env:N_KEY}' 'init_from="${oc.env:HUB_TOKEN}/x"' again."""
    assert (
        str(error.value)
        == f"seed, init_from (recorded in {path}): secrets are not recorded; {again}"
    )
    given = parse_overrides(["seed=${oc.env:N_KEY}", 'init_from="${oc.env:HUB_TOKEN}/x"'])
    for frozen in (RESUME_FIXED, ("",)):
        resolved = from_record(path, given, [], frozen)
        assert resolved.record() == path.read_text()
        assert (resolved.config.seed, resolved.config.init_from) == (7, "hunter2/x")
    with pytest.raises(BadInput, match=r"^seed \(recorded"):
        from_record(path, parse_overrides(["init_from=elsewhere"]), [], RESUME_FIXED)
    with pytest.raises(BadInput, match=r"^batch_size: cannot change"):
        from_record(path, {**given, "batch_size": 5}, [], RESUME_FIXED)
    other = from_record(path, {**given, "init_from": "plain", "run_name": "new"}, [], RESUME_FIXED)
    assert yaml.safe_load(other.record())["masked"] == ["seed"]


def test_an_interrupted_trial_goes_on_with_its_secrets(tmp_path: Path) -> None:
    resolved = compose_config(["init_from=${oc.env:HUB_TOKEN}/x",
                         'seed="${oc.decode:${oc.env:N_KEY}}"',
                         "+tags.a=${oc.env:A_SECRET}", "tracking.uri=http://me:own@host",
                         "trusted_modules=['${oc.env:HUB_TOKEN}']"])  # fmt: skip
    (tmp_path / "config.yaml").write_text(resolved.record())
    given = resolved.secrets()
    trusted = given.pop("trusted_modules")
    again = from_record(tmp_path / "config.yaml", given, trusted, RESUME_FIXED)
    assert again.record() == resolved.record()
    assert (again.config.seed, again.config.init_from) == (7, "hunter2/x")


def test_records_that_were_masked_everywhere_are_read(tmp_path: Path) -> None:
    """An earlier version put `***` wherever the characters of a value stood."""
    path = tmp_path / "config.yaml"
    text = BASE.record().replace("float32", "float3***").replace("softmax.Soft", "soft***.Soft")
    path.write_text(text.replace("run_name: null", "run_name: '***'"))
    with pytest.raises(BadInput) as error:
        from_record(path, {}, [], RESUME_FIXED)
    words = ("precision, model._target_ (recorded", "secrets are not recorded", "put in")
    assert not [each for each in words if each not in str(error.value)], str(error.value)
    target = "waymark.models.softmax.Softmax"
    given = parse_overrides(["precision=float32", f"model._target_={target}"])
    assert from_record(path, given, [], RESUME_FIXED).config.precision == "float32"


def test_a_folder_with_asterisks_is_no_secret(path: Path) -> None:
    path.write_text(compose_config(['init_from="a***b/***(X)"']).record())
    assert from_record(path, {}, [], RESUME_FIXED).config.init_from == "a***b/***(X)"


def test_overrides_of_a_record_know_only_each_other() -> None:
    assert parse_overrides(["run_name=a-${oc.env:WHO}", 'seed="${oc.decode:${oc.env:ID}}"']) == {
        "run_name": "a-max",
        "seed": 2,
    }
    for wrong in ("seed=${steps}", "seed=${oc.env:NO_SUCH}", "seed=${nosuch:1}"):
        with pytest.raises(BadInput, match="seed="):
            parse_overrides([wrong])


def test_a_run_with_secrets_goes_through_all_commands(
    place: Path, small: Path, main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_TOKEN", str(small))
    monkeypatch.setenv("SEED_KEY", "1")
    token = secrets.token_hex(8)  # drawn, not written here: a run records this file's changes
    monkeypatch.setenv("HUB_TOKEN", token)
    short = ["steps=4", "save.every=2", "runtime.intra_op_threads=2", "progress=false"]
    settings = ["data.path=${oc.env:DATA_TOKEN}", 'seed="${oc.decode:${oc.env:SEED_KEY}}"']
    tags = ["+tags.own=${oc.env:HUB_TOKEN}", "run_name=one"]
    done = main("run", *short, "data=arrays", *settings, "batch_size=5", *tags)
    assert (done.returncode, done.stderr) == (0, ""), done
    path = next(place.glob("mlruns/artifacts/*/*/artifacts/config.yaml"))
    for command in (["evaluate", "one"], ["resume", "one"], ["rerun", "one"],
                    ["run", "--config-from", "one"]):  # fmt: skip
        done = main(*command)
        assert (done.returncode, done.stdout) == (2, "")
        wanted = ["data.path", "'data.path=${oc.env:DATA_TOKEN}'", "'seed=${oc.env:SEED_KEY}'"]
        assert [word for word in wanted if word not in done.stderr] == []
        assert len(done.stderr.splitlines()) == 1
        done = main(*command, "data.path=${oc.env:DATA_TOKEN}", "seed=${oc.env:SEED_KEY}",
                    "tags.own=${oc.env:HUB_TOKEN}")  # fmt: skip
        assert done.returncode == 0, done
    for file in place.rglob("*"):
        held = file.read_bytes() if file.is_file() else b""
        assert not [each for each in (str(small), token) if each.encode() in held], file
    assert yaml.safe_load(path.read_text())["masked"] == ["data.path", "seed", "tags.own"]


# Fuzzes

WORDS = ("TOKEN", "SECRET", "PASSWORD", "API_KEY", "KEY", "PASS", "PWD", "USER", "DIR", "ID", "A")
LETTERS = "abcdefghijklmnopqrstuvwxyzABCXYZ0123456789_-.é"
SAYS_SECRET = re.compile(
    "TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|API_KEY|ACCESS_KEY|PRIVATE_KEY"
    "|_PASS$|_PWD$|_KEY$"
)


def drawn(rng: random.Random, patch: pytest.MonkeyPatch) -> tuple[list[str], list[str], list[str]]:
    """Draw settings from the environment: as overrides, as literals, and what masks are given for.

    Of a secret the literal is its mask, but for the seed.
    """
    given, literal, again = [], [], []
    places = ["run_name", "experiment_name", "+tags.a", "+tags.b", "init_from", "seed"]
    for key in rng.sample(places, rng.randint(1, len(places))):
        name = "WM_" + "_".join(rng.sample(WORDS, rng.randint(1, 3)))
        letters = string.digits[1:] if key == "seed" else LETTERS
        value = "".join(rng.choices(letters, k=rng.randint(1, 3)))
        if key == "seed":  # it has a variable of its own
            name = f"N_{name}"
        value = os.environ.get(name, value)
        patch.setenv(name, value)
        before, after = rng.choice(["", "a", "x-"]), rng.choice(["", "a", "-x"])
        text = f"{before}${{oc.env:{name}}}{after}"
        text = f"${{oc.decode:${{oc.env:{name}}}}}" if key == "seed" else text
        secret = bool(SAYS_SECRET.search(name))
        given.append(f'{key}="{text}"')
        shown = f"***({name})" if secret and key != "seed" else value
        literal.append(f"{key}={value}" if key == "seed" else f"{key}='{before}{shown}{after}'")
        if secret and key in ("init_from", "seed"):
            again.append(given[-1])
    return given, literal, again


@pytest.mark.long
def test_nothing_else_in_a_record_changes(seed: int) -> None:
    rng, masks = random.Random(seed), 0
    for _ in range(80):
        with pytest.MonkeyPatch.context() as patch:
            given, literal, again = drawn(rng, patch)
            resolved, plain = compose_config(given), compose_config(literal)
            records = [flatten(yaml.safe_load(each.record())) for each in (resolved, plain)]
            masked = records[0].pop("masked", [])
            records[1].pop("masked", None)
            if "seed" in masked:
                assert re.fullmatch(r"\*\*\*\(\w+\)", records[0].pop("seed"))
                assert resolved.config.seed == records[1].pop("seed")
            assert records[0] == records[1], given
            assert {each.partition("=")[0] for each in again} <= set(masked)
            masks += len(masked)
    assert masks > 20


@pytest.mark.long
def test_a_run_from_the_environment_is_rerun(
    place: Path, small: Path, main: Callable[..., Any], seed: int
) -> None:
    rng = random.Random(seed)
    short = ["steps=2", "save.every=2", "runtime.intra_op_threads=2", "progress=false"]
    short += ["data=arrays", f"data.path={small}", "batch_size=5"]
    for _ in range(8):
        with pytest.MonkeyPatch.context() as patch:
            given, _, again = drawn(rng, patch)
            given = [each for each in given if not each.startswith("init_from")]
            again = [each for each in again if not each.startswith("init_from")]
            done = main("run", *short, *given)
            assert (done.returncode, done.stderr) == (0, ""), given
            run_id = next(w[1] for w in map(str.split, done.stdout.splitlines()) if w[0] == "run")
            for command in (["evaluate", run_id], ["rerun", run_id]):
                if again:
                    refused = main(*command)
                    assert refused.returncode == 2 and "seed" in refused.stderr
                done = main(*command, *again)
                assert done.returncode == 0, (done, given)
