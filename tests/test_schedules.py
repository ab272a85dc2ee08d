"""Schedules: the bits of Keras's own classes, in the compiled step, whatever pieces it runs in."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from waymark.config.compose import compose_config, from_config, parse_overrides
from waymark.config.record import from_record
from waymark.config.schema import OPTIMIZER_DEFAULTS
from waymark.digest import digest
from waymark.errors import BadInput
from waymark.evaluation.restore import in_steps, load_data
from waymark.optimizers import Sgd
from waymark.schedules import Cosine
from waymark.training.loop import Trainer
from waymark.training.runtime import start_tensorflow

tf: Any = start_tensorflow(2)

from keras.optimizers import schedules as theirs  # noqa: E402

RATE = 0.0371
COSINE, HALF = "optimizer.schedule=cosine", Cosine(decay_steps=4, alpha=0.5)
PIECES = ["boundaries=[7,8,23]", "values=[0.3,0,1e-3,0.02]"]
# Settings, and Keras's class of them.
PAIRS: dict[str, tuple[list[str], Callable[[], Any]]] = {
    "cosine": (["decay_steps=17"], lambda: theirs.CosineDecay(RATE, 17)),
    "cosine, a rest": (
        ["decay_steps=31", "alpha=0.13"],
        lambda: theirs.CosineDecay(RATE, 31, 0.13),
    ),
    "warmup_cosine": (
        ["warmup_steps=6", "decay_steps=19", "alpha=0.01"],
        lambda: theirs.CosineDecay(0.0, 19, 0.01, warmup_target=RATE, warmup_steps=6),
    ),
    "exponential": (
        ["decay_steps=7", "decay_rate=0.83"],
        lambda: theirs.ExponentialDecay(RATE, 7, 0.83),
    ),
    "exponential, stairs": (
        ["decay_steps=7", "decay_rate=1.07", "staircase=true"],
        lambda: theirs.ExponentialDecay(RATE, 7, 1.07, staircase=True),
    ),
    "piecewise": (
        PIECES,
        lambda: theirs.PiecewiseConstantDecay([7, 8, 23], [0.3, 0.0, 1e-3, 0.02]),
    ),
    "piecewise, once": (
        ["boundaries=[5]", "values=[0.1,0.2]"],
        lambda: theirs.PiecewiseConstantDecay([5], [0.1, 0.2]),
    ),
}
pairs = pytest.mark.parametrize("name", PAIRS)


def overrides(name: str) -> list[str]:
    """Return what chooses a schedule of the table."""
    kind = name.partition(",")[0]
    return [
        f"optimizer.learning_rate={RATE}",
        f"optimizer.schedule={kind}",
        *(f"optimizer.schedule.{setting}" for setting in PAIRS[name][0]),
    ]


def config(*words: str) -> Any:
    return compose_config(["batch_size=10", "runtime.intra_op_threads=2", *words]).config


@pytest.fixture(scope="module")
def data(small: Path) -> Any:
    return load_data(config("data=arrays", f"data.path={small}"))


@pairs
def test_every_step_has_the_bits_of_keras(name: str) -> None:
    schedule, keras = config(*overrides(name)).optimizer.schedule, PAIRS[name][1]()
    for step in [*range(60), 10**6, 10**9]:
        at = tf.constant(step, tf.int64)
        rate = schedule.rate(tf.constant(RATE), at)
        assert (rate.dtype, rate.shape) == (tf.float32, ())
        assert np.array_equal(rate, keras(at)), step


@pairs
def test_the_rate_in_the_compiled_step_is_keras_s_in_any_pieces(name: str, data: Any) -> None:
    """Nothing is in the state but what was there, and the parameters are those of these rates."""
    given = config("optimizer=sgd", "optimizer.momentum=0", *overrides(name))
    whole, keras = Trainer(given, data), PAIRS[name][1]()
    first, losses = whole.state(), whole.run_steps(30)
    end = whole.state()
    plain = Trainer(config("optimizer=sgd", "optimizer.momentum=0"), data)
    assert first.keys() == plain.state().keys()
    whole.load(first)
    pieces = []
    for size in (1, 4, 1, 2, 1, 6, 15):
        pieces.append(whole.run_steps(size))
        used, rate = whole.learning_rate, float(keras(whole.step - 1))
        assert used is not None
        assert abs(used - rate) <= 2e-7 * RATE  # a compiled division may be a multiplication
    assert np.array_equal(np.concatenate(pieces), losses)
    assert digest(whole.state()) == digest(end)
    assert digest(end) != digest(first)


def test_without_a_schedule_the_rate_is_the_settings(data: Any) -> None:
    plain = Trainer(config(), data)
    assert plain.learning_rate is None
    plain.run_steps(2)
    assert plain.learning_rate == np.float32(1e-3)


# The steps of the run

WARM = ["optimizer.schedule=warmup_cosine", "optimizer.schedule.warmup_steps=30"]


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        (["steps=200", COSINE], 200),
        (["steps=200", "optimizer.schedule=exponential"], 200),
        (["steps=200", *WARM], 170),
        (["epochs=2", COSINE], 40),
        (["steps=200", COSINE, "optimizer.schedule.decay_steps=50"], 50),
    ],
)
def test_the_rest_of_the_run_is_recorded_as_a_number(
    words: list[str], steps: int, data: Any, tmp_path: Path
) -> None:
    resolved = in_steps(compose_config(["batch_size=10", *words]), data)
    assert resolved.config.optimizer.schedule.decay_steps == steps
    assert resolved.params()["optimizer.schedule.decay_steps"] == str(steps)
    assert resolved.params()["optimizer.schedule"] == words[1].partition("=")[2]
    path = tmp_path / "config.yaml"
    path.write_text(resolved.record())
    longer = in_steps(from_record(path, {"steps": 900}, [], ("optimizer",)), data)
    assert longer.config.steps == 900
    assert longer.config.optimizer == resolved.config.optimizer


def test_a_warm_up_leaves_steps_to_decay_in(data: Any) -> None:
    resolved = compose_config(["batch_size=10", *WARM, "steps=30"])
    with pytest.raises(BadInput, match=r"^optimizer\.schedule\.warmup_steps=30: leaves none of"):
        in_steps(resolved, data)


# How one is chosen


def test_a_schedule_is_chosen_by_its_dotted_key() -> None:
    for words in ([COSINE], ["optimizer/schedule=cosine"], ["+optimizer.schedule=cosine"]):
        assert config(*words).optimizer.schedule.kind == "cosine"
    whole = "optimizer.schedule={kind: cosine, decay_steps: 4, alpha: 0.5}"
    assert config(whole).optimizer.schedule.decay_steps == 4
    assert config(COSINE, "optimizer.schedule=null").optimizer.schedule is None
    assert config().optimizer.schedule is None
    assert compose_config([]).params()["optimizer.schedule"] == "None"
    typed = replace(config(), optimizer=Sgd(learning_rate=0.1, momentum=0.9, schedule=HALF))
    assert from_config(typed).config.optimizer.schedule == HALF == config(whole).optimizer.schedule
    assert parse_overrides([COSINE]) == {"optimizer.schedule": "cosine"}
    assert parse_overrides(["optimizer.schedule=null"]) == {"optimizer.schedule": None}


CHOICES = r"\(cosine, exponential, piecewise, warmup_cosine, null\)"
PIECEWISE = "optimizer.schedule=piecewise"
REFUSED = {
    "optimizer.schedule=cosin": rf"^optimizer.schedule=cosin: there is no such choice {CHOICES}; "
    r"the nearest is cosine\.$",
    "optimizer.schedule.decay_steps=5": r"there is no schedule; optimizer\.schedule=cosine",
    f"{COSINE} optimizer.schedule.decay_step=5": r"no such key; the nearest is "
    r"optimizer\.schedule\.decay_steps\.$",
    f"{COSINE} optimizer.schedule.decay_steps=0": r"^optimizer\.schedule\.decay_steps=0 \(the "
    r"command line\): input should be greater than 0\.$",
    f"{COSINE} optimizer.schedule.decay_steps=1.5": r"^optimizer\.schedule\.decay_steps=1\.5 ",
    f"{COSINE} optimizer.schedule.alpha=2": r"^optimizer\.schedule\.alpha=2 ",
    f"{COSINE} optimizer.schedule.kind=cosin": r"^optimizer\.schedule\.kind='cosin' .*: must be "
    r"one of cosine, warmup_cosine, exponential and piecewise\.$",
    "optimizer.schedule=warmup_cosine": r"^optimizer\.schedule\.warmup_steps \(conf/\): a value",
    PIECEWISE: r"^optimizer\.schedule\.boundaries \(conf/\): a value is missing\.$",
    f"{PIECEWISE} optimizer.schedule.boundaries=[3,3] optimizer.schedule.values=[1,2,3]": r"^"
    r"optimizer\.schedule\.boundaries=\[3, 3\] .*: must rise from one to the next\.$",
    f"{PIECEWISE} optimizer.schedule.boundaries=[3,5] optimizer.schedule.values=[1,2]": r"^"
    r"optimizer\.schedule\.values=\[1, 2\] .*: must be one more than the boundaries, of which "
    r"there are 2\.$",
    f"{PIECEWISE} optimizer.schedule.boundaries=[] optimizer.schedule.values=[1]": "boundaries",
    f"{PIECEWISE} optimizer.schedule.boundaries=[3] optimizer.schedule.values=[1,-1]": "values",
    "optimizer.weight_decay=-1": r"^optimizer\.weight_decay=-1 ",
    "optimizer.clipnorm=0": r"^optimizer\.clipnorm=0 ",
    f"optimizer=ftrl {COSINE}": r"^optimizer\.schedule=.*: must stay above 0, by which ftrl",
    "optimizer=muon optimizer.exclude_layers=['(']": r"'\(' is not a regular expression",
    "optimizer=adamw optimizer.clipnorm=1 optimizer.clipvalue=1": r"^optimizer\.clipvalue=1.*: "
    r"clipnorm is set already\.$",
    "optimizer=adamw optimizer.use_ema=true optimizer.ema_momentum=1.5": r"ema_momentum=1\.5",
    "optimizer=adamw optimizer.use_ema=true optimizer.ema_overwrite_frequency=0": "frequency=0",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_wrong_is_refused_in_one_sentence(words: str) -> None:
    with pytest.raises(BadInput, match=REFUSED[words]) as refused:
        config(*words.split(" "))
    assert "\n" not in str(refused.value)
    assert str(refused.value).endswith(".")


OWN = """
from dataclasses import dataclass
from typing import Any
from waymark.schedules import Schedule

