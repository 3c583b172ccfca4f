"""The queue of snapshots that are written to disk, and the memory that holds them."""

import asyncio
import contextlib
import time
from collections.abc import Iterable

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.manifest import Reason
from orchestrator.checkpoint.store import Store
from orchestrator.ipc.control_page import ControlPage
from orchestrator.snapshot.rank_snapshots import RankSnapshots
from orchestrator.snapshot.slots import Slots, Snapshot
from orchestrator.snapshot.writer import LAST_CHANCES, WRITE_ALLOWANCE, Writer
from orchestrator.supervisor.checkpoints.catalog import CheckpointCatalog
from orchestrator.supervisor.run_events import RunEvents
from orchestrator.supervisor.stop_request import StopRequest, StopWantedError
from orchestrator.system.heartbeat import Heartbeat
from orchestrator.system.races import first_of
from orchestrator.system.threads import in_thread

# A disk that takes longer than this for a checkpoint is considered dead.
WRITE_WAIT_SECONDS = 1800.0


class SnapshotWriteQueue:
    """Owns the snapshot slots over all attempts of a supervisor, and the writes from them.

    ``cost_seconds`` is what a snapshot has cost the last trainer, with which the next one begins;
    None before it is known.
    """

    def __init__(
        self,
        store: Store,
        catalog: CheckpointCatalog,
        stop: StopRequest,
        events: RunEvents,
        world_size: int = 1,
    ) -> None:
        """``events`` are told of each snapshot that was written, or could not be.

        ``world_size`` is the number of ranks, each of which has slots of its own.
        """
        self.world_size = world_size
        self.slots: list[Slots] = []
        self.cost_seconds: float | None = None
        self.last_write_seconds = 0.0
        self._writer = Writer(store)
        self._catalog = catalog
        self._stop = stop
        self._events = events
        self._pending: dict[int, tuple[Snapshot, asyncio.Task[None]]] = {}
        self._last_chance = asyncio.Event()
        self._written: set[int] = set()

    def attach(self, page: ControlPage, rank: int = 0) -> list[int]:
        """Move a rank's slots to its control page in a new attempt; return its descriptors."""
        if rank == len(self.slots):
            self.slots.append(Slots.create(page))
        else:
            self.slots[rank].move_to(page)
        return self.slots[rank].descriptors

    def take_over(self, slots: Slots) -> None:
        """Use the slots that an earlier supervisor of the run has left."""
        self.slots = [slots]

    async def drop_taken_over(self) -> None:
        """Wait for the writes of the slots that were taken over, and use them no more."""
        await self.wait_for(self.pending, self._stop.kill_wanted)
        self.slots = []
        self._written.clear()

    @property
    def memory(self) -> RankSnapshots | None:
        """The slots of all ranks; None before the first attempt."""
        return RankSnapshots(self.slots) if self.slots else None

    @property
    def pending(self) -> list[Snapshot]:
        """The snapshots that are being written, or wait for it."""
        return [snapshot for snapshot, _ in self._pending.values()]

    @property
    def heartbeat(self) -> Heartbeat:
        """Beats while a snapshot is being written."""
        return self._writer.heartbeat

    def expected_write_seconds(self) -> float:
        """Return how long a write should be expected to take; 0 before the first."""
        return WRITE_ALLOWANCE * self.last_write_seconds

    def write_generation(self, generation: object, reason: str) -> bool:
        """Write the snapshot that the trainer names; return whether there is one."""
        for snapshot in self._complete():
            if snapshot.generation == generation:
                self.write(snapshot, Reason(reason))
                return True
        return False

    def write(self, snapshot: Snapshot, reason: Reason) -> None:
        """Begin to write a snapshot, unless it is pending or written."""
        if reason in LAST_CHANCES:
            # Wake the waiting ones too: this very snapshot may be among them.
            self._last_chance.set()
            self._last_chance = asyncio.Event()
        if snapshot.generation not in self._pending and not self.is_written(snapshot):
            task = asyncio.ensure_future(self._write(snapshot, reason, self._last_chance))
            self._pending[snapshot.generation] = snapshot, task

    async def _wait_for_turn(
        self, snapshot: Snapshot, reason: Reason, last_chance: asyncio.Event
    ) -> None:
        """Wait for rotations, then for earlier snapshots.

        Checkpoints must be published in the order of their states: otherwise an older one would
        count as the newest. So a snapshot that waits for a rotation stops waiting for it when the
        last chance to save is queued behind it.
        """
        if reason not in LAST_CHANCES:
            await first_of(self._wait_for_rotations(), last_chance.wait())
        earlier = [task for g, (_, task) in self._pending.items() if g < snapshot.generation]
        if earlier:
            await asyncio.wait(earlier)

    async def _wait_for_rotations(self) -> None:
        """Wait for running rotations, or until a stop is wanted: its save needs the slot.

        If deleting fell behind writing, a run that saves often would fill the disk with
        checkpoints that --keep does not want.
        """
        with contextlib.suppress(StopWantedError):
            await self._stop.or_stop(self._catalog.wait_for_rotations())

    async def _write(self, snapshot: Snapshot, reason: Reason, last_chance: asyncio.Event) -> None:
        try:
            await self._wait_for_turn(snapshot, reason, last_chance)
            began = time.monotonic()
            checkpoint = await in_thread(lambda: self._writer.write(snapshot, reason))
        except Exception as error:
            # Whatever the reason (a failing trainer wrote over the slot, the system starts no
            # thread), the trainer keeps the slot, and saves nothing, until it gets an answer.
            self._events.write_failed(snapshot, str(error))
        else:
            self.last_write_seconds = round(time.monotonic() - began, 3)
            self._written.add(snapshot.generation)
            self._events.checkpoint_written(snapshot, checkpoint, self.last_write_seconds)
        finally:
            del self._pending[snapshot.generation]

    def newest_beyond(self, checkpoint: Checkpoint | None) -> Snapshot | None:
        """Return the newest healthy snapshot, unless ``checkpoint`` is further; only after an end.

        At an equal position the snapshot counts only if it is what became that checkpoint.
        """
        for snapshot in self._complete():
            if not snapshot.manifest.healthy:
                continue
            if checkpoint is None:
                return snapshot
            reached = checkpoint.manifest.position
            if snapshot.position > reached or (
                snapshot.position == reached and self.is_written(snapshot)
            ):
                return snapshot
        return None

    def is_written(self, snapshot: Snapshot) -> bool:
        """Return whether the snapshot has become a checkpoint."""
        return snapshot.generation in self._written

    async def wait_for(
        self,
        snapshots: Iterable[Snapshot],
        abandon: asyncio.Event,
        timeout_seconds: float = WRITE_WAIT_SECONDS,
    ) -> None:
        """Wait until these writes have ended, the time is up, or ``abandon`` is set."""
        generations = [snapshot.generation for snapshot in snapshots]
        tasks = {self._pending[g][1] for g in generations if g in self._pending}
        if tasks:
            # asyncio.wait() does not cancel the writes when it is cancelled itself.
            await first_of(asyncio.wait(tasks), abandon.wait(), timeout_seconds=timeout_seconds)

    def discard_all(self) -> None:
        """Invalidate every snapshot; only while no trainer runs."""
        if self.memory is not None:
            self.memory.forget()

    def _complete(self) -> list[Snapshot]:
        return [] if self.memory is None else self.memory.snapshots()
