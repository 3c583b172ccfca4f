"""The pool of spares of a supervisor: when there is a spare, and how it provides a trainer."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from orchestrator.spare.forked_process import ProcessHandle
from orchestrator.spare.spare_handle import Modules, SpareHandle
from orchestrator.system.memory import available_bytes, private_bytes
from orchestrator.system.python_command import python_command

# With less available memory than this, the spare is ended.
LEAST_MEMORY_BYTES = 256 << 20
# Available memory that is needed to start a spare: twice what importing torch takes.
START_MEMORY_BYTES = 1 << 30

OFF = "--no-spare"
NOT_PYTHON = "the command is not PYTHON script.py or PYTHON -m module"
OTHER_PROCESS = "the session is opened by a child of the command"
TOO_EARLY = "the trainer has not trained for long enough"
NO_MEMORY = "memory is short"
NEVER_READY = "the imports of the previous spare did not end in time"
TOO_LATE = "it was not ready when the trainer was needed"
OUTDATED = "the script has changed what it imports or which variables it sets"


@dataclass(frozen=True)
class SparePoolTimings:
    """Intervals and timeouts of a pool, in seconds."""

    memory_check_seconds: float = 5.0
    ready_timeout_seconds: float = 60.0
    """How long to wait for a spare's imports, which take as long in a cold start."""
    take_over_timeout_seconds: float = 2.0
    """How long a spare may take to announce the trainer."""


