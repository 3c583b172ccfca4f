"""Brings the state of a session into checkpoints."""

import errno
import io
import time
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import IO, Any, cast

import torch

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.digesting_writer import DigestingWriter
from orchestrator.checkpoint.manifest import Manifest, Reason
from orchestrator.errors import CheckpointWriteError, UnstorableError
from orchestrator.rundir.journal import utc_now
from orchestrator.snapshot.slots import Snapshot
from orchestrator.training.data.position import digest_of_next
from orchestrator.training.exits import print_message
from orchestrator.training.loop.loop_state import StateToSave
from orchestrator.training.loop.snapshot_pace import SnapshotPace
from orchestrator.training.runtime.backend import Report, RunBackend
from orchestrator.training.runtime.local_writer import publish_and_report
from orchestrator.training.runtime.worker_signals import sigchld_default
from orchestrator.training.saving.snapshotter import PendingSnapshot, SnapshotContent, Snapshotter
from orchestrator.training.state import rng
from orchestrator.training.state.digests import digest_parts
from orchestrator.training.state.options import OptimizerOptions
from orchestrator.training.state.registry import Registry
from orchestrator.training.state.versions import VERSIONS

REPORT_SNAPSHOTS_NS = 1_000_000_000
_NONE: frozenset[int] = frozenset()


