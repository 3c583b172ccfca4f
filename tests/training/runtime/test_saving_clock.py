"""How long the loop stands still to save, on the control page."""

import time
from array import array

from orchestrator.ipc.control_page import Field
from orchestrator.training.runtime.saving_clock import SavingClock


def new_page() -> "memoryview[int]":
    return memoryview(array("q", [0] * 32))


def test_nested_saves_count_once() -> None:
    """A save inside a save takes no time of its own."""
    page = new_page()
    clock = SavingClock(page)
    began = time.monotonic_ns()
    with clock, clock:
        pass
    assert 0 < page[Field.SAVING_NS] <= time.monotonic_ns() - began
    assert began <= page[Field.SAVED_NS] <= time.monotonic_ns()


def test_save_of_a_framework_began_at_its_last_safe_point() -> None:
    """What the framework has written by itself counts, and nothing counts twice."""
    page = new_page()
    clock = SavingClock(page)
    page[Field.HEARTBEAT_NS] = began = time.monotonic_ns()
    clock.add_since_safe_point()
    assert page[Field.SAVING_NS] == page[Field.SAVED_NS] - began
    clock.add_since_safe_point()
    assert page[Field.SAVING_NS] == page[Field.SAVED_NS] - began
