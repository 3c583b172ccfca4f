"""The batch that comes first after a snapshot, as two attempts have seen it.

An attempt that goes on after a snapshot leaves a digest of the next batch beside it. An attempt
that is resumed from that snapshot takes the same batch first, and compares.
"""

from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.training.data.batch_digest import BatchHasher

BITS = 63  # of the digest, which is never 0
_Place = tuple[int, int, int]


class FirstBatch:
    """Waits for the batch that comes first after a saved state.

    Attributes:
        is_awaited: Whether a batch is to be noted or compared; asked for at every batch.
    """

    def __init__(self) -> None:
        self.is_awaited = False
        self._note: tuple[_Place, Callable[[int], object]] | None = None
        self._expected: tuple[_Place, int] | None = None

    def note(self, epoch: int, position: Mapping[str, Any], write: Callable[[int], object]) -> None:
        """Pass a digest of the batch after a state with this ``position`` on to ``write``."""
        self._note = _place_after(epoch, position), write
        self.is_awaited = True

    def expect(self, epoch: int, position: Mapping[str, Any], noted: int) -> None:
        """Compare the batch after a state with what was ``noted`` of it; 0: nothing was."""
        if noted:
            self._expected = _place_after(epoch, position), noted
            self.is_awaited = True

    def differs(self, place: _Place, batch: Any) -> bool:
        """Return whether the batch at this epoch, pass and number is not the one expected there."""
        note, expected = self._note, self._expected
        is_noted = note is not None and note[0] == place
        is_expected = expected is not None and expected[0] == place
        if not is_noted and not is_expected:
            return False
        found = _number_of(batch)
        if is_noted and note is not None:
            note[1](found)
            self._note = None
        if is_expected:
            self._expected = None
        self.is_awaited = self._note is not None or self._expected is not None
        return is_expected and expected is not None and bool(found) and found != expected[1]


def _place_after(epoch: int, position: Mapping[str, Any]) -> _Place:
    index = position["pass"] or 0
    passes = position["passes"]
    return epoch, index, passes[index]["batches"] if index < len(passes) else 0


def _number_of(batch: Any) -> int:
    hasher = BatchHasher()
    try:
        hasher.add(batch)
    except Exception:  # an object of the script that cannot be looked at
        return 0
    return int(hasher.hexdigest(), 16) % (1 << BITS) or 1