class Saver:
    """Saves by a snapshot in memory, which the backend writes to disk.

    Where there is no room for a snapshot it saves by a torch.save for which the loop waits.

    Attributes:
        pace: When the next snapshot is due.
    """

    def __init__(self, backend: RunBackend, registry: Registry, options: OptimizerOptions) -> None:
        facts = backend.facts
        self._budget = facts.settings.snapshot_budget
        self.pace = SnapshotPace(self._budget, facts.settings.snapshot_interval_seconds)
        self._write_seconds = 0.0
        self._thread_seconds = 0.0
        self._backend = backend
        self._options = options
        self._start = facts.store.start_record
        self._registry = registry
        self._snapshotter = Snapshotter(facts.memory.slots)
        self._writes: list[Future[Checkpoint]] = []
        self._has_proved_loadable = False
        self._reported_ns = 0
        for snapshot, written in facts.memory.writes_under_way:
            self._add_write(snapshot.slot, written)

    def _add_write(self, slot: int, written: Future[Checkpoint]) -> None:
        self._snapshotter.hold(slot, written)
        self._writes.append(written)

    @property
    def can_save(self) -> bool:
        """Whether a checkpoint can begin to be made now: one is written at a time."""
        ready = not self._snapshotter.has_room or self._snapshotter.is_ready
        return ready and all(written.done() for written in self._writes)

    def is_snapshot_due(self, now_ns: int) -> bool:
        """Return whether it is time for a snapshot, and one could be taken now without a wait."""
        due = now_ns >= self.pace.next_ns and self._snapshotter.has_room
        return due and self._snapshotter.is_ready

    @property
    def least_interval_seconds(self) -> float:
        """How much time to leave between checkpoints, so that writing stays within the budget."""
        return 0.0 if self._budget is None else self._write_seconds / self._budget

    def next_ended(self) -> Future[Checkpoint] | None:
        """Return a write that has ended, each once; None while there is none."""
        for written in self._writes:
            if written.done():
                self._writes.remove(written)
                return written
        return None

    def snapshot(self, saved: StateToSave) -> None:
        """Keep the state in memory, if that is possible now."""
        self._take(saved, Reason.PERIODIC, None)

    def save(
        self, saved: StateToSave, reason: Reason, deadline: float | None = None
    ) -> Future[Checkpoint] | None:
        """Begin to make a checkpoint of the state; None where that is not possible now.

        With a ``deadline`` (time.monotonic, in seconds) it waits until then for a free slot and
        for memory. The future gets the checkpoint once it is durable, or a CheckpointWriteError.

        Raises:
            UnstorableError: At the first save, a value has no form that can be loaded safely.
        """
        if not self._has_proved_loadable:
            _prove_loadable(saved.state)
            self._has_proved_loadable = True
        written: Future[Checkpoint] = Future()
        if self._snapshotter.has_room:
            pending = self._take(saved, reason, deadline)
            if pending is not None:
                self._add_write(pending.slot, written)
                pending.done.add_done_callback(
                    partial(self._write, saved=saved, reason=reason, written=written)
                )
                return written
            if self._snapshotter.has_room and deadline is None:
                return None
        self._save_blocking(saved.state, self._draft(saved, reason), written)
        self._writes.append(written)
        return written

    def close(self) -> None:
        """Wait for the snapshot under way and give the memory back."""
        self._snapshotter.close()

    # --- by a snapshot -----------------------------------------------------------------------

    def _take(
        self, saved: StateToSave, reason: Reason, deadline: float | None
    ) -> PendingSnapshot | None:
        content = SnapshotContent(
            state=saved.state,
            draft=self._draft(saved, reason),
            parameters=self._registry.parameters(),
            of_optimizers=self._registry.storages_of_optimizers() if rng.cuda_in_use() else _NONE,
        )
        pending = self._snapshotter.take(content, deadline)
        if pending is not None:
            # The cost of this one's thread is not known yet; that of the last one is.
            self.pace.record(pending.stall_seconds + self._thread_seconds)
            pending.done.add_done_callback(partial(self._report_snapshot, pending=pending))
        return pending

    def _report_snapshot(self, done: Future[Snapshot], *, pending: PendingSnapshot) -> None:
        self._thread_seconds = pending.thread_seconds
        if done.exception() is not None:
            print_message(f"cannot take a snapshot: {done.exception()}")
            return
        now = time.monotonic_ns()
        if now >= self._reported_ns:
            self._reported_ns = now + REPORT_SNAPSHOTS_NS
            snapshot = done.result()
            self._backend.report(
                Report.SNAPSHOT_TAKEN,
                step=snapshot.manifest.step,
                bytes=snapshot.image_bytes,
                stall_seconds=round(pending.stall_seconds, 6),
                thread_seconds=round(pending.thread_seconds, 6),
                interval_seconds=self.pace.interval_seconds,
            )

    def _write(
        self,
        done: Future[Snapshot],
        *,
        saved: StateToSave,
        reason: Reason,
        written: Future[Checkpoint],
    ) -> None:
        """Pass a complete snapshot on to the backend, which writes it to disk."""
        if (error := done.exception()) is not None:
            cause = OSError(errno.EIO, str(error))
            written.set_exception(CheckpointWriteError(int(saved.state["step"]), cause))
            return
        written.add_done_callback(partial(self._record_write_seconds, began=time.monotonic()))
        self._backend.write(done.result(), reason, written)

    def _record_write_seconds(self, written: Future[Checkpoint], *, began: float) -> None:
        self._write_seconds = time.monotonic() - began

    # --- without one -------------------------------------------------------------------------

    def _save_blocking(
        self, state: dict[str, Any], draft: Manifest, written: Future[Checkpoint]
    ) -> None:
        draft = replace(
            draft,
            healthy=draft.healthy and self._registry.is_finite(),
            digests=digest_parts(state) | draft.digests,
        )

        def publish() -> Checkpoint:
            return self._backend.facts.store.publish(draft, save_to)

        def save_to(file: DigestingWriter) -> None:
            torch.save(state, cast(IO[bytes], file))

        try:
            # A loader worker that dies during torch.save would make it raise.
            with sigchld_default():
                written.set_result(publish_and_report(self._backend, publish))
        except CheckpointWriteError as error:
            written.set_exception(error)

    def _draft(self, saved: StateToSave, reason: Reason) -> Manifest:
        return Manifest(
            run_id=self._backend.facts.store.run_id,
            step=saved.state["step"],
            epoch=saved.state["epoch"],
            reason=reason,
            metrics=saved.metrics,
            healthy=True,
            time=utc_now(),
            files={},
            versions=VERSIONS,
            digests={"next_batch": digest_of_next(saved.state["data"])},
            doubts=saved.doubts,
            start=self._start,
            options=self._options.as_set,
        )


def _prove_loadable(state: dict[str, Any]) -> None:
    """Save and load everything but the tensors, so that a refusal comes in the first minute.

    Raises:
        UnstorableError: A value cannot be loaded safely; the error names its entry.
    """
    for key, value in state.items():
        buffer = io.BytesIO()
        try:
            torch.save(_without_tensors(value), buffer)
            buffer.seek(0)
            torch.load(buffer, weights_only=True)
        except Exception as error:  # pickle lets through whatever an object's methods raise
            problem = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UnstorableError(key, problem) from error


def _without_tensors(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return None
    if isinstance(value, dict):
        return {key: _without_tensors(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return type(value)(_without_tensors(item) for item in value)
    return value
