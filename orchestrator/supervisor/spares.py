"""The spare as the supervisor sees it: when there is one, and how it makes the next trainer."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import structlog

from orchestrator import spare
from orchestrator.capabilities import Capability, has
from orchestrator.memory import available_bytes, private_bytes
from orchestrator.supervisor.child import ForkedProcess, TrainerProcess
from orchestrator.supervisor.python_command import PythonCommand, python_command
from orchestrator.supervisor.threads import in_thread
from orchestrator.wire import RECEIVE_BYTES, LineBuffer, Message, send_with_descriptors

MEMORY_CHECK_SECONDS = 5.0
# With less than this left, the spare is the first to go.
LEAST_MEMORY_BYTES = 256 << 20
# What torch and its libraries take, and that again.
ROOM_BYTES = 1 << 30
# The imports of a cold start would take as long.
READY_WAIT_SECONDS = 60.0
TAKE_OVER_SECONDS = 2.0
END_SECONDS = 5.0

OFF = "--no-spare"
NOT_PYTHON = "the command is not PYTHON script.py or PYTHON -m module"
OTHER_PROCESS = "the session is opened by another process than the command's own"
TOO_EARLY = "the trainer has not trained for long enough"
NO_MEMORY = "memory is short"
NEVER_READY = "the imports of the one before did not end"


class _Spare:
    """One process and the conversation with it."""

    def __init__(
        self, command: PythonCommand, environment: Mapping[str, str], modules_file: Path
    ) -> None:
        """Start it. Raises OSError."""
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[bool] = loop.create_future()
        self.problem: str | None = None
        self.problem_lasts = True
        self.is_over = False
        """Whether nothing more will be heard of it."""
        self._began: asyncio.Future[int | None] = loop.create_future()
        # What modules print while they are imported is of interest only if that fails.
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        self._connection, theirs = socket.socketpair()
        self._connection.setblocking(False)
        with theirs:
            self.process = subprocess.Popen(
                spare.command_line(command.python, theirs.fileno(), modules_file, command.words),
                env=dict(environment),
                stdout=self._output,
                stderr=self._output,
                start_new_session=True,
                pass_fds=(theirs.fileno(),),
            )

    @property
    def is_ready(self) -> bool:
        """Whether it has imported everything and lives."""
        return self.ready.done() and self.ready.result()

    @property
    def trainer_pid(self) -> int | None:
        """The trainer that it has forked last, or has become itself."""
        return self._began.result() if self._began.done() else None

    @property
    def is_trainer(self) -> bool:
        """Whether it is the trainer itself, and lets go of us."""
        return self.trainer_pid == self.process.pid

    async def converse(self) -> None:
        """Hear it until its end, or until it has become the trainer."""
        loop, buffer = asyncio.get_running_loop(), LineBuffer()
        with contextlib.suppress(OSError, ValueError):
            while data := await loop.sock_recv(self._connection, RECEIVE_BYTES):
                for message in buffer.feed(data):
                    self._hear(message)
        self.is_over = True
        if not self.ready.done():
            self.ready.set_result(False)
        if not self._began.done():
            self._began.set_result(None)

    def _hear(self, message: Message) -> None:
        match message.get("type"):
            case "ready" if not self.ready.done():
                self.ready.set_result(True)
            case "began" if not self._began.done():
                self._began.set_result(int(message["pid"]))
            case "began":  # too late: another one is the trainer
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(message["pid"]), signal.SIGKILL)
            case "refused":
                self.problem = str(message.get("reason"))
                self.problem_lasts = bool(message.get("lasts", True))

    async def make_trainer(
        self, variables: Mapping[str, str], output: int, lock: int
    ) -> TrainerProcess | None:
        """Hand it what differs from attempt to attempt; the process that begins with the script."""
        if self.trainer_pid is not None:
            self._began = asyncio.get_running_loop().create_future()
        message = {
            "type": "begin",
            "environment": variables,
            # Else the fork would be handed to somebody else.
            "may_fork": has(Capability.SUBREAPER),
        }
        try:
            send_with_descriptors(self._connection, message, (output, lock))
        except OSError:
            return None
        await asyncio.wait({self._began}, timeout=TAKE_OVER_SECONDS)
        if not self._began.done():
            self._began.set_result(None)  # it will be ended, even if it says it now
        if self.trainer_pid is None or self.is_trainer:
            return self.process if self.is_trainer else None
        return ForkedProcess(self.trainer_pid)

    async def end(self) -> int | None:
        """Kill it if it lives, and reap it; its exit status, negative for a signal."""
        self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            await in_thread(lambda: self.process.wait(END_SECONDS))
        return self.process.returncode

    def why_it_ended(self, status: int | None) -> str:
        """For people: its own words, or what it printed last."""
        if self.problem is not None:
            return self.problem
        if status is None or status < 0:
            return f"it was ended by {signal.Signals(-(status or -signal.SIGKILL)).name}"
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing said")
        return f"it ended with status {status}: {last}"

    def close(self) -> None:
        """Let go of our ends."""
        self._connection.close()
        self._output.close()


class SpareKeeper:
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
        self._spare: _Spare | None = None
        self._former: _Spare | None = None
        self._environment: Mapping[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
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
            self._spare = _Spare(self._command, self._environment, self._modules_file)
        except OSError as error:
            self._reason = f"it cannot be started: {error.strerror}"
            return
        self._run(self._mind(self._spare))

    async def _mind(self, spare: _Spare) -> None:
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
        if not self._is_stopping():  # a scheduler's stop, sent to everybody, ends it too
            self._log.warning(
                "there is no spare: the next trainer starts cold", reason=self._reason
            )
        spare.close()

    async def _watch_memory(self) -> None:
        while True:
            await asyncio.sleep(MEMORY_CHECK_SECONDS)
            if self._spare is not None and self._available() < LEAST_MEMORY_BYTES:
                self._spare.problem = NO_MEMORY
                await self._spare.end()
            elif self._reason == NO_MEMORY:
                self._start()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
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
