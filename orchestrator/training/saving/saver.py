"""Brings the state of a session into checkpoints."""

import errno
import io
import time
from concurrent.futures import Future
from dataclasses import replace
from typing import IO, Any, cast

import torch

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.manifest import Manifest, Reason
from orchestrator.errors import CheckpointWriteError, UnstorableError
from orchestrator.rundir.journal import utc_now
from orchestrator.snapshot.slots import Snapshot
from orchestrator.training.data.position import digest_of_next
from orchestrator.training.exits import print_message
from orchestrator.training.loop.loop_state import StateToSave
from orchestrator.training.loop.snapshot_pace import SnapshotPace
from orchestrator.training.runtime.backend import RunBackend
from orchestrator.training.runtime.local_writer import publish_here
from orchestrator.training.runtime.worker_signals import sigchld_default
from orchestrator.training.saving.snapshotter import Content, PendingSnapshot, Snapshotter
from orchestrator.training.state import rng
from orchestrator.training.state.digests import digest_parts
from orchestrator.training.state.registry import Registry
from orchestrator.training.state.versions import VERSIONS

SHOW_SNAPSHOTS_NS = 1_000_000_000
_NONE: frozenset[int] = frozenset()


class Saver:
    """Brings the state of a session into checkpoints.

    By way of a snapshot in memory, which somebody else writes to disk; where there is no room for
    one, with a torch.save for which the loop waits.
    """

    def __init__(self, home: RunBackend, registry: Registry) -> None:
        self.pace = SnapshotPace(home.snapshot_budget, home.snapshot_interval)
        self._write_seconds = 0.0
        self._thread_seconds = 0.0
        self._home = home
        self._registry = registry
        self._snapshotter = Snapshotter(home.slots)
        self._writing: list[Future[Checkpoint]] = []
        self._proved_loadable = False
        self._shown_ns = 0
        for snapshot, written in home.writes_under_way():
            self._snapshotter.hold(snapshot.slot, written)
            self._writing.append(written)

    @property
    def can_save(self) -> bool:
        """Whether a checkpoint can begin to be made now: one is written at a time."""
        ready = not self._snapshotter.has_room or self._snapshotter.is_ready
        return ready and all(written.done() for written in self._writing)

    def is_snapshot_due(self, now_ns: int) -> bool:
        """Whether it is time for a snapshot, and one could be taken now without a wait."""
        due = now_ns >= self.pace.next_ns and self._snapshotter.has_room
        return due and self._snapshotter.is_ready

    @property
    def least_interval_seconds(self) -> float:
        """How much time to leave between checkpoints, so that writing stays within the budget."""
        budget = self._home.snapshot_budget
        return 0.0 if budget is None else self._write_seconds / budget

    def ended(self) -> Future[Checkpoint] | None:
        """A write that has ended, told once; None while there is none."""
        for written in self._writing:
            if written.done():
                self._writing.remove(written)
                return written
        return None

    def snapshot(self, saved: StateToSave) -> None:
        """Keep the state in memory, if that is possible now."""
        self._take(saved, Reason.PERIODIC, None)

    def save(
        self, saved: StateToSave, reason: Reason, deadline: float | None = None
    ) -> Future[Checkpoint] | None:
        """Have the state become a checkpoint; None where that cannot begin now.

        With a ``deadline`` (time.monotonic) it waits for what stands in the way. The future fails
        with CheckpointWriteError. Raises UnstorableError at the first save.
        """
        if not self._proved_loadable:
            _prove_loadable(saved.state)
            self._proved_loadable = True
        if self._snapshotter.has_room:
            written: Future[Checkpoint] = Future()
            taking, step = self._take(saved, reason, deadline), int(saved.state["step"])
            if taking is not None:
                self._snapshotter.hold(taking.slot, written)
                self._writing.append(written)
                taking.done.add_done_callback(lambda done: self._write(done, step, reason, written))
                return written
            if self._snapshotter.has_room and deadline is None:
                return None
        made = self._save_blocking(saved.state, self._draft(saved, reason))
        self._writing.append(made)
        return made

    def close(self) -> None:
        """Wait for the snapshot under way and give the memory back."""
        self._snapshotter.close()

    def _take(
        self, saved: StateToSave, reason: Reason, deadline: float | None
    ) -> PendingSnapshot | None:
        content = Content(
            state=saved.state,
            draft=self._draft(saved, reason),
            parameters=self._registry.parameters(),
            of_optimizers=self._registry.storages_of_optimizers() if rng.cuda_in_use() else _NONE,
        )
        taking = self._snapshotter.take(content, deadline)
        if taking is not None:
            # The thread's part of this one is not known yet; the last one's is.
            self.pace.took(taking.stall_seconds + self._thread_seconds)
            taking.done.add_done_callback(lambda done: self._took(done, taking))
        return taking

    def _took(self, done: Future[Snapshot], taking: PendingSnapshot) -> None:
        self._thread_seconds = taking.thread_seconds
        if done.exception() is not None:
            print_message(f"cannot take a snapshot: {done.exception()}")
            return
        now = time.monotonic_ns()
        if now >= self._shown_ns:
            self._shown_ns = now + SHOW_SNAPSHOTS_NS
            self._home.took(
                done.result(),
                stall_seconds=round(taking.stall_seconds, 6),
                thread_seconds=round(taking.thread_seconds, 6),
                interval_seconds=self.pace.interval_seconds,
            )

    def _write(
        self, done: Future[Snapshot], step: int, reason: Reason, written: Future[Checkpoint]
    ) -> None:
        if (error := done.exception()) is not None:
            written.set_exception(CheckpointWriteError(step, OSError(errno.EIO, str(error))))
            return
        began = time.monotonic()

        def settle(result: Future[Checkpoint]) -> None:
            self._write_seconds = time.monotonic() - began
            if (problem := result.exception()) is not None:
                written.set_exception(problem)
            else:
                written.set_result(result.result())

        self._home.write(done.result(), reason).add_done_callback(settle)

    def _save_blocking(self, state: dict[str, Any], draft: Manifest) -> Future[Checkpoint]:
        saved: Future[Checkpoint] = Future()
        draft = replace(
            draft,
            healthy=draft.healthy and self._registry.is_finite(),
            digests=digest_parts(state) | draft.digests,
        )
        try:
            # A loader worker that dies during torch.save would make it raise.
            with sigchld_default():
                checkpoint = publish_here(
                    self._home,
                    lambda: self._home.store.publish(
                        draft, lambda file: torch.save(state, cast(IO[bytes], file))
                    ),
                )
        except CheckpointWriteError as error:
            saved.set_exception(error)
        else:
            saved.set_result(checkpoint)
        return saved

    def _draft(self, saved: StateToSave, reason: Reason) -> Manifest:
        return Manifest(
            run_id=self._home.store.run_id,
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
        )


def _prove_loadable(state: dict[str, Any]) -> None:
    """Save and load everything but the tensors, so that a refusal comes in the first minute.

    Raises UnstorableError that names the entry.
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
