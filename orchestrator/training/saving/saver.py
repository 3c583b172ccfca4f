"""Brings the state of a session into checkpoints."""

import errno
import functools
import io
import time
from concurrent.futures import Future
from dataclasses import replace
from typing import IO, Any, cast

import torch

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.digesting_writer import DigestingWriter
from orchestrator.checkpoint.manifest import Manifest, Reason
from orchestrator.checkpoint.publication import publish_state
from orchestrator.errors import CheckpointWriteError, UnstorableError
from orchestrator.ipc.control_page import Field
from orchestrator.pace.snapshot_pace import SnapshotPace
from orchestrator.rundir.journal import utc_now
from orchestrator.snapshot.slots import Slots, Snapshot
from orchestrator.training.data.data_position import digest_of_next
from orchestrator.training.data.first_batch import FirstBatch
from orchestrator.training.exits import describe_shortly, without_warnings
from orchestrator.training.loop.loop_state import StateToSave
from orchestrator.training.runtime.backend import Report, RunBackend
from orchestrator.training.runtime.local_writer import publish_and_report, report_failure
from orchestrator.training.runtime.worker_signals import sigchld_default
from orchestrator.training.saving.image import InexpressibleError, freeze, lay_out
from orchestrator.training.saving.snapshotter import PendingSnapshot, SnapshotContent, Snapshotter
from orchestrator.training.state import rng
from orchestrator.training.state.digests import digest_parts
from orchestrator.training.state.layout_watch import LayoutWatch
from orchestrator.training.state.options import OptimizerOptions
from orchestrator.training.state.registered_objects import Registry
from orchestrator.training.state.tensor_kinds import is_plain
from orchestrator.training.state.versions import VERSIONS

REPORT_SNAPSHOTS_NS = 1_000_000_000
_NONE: frozenset[int] = frozenset()


