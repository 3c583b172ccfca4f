"""The snapshotter that these tests share."""

from collections.abc import Iterator

import pytest

from orchestrator.ipc.control_page import ControlPage
from orchestrator.snapshot.slots import Slots
from orchestrator.training.saving.snapshotter import Snapshotter


@pytest.fixture
def snapshotter() -> Iterator[Snapshotter]:
    """Yield a snapshotter with two slots of its own."""
    page, _ = ControlPage.create()
    slots = Slots.create(page)
    taker = Snapshotter(slots)
    yield taker
    taker.close()
    slots.close()
