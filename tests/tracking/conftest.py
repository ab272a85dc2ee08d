"""What tests of tracking share: a store in the current folder."""

from pathlib import Path

import pytest
from waymark.tracking.opening import open_store
from waymark.tracking.store import RunStore


@pytest.fixture
def tracking(place: Path) -> RunStore:
    return open_store(None, create=True)
