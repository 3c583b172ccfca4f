"""What the supervisor announces to several ranks, played with ranks that are threads."""

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.config import Config
from orchestrator.ipc.control_page import ControlPage, Field
from orchestrator.ipc.place_agreement import Decision, Kind, Places
from orchestrator.rundir.paths import RunDir
from orchestrator.snapshot.slots import Slots
from orchestrator.supervisor.attempt.attempt import Attempt
from orchestrator.supervisor.attempt.output import OutputTarget
from orchestrator.supervisor.checkpoints.snapshot_write_queue import SnapshotWriteQueue
from orchestrator.supervisor.coordinator import Coordinator
from orchestrator.supervisor.run_facts import RunFacts
from orchestrator.supervisor.stop_request import StopRequest
from orchestrator.terminal.lossy_writer import LossyWriter
from tests.checkpoint.support import manifest_of, new_store
from tests.supervisor.support import GRACE_SECONDS, RecordedEvents, catalog_of
from tests.support import DEADLINE_SECONDS


class Ranks:
    """An attempt of two ranks, each a thread that passes places and takes what is announced."""

    def __init__(self, root: Path, **settings: str) -> None:
        self.events = RecordedEvents()
        self.store = new_store(root)
        stop, catalog = StopRequest(GRACE_SECONDS), catalog_of(self.store)
        self.queue = SnapshotWriteQueue(self.store, catalog, stop, self.events, 2)
        config = Config.resolve({"every": "1000000steps", **settings}, {}, root)
        self.coordinator = Coordinator(config, RunFacts(stop), self.queue, self.events)
        target = OutputTarget(LossyWriter(1), 1 << 20)
        self.attempt = Attempt(RunDir(root), 1, None, None, self.queue, target)
        self.pages = [rank.page.values for rank in self.attempt.ranks]
        self.acted: list[list[Decision]] = [[], []]
        self.skipping = self.diverging = self.at_end = False
        self._is_over = threading.Event()

    @contextmanager
    def training(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._train, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            for thread in threads:
                thread.join()
            self.attempt.close()

    def _train(self, rank: int) -> None:
        page, slots = self.pages[rank], self.queue.slots[rank]
        places = Places(page, self._wait)
        try:
            while True:
                page[Field.STEP] += 1
                page[Field.SAFE_POINTS] += 1
                decision = places.arrive_at_end() if self.at_end else places.arrive()
                if decision is not None:
                    self._act(rank, decision, slots)
                    if decision.kind is Kind.FINAL:
                        return  # a session saves nothing more
                self._wait()
        except InterruptedError:
            pass

    def _wait(self) -> None:
        time.sleep(0.0002)
        if self._is_over.is_set():
            raise InterruptedError

    def _act(self, rank: int, decision: Decision, slots: Slots) -> None:
        if self.skipping and rank == 1:
            self.attempt.skipped[decision.id] = "no memory"
        else:
            slots.begin(decision.slot, decision.id)
            os.pwrite(slots.images[decision.slot], b"image", 0)
            value = str(rank) if self.diverging else "same"
            draft = replace(manifest_of(decision.place), replicas={"weight": value})
            slots.commit(decision.slot, 5, draft)
        self.acted[rank].append(decision)

    def play(self, *steps: Callable[["Ranks"], Awaitable[None]]) -> None:
        async def coordinate() -> None:
            running = asyncio.ensure_future(self.coordinator.run(self.attempt))
            for step in steps:
                await step(self)
            running.cancel()
            await asyncio.wait({running})
            await self.queue.wait_for(self.queue.pending, asyncio.Event())

        with self.training():
            asyncio.run(coordinate())

    async def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)

    def kinds(self, rank: int = 0) -> list[Kind]:
        return [decision.kind for decision in self.acted[rank]]


async def first_save(ranks: Ranks) -> None:
    """Wait for the checkpoint that a new run makes at once."""
    await ranks.until(lambda: len(ranks.events.written) == 1)


async def request(ranks: Ranks) -> None:
    ranks.pages[1][Field.CHECKPOINT_REQUESTS] += 1


