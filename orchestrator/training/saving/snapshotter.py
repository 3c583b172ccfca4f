"""Takes snapshots: copies the state's bytes into a slot at memory speed, the rest in a thread.

The loop stands still only while the bytes are copied, to where the last layout had them. A thread
then lays the file out (its pickled part changes with every step), moves them to their places, looks
for non-finite parameters and declares it complete.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import IO, Any, cast

import torch

from orchestrator.checkpoint.manifest import Manifest
from orchestrator.errors import UnstorableError
from orchestrator.snapshot.slots import Slots, Snapshot
from orchestrator.system import memory
from orchestrator.training.exits import describe_shortly, print_message, warn, without_warnings
from orchestrator.training.runtime.worker_signals import sigchld_default
from orchestrator.training.saving.breather import Breather
from orchestrator.training.saving.device_copy import Copier
from orchestrator.training.saving.image import (
    Frozen,
    InexpressibleError,
    Layout,
    freeze,
    lay_out,
    provisional,
)
from orchestrator.training.saving.image_checks import addresses_in, is_finite
from orchestrator.training.saving.placement import place
from orchestrator.training.saving.slot_memory import SlotMemory, with_spare
from orchestrator.training.state import rng
from orchestrator.training.state.digests import digest_parts
from orchestrator.training.state.gc_pause import paused_collector
from orchestrator.training.state.tensor_kinds import all_finite

# The part of the free memory that is left to other processes, and to what the training will need
# later: the larger of the two.
LEFT_FREE_SHARE = 0.1
LEFT_FREE_BYTES = 128 << 20
POLL_SECONDS = 0.002
# Longer than the thread takes for any state that fits into memory, unless a device hangs.
FINISH_SECONDS = 120.0
WRITE_BUFFER_BYTES = 16 << 20


ReplicaDigests = Callable[
    [Mapping[str, Any], Mapping[int, int] | None, Callable[[], None] | None], dict[str, str]
]


@dataclass(frozen=True)
class SnapshotContent:
    """What a snapshot is taken of.

    Attributes:
        state: The whole state, as torch.save is to write it.
        draft: The manifest, without files.
        parameters: They make the snapshot unhealthy where one is not finite.
        of_optimizers: The storages (by ``_cdata``) that only an optimizer changes.
        replica_digests: Returns digests of what several ranks should hold equally, from the state,
            the addresses of its storages (by ``_cdata``) and what rests between; None for a
            single rank.
        index: The text of what this rank holds of sharded tensors; empty where nothing is sharded.
    """

    state: dict[str, Any]
    draft: Manifest
    parameters: Sequence[torch.Tensor]
    of_optimizers: frozenset[int] = frozenset()
    replica_digests: ReplicaDigests | None = None
    index: bytes = b""


@dataclass
class PendingSnapshot:
    """A snapshot under way.

    Attributes:
        slot: The index of its slot.
        stall_seconds: How long the loop stood still for it.
        thread_seconds: How much processor time the thread has used for it.
        done: Gets the snapshot once it is complete, or the exception.
    """

    slot: int
    stall_seconds: float = 0.0
    thread_seconds: float = 0.0
    done: Future[Snapshot] = field(default_factory=Future)


class Snapshotter:
    """The trainer's side of the snapshot memory."""

    def __init__(
        self, slots: Slots, available_bytes: Callable[[], int] = memory.available_bytes
    ) -> None:
        self._slots = slots
        self._available_bytes = available_bytes
        self._memories = [SlotMemory(descriptor) for descriptor in slots.images]
        self._copier = Copier()
        self._usable = len(self._memories)
        self._layout: Layout | None = None
        self._takes_images = True
        self._warned_of_plain = False
        self._thread: threading.Thread | None = None
        self._breather = Breather()
        self._held: dict[int, Future[Any]] = {}

    @property
    def has_room(self) -> bool:
        """Whether there is memory for at least one snapshot, as far as is known."""
        return self._usable > 0

    @property
    def is_ready(self) -> bool:
        """Whether nothing that is known now keeps ``take`` from pending one."""
        slots = self._memories[: self._usable]
        return self._can_begin and all(slot.is_ready for slot in slots)

    @property
    def sizes(self) -> list[int]:
        """The sizes of the storages in the last layout, in bytes; empty before the first."""
        return [] if self._layout is None else self._layout.sizes

    def hold(self, slot: int, until: Future[Any]) -> None:
        """Leave a slot alone while its image is being written to disk, until ``until`` is done."""
        self._held[slot] = until

    def take(
        self, content: SnapshotContent, deadline: float | None = None
    ) -> PendingSnapshot | None:
        """Begin a snapshot; the tensors may change as soon as this returns.

        Returns None where there is no room (``has_room`` is then false), memory is not populated
        yet, or no slot is free. With a ``deadline`` (time.monotonic, in seconds) it waits until
        then for memory and a slot.

        Raises:
            UnstorableError: torch.save refuses the state.
        """
        # A loader worker that dies during this would make torch raise in the middle of it.
        with sigchld_default(), paused_collector():
            began = time.perf_counter()
            try:
                pending = self._take(content, deadline)
            except UnstorableError:
                raise
            except Exception as error:  # memory, torch: it must not end the loop
                self.take_simpler_way(error)
                pending = None
        if pending is not None:
            pending.stall_seconds = time.perf_counter() - began
        return pending

    def _take(self, content: SnapshotContent, deadline: float | None) -> PendingSnapshot | None:
        if not self._takes_images:
            return self._take_plainly(content, deadline)
        try:
            frozen = freeze(content.state)
            layout = self._layout_for(frozen)
        except InexpressibleError as error:
            self._warn_of_plain(error)
            return self._take_plainly(content, deadline)
        return self._take_image(content, frozen, layout, deadline)

    def take_simpler_way(self, error: Exception) -> None:
        """Take later snapshots by torch.save; where that has failed, take none."""
        if self._takes_images:
            self._takes_images = False
            consequence = "the next ones use the slower torch.save"
        else:
            self._usable = 0
            consequence = "none are taken, and training stands still while a checkpoint is written"
        print_message(f"cannot take a snapshot: {describe_shortly(error)}; {consequence}")

    def _take_image(
        self, content: SnapshotContent, frozen: Frozen, layout: Layout, deadline: float | None
    ) -> PendingSnapshot | None:
        if not self._make_room(layout.image_bytes, deadline):
            return None
        if (pending := self._begin(deadline)) is None:
            return None
        target = self._memories[pending.slot]
        events = self._copier.copy(frozen.storages, target, layout.offsets, content.of_optimizers)
        job = (pending, content, frozen, layout, events)
        self._breather = Breather()
        self._thread = threading.Thread(target=self._finish, args=job, name="snapshot", daemon=True)
        self._thread.start()
        return pending

    def _take_plainly(
        self, content: SnapshotContent, deadline: float | None
    ) -> PendingSnapshot | None:
        """Let torch.save write the file into a slot."""
        if (pending := self._begin(deadline)) is None:
            return None
        try:
            descriptor = os.dup(self._slots.images[pending.slot])
            with open(descriptor, "wb", buffering=WRITE_BUFFER_BYTES) as file:
                file.seek(0)
                with without_warnings():
                    torch.save(content.state, cast(IO[bytes], file))
                image_bytes = file.tell()
            healthy = all(map(all_finite, content.parameters))
            digests = digest_parts(content.state)
            content = _compared(content, content.state)
            pending.done.set_result(self._commit(pending, content, image_bytes, healthy, digests))
        except BaseException as error:  # a save may be waiting for it
            self._fail(pending, error)
        return pending

    def _fail(self, pending: PendingSnapshot, error: BaseException) -> None:
        if isinstance(error, Exception):
            self.take_simpler_way(error)
        pending.done.set_exception(error)

    def hurry(self) -> None:
        """Complete the snapshot under way without rests: the loop waits for it."""
        self._breather.is_hurried = True

    def close(self) -> None:
        """Wait for the snapshot under way, and unpin the memory."""
        self.hurry()
        if self._thread is not None:
            self._thread.join(FINISH_SECONDS)
        self._copier.close()
        for slot in self._memories:
            slot.unpin()

    # --- room and slots ----------------------------------------------------------------------

    def _make_room(self, needed: int, deadline: float | None) -> bool:
        """Make the usable slots hold ``needed`` bytes; return whether they do, populated."""
        if any(slot.capacity < needed for slot in self._memories[: self._usable]):
            self._decide_usable(needed)
        slots = self._memories[: self._usable]
        for slot in slots:
            slot.prepare(needed, pin=rng.cuda_in_use())
            if deadline is not None:
                slot.wait_until_ready(deadline)
        return bool(slots) and all(slot.is_ready for slot in slots)

    def _decide_usable(self, needed: int) -> None:
        missing = [slot.missing_bytes(needed) for slot in self._memories]
        available = self._available_bytes()
        free = max(0, available - max(LEFT_FREE_BYTES, int(available * LEFT_FREE_SHARE)))
        usable = next((n for n in (2, 1) if sum(missing[:n]) <= free), 0)
        if usable < self._usable:
            consequence = (
                "one is kept; a crash while it is taken falls back to the newest checkpoint"
                if usable
                else "none are taken, and training stands still while a checkpoint is written"
            )
            warn(
                f"two snapshots of this state need {2 * with_spare(needed) / 2**30:.2f} GiB of "
                f"memory and {free / 2**30:.2f} GiB may be used: {consequence}",
            )
        self._usable = min(usable, self._usable)

    def _target(self) -> int | None:
        """Return the slot to fill: not one that is being written nor, of two, the newest."""
        occupied = {slot for slot in self._held if self._is_held(slot)}
        if self._usable > 1 and (newest := self._slots.newest_slot()) is not None:
            occupied.add(newest)
        return next((index for index in range(self._usable) if index not in occupied), None)

    def _is_held(self, slot: int) -> bool:
        return slot in self._held and not self._held[slot].done()

    def _begin_slot(self, slot: int) -> None:
        self._slots.begin(slot)

    def _begin(self, deadline: float | None) -> PendingSnapshot | None:
        """Declare a slot torn and take it; wait for one where there is a deadline."""
        if deadline is not None:
            self.hurry()
        while deadline is not None and time.monotonic() < deadline and not self._can_begin:
            time.sleep(POLL_SECONDS)
        if not self._can_begin or (slot := self._target()) is None:
            return None
        self._begin_slot(slot)
        return PendingSnapshot(slot)

    @property
    def _can_begin(self) -> bool:
        # The thread also reports the snapshot, and must have done so before the next one.
        finished = self._thread is None or not self._thread.is_alive()
        return finished and self._target() is not None

    # --- filling -----------------------------------------------------------------------------

    def _layout_for(self, frozen: Frozen) -> Layout:
        """Return the last layout while the sizes are the same, else a provisional one."""
        if self._layout is None or self._layout.sizes != frozen.sizes:
            self._layout = provisional(frozen)
        return self._layout

    def _finish(
        self,
        pending: PendingSnapshot,
        content: SnapshotContent,
        frozen: Frozen,
        layout: Layout,
        events: list[torch.cuda.Event],
    ) -> None:
        breathe = self._breather.breathe
        try:
            for event in events:
                event.synchronize()
            fresh = lay_out(frozen, breathe)
            target = self._memories[pending.slot]
            target.prepare(fresh.image_bytes, pin=target.is_pinned)
            place(target, layout, fresh, breathe)
            self._layout = fresh
            healthy = is_finite(content.parameters, frozen, fresh, target, breathe)
            addresses = addresses_in(frozen, fresh, target)
            digests = digest_parts(frozen.tree, addresses, breathe)
            content = _compared(content, frozen.tree, addresses, breathe)
            pending.thread_seconds = time.thread_time()
            pending.done.set_result(
                self._commit(pending, content, fresh.image_bytes, healthy, digests)
            )
        except BaseException as error:  # a save may be waiting for it
            self._fail(pending, error)

    def _commit(
        self,
        pending: PendingSnapshot,
        content: SnapshotContent,
        image_bytes: int,
        healthy: bool,
        digests: dict[str, str],
    ) -> Snapshot:
        draft = replace(
            content.draft,
            healthy=content.draft.healthy and healthy,
            digests=digests | content.draft.digests,
        )
        return self._slots.commit(pending.slot, image_bytes, draft, content.index)

    def _warn_of_plain(self, error: InexpressibleError) -> None:
        if not self._warned_of_plain:
            self._warned_of_plain = True
            warn(
                f"snapshots use the slower torch.save, because the state holds {error}",
            )


def _compared(
    content: SnapshotContent,
    state: Mapping[str, Any],
    addresses: Mapping[int, int] | None = None,
    breathe: Callable[[], None] | None = None,
) -> SnapshotContent:
    """Return the content with digests of what several ranks should hold equally."""
    if content.replica_digests is None:
        return content
    replicas = content.replica_digests(state, addresses, breathe)
    return replace(content, draft=replace(content.draft, replicas=replicas))
