"""The schema of the configuration: types and bounds. The defaults stand in `conf/`."""

from typing import Annotated, Any, Literal, NamedTuple, dataclass_transform

import pydantic
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

FORMAT = 1  # of config.yaml, manifests and environment.json; a newer one is refused by name

# What only names or finds a run, so that it need not be known again.
LABELS = ("experiment_name", "run_name", "tags")

# What each group's class must offer; a user's own class needs no more than this.
GROUP_PROTOCOLS = {
    "model": ("initial", "logits"),
    "data": ("load",),
    "task": ("prepare", "losses", "predict", "metrics"),
    "optimizer": ("slots", "apply"),
    "save": ("write", "read"),
}

# What all data sets of Waymark's can be told; a class of the user's own need not know of it.
DATA_DEFAULTS = {
    "test": None,
    "validation": 0,
    "split": "random",
    "split_seed": 0,
    "group": None,
    "scale": "auto",
}

# What all optimizers are told beside their learning rate; a class of the user's own need not
# know of it. And what Keras's are, which came later than the first records of them.
OPTIMIZER_DEFAULTS: dict[str, Any] = {"schedule": None, "weight_decay": None, "clipnorm": None}
KERAS_DEFAULTS: dict[str, Any] = {
    "use_ema": False,
    "ema_momentum": 0.99,
    "ema_overwrite_frequency": None,
}
KERAS_OPTIMIZERS = "waymark.keras_optimizers."  # what their `_target_` begins with
# What the names of Waymark's own optimizers mean with a Keras model: Keras's of these names.
OPTIMIZERS_OF_KERAS = {"adam": "keras_adam", "sgd": "keras_sgd"}

SCHEDULE, SCHEDULES = "optimizer.schedule", "optimizer/schedule"  # a setting, and its group

# Where data and what is made of them lie: that they are the same ones the digest tells.
DATA_PLACES = ("data.path", "data.cache")

# Which ones there are is known with the data: `evaluation.restore.load_data` checks it.
EvaluationMetric = Annotated[str, Field(pattern="^(val|test)/.")]


class TextRule(NamedTuple):
    """Which texts a setting may have."""

    pattern: str  # a regular expression for the whole text
    longest: int  # characters
    words: str  # what the pattern says


# What the rules refuse: controls, line separators, directions of writing and halves of characters,
# which deceive a reader, and the shell's syntax.
CONTROLS = r"\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"

RUN_NAMES = TextRule(
    rf"[^{CONTROLS}`$;|&<>]+", 250, "no control characters, nor any of ` $ ; | & < >"
)

TAG_VALUES = TextRule(
    rf"([^{CONTROLS}`$]|[\n\t]|\$(?!\())*",
    8000,
    "no control characters but newline and tab, no backticks, no $(",
)

TAG_NAMES = TextRule(  # as MLflow has it: a relative path
    r"(?!\.\.)(?!.*(^|/)\.{0,2}(/|$))[\w .:/-]+",
    250,
    "a tag's name has letters, digits, spaces and _ - . : and / as in a path",
)


@dataclass_transform(kw_only_default=True)
def settings(cls: type) -> Any:
    """Make `cls` a dataclass that checks the types and bounds of its own settings."""
    config = pydantic.ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True
    )
    return pydantic.dataclasses.dataclass(cls, config=config, kw_only=True)


@settings
class Runtime:
    """How TensorFlow computes."""

    intra_op_threads: PositiveInt
    """the machine's cores, then recorded: the bits depend on it"""
    deterministic: bool
    """`true` turns on TensorFlow's op determinism before its first operation; `resume`, `rerun` and
    `evaluate` do as is recorded"""


@settings
class Tracking:
    """Where MLflow's store is and how it is served."""

    uri: str | None
    """`MLFLOW_TRACKING_URI`, else `sqlite:///mlruns/mlflow.db`; a file's path as it is, or
    percent-encoded where only that exists"""
    flush_seconds: PositiveFloat
    """seconds that the end of a run waits for a tracking server (after a signal at most 5)"""
    system_metrics: bool
    """MLflow's CPU and memory curves"""


@settings
class Record:
    """What is recorded beside configuration and results."""

    changes: bool
    """record uncommitted changes of the code and copies of your own, lines that look like secrets
    masked"""


@settings
class Objective:
    """By what the trials of a sweep are compared."""

    metric: str | None
    """the metric by which the best trial of a sweep is chosen; null: `val/` with a validation set,
    else `restored/`, and the task's first metric"""
    mode: Literal["min", "max"] | None
    """`max` or `min`: whether the greatest or the smallest value of `objective.metric` is the
    best; null: as the metric has it, which of a function of your own is not known"""