class SparePool:
    """Holds at most one spare, started once a trainer trains, for the next trainer."""

    def __init__(
        self,
        command: list[str],
        is_enabled: bool,
        is_stopping: Callable[[], bool],
        available: Callable[[], int] = available_bytes,
        timings: SparePoolTimings | None = None,
    ) -> None:
        """Without ``is_enabled`` there is no spare; ``available`` returns the available bytes."""
        self._is_stopping = is_stopping
        self._available = available
        self._timings = timings or SparePoolTimings()
        self._command = python_command(command)
        self._never = OFF if not is_enabled else NOT_PYTHON if self._command is None else None
        """Why this supervisor starts no further spare."""
        self._reason = TOO_EARLY
        self._modules_file: Path | None = None
        self._spare: SpareHandle | None = None
        self._previous: SpareHandle | None = None
        self._environment: Mapping[str, str] = {}
        self._inherited: tuple[int, ...] = ()
        self._cold_start_seconds: float | None = None
        """How long a cold start takes until the session opens; None until one was seen."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._log = structlog.get_logger()

    def open(self, environment: Mapping[str, str], inherited: tuple[int, ...] = ()) -> None:
        """Start; all attempts have the variables and the descriptors in common."""
        self._environment = environment
        self._inherited = inherited
        if self._never is None:
            self._start_task(self._watch_memory())

    async def close(self) -> None:
        """End the spare."""
        for task in self._tasks:
            task.cancel()
        if (spare := self._spare) is not None:
            await spare.end()
            spare.close()

    # --- state -------------------------------------------------------------------------------

    @property
    def pid(self) -> int | None:
        """The process id of the spare; None without one."""
        return self._spare.process.pid if self._spare else None

    @property
    def spare_pids(self) -> set[int]:
        """``pid`` as a set, empty without a spare."""
        return set() if self.pid is None else {self.pid}

    @property
    def pids_with_waiter(self) -> set[int]:
        """The processes that other code reaps: spares, and the trainers that they forked."""
        return {
            pid
            for spare in (self._spare, self._previous)
            if spare is not None
            for pid in (spare.process.pid, *spare.trainer_pids)
        }

    def status(self) -> dict[str, Any]:
        """Return the ``spare`` object of the status."""
        if (spare := self._spare) is None:
            return {"state": "none", "reason": self._never or self._reason, "bytes": None}
        state = "ready" if spare.is_ready else "importing"
        return {"state": state, "reason": None, "bytes": private_bytes(spare.process.pid)}

    # --- while a trainer runs ----------------------------------------------------------------

    def on_trainer_modules(self, modules_file: Path, by_command_itself: bool) -> None:
        """Start or replace the spare after a trainer has written the names of its modules.

        ``by_command_itself`` is false when a child of the command opened the session: a spare,
        which runs the command, would not replace that child.
        """
        if not by_command_itself:
            self._never = self._never or OTHER_PROCESS
        self._modules_file = modules_file
        spare = self._spare
        if (
            spare is not None
            and spare.is_ready
            and not spare.modules.cover(Modules.read(modules_file))
        ):
            spare.problem = OUTDATED
            self._start_task(spare.end())
        self._start_spare()

    def on_cold_start(self, seconds: float) -> None:
        """Record how long the command took, without a spare, to open its session."""
        self._cold_start_seconds = seconds

    def on_trainer_exit(self) -> None:
        """Start no spare until the next trainer trains: a new one would be ready too late."""
        self._modules_file = None
        if self._spare is not None:
            self._spare.trainer_pids.clear()

    def _start_spare(self) -> None:
        if self._never or self._spare is not None or self._modules_file is None:
            return
        assert self._command is not None
        if self._available() < START_MEMORY_BYTES:
            self._reason = NO_MEMORY
            return
        try:
            self._spare = SpareHandle(
                self._command, self._environment, self._modules_file, self._inherited
            )
        except OSError as error:
            self._reason = f"it cannot be started: {error.strerror}"
            return
        self._start_task(self._serve(self._spare))

    async def _serve(self, spare: SpareHandle) -> None:
        await spare.handle_messages()
        if spare.is_trainer:
            # Closed only now: the event loop would keep watching a descriptor that is closed under
            # it, and then miss the data of the next connection with the same number.
            spare.close()
            return
        status = await spare.end()
        if self._spare is spare:
            self._spare = None
        self._reason = spare.exit_reason(status)
        if status is not None and status >= 0 and spare.problem_is_permanent:
            # The next spare would end in the same way.
            self._never = self._reason
        spare.close()
        if spare.problem == OUTDATED:
            self._start_spare()
        elif not self._is_stopping():  # a scheduler's stop signal to all processes ends it too
            self._log.warning(
                "there is no spare, so the next trainer starts cold", reason=self._reason
            )

    async def _watch_memory(self) -> None:
        while True:
            await asyncio.sleep(self._timings.memory_check_seconds)
            available = self._available()
            if self._spare is None and self._reason == NO_MEMORY:
                self._start_spare()
            elif self._spare is not None and available < LEAST_MEMORY_BYTES:
                self._spare.problem = NO_MEMORY
                await self._spare.end()

    def _start_task(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- when a trainer is needed ------------------------------------------------------------

    async def wait_until_ready(self) -> None:
        """Wait for the imports of the spare, if there is one, while a cold start would take longer.

        Its imports take about as long as a cold start, and have begun before it.
        """
        if self._spare is not None:
            seconds = self._timings.ready_timeout_seconds
            if self._cold_start_seconds is not None:
                left = self._cold_start_seconds - self._spare.age_seconds
                seconds = min(seconds, max(0.0, left))
            await asyncio.wait({self._spare.ready}, timeout=seconds)

    async def make_trainer(
        self, variables: Mapping[str, str], output: int, lock: int
    ) -> ProcessHandle | None:
        """Return a process that runs the command: a fork of the spare, or the spare itself.

        ``variables`` are the attempt's environment variables; ``output`` and ``lock`` are
        descriptors of its output and of the run lock. None means that the attempt starts cold.
        """
        spare, self._reason = self._spare, TOO_EARLY
        if spare is None:
            return None
        # Until it answers it does not count as a spare, so that short memory does not end it.
        self._spare, self._previous = None, spare
        if not spare.ready.done() and spare.age_seconds >= self._timings.ready_timeout_seconds:
            # With another spare every restart would wait this long.
            self._never = NEVER_READY
        process = None
        if spare.is_ready:
            timeout_seconds = self._timings.take_over_timeout_seconds
            process = await spare.make_trainer(variables, output, lock, timeout_seconds)
        if process is None:
            if not spare.is_disconnected:
                spare.problem = spare.problem or TOO_LATE
            await spare.end()
        elif not (spare.is_trainer or spare.is_disconnected):
            self._spare = spare
        return process
