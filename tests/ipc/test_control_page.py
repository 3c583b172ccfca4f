"""The control page that supervisor and trainer share."""

import os

import pytest

from orchestrator.ipc.control_page import PAGE_BYTES, PAGE_VERSION, ControlPage, Field, Phase
from orchestrator.system.capabilities import Capability, is_available
from tests.support import in_child


@pytest.fixture
def shared() -> tuple[ControlPage, ControlPage]:
    """Return one page, mapped twice, as in two processes."""
    page, descriptor = ControlPage.create()
    other = ControlPage(descriptor)
    os.close(descriptor)
    return page, other


def test_new_page_has_its_version_and_zeros() -> None:
    """A new page has its version, no step, no stop request, and the phase START."""
    page, descriptor = ControlPage.create()
    os.close(descriptor)
    assert page.values[Field.VERSION] == PAGE_VERSION
    assert not any(page.values[field] for field in Field if field is not Field.VERSION)
    assert page.phase is Phase.START


def test_values_are_visible_through_the_other_mapping(
    shared: tuple[ControlPage, ControlPage],
) -> None:
    """Each field is visible through the other mapping, also after the descriptor is closed."""
    page, other = shared
    for field in Field:
        page.values[field] = 1000 + field
    assert [other.values[field] for field in Field] == [1000 + field for field in Field]


def test_fields_do_not_overlap(shared: tuple[ControlPage, ControlPage]) -> None:
    """No two fields share an index, and none is beyond the page."""
    page, _ = shared
    assert len(set(map(int, Field))) == len(Field.__members__)
    assert max(Field) < PAGE_BYTES // page.values.itemsize == len(page.values)


def test_values_have_64_bits(shared: tuple[ControlPage, ControlPage]) -> None:
    """A value holds 64 bits, enough for nanoseconds over centuries."""
    page, other = shared
    page.values[Field.HEARTBEAT_NS] = 2**63 - 1
    assert other.values[Field.HEARTBEAT_NS] == 2**63 - 1


@pytest.mark.processes
def test_values_survive_the_process_that_wrote_them(
    shared: tuple[ControlPage, ControlPage],
) -> None:
    """The supervisor reads the step and the phase of a trainer that has ended."""
    page, other = shared

    def train() -> None:
        other.values[Field.STEP] = 41
        other.values[Field.PHASE] = Phase.SAVE

    in_child(train)
    assert page.values[Field.STEP] == 41
    assert page.phase is Phase.SAVE


def test_unknown_phase_can_be_read(shared: tuple[ControlPage, ControlPage]) -> None:
    """An invalid phase is read as a valid one, so that a broken trainer can be described."""
    page, other = shared
    other.values[Field.PHASE] = -7
    assert isinstance(page.phase, Phase)


@pytest.mark.processes
@pytest.mark.parametrize("size", [0, 1, 1 << 30])
def test_trainer_cannot_change_the_size_of_the_page(size: int) -> None:
    """A trainer that truncates its page or lets it grow is refused, and the supervisor lives on."""
    if not is_available(Capability.MEMFD):
        pytest.skip("a temporary file has no seals")
    page, descriptor = ControlPage.create()

    def truncate() -> None:
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, size)

    in_child(truncate)
    page.values[Field.STEP] = 5
    assert page.values[Field.STEP] == 5
    os.close(descriptor)
