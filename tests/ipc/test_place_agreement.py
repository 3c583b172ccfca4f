"""Ranks act on a decision at the same place, whatever the order of all loads and stores."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.ipc.control_page import PAGE_BYTES, Field
from orchestrator.ipc.place_agreement import (
    LARGEST_ID,
    LARGEST_PLACE,
    Deciding,
    Decision,
    Kind,
    Places,
)
from tests.interleavings import Interleaving

VALUES = PAGE_BYTES // 8
DECISIONS = 200
# Every training bounds how far its ranks drift apart; without a bound the last would never arrive.
LARGEST_DRIFT = 12


class Run:
    """A supervisor and ranks that train, each step a load or store of the real code."""

    def __init__(self, seed: int, ranks: int, without: str = "nothing") -> None:
        self.interleaving = Interleaving(seed)
        self._without = without
        memory = [[0] * VALUES for _ in range(ranks)]
        self._pages = [self.interleaving.direct(each) for each in memory]
        self._own_pages = [self.interleaving.buffered(each) for each in memory]
        self._passed = [0] * ranks
        self.acted: list[list[tuple[int, Kind, int]]] = [[] for _ in range(ranks)]
        self.decisions: list[Decision] = []

    def play(self) -> None:
        ranks = range(len(self._pages))
        self.interleaving.run([self._supervise, *(lambda r=r: self._train(r) for r in ranks)])

    def _supervise(self) -> None:
        chance = self.interleaving.chance
        for number in range(1, DECISIONS + 1):
            ahead = chance.choice((0, 2, 5))
            deciding = Deciding(self._pages, number, ahead)
            if self._without != "handshake":
                deciding.begin()
            if self._without == "nothing":
                self.interleaving.barrier()
            decision = deciding.decide(chance.choice(list(Kind)), chance.randrange(2))
            deciding.begin()  # without a handshake; it changes nothing after one
            self.decisions.append(decision)
            while any(len(acted) < number for acted in self.acted):
                self.interleaving.step()

    def _train(self, rank: int) -> None:
        places = Places(self._own_pages[rank], self.interleaving.step)  # type: ignore[arg-type]
        while True:
            while self._passed[rank] >= min(self._passed) + LARGEST_DRIFT:
                self.interleaving.step()
            self._passed[rank] += 1
            if (decision := places.arrive()) is not None:
                self.acted[rank].append((self._passed[rank], decision.kind, decision.slot))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), ranks=st.integers(2, 4))
def test_all_ranks_act_at_the_place_of_each_decision(seed: int, ranks: int) -> None:
    """Ten thousand decisions in any interleaving: every rank acts at the decided place."""
    run = Run(seed, ranks)
    run.play()
    expected = [(decision.place, decision.kind, decision.slot) for decision in run.decisions]
    assert len(expected) == DECISIONS
    assert all(acted == expected for acted in run.acted)


@pytest.mark.parametrize("without", ["handshake", "barrier"])
def test_without_a_part_of_the_protocol_ranks_disagree(without: str) -> None:
    """The interleavings find what is wrong with an announcement that waits for nothing."""
    disagreed = 0
    for seed in range(5):
        run = Run(seed, 2, without)
        run.play()
        places = [decision.place for decision in run.decisions]
        disagreed += [place for place, _, _ in run.acted[0]] != places
    assert disagreed > 0


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), steps=st.integers(0, 30))
def test_places_behind_the_end_are_the_end(seed: int, steps: int) -> None:
    """A rank that waits at its end acts there, with ranks that have yet to come, or before it."""
    interleaving = Interleaving(seed)
    memory = [[0] * VALUES for _ in range(2)]
    pages = [interleaving.direct(each) for each in memory]
    own = [interleaving.buffered(each) for each in memory]
    acted: list[list[int]] = [[], []]

    def supervise() -> None:
        for number in range(1, 6):
            deciding = Deciding(pages, number, 0)  # type: ignore[arg-type]
            deciding.begin()
            interleaving.barrier()
            deciding.decide(Kind.SNAPSHOT, 0)
            while any(len(places) < number for places in acted):
                interleaving.step()

    def train(rank: int) -> None:
        places = Places(own[rank], interleaving.step)  # type: ignore[arg-type]
        for step in range(1, steps + 1):
            if places.arrive() is not None:
                acted[rank].append(step)
        while True:
            places.arrive_at_end()
            acted[rank].append(steps + 1)

    interleaving.run([supervise, lambda: train(0), lambda: train(1)])
    assert acted[0][:5] == acted[1][:5]
    assert max(acted[0]) <= steps + 1


@pytest.mark.parametrize("kind", Kind)
def test_decision_survives_its_word(kind: Kind) -> None:
    """The largest values fit into a word that a signed field of the page holds."""
    decision = Decision(LARGEST_ID, kind, 1, LARGEST_PLACE)
    assert Decision.unpacked(decision.packed()) == decision
    assert decision.packed() < 1 << 63
    assert Decision.unpacked(0).id == 0


@pytest.mark.parametrize("place", [-(1 << 63), -1, LARGEST_PLACE - 1, (1 << 63) - 1])
def test_place_that_no_trainer_reaches_leaves_a_decision_whole(place: int) -> None:
    """Whatever a broken trainer has stored as its place, all ranks are told what was decided."""
    pages = [[0] * VALUES for _ in range(2)]
    pages[1][Field.PLACES] = place
    decision = Deciding(pages, LARGEST_ID, 5).decide(Kind.FINAL, 1)
    assert (decision.kind, decision.slot) == (Kind.FINAL, 1)
    assert all(Decision.unpacked(page[Field.DECISION]) == decision for page in pages)
    assert decision.packed() < 1 << 63


def test_waiting_at_the_end_shows_on_the_page() -> None:
    """AT_END tells the supervisor that a rank waits for the last save."""
    page = [0] * VALUES
    shown = []

    def wait() -> None:
        shown.append(page[Field.AT_END])
        deciding = Deciding([page], 1, 0)
        deciding.begin()
        deciding.decide(Kind.FINAL, 1)

    decision = Places(page, wait).arrive_at_end()
    assert (decision.kind, decision.slot, shown, page[Field.AT_END]) == (Kind.FINAL, 1, [1], 0)


@pytest.mark.parametrize("at_end", [False, True])
def test_rank_that_misses_a_whole_decision_acts_on_the_next(at_end: bool) -> None:
    """A decision that another rank did not act on makes room for the next, and nobody waits on."""
    page = [0] * VALUES

    def wait() -> None:
        assert page[Field.DECISION] == 0, "the rank waits for a decision that is over"
        deciding = Deciding([page], 2, 0)
        deciding.begin()
        deciding.decide(Kind.SNAPSHOT, 0)

    Deciding([page], 1, 0).begin()
    places = Places(page, wait)
    decision = places.arrive_at_end() if at_end else places.arrive() or places.arrive()
    assert decision is not None
    assert decision.id == 2