def test_ranks_act_alike_on_saves_snapshots_and_a_stop(tmp_path: Path) -> None:
    """Whatever is announced, both ranks do it at the same places, with the same slots."""

    async def stop(ranks: Ranks) -> None:
        await ranks.until(lambda: ranks.kinds().count(Kind.SNAPSHOT) > 3)
        await request(ranks)
        await ranks.until(lambda: len(ranks.events.written) == 2)
        for page in ranks.pages:
            page[Field.STOP_REQUEST] = 1
        await ranks.until(lambda: len(ranks.events.written) == 3)

    ranks = Ranks(tmp_path, snapshot_budget="50%")
    ranks.play(first_save, stop)
    assert ranks.acted[0] == ranks.acted[1]
    assert ranks.kinds()[-1] is Kind.STOP
    reasons = [checkpoint.manifest.reason for checkpoint in ranks.store.all()]
    assert reasons == ["periodic", "requested", "emergency"]
    parts = {"state.pt", "rank-00001.pt"}
    assert all(c.manifest.files.keys() == parts for c in ranks.store.all())


def test_save_that_one_rank_skips_is_reported_and_does_not_stop_others(tmp_path: Path) -> None:
    """The generation is given up, those who wait are told why, and the next one is whole."""

    async def skip(ranks: Ranks) -> None:
        ranks.skipping = True
        await request(ranks)
        await ranks.until(lambda: ranks.events.problems == ["no memory"])
        ranks.skipping = False
        await request(ranks)
        await ranks.until(lambda: len(ranks.events.written) == 2)

    ranks = Ranks(tmp_path, snapshot_budget="off")
    ranks.play(first_save, skip)
    assert [d.slot for d in ranks.acted[0]] == [0, 1, 1]


def test_last_save_waits_for_all_ranks(tmp_path: Path) -> None:
    """Ranks that have nothing more to train are told to save for the last time."""

    async def end(ranks: Ranks) -> None:
        ranks.at_end = True
        await ranks.until(lambda: len(ranks.events.written) == 2)

    ranks = Ranks(tmp_path, snapshot_budget="off")
    ranks.play(first_save, end)
    assert ranks.store.all()[-1].manifest.reason == "final"
    assert ranks.kinds(0)[:2] == ranks.kinds(1)[:2] == [Kind.SAVE, Kind.FINAL]


@pytest.mark.parametrize("diverging", [False, True])
def test_replicas_are_compared_at_each_generation(tmp_path: Path, diverging: bool) -> None:
    """What differs is named, and the checkpoint that holds it is not healthy."""
    ranks = Ranks(tmp_path, snapshot_budget="off")
    ranks.diverging = diverging
    ranks.play(first_save)
    assert ranks.events.problems == (["weight"] if diverging else [])
    assert ranks.store.all()[0].manifest.healthy is not diverging


def test_nothing_is_decided_before_all_ranks_have_begun(tmp_path: Path) -> None:
    """A rank that still reads a snapshot must find it as it was."""
    ranks = Ranks(tmp_path)
    page, descriptor = ControlPage.create()
    os.close(descriptor)
    ranks.attempt.ranks[1].page = page  # it stays as it is

    async def wait(ranks: Ranks) -> None:
        ranks.pages[0][Field.CHECKPOINT_REQUESTS] += 1
        await ranks.until(lambda: ranks.pages[0][Field.PLACES] > 1000)

    ranks.play(wait)
    assert ranks.acted == [[], []]
    assert [pages[Field.DECIDING] for pages in ranks.pages] == [0, 0]


def test_attempt_from_the_beginning_saves_at_once(tmp_path: Path) -> None:
    """What an earlier attempt was due to save next says nothing of one that starts from zero."""
    ranks = Ranks(tmp_path, snapshot_budget="off")

    async def coordinate() -> None:
        for attempt in (1, 2):
            running = asyncio.ensure_future(ranks.coordinator.run(ranks.attempt))
            await ranks.until(lambda n=attempt: len(ranks.events.written) == n)
            running.cancel()
            await asyncio.wait({running})

    with ranks.training():
        asyncio.run(coordinate())
    assert ranks.kinds() == [Kind.SAVE, Kind.SAVE]
