"""The batch that comes first after a saved state, as two attempts have seen it.

An attempt that goes on after a snapshot leaves a digest of the next batch beside it. An attempt
that is resumed from there takes the same batch first, and compares.
"""

from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.training.data.batch_digest import BatchHasher

BITS = 63
CYCLES = -1  # in the place of an epoch's number
Place = tuple[int, int, int]
"""The epoch, the pass in it and the batch in that, counted from 0; or CYCLES, cycle and batch."""


class FirstBatch:
    """Waits for the batch that comes first after a saved state.

    Attributes:
        is_awaited: Whether a batch is to be noted or compared; looked up at every batch.
    """

    def __init__(self) -> None:
        self.is_awaited = False
        self._notes: dict[Place, Callable[[int], object]] = {}
        self._expected: dict[Place, str] = {}

    def note(self, epoch: int, position: Mapping[str, Any], write: Callable[[int], object]) -> None:
        """Pass a digest of the batch after a state with this ``position`` on to ``write``.

        It has 63 bits, and is not 0. Only the newest state is waited for.
        """
        self._notes = {_place_after(epoch, position): write}
        self.is_awaited = True

    def expect(self, epoch: int, position: Mapping[str, Any], noted: str) -> None:
        """Compare the batch after a state with what was ``noted`` of it, in hexadecimal."""
        self._expected = {_place_after(epoch, position): noted}
        self.is_awaited = True

    def differs(self, place: Place, batch: Any) -> bool:
        """Note the batch if it is the one to note; return whether another one was expected."""
        if place not in self._notes and place not in self._expected:
            return False
        write, expected = self._notes.pop(place, None), self._expected.pop(place, None)
        self.is_awaited = bool(self._notes or self._expected)
        try:
            found = _number_of(batch)
        except Exception:  # an object of the script that cannot be looked at
            return False
        if write is not None:
            write(found)
        return expected is not None and expected != f"{found:016x}"


def _place_after(epoch: int, position: Mapping[str, Any]) -> Place:
    if position["pass"] is None and position.get("cycles"):
        return CYCLES, 0, position["cycles"][0]["batches"]
    index = position["pass"] or 0
    passes = position["passes"]
    return epoch, index, passes[index]["batches"] if index < len(passes) else 0


def _number_of(batch: Any) -> int:
    hasher = BatchHasher()
    hasher.add(batch)
    return int(hasher.hexdigest(), 16) % (1 << BITS) or 1
