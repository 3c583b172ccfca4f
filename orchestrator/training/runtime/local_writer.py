"""Writes to disk in this process: snapshots in threads, and what the loop waits for."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.manifest import Reason
from orchestrator.checkpoint.store import Store
from orchestrator.errors import CheckpointWriteError
from orchestrator.snapshot.slots import Snapshot
from orchestrator.snapshot.writer import Writer
from orchestrator.training.runtime.backend import RunBackend

# A disk that takes longer for a checkpoint than this is taken for dead.
WRITE_WAIT_SECONDS = 1800.0


def publish_here(home: RunBackend, publish: Callable[[], Checkpoint]) -> Checkpoint:
    """Publish while the loop waits, and report it. Raises CheckpointWriteError, reported too."""
    began = time.monotonic()
    try:
        checkpoint = publish()
    except CheckpointWriteError as error:
        home.failed(error)
        raise
    home.published(checkpoint, round(time.monotonic() - began, 3))
    return checkpoint


class OwnWriter:
    """The writes of this process, each in a thread of its own."""

    def __init__(
        self,
        store: Store,
        published: Callable[[Checkpoint, float], None],
        failed: Callable[[CheckpointWriteError], None],
    ) -> None:
        """``published`` and ``failed`` are told in the thread, before the one who waits for it."""
        self._writer = Writer(store)
        self._published = published
        self._failed = failed
        self._changing_threads = threading.Lock()
        self._threads: list[threading.Thread] = []

    def write(self, snapshot: Snapshot, reason: Reason, written: Future[Checkpoint]) -> None:
        """Begin to write; ``written`` gets the checkpoint."""
        thread = threading.Thread(
            target=self._run, args=(snapshot, reason, written), name="writer", daemon=True
        )
        with self._changing_threads:
            self._threads = [t for t in self._threads if t.is_alive()] + [thread]
            thread.start()

    def _run(self, snapshot: Snapshot, reason: Reason, written: Future[Checkpoint]) -> None:
        began = time.monotonic()
        try:
            checkpoint = self._writer.write(snapshot, reason)
        except CheckpointWriteError as error:
            self._failed(error)
            written.set_exception(error)
        except BaseException as error:  # whoever waits for it has to hear of anything
            written.set_exception(error)
        else:
            self._published(checkpoint, round(time.monotonic() - began, 3))
            written.set_result(checkpoint)

    def finish(self) -> None:
        """Wait for the writes under way; the end of the process would cut them off."""
        deadline = time.monotonic() + WRITE_WAIT_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
