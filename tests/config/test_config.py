"""Configuration: each key's bounds, the record and back, and that a record is only believed."""

import copy
import math
import random
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.config_store import ConfigStore
from hypothesis import example, given, settings
from hypothesis import strategies as st
from waymark.config import compose
from waymark.config.compose import PACKAGES, as_written, compose_config, parse_overrides
from waymark.config.masking import without_password
from waymark.config.record import from_record
from waymark.config.resolve import Resolved, resolve
from waymark.config.schema import DATA_DEFAULTS, FORMAT, GROUP_PROTOCOLS, OPTIMIZER_DEFAULTS
from waymark.config.values import flatten
from waymark.errors import BadInput

from tests.support.processes import REPO

PLAIN = compose_config([])
RECORD = yaml.safe_load(PLAIN.record())


def members(group: str) -> list[str]:
    return sorted(path.stem for path in (REPO / "conf" / group).glob("*.yaml"))


def at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[part] if isinstance(config, dict) else getattr(config, part)
    return config


def read(
    body: Any, folder: Path, trusted: list[str] | None = None, **overrides: Any
) -> Resolved:  # fmt: skip
    """Write a record (a mapping, text or bytes) and read it back."""
    path = folder / "config.yaml"
    text = yaml.safe_dump(body) if isinstance(body, dict) else body
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return from_record(path, overrides, trusted or [], ())


def changed(key: str, value: Any) -> dict[str, Any]:
    """Return the default record with one dotted key set to another value."""
    body = copy.deepcopy(RECORD)
    *parents, last = key.split(".")
    place = body
    for parent in parents:
        place = place[parent]
    place[last] = value
    return body


# What is accepted


def test_the_defaults_are_the_tutorials() -> None:
    config, cnn = PLAIN.config, compose_config(["model=cnn"]).config
    assert PLAIN.choices == {
        "model": "softmax", "data": "mnist_5k", "task": "classification", "optimizer": "adam",
        "save": "ckpt",
    }  # fmt: skip
    assert (config.steps, config.batch_size, config.seed) == (1000, 100, 0)
    assert (config.model.init_stddev, config.optimizer.learning_rate) == (0.01, 1e-3)
    assert asdict(cnn.model) == {"init_stddev": 0.1, "init_bias": 0.1, "keep_prob": 1.0}
    assert cnn.optimizer.learning_rate == 1e-4
    adam = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
    assert asdict(config.optimizer) == {"learning_rate": 1e-3, **adam, **OPTIMIZER_DEFAULTS}
    assert (config.precision, config.on_nan, config.init_from) == ("float32", "stop", None)
    assert (config.eval_every, config.log_every, config.progress) == (200, 1, "auto")
    assert asdict(config.save) == {
        "every": 50, "max_to_keep": 7, "keep_every_n_hours": 1, "keep_best": None,
        "asynchronous": True, "log_model": False, "meta_graph": True,
    }  # fmt: skip
    assert config.data.sampling == "replacement"
    assert (config.experiment_name, config.run_name, config.tags) == ("waymark", None, {})
    assert (config.trusted_modules, config.record.changes) == ([], True)
    tracking = {"uri": None, "flush_seconds": 30, "system_metrics": False}
    assert asdict(config.tracking) == tracking


def test_the_number_of_threads_is_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 13)
    resolved = compose_config([])
    assert resolved.config.runtime.intra_op_threads == 13
    assert resolved.values["runtime"]["intra_op_threads"] == 13
    assert resolved.params()["runtime.intra_op_threads"] == "13"
    assert compose_config(["runtime.intra_op_threads=3"]).config.runtime.intra_op_threads == 3


@pytest.mark.parametrize("model", members("model"))
@pytest.mark.parametrize("optimizer", members("optimizer"))
def test_every_model_and_optimizer_compose(model: str, optimizer: str) -> None:
    rates = {
        "linear": 1e-2,
        "cnn": 1e-4,
        **dict.fromkeys(["softmax", "keras", "mlp", "resnet"], 1e-3),
    }
    build = ["model.build=waymark.models.mlp.build"] if model == "keras" else []
    resolved = compose_config([f"optimizer={optimizer}", f"model={model}", *build])
    assert resolved.config.optimizer.learning_rate == rates[model]
    given = compose_config(
        [f"optimizer={optimizer}", f"model={model}", *build, "optimizer.learning_rate=0.5"]
    )
    assert given.config.optimizer.learning_rate == 0.5


@pytest.mark.parametrize("sweep", [file.stem for file in (REPO / "conf/sweep").glob("*.yaml")])
def test_every_sweep_selects_on_a_validation_set(sweep: str) -> None:
    if sweep == "optuna":
        pytest.importorskip("optuna")
    assert compose_config([f"+sweep={sweep}"]).config.data.validation == 0.1


@pytest.mark.parametrize("experiment", members("experiment"))
def test_every_experiment_composes(experiment: str) -> None:
    resolved = compose_config([f"+experiment={experiment}"])
    expected = {
        "tutorial_softmax_npz": {"model": "softmax", "data": "mnist", "save": "npz"},
        "tutorial_cnn_npz": {"model": "cnn", "data": "mnist", "save": "npz"},
        "tutorial_saver": {"model": "softmax", "data": "mnist", "save": "ckpt"},
        "tutorial_meta": {"model": "softmax", "data": "mnist", "save": "ckpt"},
    }
    assert resolved.choices.items() >= expected.get(experiment, {}).items()


