"""A control page, and empty slots."""

import os
from collections.abc import Iterator

import pytest

from orchestrator.ipc.control_page import ControlPage
from orchestrator.snapshot.slots import Slots


@pytest.fixture
def page() -> ControlPage:
    page, descriptor = ControlPage.create()
    os.close(descriptor)
    return page


@pytest.fixture
def slots(page: ControlPage) -> Iterator[Slots]:
    slots = Slots.create(page)
    yield slots
    slots.close()
