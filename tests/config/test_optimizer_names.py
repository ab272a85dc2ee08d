"""What `adam` and `sgd` mean: Keras's classes with a Keras model, Waymark's with all others."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from waymark import keras_optimizers, optimizers
from waymark.config import compose
from waymark.config.compose import CONF, OF_KERAS, as_written, compose_config, from_config
from waymark.config.record import from_record
from waymark.config.schema import OPTIMIZERS_OF_KERAS
from waymark.errors import BadInput

OWN = """
from dataclasses import dataclass

@dataclass
class Buffered:
    def initial(self, spec, key, *, seed=0, precision="float32"): ...
    def buffers(self, spec): ...
    def logits(self, parameters, images, dropout): ...

@dataclass
class Plain:
    def initial(self, spec, key): ...
    def logits(self, parameters, images, dropout): ...
"""
YAML = {  # in a folder of the user's own
    "model/net": "# @package _global_\nmodel: {_target_: waymark.models.keras.Keras, file: null, "
    "build: waymark.models.mlp.build, settings: {}, from_logits: null}\n"
    "optimizer: {learning_rate: 0.5}",
    "model/buffered": "_target_: own_classes.Buffered",
    "model/plain": "_target_: own_classes.Plain",
    "optimizer/mine": "_target_: waymark.optimizers.Sgd\nmomentum: 0.5",
    "experiment/fine": "# @package _global_\ndefaults: [override /model: mlp]\n"
    "optimizer: {epsilon: 1.0e-8}",
    "experiment/other": "# @package _global_\ndefaults: [override /optimizer: sgd]",
}
RATE = "optimizer.learning_rate=0.1"  # which the model's YAML may not give


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the override of a folder with YAML files and classes of the user's own."""
    for name, text in YAML.items():
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (tmp_path / "own_classes.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return compose.searchpath([str(tmp_path)])


ADAM, SGD = (keras_optimizers.Adam, "keras_adam"), (keras_optimizers.SGD, "keras_sgd")
MEANT: dict[str, tuple[type, str]] = {
    "model=mlp": ADAM,
    "model=resnet optimizer=adam": ADAM,
    "model=mlp optimizer=sgd optimizer.nesterov=true": SGD,
    "model=net": ADAM,
    f"model=buffered {RATE} optimizer=sgd": SGD,
    "+experiment=fine": ADAM,
    "model=mlp +experiment=other": SGD,
    "optimizer=keras_adam": ADAM,
    "model=mlp optimizer=adamw": (keras_optimizers.AdamW, "adamw"),
    "model=mlp optimizer=mine": (optimizers.Sgd, "mine"),
    "": (optimizers.Adam, "adam"),
    "model=cnn optimizer=sgd": (optimizers.Sgd, "sgd"),
    "model=linear": (optimizers.Adam, "adam"),
    f"model=plain {RATE}": (optimizers.Adam, "adam"),
}


@pytest.mark.parametrize("words", MEANT)
def test_a_name_is_keras_s_class_with_a_keras_model(words: str, folder: str) -> None:
    resolved = compose_config([*words.split(), folder])
    kind, member = MEANT[words]
    assert type(resolved.config.optimizer) is kind
    assert resolved.choices["optimizer"] == resolved.params()["optimizer"] == member
    typed = from_config(resolved.config)
    assert typed.config.optimizer == resolved.config.optimizer
    assert typed.choices["optimizer"] in (member, "sgd")  # a class does not tell a file's name


def test_the_settings_are_those_that_were_given_or_keras_s(folder: str) -> None:
    plain = compose_config(["model=mlp", "optimizer=keras_adam"])
    assert compose_config(["model=mlp"]).values == plain.values
    words = ["optimizer.beta_1=0.7", "optimizer.use_ema=true", "optimizer.clipvalue=2"]
    given = compose_config(["model=mlp", *words, "optimizer.epsilon=1e-8"]).config.optimizer
    assert (given.beta_1, given.use_ema, given.clipvalue, given.epsilon) == (0.7, True, 2, 1e-8)
    assert (given.beta_2, plain.config.optimizer.epsilon) == (0.999, 1e-7)
    assert compose_config(["+experiment=fine", folder]).config.optimizer.epsilon == 1e-8
    assert compose_config(["model=net", folder]).config.optimizer.learning_rate == 0.5


def test_what_only_keras_s_have_is_known() -> None:
    """Hydra takes a setting that its files lack only if it is told so."""

    def keys(name: str) -> set[str]:
        return set(yaml.safe_load((CONF / name).read_text())) - {"_target_", "defaults"}

    ours = set().union(*(keys(f"optimizer/{name}.yaml") for name in OPTIMIZERS_OF_KERAS))
    theirs = keys("keras_optimizer.yaml").union(
        *(keys(f"optimizer/{name}.yaml") for name in OPTIMIZERS_OF_KERAS.values())
    )
    known = {key for key in theirs | ours if OF_KERAS.fullmatch(f"optimizer.{key}=1")}
    assert known == theirs - ours
    assert as_written(["optimizer.beta_1=1", "optimizer.beta1=1"]) == [
        "++optimizer.beta_1=1",
        "optimizer.beta1=1",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("model=mlp optimizer.beta1=0.8", r"^optimizer\.beta1: .* nearest is optimizer\.beta_1\.$"),
        ("model=mlp optimizer.beta_3=0.8", r"^optimizer\.beta_3: .* is optimizer\.beta_2\.$"),
        ("optimizer.beta_1=0.8", r"^optimizer\.beta_1 \(the .*: .*nearest is optimizer\.beta1\.$"),
        ("optimizer=sgd optimizer.nesterov=true", r"^optimizer\.nesterov \(the command line\): "),
        ("model=mlp optimizer.beta_1=2", r"^optimizer\.beta_1=2 \(the command line\): "),
        ("+experiment=wrong", r"^optimizer\.learning_rate=-1 \(conf/\): "),
        ("+experiment=ours", r"^optimizer\.beta1 \(conf/\): there is no such setting; .*beta_1\.$"),
    ],
)
def test_a_setting_of_the_other_one_is_refused(
    words: str, said: str, folder: str, tmp_path: Path
) -> None:
    for name, text in (("wrong", "learning_rate: -1"), ("ours", "beta1: 0.7")):
        body = f"# @package _global_\ndefaults: [override /model: mlp]\noptimizer: {{{text}}}"
        (tmp_path / f"experiment/{name}.yaml").write_text(body)
    with pytest.raises(BadInput, match=said):
        compose_config([*words.split(), folder])


