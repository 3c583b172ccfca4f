"""Writes to disk in this process: snapshots in threads, and what the loop waits for."""

import errno
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.manifest import Reason
from orchestrator.errors import CheckpointWriteError
from orchestrator.snapshot.slots import Snapshot
from orchestrator.snapshot.writer import Writer
from orchestrator.training.runtime.backend import Report, RunBackend

# A disk that takes longer than this for a checkpoint is taken for dead.
WRITE_WAIT_SECONDS = 1800.0


def report_failure(backend: RunBackend, error: CheckpointWriteError) -> None:
    """Report that this process could not write a checkpoint."""
    backend.report(Report.SAVE_FAILED, step=error.step, problem=str(error))


def publish_and_report(backend: RunBackend, publish: Callable[[], Checkpoint]) -> Checkpoint:
    """Publish a checkpoint while the loop waits, and report how that ended.

    Raises:
        CheckpointWriteError: The disk refused it; that is reported too.
    """
    began = time.monotonic()
    try:
        checkpoint = publish()
    except CheckpointWriteError as error:
        report_failure(backend, error)
        raise
    backend.record_publish(checkpoint, round(time.monotonic() - began, 3))
    return checkpoint


class LocalWriter:
    """Writes snapshots to disk, each in a thread; reports to the backend how that ended."""

    def __init__(self, backend: RunBackend) -> None:
        self._backend = backend
        self._writer = Writer(backend.facts.store)
        self._changing_threads = threading.Lock()
        self._threads: list[threading.Thread] = []

    def write(self, snapshot: Snapshot, reason: Reason, written: Future[Checkpoint]) -> None:
        """Begin to write; ``written`` gets the checkpoint, after it has been reported."""
        thread = threading.Thread(
            target=self._run, args=(snapshot, reason, written), name="writer", daemon=True
        )
        with self._changing_threads:
            try:
                thread.start()
            except RuntimeError as problem:  # the system allows no more threads
                error = CheckpointWriteError(
                    snapshot.manifest.step, OSError(errno.EAGAIN, str(problem))
                )
                report_failure(self._backend, error)
                written.set_exception(error)
                return
            self._threads = [t for t in self._threads if t.is_alive()] + [thread]

    def _run(self, snapshot: Snapshot, reason: Reason, written: Future[Checkpoint]) -> None:
        write = partial(self._writer.write, snapshot, reason)
        try:
            checkpoint = publish_and_report(self._backend, write)
        except BaseException as error:  # the loop may be waiting for it
            written.set_exception(error)
        else:
            written.set_result(checkpoint)

    def finish(self) -> None:
        """Wait for the writes under way; the end of the process would cut them off."""
        deadline = time.monotonic() + WRITE_WAIT_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
