"""Agreement of several ranks on a place, through their control pages and without a collective.

A *place* is a point of the loop that every rank passes: the end of a step or of an epoch. Ranks
drift apart, by as much as their collectives allow. Each decision (to stop, to save, to take a
snapshot) is acted on by all ranks at the same place. The supervisor decides, in three phases:

1. It stores a new DECIDING on every page.
2. It waits until every earlier store of a rank is visible to it, and DECIDING to every rank.
3. It loads the places of all ranks. With m the furthest of them it stores DECISION on every page:
   act at the place m + 1 + ahead.

A rank stores its place, then loads DECIDING. If that is new, it goes on for at most ``ahead``
places without a DECISION, and waits at the next one.

No rank passes the place of a decision without acting there:

- A rank that has passed place p without seeing DECIDING has stored p before it loaded. Phase 2 lies
  between that load and the supervisor's own, so that m >= p.
- A rank that sees DECIDING for the first time at place f has passed f - 1 without seeing it, so
  that m >= f - 1. It passes at most f + ahead - 1 without a DECISION, and m + 1 + ahead is further.

All ranks pass the same places, so that each comes to the place of the decision, together with
those that it shares its collectives with. A rank at the end of its training passes no more places:
for it all places from there on are the end, which is the same for every rank.

DECISION is one word, so that no order between the stores of several words matters. Its id is also
the generation of the snapshot that it asks for.
"""

from collections.abc import Callable, MutableSequence, Sequence
from enum import IntEnum
from typing import NamedTuple, Self

from orchestrator.ipc.control_page import Field

# Together 63 bits. Ten decisions a second use up the ids of a supervisor in five months, a thousand
# places a second those of an attempt in three.
_PLACE_BITS, _SLOT_BITS, _KIND_BITS, _ID_BITS = 33, 1, 2, 27
_AHEAD_BITS = 3
LARGEST_ID = (1 << _ID_BITS) - 1
LARGEST_PLACE = (1 << _PLACE_BITS) - 1

# Plain integers: the hot path looks them up at every place.
PLACES = int(Field.PLACES)
DECIDING = int(Field.DECIDING)
DECISION = int(Field.DECISION)

Page = MutableSequence[int] | memoryview
"""The values of a control page."""


class Kind(IntEnum):
    """What all ranks do at the place of a decision."""

    STOP = 0
    """Save, and end with the state saved."""
    SAVE = 1
    """Save, and go on."""
    SNAPSHOT = 2
    """Keep a snapshot in memory."""
    FINAL = 3
    """Save at the end of the training."""


class Decision(NamedTuple):
    """What to do at which place, and the slot of the snapshot memory that is to be used for it."""

    id: int
    kind: Kind
    slot: int
    place: int

    def packed(self) -> int:
        """Return it as one word."""
        word = self.id << _KIND_BITS | self.kind
        return (word << _SLOT_BITS | self.slot) << _PLACE_BITS | self.place

    @classmethod
    def unpacked(cls, word: int) -> Self:
        """Return what was packed into a word; the id of an empty word is 0."""
        place, word = word & ((1 << _PLACE_BITS) - 1), word >> _PLACE_BITS
        slot, word = word & ((1 << _SLOT_BITS) - 1), word >> _SLOT_BITS
        return cls(word >> _KIND_BITS, Kind(word & ((1 << _KIND_BITS) - 1)), slot, place)


class Deciding:
    """The supervisor's side of one decision: ``begin``, a wait for a full barrier, ``decide``."""

    def __init__(self, pages: Sequence[Page], number: int, ahead: int) -> None:
        """Prepare one; ``number`` is its id, another than that of the last on these pages."""
        self._pages = pages
        self._id = number
        self._ahead = ahead

    def begin(self) -> None:
        """Announce that a decision is being made."""
        for page in self._pages:
            page[DECIDING] = self._id << _AHEAD_BITS | self._ahead

    def decide(self, kind: Kind, slot: int) -> Decision:
        """Decide, and return the decision."""
        furthest = max(0, *(page[PLACES] for page in self._pages))
        # A broken trainer may have written anything, and must still be told what it can act on.
        place = min(furthest + 1 + self._ahead, LARGEST_PLACE)
        decision = Decision(self._id, kind, slot, place)
        for page in self._pages:
            page[DECISION] = decision.packed()
        return decision


class Places:
    """A rank's side: it counts the places, and says what is to be done at each."""

    def __init__(self, page: Page, wait: Callable[[], object]) -> None:
        """``wait`` is called again and again while the rank can do nothing but wait."""
        self._page = page
        self._wait = wait
        self._place = 0
        self._done = 0
        self._seen = 0
        self._first = 0

    def arrive(self) -> Decision | None:
        """Reach the next place; return the decision to act on here, None if there is none."""
        page = self._page
        self._place = page[PLACES] = self._place + 1
        deciding = page[DECIDING]
        return None if deciding == self._done else self._attend(deciding)

    def _attend(self, deciding: int) -> Decision | None:
        while True:
            if deciding != self._seen:
                self._seen, self._first = deciding, self._place
            decision = Decision.unpacked(self._page[DECISION])
            if decision.id == deciding >> _AHEAD_BITS:
                break
            if self._place < self._first + (deciding & ((1 << _AHEAD_BITS) - 1)):
                return None
            self._wait()
            # Another decision has taken the place of this one if a rank did not act on it.
            deciding = self._page[DECIDING]
        if self._place < decision.place:
            return None
        self._done = deciding
        return decision

    def arrive_at_end(self) -> Decision:
        """Wait at the end of the training for the next decision, and return it."""
        page = self._page
        self._place = page[PLACES] = self._place + 1
        page[Field.AT_END] = 1
        while True:
            deciding, decision = page[DECIDING], Decision.unpacked(page[DECISION])
            if deciding != self._done and decision.id == deciding >> _AHEAD_BITS:
                break
            self._wait()
        self._done = deciding
        page[Field.AT_END] = 0
        return decision
