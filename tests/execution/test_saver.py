"""Saving in the background costs what it must."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from waymark import api
from waymark.checkpoints import store

from tests.support.processes import THREADS

WORDS = ["data=arrays", "steps=40", "save=npz", "save.every=10", "batch_size=10", THREADS]


def test_a_checkpoints_state_and_file_are_hashed_once(
    place: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And once more those of the one that is restored at the end, whoever asks for them."""
    hashed: Counter[str] = Counter()

    def count(name: str) -> None:
        real = getattr(store, name)

        def counted(what: Any) -> Any:
            hashed[name] += 1
            return real(what)

        monkeypatch.setattr(store, name, counted)

    count("digest")
    count("file_facts")
    result = api.run(*WORDS, f"data.path={small}", "progress=false")
    assert result.checkpoints == [10, 20, 30, 40]
    assert hashed == {"digest": 4 + 1, "file_facts": 4 + 1}