# Of records


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """Return the config.yaml of a Keras model with Waymark's Adam, as they all were."""
    body = yaml.safe_load(compose_config(["model=mlp"]).record())
    plain = yaml.safe_load(compose_config(["optimizer.beta1=0.8"]).record())
    body |= {"optimizer": plain["optimizer"]}
    body["choices"]["optimizer"] = "adam"
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(body))
    return path


def test_an_older_record_stays_what_it_was(older: Path) -> None:
    resolved = from_record(older, {"optimizer": "adam", "steps": 2000}, [], ("optimizer",))
    assert type(resolved.config.optimizer) is optimizers.Adam
    assert (resolved.config.optimizer.beta1, resolved.choices["optimizer"]) == (0.8, "adam")
    assert type(from_config(resolved.config).config.optimizer) is optimizers.Adam


def test_a_resume_takes_the_name_that_was_given(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(compose_config(["model=mlp", "optimizer=adam"]).record())
    for name in ("adam", "keras_adam"):
        found = from_record(path, {"optimizer": name}, [], ("optimizer",))
        assert type(found.config.optimizer) is keras_optimizers.Adam
    for name in ("sgd", "adamw", [], None):
        with pytest.raises(BadInput, match=r"^optimizer: cannot change in a recorded run"):
            from_record(path, {"optimizer": name}, [], ("optimizer",))


def changed(overrides: list[str], members: dict[str, str], **more: Any) -> dict[str, Any]:
    """Return the optimizer of a recorded configuration with other members of groups."""
    body = yaml.safe_load(compose_config(overrides).record())
    choices = body.pop("choices")
    body["model"] |= more
    values, now = compose.with_group_members(body, choices, members, (), [])
    return {**values["optimizer"], "name": now["optimizer"]}


def test_another_model_or_optimizer_of_a_record_is_chosen_in_the_same_way() -> None:
    theirs = compose_config(["model=mlp"]).values["optimizer"] | {"name": "keras_adam"}
    assert changed([], {"model": "mlp"}) == theirs
    assert changed(["model=mlp", "optimizer=lion"], {"optimizer": "adam"}) == theirs
    assert changed(["optimizer=lion"], {"model": "mlp", "optimizer": "adam"}) == theirs
    assert changed(["model=mlp"], {"model": "softmax"}) == theirs  # its record says so
    again = changed(["model=mlp"], {"model": "softmax", "optimizer": "adam"})
    assert again == compose_config([]).values["optimizer"] | {"name": "adam"}


def test_a_class_of_a_record_is_not_looked_at_unless_it_is_trusted() -> None:
    found = changed(["optimizer=lion"], {"optimizer": "adam"}, _target_="antigravity.Fly")
    assert found["name"] == "adam"
    assert "antigravity" not in sys.modules
