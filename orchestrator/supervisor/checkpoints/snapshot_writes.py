"""The snapshot memory as its owner sees it: writes what the trainer asks for and what it leaves."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.manifest import Reason
from orchestrator.checkpoint.store import Store
from orchestrator.ipc.control_page import ControlPage
from orchestrator.snapshot.slots import Slots, Snapshot
from orchestrator.snapshot.writer import LAST_CHANCES, WRITE_ALLOWANCE, Writer
from orchestrator.system.heartbeat import Heartbeat
from orchestrator.system.threads import in_thread

# A disk that takes longer for a checkpoint than this is taken for dead.
WRITE_WAIT_SECONDS = 1800.0


class SnapshotWriteQueue:
    """Owns the slots over all attempts of a supervisor's life, and the writes from them."""

    def __init__(
        self,
        store: Store,
        rotated: Callable[[], Awaitable[object]],
        on_written: Callable[[Snapshot, Checkpoint, float], None],
        on_failed: Callable[[Snapshot, str], None],
    ) -> None:
        """``on_written`` gets the seconds that it took, ``on_failed`` the problem.

        Before a periodic write ``rotated`` is awaited: deleting must not fall behind writing, or a
        run that saves often fills the disk with checkpoints that --keep does not want.
        """
        self.slots: Slots | None = None
        self.last_write_seconds = 0.0
        self._writer = Writer(store)
        self._rotated = rotated
        self._on_written = on_written
        self._on_failed = on_failed
        self._under_way: dict[int, tuple[Snapshot, asyncio.Task[None]]] = {}
        self._last_chance = asyncio.Event()
        self._durable: set[int] = set()

    def attach(self, page: ControlPage) -> list[int]:
        """Have the slots on a new attempt's control page; the descriptors for its trainer."""
        self._writer.release()
        if self.slots is None:
            self.slots = Slots.create(page)
        else:
            self.slots.move_to(page)
        return self.slots.descriptors

    def inherit(self, slots: Slots) -> None:
        """Take over what a supervisor before us has left."""
        self.slots = slots

    @property
    def under_way(self) -> list[Snapshot]:
        """What is being written, or waits for that."""
        return [snapshot for snapshot, _ in self._under_way.values()]

    @property
    def writing(self) -> Heartbeat:
        """Beats while a snapshot is being written."""
        return self._writer.heartbeat

    @property
    def write_allowance_seconds(self) -> float:
        """How long a write should be expected to take; 0 before the first."""
        return WRITE_ALLOWANCE * self.last_write_seconds

    def write_generation(self, generation: object, reason: str) -> bool:
        """Write a snapshot on the trainer's word; False where there is none of that generation."""
        for snapshot in self._complete():
            if snapshot.generation == generation:
                self.write(snapshot, Reason(reason))
                return True
        return False

    def write(self, snapshot: Snapshot, reason: Reason) -> None:
        """Begin to write a snapshot, unless that is under way or done."""
        if reason in LAST_CHANCES:
            # For what waits too: it may be this very snapshot.
            self._last_chance.set()
            self._last_chance = asyncio.Event()
        if snapshot.generation not in self._under_way and snapshot.generation not in self._durable:
            task = asyncio.ensure_future(self._write(snapshot, reason, self._last_chance))
            self._under_way[snapshot.generation] = snapshot, task

    async def _turn_comes(
        self, snapshot: Snapshot, reason: Reason, last_chance: asyncio.Event
    ) -> None:
        """Checkpoints are published in the order of their states, or an older one counts as newest.

        So what waits for rotations waits no longer when the last chance to save comes behind it.
        """
        if reason not in LAST_CHANCES:
            waits = (self._rotated(), last_chance.wait())
            tasks = {asyncio.ensure_future(wait) for wait in waits}
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
        earlier = [task for g, (_, task) in self._under_way.items() if g < snapshot.generation]
        if earlier:
            await asyncio.wait(earlier)

    async def _write(self, snapshot: Snapshot, reason: Reason, last_chance: asyncio.Event) -> None:
        try:
            await self._turn_comes(snapshot, reason, last_chance)
            began = time.monotonic()
            checkpoint = await in_thread(lambda: self._writer.write(snapshot, reason))
        except Exception as error:
            # Whatever it is (a slot that a failing trainer has scribbled over, no thread to be
            # had), the trainer keeps the slot, and saves nothing, until it has an answer.
            self._on_failed(snapshot, str(error))
        else:
            self.last_write_seconds = round(time.monotonic() - began, 3)
            self._durable.add(snapshot.generation)
            self._on_written(snapshot, checkpoint, self.last_write_seconds)
        finally:
            del self._under_way[snapshot.generation]

    def newest_left(self, beyond: Checkpoint | None) -> Snapshot | None:
        """After the trainer's end: the newest healthy snapshot, unless ``beyond`` is further.

        At the same place the snapshot counts only if it has become that checkpoint.
        """
        for snapshot in self._complete():
            if not snapshot.manifest.healthy:
                continue
            if beyond is None:
                return snapshot
            reached = beyond.manifest.position
            if snapshot.position > reached or (
                snapshot.position == reached and self.is_durable(snapshot)
            ):
                return snapshot
        return None

    def is_durable(self, snapshot: Snapshot) -> bool:
        """Whether the snapshot has been published."""
        return snapshot.generation in self._durable

    async def settle(
        self,
        snapshots: Iterable[Snapshot],
        abandon: asyncio.Event,
        timeout_seconds: float = WRITE_WAIT_SECONDS,
    ) -> None:
        """Wait for the end of these writes, at most so long and until ``abandon`` is set."""
        generations = [snapshot.generation for snapshot in snapshots]
        tasks = {self._under_way[g][1] for g in generations if g in self._under_way}
        if not tasks:
            return
        writes = asyncio.ensure_future(asyncio.wait(tasks, timeout=timeout_seconds))
        given_up = asyncio.ensure_future(abandon.wait())
        await asyncio.wait({writes, given_up}, return_when=asyncio.FIRST_COMPLETED)
        writes.cancel()
        given_up.cancel()

    def forget(self) -> None:
        """Trust none of the snapshots any more; only while no trainer runs."""
        if self.slots is not None:
            self.slots.forget()

    def _complete(self) -> list[Snapshot]:
        return [] if self.slots is None else self.slots.snapshots()