ACCEPTED = """
steps=1 | steps=1000000000 | batch_size=1 | seed=0 | seed=9223372036854775807
precision=mixed_bfloat16 | eval_every=0 | log_every=1 | on_nan=continue
init_from=some/file.npz | runtime.intra_op_threads=1 | tracking.uri=http://host:5000
tracking.flush_seconds=0.5 | tracking.system_metrics=true | record.changes=false
progress=true | progress=false | progress=auto | trusted_modules=[mine,yours.models]
experiment_name=mine | run_name=first | optimizer.learning_rate=1 | optimizer.beta1=0
optimizer.beta2=0.0 | optimizer.epsilon=1e-30 | save.every=0 | save.max_to_keep=0
save.keep_every_n_hours=null | save.keep_every_n_hours=0.25 | save.asynchronous=false
save.meta_graph=false | data.sampling=epoch | model.init_stddev=3 | save.keep_best=null
save.log_model=true | save.log_model=auto
"""


@pytest.mark.parametrize("override", [o.strip() for o in ACCEPTED.replace("\n", "|").split("|")
                                      if o.strip()])  # fmt: skip
def test_accepted(override: str) -> None:
    key, _, text = override.partition("=")
    value = at(compose_config([override]).config, key)
    assert value == yaml.safe_load(text.replace("1e-30", "1.0e-30"))
    assert isinstance(value, bool) == (text in ("true", "false"))


def test_a_whole_number_becomes_a_float_where_one_is_wanted() -> None:
    given = ["model=cnn", "model.init_bias=0", "model.keep_prob=1", "optimizer.learning_rate=1"]
    config = compose_config(given).config
    values = (config.model.init_bias, config.model.keep_prob, config.optimizer.learning_rate)
    assert [type(value) for value in values] == [float] * 3


def test_keep_best() -> None:
    config = compose_config(["save.keep_best={metric: test/loss, mode: min}"]).config
    assert asdict(config.save.keep_best) == {"metric": "test/loss", "mode": "min"}


def test_tags() -> None:
    config = compose_config(["+tags.who=me", "+tags.n=3", "+tags.Upper-case=1.5"]).config
    assert config.tags == {"who": "me", "n": "3", "Upper-case": "1.5"}


@pytest.mark.parametrize(
    ("value", "text"),
    [(text, text) for text in ("12345e6", "1.10", "-0.50", "1_000", "010", "TRUE", "inf", "1:10")]
    + [
        ("'1.10'", "1.10"),
        ("${steps}", "1000"),
        ("${seed}1", "01"),
        (r"a\,1", "a,1"),
        (" 1 ", "1"),
    ],
)
def test_a_text_stays_as_it_is_written(value: str, text: str) -> None:
    overrides = [f"{key}={value}" for key in ("+tags.a", "run_name", "experiment_name")]
    config = compose_config(overrides).config
    assert (config.tags["a"], config.run_name, config.experiment_name) == (text,) * 3
    assert parse_overrides([f"tags.a={text}"] if value == text else []) in ({}, {"tags.a": text})


def test_texts_of_a_sweep_and_of_a_mapping_stay_as_they_are_written() -> None:
    for override, text in {
        "+tags.a=1.10,2e3,'x,1',y": "+tags.a='1.10','2e3','x,1',y",
        "+tags.a=choice(1.10, b)": "+tags.a=choice('1.10', b)",
        "+tags={a: 1.10, b: '2', c: d}": "+tags={a:'1.10', b: '2', c: d}",
        "run_name=null": "run_name=null",  # MLflow's choice of a name
        "seed=1,2": "seed=1,2",
        "optimizer.learning_rate=1e-3": "optimizer.learning_rate=1e-3",
    }.items():
        assert as_written([override, "--multirun"]) == [text, "--multirun"]
    assert compose_config(["run_name=null"]).config.run_name is None


def test_a_number_in_a_yaml_file_is_no_text() -> None:
    for key, value in {"tags.version": 1.1, "tags.n": 8, "tags.yes": True, "run_name": 3}.items():
        group, _, name = key.partition(".")
        values = copy.deepcopy(PLAIN.values) | {group: {name: value} if name else value}
        with pytest.raises(BadInput, match=rf"^{key}={value} \(mine.yaml\): must be a text, which"):
            resolve(values, PLAIN.choices, lambda key: "mine.yaml")


# What is refused: key, value and source are named

REFUSED = """
steps=0 | steps=-1 | steps=1.0 | steps=1e3 | steps=true | steps=null | steps=many | steps=[1]
batch_size=0 | batch_size=null | batch_size=0.5
seed=-1 | seed=9223372036854775808 | seed=1.5 | seed=null | seed=true
precision=float64 | precision=null | eval_every=-1 | eval_every=0.5 | eval_every=null
log_every=0 | log_every=null | on_nan=ignore | on_nan=null | init_from=3 | init_from=true
runtime.intra_op_threads=0 | runtime.intra_op_threads=-1 | runtime.intra_op_threads=1.5
tracking.uri=3 | tracking.flush_seconds=0 | tracking.flush_seconds=inf
tracking.flush_seconds=null | tracking.system_metrics=1 | record.changes=maybe
progress=maybe | progress=1 | progress=null | trusted_modules=os | trusted_modules=null
experiment_name=null | experiment_name="" | run_name=""
tags=3 | tags=null | optimizer.learning_rate=0 | optimizer.learning_rate=-1
optimizer.learning_rate=inf | optimizer.learning_rate=nan | optimizer.learning_rate=null
optimizer.learning_rate=fast | optimizer.learning_rate=true | optimizer.learning_rate="0.1"
optimizer.beta1=1 | optimizer.beta1=-0.1 | optimizer.beta2=1.0 | optimizer.epsilon=0
save.every=-1 | save.every=1.5 | save.every=null | save.max_to_keep=-1 | save.max_to_keep=null
save.keep_every_n_hours=0 | save.keep_every_n_hours=-1 | save.keep_every_n_hours=inf
save.keep_best=best | save.asynchronous=1 | save.meta_graph=null
save.log_model=yes_please | save.log_model=1
data.sampling=shuffle | data.sampling=null | model.init_stddev=0 | model.init_stddev=-0.1
model.init_stddev=[1] | model.init_stddev=true | runtime=3 | runtime=null | tracking=3
tracking=null | record=true | model._target_=os.system | model._target_=nosuch.Model
model._target_=waymark.optimizers.Adam | data._target_=waymark.models.softmax.Softmax
"""


