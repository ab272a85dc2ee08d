"""What a run records of the code and the machine that train it: environment.json, the patches."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pkgutil import resolve_name
from typing import Any

from waymark.comparison import environment
from waymark.comparison.own_code import OwnCode
from waymark.comparison.repository import diffstat
from waymark.config.schema import Config
from waymark.config.values import json_text
from waymark.execution.plan import own_modules, uses_keras
from waymark.files import replace_file
from waymark.models import functions_of
from waymark.tracking.active_run import ActiveRun


class RecordedEnvironment:
    """What environment.json and the patches hold; those of earlier processes too, where others."""

    def __init__(self, run: ActiveRun, config: Config) -> None:
        self._run, self._with_changes = run, config.record.changes
        _import_functions(config)
        self._before = environment.read_environment(run.info.folder / "environment.json")
        self._found = environment.describe_environment(
            config.runtime.intra_op_threads, own_modules(config), uses_keras(config)
        )
        self.own_code = OwnCode(self._with_changes)
        self.facts = self._all_facts()

    def refresh(self) -> None:
        """Record the user's own modules that were imported since, as training may do."""
        if self.own_code.look_again():
            self.facts = self._all_facts()
            self.write()

    def write(self) -> None:
        """Write the files into the run's folder."""
        folder = self._run.info.folder
        for name, patch in self.own_code.patches().items():
            (folder / name).parent.mkdir(exist_ok=True)
            replace_file(folder / name, patch.encode(errors="surrogateescape"))
        replace_file(folder / "environment.json", json_text(self.facts, indent=1))
        self._run.mark_artifacts_dirty()

    def _all_facts(self) -> dict[str, Any]:
        own = self.own_code
        facts = {**self._found, "code": {**self._found["code"], **own.digests}, "own": own.facts()}
        facts["changes"] = diffstat(own.patch) if self._with_changes else None
        before = {key: value for key, value in self._before.items() if key != "earlier"}
        changed = [before] if environment.differences(before, facts) else []
        earlier = [*self._before.get("earlier", []), *changed]
        return {**facts, "earlier": earlier} if earlier else facts


def _import_functions(config: Config) -> None:
    """Import the modules of the model's functions, which a resumed Keras model does without.

    Else what is recorded of them would be lost, and a rerun at the recorded code would not have it.
    """
    for name in functions_of(config.model):
        with suppress(Exception, SystemExit):  # what the model is not made of may fail
            resolve_name(name)


@contextmanager
def record_environment(run: ActiveRun, config: Config) -> Iterator[RecordedEnvironment]:
    """Record environment and code now, and what was imported since when the context ends."""
    recorded = RecordedEnvironment(run, config)
    if config.precision == "mixed_bfloat16" and environment.has_bfloat16(recorded.facts) is False:
        print(
            "waymark: precision=mixed_bfloat16: this processor has no instructions for it, so "
            "that a step can take longer than in float32; on one without them a step of the "
            "CNN took 930 ms, and 120 ms in float32",
            file=sys.stderr,
        )
    recorded.write()
    try:
        yield recorded
    finally:
        with suppress(OSError):
            recorded.refresh()