class Saver:
    """Saves by a snapshot in memory, which the backend writes to disk.

    Where there is no room for a snapshot it saves by a torch.save for which the loop waits.

    Attributes:
        pace: When the next snapshot is due.
        has_proved_loadable: Whether a state of this process has been found loadable.
    """

    def __init__(
        self,
        backend: RunBackend,
        registry: Registry,
        options: OptimizerOptions,
        layout_watch: LayoutWatch | None,
        first_batch: FirstBatch,
    ) -> None:
        """Tell ``layout_watch``, if there is one, of each state whose layout may have changed.

        What ``first_batch`` notes after a snapshot is kept beside it.
        """
        facts, settings = backend.facts, backend.facts.settings
        self._budget = settings.snapshot_budget
        self.pace = SnapshotPace(self._budget, settings.snapshot_cost_seconds, settings.failures)
        self._write_seconds = 0.0
        self._thread_seconds = 0.0
        self._capture_seconds = 0.0
        self._backend = backend
        self._options = options
        self._start = facts.store.start_record
        self._page = facts.memory.page.values
        self._registry = registry
        self._layout_watch = layout_watch
        self._first_batch = first_batch
        self._watched_sizes: list[int] = []
        self._snapshotter = self._make_snapshotter(facts.memory.slots)
        self._writes: list[Future[Checkpoint]] = []
        self.has_proved_loadable = False
        self._reported_ns = 0
        for snapshot, written in facts.memory.writes_under_way:
            self._add_write(snapshot.slot, written)

    def _make_snapshotter(self, slots: Slots) -> Snapshotter:
        return Snapshotter(slots)

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

    def snapshot(self, saved: StateToSave, capture_seconds: float) -> None:
        """Keep the state in memory, if that is possible now.

        To capture it has cost ``capture_seconds``, which counts towards the pace: a long list takes
        its time.

        Raises:
            UnstorableError: At the first save, a value has no form that can be loaded safely.
        """
        self.prove_loadable(saved.state)
        self._capture_seconds = capture_seconds
        self._take(saved, Reason.PERIODIC, None)
        if self._snapshotter.sizes != self._watched_sizes:
            self._watch_layout(saved)

    def _watch_layout(self, saved: StateToSave) -> None:
        self._watched_sizes = self._snapshotter.sizes
        if self._layout_watch is not None:
            self._layout_watch.check(saved.state, int(saved.state["step"]))

    def save(
        self, saved: StateToSave, reason: Reason, deadline: float | None = None
    ) -> Future[Checkpoint] | None:
        """Begin to make a checkpoint of the state; None where that is not possible now.

        With a ``deadline`` (time.monotonic, in seconds) it waits until then for a free slot and
        for memory. The future gets the checkpoint once it is durable, or a CheckpointWriteError.

        Raises:
            UnstorableError: At the first save, a value has no form that can be loaded safely.
        """
        self.prove_loadable(saved.state)
        self._watch_layout(saved)
        written: Future[Checkpoint] = Future()
        if self._snapshotter.has_room:
            pending = self._take(saved, reason, deadline)
            if pending is not None and not _has_failed(pending):
                self._add_write(pending.slot, written)
                pending.done.add_done_callback(
                    functools.partial(self._write, saved=saved, reason=reason, written=written)
                )
                return written
            if self._snapshotter.has_room and deadline is None:
                return None
        self._save_blocking(saved.state, self._draft(saved, reason), written)
        self._writes.append(written)
        return written

    def prove_loadable(self, state: dict[str, Any]) -> None:
        """Save and load all but the elements of tensors, once, so that a refusal comes at once.

        Raises:
            UnstorableError: A value cannot be loaded safely; the error names its entry.
        """
        if not self.has_proved_loadable:
            _prove_loadable(state)
            self.has_proved_loadable = True

    def hurry(self) -> None:
        """Complete the snapshot under way as fast as possible: the loop waits for it."""
        self._snapshotter.hurry()

    def close(self) -> None:
        """Wait for the snapshot under way and give the memory back."""
        self._snapshotter.close()

    # --- by a snapshot -----------------------------------------------------------------------

    def _take(
        self, saved: StateToSave, reason: Reason, deadline: float | None
    ) -> PendingSnapshot | None:
        try:
            pending = self._snapshotter.take(self._content(saved, reason), deadline)
        except UnstorableError as error:
            if self._registry.plain.is_strict:
                raise _with_name(error, saved.state) from error
            self._snapshotter.take_simpler_way(error)
            return None
        if pending is not None:
            self._note_first_batch(saved.state, pending.slot)
            # The cost of this one's thread is not known yet; that of the last one is.
            self.pace.record(self._capture_seconds + pending.stall_seconds + self._thread_seconds)
            pending.done.add_done_callback(
                functools.partial(self._report_snapshot, pending=pending)
            )
        return pending

    def _content(self, saved: StateToSave, reason: Reason) -> SnapshotContent:
        return SnapshotContent(
            state=saved.state,
            draft=self._draft(saved, reason),
            parameters=self._registry.parameters(),
            of_optimizers=self._registry.storages_of_optimizers() if rng.cuda_in_use() else _NONE,
        )

    def _note_first_batch(self, state: dict[str, Any], slot: int) -> None:
        write = functools.partial(self._backend.facts.memory.slots.note_first_batch, slot)
        self._first_batch.note(int(state["epoch"]), state["data"], write)

    def _report_snapshot(self, done: Future[Snapshot], *, pending: PendingSnapshot) -> None:
        self._thread_seconds = pending.thread_seconds
        if done.exception() is not None:
            return  # the snapshotter has said so
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
                cost_seconds=self.pace.cost_seconds,
                saving_seconds=round(self._page[Field.SAVING_NS] / 1e9, 3),
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
        written.add_done_callback(
            functools.partial(self._record_write_seconds, began=time.monotonic())
        )
        self._backend.write(done.result(), reason, written)

    def _record_write_seconds(self, written: Future[Checkpoint], *, began: float) -> None:
        self._write_seconds = time.monotonic() - began

    # --- without one -------------------------------------------------------------------------

    def _save_blocking(
        self, state: dict[str, Any], draft: Manifest, written: Future[Checkpoint]
    ) -> None:
        def publish() -> Checkpoint:
            whole = replace(
                draft,
                healthy=draft.healthy and self._registry.is_finite(),
                digests=digest_parts(state) | draft.digests,
            )
            return publish_state(self._backend.facts.store, whole, save_to)

        def save_to(file: DigestingWriter) -> None:
            with without_warnings():
                torch.save(state, cast(IO[bytes], file))

        try:
            # A loader worker that dies during torch.save would make it raise.
            with sigchld_default():
                written.set_result(publish_and_report(self._backend, publish))
        except CheckpointWriteError as error:
            written.set_exception(error)
        except Exception as error:  # whatever torch.save raises must not end the loop
            if self._registry.plain.is_strict:
                raise UnstorableError("the state", describe_shortly(error)) from error
            failure = CheckpointWriteError(draft.step, OSError(errno.EIO, describe_shortly(error)))
            report_failure(self._backend, failure)
            written.set_exception(failure)

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
            classes=self._registry.classes(),
            doubts=saved.doubts,
            start=self._start,
            options=self._options.as_set,
        )


def _has_failed(pending: PendingSnapshot) -> bool:
    return pending.done.done() and pending.done.exception() is not None


def _prove_loadable(state: dict[str, Any]) -> None:
    """Save and load all but the elements of tensors, so that a refusal comes in the first minute.

    Raises:
        UnstorableError: A value cannot be loaded safely; the error names its entry.
    """
    for key, value in state.items():
        buffer = io.BytesIO()
        try:
            with without_warnings():
                torch.save(_without_elements(value), buffer)
                buffer.seek(0)
                torch.load(buffer, weights_only=True)
        except Exception as error:  # pickle lets through whatever an object's methods raise
            problem = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UnstorableError(key, problem) from error


def _with_name(error: UnstorableError, state: dict[str, Any]) -> UnstorableError:
    """Return the error with the name of the first entry that torch.save refuses by itself."""
    for key, value in state.items():
        try:
            lay_out(freeze(value))
        except UnstorableError as its_own:
            return UnstorableError(key, its_own.problem)
        except InexpressibleError:
            continue
    return error


def _without_elements(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return _specimen(value.dtype) if is_plain(value) else None
    if isinstance(value, dict):
        return {key: _without_elements(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return type(value)(_without_elements(item) for item in value)
    return value


@functools.cache
def _specimen(dtype: torch.dtype) -> torch.Tensor:
    """Return the same empty tensor for each call with the same dtype."""
    return torch.empty(0, dtype=dtype)