@settings
class Stop:
    """When a run ends before its last step."""

    metric: EvaluationMetric
    """a metric of the evaluations in training"""
    mode: Literal["min", "max"]
    """`max` or `min`: which way is better"""
    patience: PositiveInt
    """so many evaluations without an improvement end the run"""
    min_delta: NonNegativeFloat
    """an improvement is more than so much"""


@settings
class Fork:
    """Which recorded state a run began with, in place of initial values."""

    run: Annotated[str, Field(min_length=1)]
    """the id of the run that saved it"""
    step: PositiveInt
    """the step of the checkpoint"""
    digest: Annotated[str, Field(min_length=64, max_length=64)]
    """of the whole state: weights, what the model keeps beside them, the optimizer's slots"""


@settings
class Config:
    """Everything that decides a run. docs/configuration.md repeats the texts below its fields."""

    model: Any
    """`softmax` (`init_stddev`), `linear` (with a bias), `cnn` (`init_stddev`, `init_bias`,
    `keep_prob`), `keras` (a model of your own: `build` or `file`, `settings`, `from_logits`), `mlp`
    (`settings`: `hidden`, `dropout`, `batch_norm`), `resnet` (`settings`: `depth`, `width`)"""
    data: Any
    """`mnist_5k`, `mnist`, `fashion_mnist`, `cifar10`, `cifar100` (`labels`), `arrays`, `table`,
    `images` (`size`, `channels`, `cache`) or `source`"""
    task: Any
    """`classification` (`class_weights`, `label_smoothing`), `multilabel`, or `regression`
    (`loss`)"""
    metrics: list[str]
    """what is measured of each evaluation beside the task's own: names of metrics, and functions of
    your own `(labels, outputs) -> float` by their dotted names"""
    optimizer: Any
    """`adam` (`beta1`, `beta2`, `epsilon`), `sgd` (`momentum`), which with Keras models are
    Keras's, or Keras's `keras_adam`, `keras_sgd`, `adamw`, `nadam`, `adamax`, `lamb`, `lion`,
    `rmsprop`, `adagrad`, `adadelta`, `adafactor`, `ftrl`, `muon`, with their settings, clipping,
    accumulated gradients and averaged weights"""
    save: Any
    """`ckpt` (TensorFlow bundle; `meta_graph` true) or `npz`"""
    steps: PositiveInt
    """the total, also of a resumed run"""
    epochs: PositiveInt | None
    """in place of `steps`: so many times the training set, turned into steps when the data are
    known"""
    batch_size: PositiveInt
    """up to the size of the training set"""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)]
    """of initial weights, batches, dropout: 0 to 2^63 - 1"""
    precision: Literal["float32", "mixed_bfloat16"]
    """or `mixed_bfloat16`: parameters and optimizer state stay float32; where the processor has no
    instructions for it (AVX512_BF16, AMX, ARM's BF16), a line before training says that steps may
    be slower"""
    eval_every: NonNegativeInt | Literal["epoch"]
    """steps between evaluations, or `epoch`; 0: only at the end"""
    log_every: PositiveInt
    """steps between recorded losses"""
    on_nan: Literal["stop", "continue"]
    """a loss that is not finite: `stop` (the run is FAILED) or `continue`"""
    stop: Stop | None
    """end the run early: `{metric: val/loss, mode: min, patience: 3, min_delta: 0}` where so many
    evaluations bring no improvement, which is more than `min_delta`"""
    init_from: str | None
    """an npz or checkpoint whose parameters are the start; of Keras models also a `.keras` or
    `.weights.h5` file"""
    fork: Fork | None
    """the recorded state that a fork began with: run, step and digest, as `waymark run --fork` sets
    them"""
    runtime: Runtime
    """how TensorFlow computes"""
    tracking: Tracking
    """where MLflow's store is and how it is served"""
    record: Record
    """what is recorded beside configuration and results"""
    objective: Objective
    """by what the trials of a sweep are compared"""
    prune: Literal["median", "asha"] | None
    """`median` or `asha`: end hopeless trials of a sweep early"""
    rerun_finished: bool
    """do trials of a sweep that are finished again"""
    progress: Literal["auto"] | bool
    """`auto`, `true` (a bar), `false` (neither bar nor `Step` lines; all else is printed)"""
    trusted_modules: list[str]
    """modules of your own that `resume` and `evaluate` may import"""
    experiment_name: Annotated[str, Field(min_length=1)]
    """name of MLflow's experiment: a text, kept as it is written, at most 250 characters, no
    control characters, no vertical bar, none of `` ` $ ; & < > ``"""
    run_name: Annotated[str, Field(min_length=1)] | None
    """name of MLflow's run, a text like `experiment_name`; null: MLflow makes one"""
    tags: dict[str, str]
    """MLflow's tags, names and texts, kept as they are written (`+tags.version=1.10`; in a YAML
    file what looks like a number stands in quotes, or is refused)"""