@pytest.mark.parametrize("override", [o.strip() for o in REFUSED.replace("\n", "|").split("|")
                                      if o.strip()])  # fmt: skip
def test_refused(override: str) -> None:
    key, _, text = override.partition("=")
    shown = {"null": "None", "true": "True", "1e3": "1000.0", '""': "''"}.get(text, text.strip('"'))
    with pytest.raises(BadInput) as error:
        compose_config([override])
    said = str(error.value)
    assert said.startswith(key)
    assert shown in said
    assert "the command line" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model=cnn", "model.keep_prob=0"], r"^model\.keep_prob=0 \(the command line\): "),
        (["model=cnn", "model.keep_prob=1.01"], r"^model\.keep_prob=1\.01 \(the command line\): "),
        (["model=cnn", "model.init_bias=nan"], r"^model\.init_bias=nan \(the command line\): "),
        (["optimizer=sgd", "optimizer.momentum=1"], r"^optimizer\.momentum=1 \(the command line\)"),
        (["data=arrays"], r"^data\.path \(conf/\): a value is missing"),
        (["stop=3"], r"^stop=3 \(the .*\): must be settings, metric, mode, patience and "),
        (["data=mnist", "data.path=3"], r"^data\.path=3 \(the command line\): "),
        (["save.keep_best={metric: accuracy, mode: max}"], r"^save\.keep_best\.metric='accuracy' "),
        (["save.keep_best={metric: test/loss}"], r"^save\.keep_best\.mode .*missing"),
        (["save.keep_best={metric: test/loss, mode: min, of: 3}"], r"^save\.keep_best\.of "),
        (["+trusted=1"], r"^trusted \(the command line\): there is no such"),
        (["+model.depth=1"], r"^model\.depth \(the command line\): there is no such"),
        (["stepz=3"], r"^stepz: there is no such key; the nearest is steps\.$"),
        (["learning_rate=3"], r"^learning_rate: .*; the nearest is optimizer\.learning_rate\.$"),
        (["keep_prob=0.5", "model=cnn"], r"^keep_prob: .*; the nearest is model\.keep_prob\.$"),
        (["save=npz", "save.meta_graph=true"], r"^save\.meta_graph: there is no such key"),
        (["model=cnnn"], r"^model=cnnn: there is no such choice \(cnn, keras, .*\); .* cnn\.$"),
        (["+experiment=chapter_meta"], r"; it is called tutorial_meta now\.$"),
        (["+experiment=nosuch"], r"^experiment=nosuch: there is no such choice \(smoke, tut"),
        (["steps"], "steps"),
        (["steps="], r"^steps='' \(the command line\): "),
        (["~steps"], r"^steps .*missing"),
        (["run_name=${nosuch}"], "run_name"),
        (["run_name=${oc.env:WAYMARK_NO_SUCH_VARIABLE}"], "run_name"),
        (["+model.inner={_target_: os.system}"], r"^model\.inner\._target_ "),
        (["+model._partial_=true"], r"^model\._partial_ "),
        (["+model._args_=[1]"], r"^model\._args_ "),
        (["trusted_modules=[1]"], r"^trusted_modules.*1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_refused_with_words(overrides: list[str], said: str) -> None:
    with pytest.raises(BadInput, match=said) as error:
        compose_config(overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", ["joblib", "ray", "submitit"])
def test_a_launcher_is_refused_by_what_it_lacks(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run by itself knows none of them, whether they are installed or not."""
    choice = f"hydra/launcher={family}_own"
    launchers = ConfigStore.instance().repo["hydra"]["launcher"]  # more after a sweep
    basic = {name: entry for name, entry in launchers.items() if name.startswith("basic")}
    monkeypatch.setitem(ConfigStore.instance().repo["hydra"], "launcher", basic)
    with pytest.raises(BadInput) as error:
        compose_config([choice])
    assert str(error.value) == f"{choice}: launchers are for sweeps (waymark run -m)."
    packages = PACKAGES[f"hydra/launcher={family}"]

    def installed(name: str) -> None:
        if packages[-1].startswith(name):
            raise PackageNotFoundError(name)

    monkeypatch.setattr(compose, "distribution", installed)
    with pytest.raises(BadInput) as error:
        compose_config([choice])
    words = " ".join(f"'{package}'" for package in packages)
    said = f"{choice}: there is no such choice (basic); pip install {words} brings it."
    assert str(error.value) == said


@pytest.mark.parametrize(
    "override",
    ["model=3", "model=null", "~model", "=3", "model={a: 1}", "tags=[a]", "runtime={a: 1}"],
)
def test_odd_overrides_are_bad_input(override: str) -> None:
    with pytest.raises(BadInput) as error:
        compose_config([override])
    assert "\n" not in str(error.value)


def test_a_refused_key_is_named_whatever_its_letters() -> None:
    for override, key in {"+Foo=3": "Foo", "+tags.A-b=[1]": "tags.A-b"}.items():
        with pytest.raises(BadInput) as error:
            compose_config([override])
        assert str(error.value).startswith(key), override


def test_resolve_names_the_source_it_is_told() -> None:
    with pytest.raises(BadInput, match=r"^steps=0 \(here\): "):
        resolve({**PLAIN.values, "steps": 0}, PLAIN.choices, lambda key: "here")


# Names and tags

TOKENS = ["\x00", "\x1b[31m", "\n", "\r", "\x7f", "\x9b2J", "\u2028", "\u2029", "\u202e", "\u2066"]
TOKENS += ["\ud800", "\udcff", "`id`", "$(id)"]
SHELL = ["$HOME", "a;b", "a|b", "a&b", "<a", "a>"]


def named(key: str, text: str) -> dict[str, Any]:
    if key == "tag":
        return {"tags": {f"a{text}": "x"}}
    return {"tags": {"note": f"a{text}"}} if key == "value" else {key: f"a{text}"}


@pytest.mark.parametrize("key", ["run_name", "experiment_name", "tag", "value"])
def test_texts_that_a_terminal_or_shell_would_act_on_are_refused(key: str, tmp_path: Path) -> None:
    for text in [token for token in TOKENS if key != "value" or token != "\n"] + SHELL:
        values = {**PLAIN.values, **named(key, text)}
        shown = {"tag": "tags.a", "value": "tags.note="}.get(key, f"{key}=")
        if key == "value" and text in SHELL:
            assert resolve(values, PLAIN.choices, lambda key: "here").config.tags["note"]
            continue
        for refuse in (
            lambda values=values: resolve(values, PLAIN.choices, lambda key: "here"),
            lambda text=text: read({**RECORD, **named(key, text)}, tmp_path),
        ):
            with pytest.raises(BadInput) as error:
                refuse()
            said = str(error.value)
            assert said.startswith(shown), text
            assert f"a{text}".isprintable() <= (repr(f"a{text}") in said)
            assert "at most" in said or "is not UTF-8" in said
            assert said.isprintable(), said


def test_such_texts_are_refused_from_the_command_line() -> None:
    rows = {"run_name='a;b'": "run_name='a;b' (the command line): no control", "+tags.x='`id`'":
            "tags.x='`id`' (the command line): no control characters but"}  # fmt: skip
    for override, said in rows.items():
        with pytest.raises(BadInput) as error:
            compose_config([override])
        assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    "text", ['R2-D2: second try (50%), it\'s "ok"', "Grüße 数字 👩\u200d🔬 #1", "a\\b~!?*"]
)
def test_other_texts_are_names(text: str) -> None:
    given = {"run_name": text, "experiment_name": text, "tags": {"v": f"{text}\n\t$5 a;b & <c>"}}
    config = resolve({**PLAIN.values, **given}, PLAIN.choices, lambda key: "here").config
    assert (config.run_name, config.experiment_name, config.tags) == tuple(given.values())


def test_texts_are_as_long_as_mlflow_takes() -> None:
    from mlflow.utils import validation

    assert validation.MAX_TAG_VAL_LENGTH == 8000
    assert min(validation.MAX_ENTITY_KEY_LENGTH, validation.MAX_EXPERIMENT_NAME_LENGTH) == 250
    for key, most in {"run_name": 250, "experiment_name": 250, "tag": 250, "value": 8000}.items():
        fits = {**PLAIN.values, **named(key, "b" * (most - 1))}
        assert resolve(fits, PLAIN.choices, lambda key: "here")
        with pytest.raises(BadInput, match=f"at most {most} characters") as error:
            resolve({**fits, **named(key, "b" * most)}, PLAIN.choices, lambda key: "here")
        assert len(str(error.value)) < 800


PATHS = ["a/../b", "./a", "a//b", "/a", "a/", "..a", "a\n", "a/..b", "...", "a/.", "..", ".", ""]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(key=st.sampled_from(PATHS) | st.text("ab1é_-. :/", max_size=6) | st.text(max_size=4))
def test_a_tags_name_is_what_mlflow_takes(key: str) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import _validate_tag_name

    values = {**PLAIN.values, "tags": {key: "x"}}
    try:
        _validate_tag_name(key)
        good = "\n" not in key  # MLflow overlooks one at the end
    except MlflowException:
        good = False
    try:
        resolve(values, PLAIN.choices, lambda key: "here")
        taken = True
    except BadInput:
        taken = False
    assert taken == good


# Classes of one's own

MINE = """
    import os
    from gzip import GzipFile
    from waymark.config.schema import settings
    from pydantic import PositiveInt

    @settings
    class Model:
        depth: PositiveInt
        def initial(self, spec, key): ...
        def logits(self, parameters, images, dropout): ...

    class Plain:
        def __init__(self, depth=1):
            self.depth = depth
        initial = logits = Model.initial

    class NoLogits:
        def initial(self, spec, key): ...

    class Fails(Plain):
        def __init__(self, depth):
            raise TypeError("no depth, please")

    function = print
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Put a module with model classes on the path; return its name."""
    name = f"waymark_mine_{random.randrange(10**9)}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(MINE))
    (tmp_path / f"{name}_broken.py").write_text("raise RuntimeError")
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    for module in [m for m in sys.modules if m.startswith(name)]:
        del sys.modules[module]


def test_a_class_of_ones_own(mine: str) -> None:
    for target, depth in (("Model", 3), ("Plain", 5)):
        given = ["~model.init_stddev", f"model._target_={mine}.{target}", f"+model.depth={depth}"]
        assert compose_config(given).config.model.depth == depth


@pytest.mark.parametrize(
    ("target", "setting", "said"),
    [
        ("Model", "+model.depth=0", r"^model\.depth=0 \(the command line\): "),
        ("Model", "+model.width=1", r"^model\.(width|depth) "),
        ("Plain", "+model.width=1", r"^model.*width"),
        ("NoLogits", "+model.depth=1", r"^model\._target_=.*has no method logits\(\)"),
        ("Fails", "+model.depth=1", r"^model.*no depth, please"),
        ("Nosuch", "+model.depth=1", r"^model\._target_='waymark_mine_\d+\.Nosuch' "),
        ("function", "+model.depth=1", r"^model\._target_=.*cannot be loaded"),
        ("os.system", "+model.depth=1", r"^model\._target_=.*cannot be loaded"),
    ],
)
def test_a_class_of_ones_own_that_cannot_be_used(
    mine: str, target: str, setting: str, said: str
) -> None:
    given = ["~model.init_stddev", f"model._target_={mine}.{target}", setting]
    with pytest.raises(BadInput, match=said):
        compose_config(given)


def test_a_module_that_fails_without_words(mine: str) -> None:
    with pytest.raises(BadInput, match=r"^model\._target_='waymark_mine_\d+_broken\.Model' "):
        compose_config([f"model._target_={mine}_broken.Model"])


# The record of a run

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(
    lambda text: "${" not in text
)
RUN_NAMES = st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp", "Cf"], exclude_characters="`$;|&<>"),
    min_size=1,
    max_size=30,
)
FLOATS = st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False)


@settings(max_examples=50, deadline=None)
@given(
    rate=FLOATS,
    bias=st.floats(allow_infinity=False, allow_nan=False),
    seed=st.integers(0, 2**63 - 1),
    name=RUN_NAMES,
    tags=st.dictionaries(
        st.from_regex(r"\w([ .:-]?\w)*(/\w+)?", fullmatch=True).filter(lambda key: len(key) < 250),
        RUN_NAMES,
        max_size=4,
    ),
    init_from=st.one_of(st.none(), NAMES),
    hours=st.one_of(st.none(), st.integers(1, 10**6), FLOATS),
)
@example(1e-8, -0.0, 0, "1e3", {"yes": "no", "12:30:45": "null", "1_0": "~"}, "=", 1)
@example(5e-324, 1e308, 2**63 - 1, " #\ufeff\U0001f600", {"- a: b": "\n\t"}, " \t\x85\u2028", 0.1)
def test_a_record_gives_the_same_configuration_again(
    tmp_path_factory: pytest.TempPathFactory, rate: float, bias: float, seed: int, name: str,
    tags: dict[str, Any], init_from: str | None, hours: float | None,
) -> None:  # fmt: skip
    values = copy.deepcopy(RECORD_CNN.values)
    values["optimizer"]["learning_rate"], values["model"]["init_bias"] = rate, bias
    values |= {"seed": seed, "run_name": name, "tags": tags, "init_from": init_from}
    values["save"] |= {"keep_every_n_hours": hours,
                       "keep_best": {"metric": "test/loss", "mode": "min"}}  # fmt: skip
    resolved = resolve(values, RECORD_CNN.choices, lambda key: "test")
    again = read(resolved.record(), tmp_path_factory.getbasetemp())
    assert (again.config, again.choices) == (resolved.config, resolved.choices)
    assert again.params() == resolved.params()
    assert again.record() == resolved.record()


RECORD_CNN = compose_config(["model=cnn", "data=arrays", "data.path=mine.npz"])


@pytest.mark.parametrize("overrides", [[], ["model=cnn", "save=npz"], ["optimizer=sgd"],
                                       ["data=fashion_mnist"], ["+experiment=smoke"]])  # fmt: skip
def test_every_choice_goes_through_the_record(overrides: list[str], tmp_path: Path) -> None:
    resolved = compose_config(overrides)
    again = read(resolved.record(), tmp_path)
    assert (again.config, again.choices) == (resolved.config, resolved.choices)


def test_overrides_go_on_top_of_the_record(tmp_path: Path) -> None:
    again = read(RECORD, tmp_path, **{"steps": 2000, "tracking.flush_seconds": 5})
    assert (again.config.steps, again.config.tracking.flush_seconds) == (2000, 5)
    assert again.values["steps"] == 2000
    assert read(again.record(), tmp_path).config == again.config


def test_frozen_keys_do_not_change(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(RECORD_CNN.record())
    frozen = ("model", "data", "seed", "runtime")
    for override in [{"seed": 1}, {"model.keep_prob": 0.5}, {"model": "softmax"},
                     {"save": "npz"}, {"data.sampling": "replacement"}]:  # fmt: skip
        with pytest.raises(BadInput, match=rf"^{next(iter(override))}: cannot change"):
            from_record(path, override, [], frozen)
    moved = {"data.path": "/elsewhere.npz", "seed": 0, "model": "cnn", "steps": 5}
    resolved = from_record(path, moved, [], frozen)
    assert (resolved.config.data.path, resolved.config.steps) == ("/elsewhere.npz", 5)
    with pytest.raises(BadInput, match=r"^stepz: there is no such key; the nearest is steps"):
        from_record(path, {"stepz": 5}, [], frozen)
    with pytest.raises(BadInput, match=r"^steps=0 "):
        from_record(path, {"steps": 0}, [], frozen)


def test_passwords_are_not_recorded() -> None:
    uri = "postgresql+psycopg2://user:p@ss:w0rd@host:5432/db"
    resolved = compose_config([f"tracking.uri='{uri}'"])
    assert resolved.config.tracking.uri == uri
    for text in (resolved.record(), *resolved.params().values()):
        assert "w0rd" not in text
    assert resolved.params()["tracking.uri"] == "postgresql+psycopg2://user:***@host:5432/db"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        (None, None),
        ("sqlite:///mlruns/mlflow.db", "sqlite:///mlruns/mlflow.db"),
        ("http://host:5000", "http://host:5000"),
        ("http://host:5000/a:b@c", "http://host:***@c"),  # a password may hold a slash
        ("http://user@host", "http://user@host"),
        ("http://user:secret@host", "http://user:***@host"),
        ("http://:secret@host:1/x", "http://:***@host:1/x"),
        ("http://user:se@cret:@host", "http://user:***@host"),
    ],
)
def test_without_password(uri: str | None, shown: str | None) -> None:
    assert without_password(uri) == shown


def test_values_from_the_environment_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAYMARK_TEST_KEY", "hunter2")
    resolved = compose_config(["+tags.key=${oc.env:WAYMARK_TEST_KEY}",
                          "run_name=by-${oc.env:WAYMARK_TEST_KEY}"])  # fmt: skip
    assert "hunter2" not in resolved.record()
    assert not any("hunter2" in value for value in resolved.params().values())


@pytest.mark.parametrize(
    "overrides",
    [["run_name=${tags.key}"], ["trusted_modules=['${oc.env:WAYMARK_TEST_KEY}']"]],
    ids=["by another key", "in a list"],
)
def test_values_from_the_environment_are_found(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAYMARK_TEST_KEY", "hunter2")
    resolved = compose_config(["+tags.key=${oc.env:WAYMARK_TEST_KEY}", *overrides])
    assert "hunter2" not in resolved.record()
    assert not any("hunter2" in value for value in resolved.params().values())


@pytest.mark.parametrize("overrides", [[], ["model=cnn", "optimizer=sgd", "data=arrays",
                                            "data.path=x", "save=npz"]])  # fmt: skip
def test_params_are_within_mlflows_limits(overrides: list[str]) -> None:
    long = ["init_from=" + "x" * 4000, "+tags.t=" + "y" * 7000]
    resolved = compose_config([*overrides, *long])
    params = resolved.params()
    assert len(params) <= 100
    for key, value in params.items():
        assert len(key) <= 250
        assert len(value) <= 6000
        assert set(key) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.")
    assert not any(key.startswith("tags") for key in params)
    assert {group: params[group] for group in GROUP_PROTOCOLS} == resolved.choices
    recorded = {key for key in flatten(resolved.values) if not key.startswith("tags")}
    told_otherwise = {key for key in recorded if key.endswith("._target_")} | {"run_name"}
    assert recorded - told_otherwise <= set(params)
    assert not told_otherwise & set(params)


# A record is only believed


def test_a_newer_format_is_refused_by_name(tmp_path: Path) -> None:
    for version in (FORMAT + 1, 99, 0, -1, "1", None, True, 1.0, 1.5, [1]):
        with pytest.raises(
            BadInput, match=rf"has format .*; this Waymark reads formats up to {FORMAT}\."
        ) as error:
            read(changed("format", version), tmp_path)
        assert repr(version) in str(error.value)


def test_a_newer_format_may_look_different(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"has format {FORMAT + 1}"):
        read(f"format: {FORMAT + 1}\nsomething: else\n", tmp_path)


# As Waymark wrote it when FORMAT was 1. Later formats must read it, so it never changes.
FORMAT_1 = """
format: 1
choices: {model: cnn, data: arrays, optimizer: sgd, save: npz}
model: {_target_: waymark.models.cnn.Cnn, init_stddev: 0.1, init_bias: 0.1, keep_prob: 0.5}
data: {_target_: waymark.data.sources.Arrays, sampling: epoch, path: digits.npz}
optimizer: {_target_: waymark.optimizers.Sgd, learning_rate: 0.01, momentum: 0.9}
save:
  _target_: waymark.checkpoints.npz.Npz
  every: 50
  max_to_keep: 7
  keep_every_n_hours: 1
  keep_best: {metric: test/loss, mode: min}
  asynchronous: true
steps: 1000
batch_size: 100
seed: 3
precision: mixed_bfloat16
eval_every: 200
log_every: 1
on_nan: stop
init_from: null
runtime: {intra_op_threads: 2}
tracking: {uri: null, flush_seconds: 30, system_metrics: false}
record: {changes: true}
progress: auto
trusted_modules: []
experiment_name: waymark
run_name: first
tags: {who: me, n: 1.5}
"""


def test_a_record_of_format_1_is_read(tmp_path: Path) -> None:
    found = read(FORMAT_1, tmp_path)
    config = found.config
    given = {"model": "cnn", "data": "arrays", "optimizer": "sgd", "save": "npz"}
    assert found.choices == {**given, "task": "classification"}  # as before there were others
    assert asdict(config.model) == {"init_stddev": 0.1, "init_bias": 0.1, "keep_prob": 0.5}
    data = {"sampling": "epoch", "path": "digits.npz", "scale": "uint8"}
    assert asdict(config.data) == {**DATA_DEFAULTS, **data}
    assert (config.stop, config.epochs, config.objective.metric) == (
        None,
        None,
        "restored/accuracy",
    )
    given = {"learning_rate": 0.01, "momentum": 0.9}
    assert asdict(config.optimizer) == {**given, **OPTIMIZER_DEFAULTS}
    assert (config.save.every, config.save.keep_best.metric) == (50, "test/loss")
    assert (config.seed, config.precision, config.runtime.intra_op_threads) == (
        3, "mixed_bfloat16", 2,
    )  # fmt: skip
    assert config.runtime.deterministic is False  # as it was before there was a choice
    assert (config.run_name, config.tags) == ("first", {"who": "me", "n": "1.5"})


HOSTILE = [
    "os.system", "builtins.eval", "subprocess.Popen", "waymark.tracking.os.system",
    "waymark.comparison.repository.subprocess.Popen", "waymark.data.sources.Path",
    "waymark.data.sources.np.ndarray", "waymark.__class__", "pipelines.models.Softmax", "pipelineX",
    "pipeline", "pipeline.",
    "pipeline..models", ".pipeline", "", ".", "waymark.models.softmax",
    "waymark.models.softmax.Softmax.logits", "waymark.models.softmax.Softmax\n",
    "pipeline.\0", "waymark.__main__.main", "waymark.config.schema.Config",
    "waymark.nosuch.Model", "pipeline.nosuch.Model", "pipeline.tracking.os.system",
    "waymark.tracking.store.RunStore", "waymark.data.sources.Mnist5k", "antigravity.Model",
    "waymark.data.sources.gzip.GzipFile", "waymark.npz.zipfile.ZipFile",
]  # fmt: skip


@pytest.mark.parametrize("target", HOSTILE)
@pytest.mark.parametrize("group", ["model", "save"])
def test_a_foreign_class_in_a_record_is_refused(
    group: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    monkeypatch.setattr("os.system", called.append)
    monkeypatch.setattr("subprocess.Popen.__init__", lambda *a, **k: called.append(a))
    for body in (
        changed(f"{group}._target_", target),
        changed(group, {"_target_": target, "command": "true"}),
        {**changed(group, {"_target_": target}), "trusted_modules": ["os", "subprocess"]},
    ):
        with pytest.raises(BadInput, match=rf"^{group}\._target_="):
            read(body, tmp_path)
    assert called == []
    assert "antigravity" not in sys.modules


def test_a_foreign_class_with_the_right_methods_is_refused(tmp_path: Path) -> None:
    """Name a class that could pass for a save format: it would empty a file when it is made."""
    precious = tmp_path / "precious"
    precious.write_text("kept")
    save = {"_target_": "waymark.npz.zipfile.ZipFile", "file": str(precious), "mode": "w"}
    with pytest.raises(BadInput, match=r"^save\._target_=.*is not part of Waymark"):
        read(changed("save", save), tmp_path)
    assert precious.read_text() == "kept"


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"init_stddev": {"_target_": "os.system", "command": "true"}}, "model.init_stddev"),
        ({"init_stddev": [{"_target_": "os.system"}]}, "model.init_stddev"),
        ({"init_stddev": 0.1, "inner": {"deep": {"_target_": "os.system"}}}, "model.inner"),
        ({"init_stddev": 0.1, "_args_": [1]}, "model._args_"),
        ({"init_stddev": 0.1, "_partial_": True}, "model._partial_"),
        ({"init_stddev": 0.1, "_recursive_": False}, "model._recursive_"),
        ({"init_stddev": 0.1, "_convert_": "all"}, "model._convert_"),
        ({"init_stddev": 0.1, 1: 2}, "model"),
        ({"init_stddev": 0.1, "inner": {"a": {"_partial_": True}}}, "model.inner"),
    ],
)
def test_hydras_special_keys_in_a_record_are_refused(
    settings: dict[Any, Any], key: str, tmp_path: Path
) -> None:
    body = changed("model", {"_target_": "waymark.models.softmax.Softmax", **settings})
    with pytest.raises(BadInput) as error:
        read(body, tmp_path)
    assert str(error.value).startswith(key)
    assert "recorded in" in str(error.value)


@pytest.mark.parametrize("key", ["run_name", "data._target_", "model.init_stddev", "steps"])
def test_interpolations_in_a_record_are_refused(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAYMARK_TEST_KEY", "hunter2")
    for text in ("${oc.env:WAYMARK_TEST_KEY}", "a ${steps} b", "${"):
        with pytest.raises(BadInput, match="interpolation") as error:
            read(changed(key, text), tmp_path)
        assert "hunter2" not in str(error.value)


def test_trusted_modules_come_from_the_user_alone(mine: str, tmp_path: Path) -> None:
    body = changed("model", {"_target_": f"{mine}.Model", "depth": 2})
    for recorded in ([], [mine], ["os"], 3, None):
        with pytest.raises(BadInput, match=r"^model\._target_=.*trusted_modules"):
            read({**body, "trusted_modules": recorded}, tmp_path)
        for other in ("os", mine[:-1], f"{mine}_", f"x{mine}"):
            with pytest.raises(BadInput, match=r"^model\._target_="):
                read({**body, "trusted_modules": recorded}, tmp_path, [other])
        assert mine not in sys.modules
    resolved = read(body, tmp_path, [mine])
    assert (resolved.config.model.depth, resolved.config.trusted_modules) == (2, [mine])
    with pytest.raises(BadInput, match=r"^model\._target_=.*cannot be loaded"):
        read(changed("model", {"_target_": f"{mine}.os.system"}), tmp_path, [mine])
    body = changed("save", {"_target_": f"{mine}.GzipFile", "filename": str(tmp_path / "new"),
                            "mode": "w"})  # fmt: skip
    with pytest.raises(BadInput, match=r"^save\._target_=.*trusted_modules"):
        read(body, tmp_path, [mine])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("value", [None, 3, "x", [1], {"a": 1}, math.nan])
@pytest.mark.parametrize("key", [k for k in RECORD if k != "trusted_modules"])
def test_any_value_in_a_records_place_is_good_or_bad_input(
    key: str, value: Any, tmp_path: Path
) -> None:
    try:
        resolved = read({**RECORD, key: value}, tmp_path)
    except BadInput as error:
        assert "\n" not in str(error)
    else:
        assert read(resolved.record(), tmp_path).config == resolved.config


def test_a_missing_or_unreadable_record(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nosuch.yaml"):
        with pytest.raises(BadInput, match="is not a readable record of a run"):
            from_record(path, {}, [], ())


@settings(max_examples=50, deadline=None)
@given(
    garbage=st.one_of(
        st.binary(max_size=200),
        st.text(max_size=200).map(lambda text: text.encode(errors="ignore")),
        st.text("{}[]&*!|>-:?,'\"#%@`abc10.~< \n\t", max_size=60).map(str.encode),
    )
)
def test_garbage_is_bad_input(tmp_path_factory: pytest.TempPathFactory, garbage: bytes) -> None:
    with pytest.raises(BadInput):
        read(garbage, tmp_path_factory.getbasetemp())


@settings(max_examples=50, deadline=None)
@given(place=st.floats(0, 1), cut=st.integers(0, 40), put=st.binary(max_size=6))
def test_a_damaged_record_is_good_or_bad_input(
    tmp_path_factory: pytest.TempPathFactory, place: float, cut: int, put: bytes
) -> None:
    whole = PLAIN.record().encode()
    at = int(place * len(whole))
    folder = tmp_path_factory.getbasetemp()
    try:
        resolved = read(whole[:at] + put + whole[at + cut :], folder)
    except BadInput as error:
        assert "\n" not in str(error)
    else:
        assert read(resolved.record(), folder).config == resolved.config


def bomb(inner: str) -> str:
    """Return aliases of aliases: some hundred bytes that stand for a billion values."""
    lines = ["a0: &a0 [x, y]"]
    lines += [f"a{i}: &a{i} " + inner.replace("*", f"*a{i - 1}") for i in range(1, 31)]
    return "\n".join([*lines, PLAIN.record()])


NASTY = {
    "a date that is none": "day: 2020-99-99",
    "an offset that is none": "time: 2001-12-14t21:59:43.10-99:30",
    "no integer": "steps: !!int many",
    "no float": "steps: !!float many",
    "more digits than Python reads": "steps: " + "1" * 5000,
    "deep lists": "[" * 1000,
    "deep mappings": "{a: " * 1000,
    "a call": "steps: !!python/object/apply:os.system ['touch called']",
    "a class": "steps: !!python/name:os.system",
    "a module": "!!python/module:antigravity",
    "itself": f"me: &me\n  inner: *me\n{PLAIN.record()}",
}


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_nasty_yaml_is_bad_input(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="is not a readable record of a run"):
        read(text, tmp_path)
    assert not Path("called").exists()


@pytest.mark.parametrize("inner", ["[*, *]", "{x: *, y: *}"], ids=["lists", "mappings"])
def test_a_yaml_bomb_is_bad_input_at_once(inner: str, tmp_path: Path) -> None:
    """Read it in a process of its own, with little time and memory: it must not be unfolded."""
    (tmp_path / "config.yaml").write_text(bomb(inner))
    program = textwrap.dedent(f"""
        import resource
        from pathlib import Path
        from waymark.config.record import from_record
        from waymark.errors import BadInput
        resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
        resource.setrlimit(resource.RLIMIT_CPU, (2, 2))
        try:
            from_record(Path({str(tmp_path / "config.yaml")!r}), {{}}, [], ())
        except BadInput as error:
            print("refused")
    """)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "refused\n"


def test_a_record_takes_models_with_settings_of_their_own() -> None:
    """Those of `model=keras` are empty, those of `model=mlp` a group of their own."""
    record = compose_config(["model=softmax"])
    body = record.values
    keras, now = compose.with_group_members(body, record.choices, {"model": "keras"}, (), [])
    assert (keras["model"]["settings"], now["model"]) == ({}, "keras")
    mlp, now = compose.with_group_members(keras, now, {"model": "mlp"}, (), [])
    directly, _ = compose.with_group_members(body, record.choices, {"model": "mlp"}, (), [])
    assert mlp["model"] == directly["model"] == compose_config(["model=mlp"]).values["model"]
    back, _ = compose.with_group_members(mlp, now, {"model": "softmax"}, (), [])
    assert back["model"] == body["model"]
