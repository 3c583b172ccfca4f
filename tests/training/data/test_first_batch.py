"""The batch after a snapshot, noted by one attempt and compared by the next."""

from typing import Any

import pytest
import torch

from orchestrator.training.data.data_position import DataPosition
from orchestrator.training.data.first_batch import CYCLES, FirstBatch

DATA = [torch.full((2,), float(n)) for n in range(6)]


def goes_on(position: DataPosition, steps: int, after: int) -> tuple[dict[str, Any], list[int]]:
    """Train some steps; what is saved ``after`` some of them, and what is noted afterwards."""
    noted: list[int] = []
    saved: dict[str, Any] = {}
    for number, _ in enumerate(position.batches(DATA, 0), start=1):
        position.consume()
        if number == after:
            saved = position.state()
            position.first_batch.note(0, saved, noted.append)
        if number == steps:
            break
    return saved, noted


def resumed(saved: dict[str, Any], noted: str | None, data: list[Any]) -> list[str]:
    """The problems of an attempt that continues from there."""
    position = DataPosition(0)
    position.load(saved)
    position.arrive()
    if noted is not None:
        position.first_batch.expect(0, saved, noted)
    with pytest.warns(UserWarning, match="skipping"):
        list(position.batches(data, 0))
    assert not position.first_batch.is_awaited
    return position.problems


def test_batch_after_a_snapshot_is_compared() -> None:
    """Another batch in its place is named, and the same one is not."""
    saved, (noted,) = goes_on(DataPosition(0), steps=5, after=3)
    assert resumed(saved, f"{noted:016x}", DATA) == []
    other = [*DATA[:3], torch.full((2,), 9.0), *DATA[4:]]
    assert resumed(saved, f"{noted:016x}", other) == [
        "pass 1 over the data: batch 4 holds other data than it had after the snapshot"
    ]


def test_nothing_is_noted_where_no_batch_follows() -> None:
    """An attempt that ends with its snapshot leaves no note, and nothing is compared."""
    saved, noted = goes_on(DataPosition(0), steps=3, after=3)
    assert noted == []
    other = [*DATA[:3], torch.full((2,), 9.0), *DATA[4:]]
    assert resumed(saved, None, other) == []


def test_other_batches_on_the_way_are_not_taken_for_it() -> None:
    """An evaluation's batches, or those of another epoch, are neither noted nor compared."""
    first, noted = FirstBatch(), list[int]()
    position = {"pass": 1, "passes": [{"batches": 6}, {"batches": 2}]}
    first.note(4, position, noted.append)
    for place in ((4, 0, 2), (4, 1, 0), (5, 1, 2), (4, 2, 2)):
        assert not first.differs(place, DATA[0])
    assert (noted, first.is_awaited) == ([], True)
    first.differs((4, 1, 2), DATA[0])
    assert (len(noted), first.is_awaited) == (1, False)


def test_snapshot_between_epochs_waits_for_the_next_ones_first_batch() -> None:
    """Its state is in no pass, and the first pass of the next epoch begins at batch 0."""
    first, noted = FirstBatch(), list[int]()
    first.note(1, {"pass": None, "passes": []}, noted.append)
    first.differs((1, 0, 0), DATA[0])
    assert len(noted) == 1


def test_cycle_outside_of_passes_is_waited_for() -> None:
    """A loop over steps takes its batches from a cycle, which counts its own."""
    first, noted = FirstBatch(), list[int]()
    position = {"pass": None, "passes": [], "cycles": [{"batches": 4}, {"batches": 9}]}
    first.note(0, position, noted.append)
    first.differs((0, 0, 4), DATA[0])
    assert noted == []
    first.differs((CYCLES, 0, 4), DATA[0])
    assert len(noted) == 1


def test_batch_is_noted_and_compared_at_once() -> None:
    """A snapshot may be taken on the way to the batch that the resumed attempt compares."""
    first, noted = FirstBatch(), list[int]()
    position = {"pass": 0, "passes": [{"batches": 1}]}
    first.note(0, position, noted.append)
    first.differs((0, 0, 1), DATA[0])
    first.expect(0, position, f"{noted[0]:016x}")
    first.note(0, position, noted.append)
    assert first.differs((0, 0, 1), DATA[1])
    assert noted[0] != noted[1]


def test_batch_that_cannot_be_looked_at_is_not_noted() -> None:
    """An object of the script may raise whatever it likes; nothing is compared then."""

    class Hostile(dict[str, int]):
        def items(self) -> Any:
            raise RuntimeError("not now")

    first, noted = FirstBatch(), list[int]()
    position = {"pass": 0, "passes": []}
    first.note(0, position, noted.append)
    assert not first.differs((0, 0, 0), Hostile())
    assert noted == []
    first.expect(0, position, "4d")
    assert not first.differs((0, 0, 0), Hostile())
