"""One trainer process of an attempt: its control page, and what its session has reported."""

import asyncio
import contextlib
import os
import time
from typing import Any

from orchestrator.ipc.control_page import ControlPage, Field
from orchestrator.ipc.server import Peer
from orchestrator.rundir.paths import AttemptDir
from orchestrator.supervisor.attempt.memory_watch import MemoryWatch
from orchestrator.supervisor.attempt.output import Output, OutputTarget, open_output
from orchestrator.supervisor.attempt.trainer_process import TrainerProcess
from orchestrator.supervisor.checkpoints.snapshot_write_queue import SnapshotWriteQueue
from orchestrator.system.regular_files import NEW_DIRECTORY_MODE


class Rank:
    """A trainer process, from its control page to its end.

    ``number`` counts from 0.
    """

    def __init__(
        self,
        number: int,
        directory: AttemptDir,
        snapshots: SnapshotWriteQueue,
        printed_to: OutputTarget,
    ) -> None:
        """Prepare what it needs; ``begin`` follows when it has started. Raises OSError."""
        self.number = number
        self.directory = directory
        self._started = time.monotonic()
        self.peer: Peer | None = None
        """The session's connection, while it is open."""
        self.left = asyncio.Event()
        """Set when the session's connection has ended."""
        self.connected = False
        """Whether a session has ever been opened."""
        self.launch_seconds: float | None = None
        """How long it took from the start of the command to the session's opening."""
        self.session_pid: int | None = None
        self.refused_second_session = False
        """Whether the command tried to open a second session, beside the first or after it."""
        self.refusal: str | None = None
        """Why a session was refused, or why it refused to continue."""
        self.resumed = False
        self.rejected_snapshot = False
        """Whether the session could not load the snapshot."""
        self.reported_status: int | None = None
        """The exit status that the session has announced."""
        self.returncode: int | None = None
        self.metrics: dict[str, float | str] = {}
        self.snapshot_facts: dict[str, Any] = {}
        # A full disk costs the records of this attempt and not the training.
        with contextlib.suppress(OSError):
            directory.root.mkdir(NEW_DIRECTORY_MODE, parents=True, exist_ok=True)
        self.page, self._page_descriptor = ControlPage.create()
        self._slot_descriptors = snapshots.attach(self.page, number)
        if number == 0:
            self.output = open_output(directory.output_file, printed_to)
        else:
            self.output = Output(directory.output_file, printed_to.of_rank(number), os.pipe())

    def begin(self, process: TrainerProcess) -> None:
        """Record that the process has started."""
        self.process = process
        self.memory_watch = MemoryWatch(process.pid)

    def open_session(self, peer: Peer, pid: int | None) -> None:
        """Record that its session has connected, from the process ``pid``."""
        self.peer, self.connected = peer, True
        self.launch_seconds = time.monotonic() - self._started
        self.session_pid = pid

    def close_session(self) -> None:
        """Record that its session has left, or that its process has ended."""
        self.peer = None
        self.left.set()

    def close(self) -> None:
        """Close the descriptor of its page, after the end of its processes."""
        os.close(self._page_descriptor)

    @property
    def memory_descriptors(self) -> list[int]:
        """The control page, and the snapshot memory whose table it holds."""
        return [self._page_descriptor, *self._slot_descriptors]

    @property
    def step(self) -> int:
        """Completed steps, as the trainer last wrote them."""
        return self.page.values[Field.STEP]

    @property
    def totals(self) -> tuple[int | None, int | None]:
        """The steps and the epochs of the whole training, as the trainer last wrote them."""
        return self.page.total_steps, self.page.total_epochs

    @property
    def place(self) -> tuple[int, int]:
        """How far it has come, to be compared with other ranks: places, then safe points."""
        return self.page.values[Field.PLACES], self.page.values[Field.SAFE_POINTS]

    @property
    def reached_safe_point(self) -> bool:
        """Whether the trainer has reached a safe point."""
        return self.page.values[Field.SAFE_POINTS] > 0

    @property
    def is_over(self) -> bool:
        """Whether its command has ended and its session has left."""
        return self.returncode is not None and self.peer is None

    @property
    def first_pid(self) -> int:
        """The process that opened the session, or the command itself before that."""
        return self.session_pid or self.process.pid

    def error(self) -> dict[str, Any] | None:
        """Return the exception in error.json; None if another process wrote it."""
        error = self.directory.read_error()
        if error and self.session_pid and error.get("pid", self.session_pid) != self.session_pid:
            return None
        return error
