"""The page of numbers that supervisor and trainer share."""

import os

import pytest

from orchestrator.ipc.control_page import PAGE_BYTES, PAGE_VERSION, ControlPage, Field, Phase
from tests.support import in_child


@pytest.fixture
def shared() -> tuple[ControlPage, ControlPage]:
    """One page, mapped twice, as by two processes."""
    page, descriptor = ControlPage.create()
    other = ControlPage(descriptor)
    os.close(descriptor)
    return page, other


def test_a_new_page_is_empty() -> None:
    """A new page has its version and otherwise zeros: no step, no stop, the phase START."""
    page, descriptor = ControlPage.create()
    os.close(descriptor)
    assert page.values[Field.VERSION] == PAGE_VERSION
    assert not any(page.values[field] for field in Field if field is not Field.VERSION)
    assert page.phase is Phase.START


def test_what_one_side_writes_the_other_reads(shared: tuple[ControlPage, ControlPage]) -> None:
    """Every field is visible through the other mapping, also after the descriptor was closed."""
    page, other = shared
    for field in Field:
        page.values[field] = 1000 + field
    assert [other.values[field] for field in Field] == [1000 + field for field in Field]


def test_fields_have_places_of_their_own(shared: tuple[ControlPage, ControlPage]) -> None:
    """No two fields share a place and none lies beyond the page."""
    page, _ = shared
    assert len(set(map(int, Field))) == len(Field.__members__)
    assert max(Field) < PAGE_BYTES // page.values.itemsize == len(page.values)


def test_values_have_64_bits(shared: tuple[ControlPage, ControlPage]) -> None:
    """Nanoseconds since boot fit, for centuries."""
    page, other = shared
    page.values[Field.HEARTBEAT_NS] = 2**63 - 1
    assert other.values[Field.HEARTBEAT_NS] == 2**63 - 1


@pytest.mark.processes
def test_values_outlive_the_process_that_wrote_them(
    shared: tuple[ControlPage, ControlPage],
) -> None:
    """The supervisor reads the step and the phase of a trainer that is gone."""
    page, other = shared

    def train() -> None:
        other.values[Field.STEP] = 41
        other.values[Field.PHASE] = Phase.SAVE

    in_child(train)
    assert page.values[Field.STEP] == 41
    assert page.phase is Phase.SAVE


def test_a_phase_that_nobody_knows_can_be_read(shared: tuple[ControlPage, ControlPage]) -> None:
    """A trainer that scribbled over the page must still be described and killed."""
    page, other = shared
    other.values[Field.PHASE] = -7
    assert isinstance(page.phase, Phase)
