"""Which save is due, and what a save is made for."""

import pytest

from orchestrator.checkpoint.manifest import Reason
from orchestrator.config import Every
from orchestrator.ipc.control_page import ControlPage, Field
from orchestrator.training.loop.due_saves import DueSaves
from orchestrator.training.state.progress import Progress


@pytest.fixture
def page() -> memoryview:
    return ControlPage.create()[0].values


@pytest.fixture
def due(page: memoryview) -> DueSaves:
    """Every ten steps, counted from step 3."""
    due = DueSaves(page, Every(10, "steps"))
    due.schedule.begin(3, 0)
    return due


@pytest.mark.parametrize(("step", "expected"), [(9, False), (10, True), (11, True)])
def test_schedule_makes_a_save_due(due: DueSaves, step: int, expected: bool) -> None:
    """A save is due from the step that the schedule names."""
    assert due.is_due(Progress(step=step)) is expected
    assert due.reason() is Reason.PERIODIC


def test_request_makes_a_save_due_until_it_is_served(due: DueSaves, page: memoryview) -> None:
    """A request on the control page makes a save due at once, and only once."""
    page[Field.CHECKPOINT_REQUESTS] += 1
    assert due.is_due(Progress(step=4))
    assert due.reason() is Reason.REQUESTED
    due.served_requests = due.requests
    assert not due.is_due(Progress(step=4))


def test_stop_outranks_every_other_reason(due: DueSaves, page: memoryview) -> None:
    """A save for a stop is an emergency save, and the last save of a run is final otherwise."""
    page[Field.CHECKPOINT_REQUESTS] += 1
    assert due.reason(final=True) is Reason.FINAL
    page[Field.STOP_REQUEST] = 1
    assert due.stop_wanted
    assert due.reason(final=True) is Reason.EMERGENCY


@pytest.mark.parametrize(("stop", "messages"), [(0, 1), (1, 0)])
def test_failed_save_is_announced_unless_the_run_stops(
    due: DueSaves, page: memoryview, capsys: pytest.CaptureFixture[str], stop: int, messages: int
) -> None:
    """A failed write says when the next is tried, which is of no use to a run that is stopping."""
    page[Field.STOP_REQUEST] = stop
    due.record_failure()
    assert capsys.readouterr().err.count("training goes on; the next save is tried") == messages
