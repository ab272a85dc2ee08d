"""What MLflow's UI says of a sweep: its best trials, and always the whole command."""

import math
from types import SimpleNamespace
from typing import Any

from waymark.sweeps.description import describe


def test_a_table_has_the_best_trials_that_leave_room_for_the_command() -> None:
    keys = tuple(f"model.setting_{i}" for i in range(8))
    sweep: Any = SimpleNamespace(varied=keys, metric="restored/accuracy", mode="max")

    def trial(i: int) -> Any:
        record = SimpleNamespace(id=f"{i:08x}", experiment_id="1", tags={}, status="FINISHED")
        value = math.nan if i % 3 else i / 1000
        params = dict.fromkeys(keys, "a|b" * 9)
        return record, SimpleNamespace(params=params, metrics={"restored/accuracy": value})

    found: Any = SimpleNamespace(finished=[trial(i) for i in range(200)], pruned=[], others=[])
    command = "waymark run -m " + " ".join(f"{key}=1,2,3" for key in keys)
    table, more, shown, _ = describe(command, found, sweep).split("\n\n")
    _, _, *rows = table.splitlines()
    assert rows and more == f"and {200 - len(rows)} more" and shown == f"`{command}`"
    assert all(row.count(" | ") == 9 and row.endswith(" |") for row in rows)
    assert [row[3:11] for row in rows] == [f"{198 - 3 * i:08x}" for i in range(len(rows))]
    assert describe(command) == describe(command, None, sweep)
