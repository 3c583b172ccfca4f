"""The spare as the supervisor sees it: when there is one, and how it makes the next trainer."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import structlog

from orchestrator.spare.forked_process import TrainerProcess
from orchestrator.spare.process import Modules, SpareProcess
from orchestrator.spare.python_command import python_command
from orchestrator.system.memory import available_bytes, private_bytes

MEMORY_CHECK_SECONDS = 5.0
# With less than this left, the spare is the first to go.
LEAST_MEMORY_BYTES = 256 << 20
# What torch and its libraries take, and that again.
ROOM_BYTES = 1 << 30
# The imports of a cold start would take as long.
READY_WAIT_SECONDS = 60.0

OFF = "--no-spare"
NOT_PYTHON = "the command is not PYTHON script.py or PYTHON -m module"
OTHER_PROCESS = "the session is opened by another process than the command's own"
TOO_EARLY = "the trainer has not trained for long enough"
NO_MEMORY = "memory is short"
NEVER_READY = "the imports of the spare before did not end"
OUTDATED = "the script imports or sets other things now"


class SparePool:
    """Has at most one spare, from when a trainer is in its loop until the next one is needed."""

    def __init__(
        self,
        command: list[str],
        wanted: bool,
        is_stopping: Callable[[], bool],
        available: Callable[[], int] = available_bytes,
    ) -> None:
        """Without ``wanted`` there is never one; ``available`` is how much memory is left."""
        self._is_stopping = is_stopping
        self._available = available
        self._command = python_command(command)
        self._never = OFF if not wanted else NOT_PYTHON if self._command is None else None
        """Why there will be none as long as this supervisor lives."""
        self._reason = TOO_EARLY
        self._modules_file: Path | None = None
        self._spare: SpareProcess | None = None
        self._former: SpareProcess | None = None
        self._environment: Mapping[str, str] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._log = structlog.get_logger()

    def open(self, environment: Mapping[str, str]) -> None:
        """Begin; ``environment`` is what the trainers of all attempts have in common."""
        self._environment = environment
        if self._never is None:
            self._run(self._watch_memory())

    async def close(self) -> None:
        """End the spare with the run."""
        for task in self._tasks:
            task.cancel()
        if (spare := self._spare) is not None:
            await spare.end()
            spare.close()

    # --- what is known -----------------------------------------------------------------------

    @property
    def pid(self) -> int | None:
        """The process that waits."""
        return self._spare.process.pid if self._spare else None

    @property
    def waiting(self) -> set[int]:
        """The same as a set."""
        return set() if self.pid is None else {self.pid}

    @property
    def awaited(self) -> set[int]:
        """The processes that have somebody who reaps them: spares, and what they have forked."""
        return {
            pid
            for spare in (self._spare, self._former)
            if spare is not None
            for pid in (spare.process.pid, spare.trainer_pid)
            if pid is not None
        }

    def facts(self) -> dict[str, Any]:
        """The ``spare`` object of the status."""
        if (spare := self._spare) is None:
            return {"state": "none", "reason": self._never or self._reason, "bytes": None}
        state = "ready" if spare.is_ready else "importing"
        return {"state": state, "reason": None, "bytes": private_bytes(spare.process.pid)}

    # --- beside the trainer ------------------------------------------------------------------

    def trainer_has_loaded(self, modules_file: Path, by_command_itself: bool) -> None:
        """A trainer is in its loop, and has left the names of its modules."""
        if not by_command_itself:
            self._never = self._never or OTHER_PROCESS
        self._modules_file = modules_file
        spare = self._spare
        if (
            spare is not None
            and spare.is_ready
            and not spare.modules.suit(Modules.read(modules_file))
        ):
            spare.problem = OUTDATED
            self._run(spare.end())
        self._start()

    def trainer_has_ended(self) -> None:
        """From now on a spare that is missing would come too late."""
        self._modules_file = None

    def _start(self) -> None:
        if self._never or self._spare is not None or self._modules_file is None:
            return
        assert self._command is not None
        if self._available() < ROOM_BYTES:
            self._reason = NO_MEMORY
            return
        try:
            self._spare = SpareProcess(self._command, self._environment, self._modules_file)
        except OSError as error:
            self._reason = f"it cannot be started: {error.strerror}"
            return
        self._run(self._mind(self._spare))

    async def _mind(self, spare: SpareProcess) -> None:
        await spare.converse()
        if spare.is_trainer:
            # Not before: the loop goes on watching a descriptor that is closed under it, and would
            # miss what comes on the connection that gets its number next.
            spare.close()
            return
        status = await spare.end()
        if self._spare is spare:
            self._spare = None
        self._reason = spare.why_it_ended(status)
        if status is not None and status >= 0 and spare.problem_lasts:
            # The next one would end in the same way.
            self._never = self._reason
        spare.close()
        if spare.problem == OUTDATED:
            self._start()
        elif not self._is_stopping():  # a scheduler's stop, sent to everybody, ends it too
            self._log.warning(
                "there is no spare: the next trainer starts cold", reason=self._reason
            )

    async def _watch_memory(self) -> None:
        while True:
            await asyncio.sleep(MEMORY_CHECK_SECONDS)
            if self._spare is not None and self._available() < LEAST_MEMORY_BYTES:
                self._spare.problem = NO_MEMORY
                await self._spare.end()
            elif self._reason == NO_MEMORY:
                self._start()

    def _run(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- when a trainer is needed ------------------------------------------------------------

    async def settle(self) -> None:
        """Wait until the spare, if there is one, has imported everything."""
        if self._spare is not None:
            await asyncio.wait({self._spare.ready}, timeout=READY_WAIT_SECONDS)

    async def make_trainer(
        self, variables: Mapping[str, str], output: int, lock: int
    ) -> TrainerProcess | None:
        """What runs the command now: a fork of the spare, or the spare; None: start it cold."""
        spare, self._reason = self._spare, TOO_EARLY
        if spare is None:
            return None
        # Until it has answered it is no spare, which would be ended when memory is short.
        self._spare, self._former = None, spare
        if not spare.ready.done():
            # The next one would have every restart wait for as long.
            self._never = NEVER_READY
        process = await spare.make_trainer(variables, output, lock) if spare.is_ready else None
        if process is None:
            await spare.end()
        elif not (spare.is_trainer or spare.is_over):
            self._spare = spare
        return process
