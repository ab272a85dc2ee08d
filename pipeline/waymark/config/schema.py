"""The schema of the configuration: types and bounds. The defaults stand in `conf/`."""

from typing import Annotated, Any, Literal, dataclass_transform

import pydantic
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

FORMAT = 1  # of config.yaml, manifests and environment.json; a newer one is refused by name

# What only names or finds a run, so that it need not be known again.
LABELS = ("experiment_name", "run_name", "tags")

# What each group's class must offer; a user's own class needs no more than this.
GROUPS = {
    "model": ("initial", "logits"),
    "data": ("load",),
    "optimizer": ("slots", "apply"),
    "save": ("write", "read"),
}

# A pattern, the most characters, and both in words. What is refused: controls, line separators,
# directions of writing and halves of characters, which deceive a reader, and the shell's syntax.
CONTROLS = r"\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"

NAME = (rf"[^{CONTROLS}`$;|&<>]+", 250, "no control characters, nor any of ` $ ; | & < >")

TAG_VALUE = (
    rf"([^{CONTROLS}`$]|[\n\t]|\$(?!\())*",
    8000,
    "no control characters but newline and tab, no backticks, no $(",
)

TAG = (  # as MLflow has it: a relative path
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
    intra_op_threads: PositiveInt
    deterministic: bool


@settings
class Tracking:
    uri: str | None
    flush_seconds: PositiveFloat
    system_metrics: bool


@settings
class Record:
    changes: bool


@settings
class Objective:
    metric: str
    mode: Literal["min", "max"]


@settings
class Config:
    """Everything that decides a run; see the README's table for the meaning of each key."""

    model: Any
    data: Any
    optimizer: Any
    save: Any
    steps: PositiveInt
    batch_size: PositiveInt
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)]
    precision: Literal["float32", "mixed_bfloat16"]
    eval_every: NonNegativeInt
    log_every: PositiveInt
    on_nan: Literal["stop", "continue"]
    init_from: str | None
    runtime: Runtime
    tracking: Tracking
    record: Record
    objective: Objective
    prune: Literal["median", "asha"] | None
    rerun_finished: bool
    progress: Literal["auto"] | bool
    trusted_modules: list[str]
    experiment_name: Annotated[str, Field(min_length=1)]
    run_name: Annotated[str, Field(min_length=1)] | None
    tags: dict[str, str]