class Plain:
    def __init__(self, learning_rate):
        self.learning_rate = learning_rate

    def slots(self, parameters):
        return {}

    def apply(self, parameters, slots, gradients, learning_rate):
        for name, variable in parameters.items():
            variable.assign_sub(learning_rate * gradients[name])

@dataclass
class Scheduled(Plain):
    learning_rate: float
    schedule: Schedule | None = None

@dataclass
class Untyped(Plain):
    learning_rate: float
    schedule: Any = None

@dataclass
class Deaf(Scheduled):
    def apply(self, parameters, slots, gradients):
        pass
"""


def test_an_optimizer_of_ones_own_takes_a_schedule_if_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Any
) -> None:
    (tmp_path / "own_optimizers.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)

    def own(name: str, *words: str) -> Any:
        target = f"optimizer._target_=own_optimizers.{name}"
        return config("optimizer=sgd", "~optimizer.momentum", target, *words)

    assert vars(own("Plain").optimizer) == {"learning_rate": 1e-3}
    told = [COSINE, "optimizer.schedule.decay_steps=9"]
    ours = Trainer(own("Scheduled", *told), data)
    same = Trainer(config("optimizer=sgd", "optimizer.momentum=0", *told), data)
    assert np.array_equal(ours.run_steps(6), same.run_steps(6))
    assert ours.learning_rate == same.learning_rate
    for name, words, said in (
        ("Plain", told, r"^optimizer\.schedule=.*: Plain has no such setting; a class that is "),
        ("Plain", ["optimizer.clipnorm=1"], r"^optimizer\.clipnorm=1 .*: Plain has no such"),
        ("Untyped", told, r"^optimizer\.schedule .*: Untyped must be a dataclass with a field of"),
        ("Deaf", told, r"^optimizer\.schedule .*: Deaf\.apply\(\) has no argument learning_rate"),
    ):
        with pytest.raises(BadInput, match=said):
            own(name, *words)


def test_a_record_without_these_settings_is_one_without_them(tmp_path: Path) -> None:
    for words in ([], ["optimizer=adamw"]):
        resolved = compose_config(words)
        body = yaml.safe_load(resolved.record())
        later = [*OPTIMIZER_DEFAULTS, "use_ema", "ema_momentum", "ema_overwrite_frequency"]
        for key in later[: None if words else 3]:
            if key != "weight_decay" or not words:  # which the first records of adamw have
                del body["optimizer"][key]
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(body))
        again = from_record(path, {}, [], ())
        assert again.config == resolved.config
        assert again.params() == resolved.params()
