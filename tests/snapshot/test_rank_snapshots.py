"""Snapshots of several ranks: which generations the run holds whole, also after a kill."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.checkpoint.manifest import Manifest, Reason
from orchestrator.ipc.control_page import ControlPage
from orchestrator.ipc.place_agreement import Deciding, Kind, Places
from orchestrator.snapshot.rank_snapshots import RankSnapshots
from orchestrator.snapshot.slots import SLOT_COUNT, Slots
from tests.interleavings import BufferedPage, Interleaving

# The images of the model are words on the same page, so that their stores have an order too.
IMAGES, IMAGE_WORDS = 60, 3
VALUES = IMAGES + SLOT_COUNT * IMAGE_WORDS
GENERATIONS = 25
SKIPS = 0.1
LARGEST_DRIFT = 4
# How many steps the supervisor leaves to others between two looks.
PATIENCE = 10


def draft(step: int) -> Manifest:
    return Manifest("a run", step, 0, Reason.PERIODIC, {}, True, "now", {}, {})


class Run:
    """Ranks that take announced snapshots, and whose memory is looked at after each store.

    What a kill leaves is what is in memory at that moment, with the stores that were under way.
    """

    def __init__(self, seed: int, ranks: int, *, is_careful: bool = True) -> None:
        self.interleaving = Interleaving(seed, self._look)
        self.kills = 0
        self._is_careful = is_careful
        self._ranks = range(ranks)
        self._stored = [[0] * VALUES for _ in self._ranks]
        self._own = [self.interleaving.buffered(each) for each in self._stored]
        self._descriptors = [Slots.create(page_of([0] * VALUES)).descriptors for _ in self._ranks]
        self._passed = [0] * ranks
        self._skipped: set[int] = set()
        self._newest = 0

    def play(self) -> None:
        try:
            self.interleaving.run(
                [self._supervise, *(lambda r=r: self._train(r) for r in self._ranks)]
            )
        finally:
            for descriptors in self._descriptors:
                for descriptor in descriptors:
                    os.close(descriptor)

    def _memory(self, pages: list[Any]) -> RankSnapshots:
        pairs = zip(pages, self._descriptors, strict=True)
        return RankSnapshots([Slots(page_of(page), descriptors) for page, descriptors in pairs])

    def _supervise(self) -> None:
        pages = [self.interleaving.direct(each) for each in self._stored]
        memory = self._memory(pages)
        for number in range(1, GENERATIONS + 1):
            slot = memory.next_slot() if self._is_careful else number % 2
            deciding = Deciding(pages, number, self.interleaving.chance.choice((0, 2)))
            deciding.begin()
            self.interleaving.barrier()
            deciding.decide(Kind.SNAPSHOT, slot)
            while number not in self._skipped and number not in memory.generations():
                for _ in range(PATIENCE):
                    self.interleaving.step()

    def _train(self, rank: int) -> None:
        own, chance = self._own[rank], self.interleaving.chance
        slots = Slots(page_of(own), self._descriptors[rank])
        places = Places(own, self.interleaving.step)  # type: ignore[arg-type]
        while True:
            while self._passed[rank] >= min(self._passed) + LARGEST_DRIFT:
                self.interleaving.step()
            self._passed[rank] += 1
            if (decision := places.arrive()) is None:
                continue
            if chance.random() < SKIPS:
                self._skipped.add(decision.id)  # by a message
                continue
            slots.begin(decision.slot, decision.id)
            for word in range(IMAGE_WORDS):
                own[image_word(decision.slot, word)] = decision.id
            slots.commit(decision.slot, IMAGE_WORDS, draft(decision.place))

    def _look(self) -> None:
        self.kills += 1
        left = [after_kill(page) for page in self._own]
        memory = self._memory(left)
        generations = memory.generations()
        newest = max(generations, default=0)
        assert newest >= self._newest, f"generation {self._newest} was lost"
        self._newest = newest
        for values in left if newest else ():
            slot = Slots(page_of(values), self._descriptors[0]).generations()[newest]
            image = [values[image_word(slot, word)] for word in range(IMAGE_WORDS)]
            assert image == [newest] * IMAGE_WORDS, "it is torn"


def page_of(values: Any) -> ControlPage:
    return SimpleNamespace(values=values)  # type: ignore[return-value]


def image_word(slot: int, word: int) -> int:
    return IMAGES + IMAGE_WORDS * slot + word


def after_kill(page: BufferedPage) -> list[int]:
    values = list(page.stored)
    for index, value in page.waiting:
        values[index] = value
    return values


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), ranks=st.integers(2, 3))
def test_newest_common_generation_survives_a_kill_after_any_store(seed: int, ranks: int) -> None:
    """More than ten thousand kills: what all ranks had whole at some time, they have after it."""
    run = Run(seed, ranks)
    run.play()
    assert run.kills > 500


def test_ranks_with_slots_by_turns_lose_what_they_had() -> None:
    """A rank that skips a generation makes the others overwrite the last whole one."""
    with pytest.raises(AssertionError, match="was lost"):
        for seed in range(10):
            Run(seed, 2, is_careful=False).play()


@contextmanager
def memory_of(ranks: int) -> Iterator[tuple[RankSnapshots, list[Slots]]]:
    slots = []
    for _ in range(ranks):
        page, descriptor = ControlPage.create()
        os.close(descriptor)
        slots.append(Slots.create(page))
    yield RankSnapshots(slots), slots
    for each in slots:
        each.close()


def fill(slots: Slots, generation: int, step: int, **changes: Any) -> None:
    slot = generation % SLOT_COUNT
    slots.begin(slot, generation)
    os.pwrite(slots.images[slot], b"image", 0)
    slots.commit(slot, 5, replace(draft(step), **changes))


def test_snapshot_of_a_run_has_a_part_of_each_rank() -> None:
    """A generation counts once every rank has it; the older one counts before that."""
    with memory_of(2) as (memory, slots):
        assert (memory.generations(), memory.next_slot(), memory.snapshots()) == ([], 0, [])
        for each in slots:
            fill(each, 4, step=7)
        fill(slots[0], 5, step=8)
        assert (memory.generations(), memory.next_slot()) == ([4], 1)
        newest = memory.newest_step_and_age()
        assert newest is not None
        assert newest[0] == 7
        fill(slots[1], 5, step=8)
        assert (memory.generations(), memory.next_slot()) == ([5, 4], 0)
        snapshot = memory.snapshots()[0]
        assert (snapshot.generation, snapshot.manifest.world_size) == (5, 2)
        assert [part.descriptor for part in snapshot.others] == [slots[1].images[1]]
        memory.forget()
        assert memory.snapshots() == []


def test_parts_of_different_places_are_no_snapshot() -> None:
    """Whatever a failing trainer has done, parts of two steps are never put together."""
    with memory_of(2) as (memory, slots):
        fill(slots[0], 4, step=7)
        fill(slots[1], 4, step=8)
        assert memory.snapshots() == []


def test_ranks_that_hold_different_replicas_are_unhealthy() -> None:
    """What all ranks should hold equally is compared by its digests, and named."""
    with memory_of(2) as (memory, slots):
        fill(slots[0], 4, step=7, replicas={"model.weight": "aa", "model.bias": "bb"})
        fill(slots[1], 4, step=7, replicas={"model.weight": "aa", "model.bias": "cc"})
        manifest = memory.snapshots()[0].manifest
        assert (manifest.healthy, manifest.differing) == (False, ["model.bias"])
        assert manifest.replicas == {}


def test_one_unhealthy_part_makes_the_snapshot_unhealthy() -> None:
    """Nothing resumes from it."""
    with memory_of(2) as (memory, slots):
        fill(slots[0], 4, step=7)
        fill(slots[1], 4, step=7, healthy=False)
        assert not memory.snapshots()[0].manifest.healthy
