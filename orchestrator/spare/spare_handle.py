"""A spare as the supervisor handles it: its start, its messages and its end."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from orchestrator.ipc.messages import RECEIVE_BYTES, LineBuffer, Message, send_with_descriptors
from orchestrator.rundir.paths import real_parents_of
from orchestrator.rundir.records import MAXIMUM_JSON_BYTES
from orchestrator.spare import spare_process
from orchestrator.spare.forked_process import ForkedProcess, ProcessHandle
from orchestrator.system.capabilities import Capability, is_available
from orchestrator.system.json_input import parse_object
from orchestrator.system.process_tree import descendants
from orchestrator.system.python_command import PythonCommand
from orchestrator.system.regular_files import read_regular
from orchestrator.system.threads import in_thread

END_SECONDS = 5.0
# A spare that lacks this many of a trainer's modules is replaced.
MANY_MODULES = 50


@dataclass(frozen=True)
class Modules:
    """The content of a modules.json; empty if the file cannot be read."""

    third_party: frozenset[str] = frozenset()
    own: frozenset[str] = frozenset()
    environment: tuple[tuple[str, str | None], ...] = ()

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read the file that a trainer has written."""
        try:
            content = parse_object(
                read_regular(file, MAXIMUM_JSON_BYTES, real_parents=real_parents_of(file))
            )
            return cls(
                frozenset(content["third_party"]),
                frozenset(content["own"]),
                tuple(sorted(content["environment"].items())),
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return cls()

    def cover(self, later: Self) -> bool:
        """Return whether a spare for these modules also suits a later version of the script."""
        return (
            self.environment == later.environment
            and not self.third_party & later.own
            and len(later.third_party - self.third_party) < MANY_MODULES
        )


class SpareHandle:
    """One spare process and the connection to it."""

    def __init__(
        self,
        command: PythonCommand,
        environment: Mapping[str, str],
        modules_file: Path,
        inherited: tuple[int, ...] = (),
    ) -> None:
        """Start it with ``inherited`` descriptors for its forks. Raises OSError."""
        loop = asyncio.get_running_loop()
        self.modules = Modules.read(modules_file)
        """The modules for which the spare was started."""
        self._begun = time.monotonic()
        self.ready: asyncio.Future[bool] = loop.create_future()
        self.problem: str | None = None
        self.problem_is_permanent = True
        self.is_disconnected = False
        """Whether no more messages can arrive."""
        self._began: asyncio.Future[int | None] = loop.create_future()
        self.trainer_pids: set[int] = set()
        """The trainers that it has forked for the attempt, or itself as one of them."""
        # The output of the imports is needed only if they fail.
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        self._connection, spare_end = socket.socketpair()
        self._connection.setblocking(False)
        with spare_end:
            self.process = subprocess.Popen(
                spare_process.command_line(
                    command.python, spare_end.fileno(), modules_file, command.words
                ),
                env=dict(environment),
                stdout=self._output,
                stderr=self._output,
                start_new_session=True,
                pass_fds=(spare_end.fileno(), *inherited),
            )

    @property
    def age_seconds(self) -> float:
        """The time since it was started."""
        return time.monotonic() - self._begun

    @property
    def is_ready(self) -> bool:
        """Whether the spare has imported all modules and is alive."""
        return self.ready.done() and self.ready.result()

    @property
    def trainer_pid(self) -> int | None:
        """The last trainer that the spare has forked, or itself if it has become the trainer."""
        return self._began.result() if self._began.done() else None

    @property
    def is_trainer(self) -> bool:
        """Whether the spare has itself become the trainer."""
        return self.trainer_pid == self.process.pid

    async def handle_messages(self) -> None:
        """Handle the messages of the spare until it ends or has become the trainer."""
        loop, buffer = asyncio.get_running_loop(), LineBuffer()
        with contextlib.suppress(OSError, ValueError):
            while data := await loop.sock_recv(self._connection, RECEIVE_BYTES):
                for message in buffer.feed(data):
                    self._handle(message)
        self.is_disconnected = True
        if not self.ready.done():
            self.ready.set_result(False)
        if not self._began.done():
            self._began.set_result(None)

    def _handle(self, message: Message) -> None:
        match message.get("type"):
            case "ready" if not self.ready.done():
                self.ready.set_result(True)
            case "began" if not self._is_own(message.get("pid")):
                pass  # the modules that it imports may write anything to its socket
            case "began" if not self._began.done():
                self.trainer_pids.add(message["pid"])
                self._began.set_result(message["pid"])
            case "began":  # after the timeout: another process is the trainer
                with contextlib.suppress(ProcessLookupError):
                    os.kill(message["pid"], signal.SIGKILL)
            case "refused":
                self.problem = str(message.get("reason"))
                self.problem_is_permanent = bool(message.get("lasts", True))

    def _is_own(self, pid: object) -> bool:
        """Return whether it is the pid of the spare or of another descendant of this process."""
        return type(pid) is int and pid > 1 and (pid == self.process.pid or pid in descendants())

    async def make_trainer(
        self, variables: Mapping[str, str], output: int, lock: int, timeout_seconds: float
    ) -> ProcessHandle | None:
        """Return the process that runs the script; None if the spare does not start it in time.

        ``variables``, ``output`` and ``lock`` are the attempt's environment variables and the
        descriptors of its output and of the run lock.
        """
        if self.trainer_pid is not None:
            self._began = asyncio.get_running_loop().create_future()
        message = {
            "type": "begin",
            "environment": variables,
            # Without a subreaper the fork would become the child of another process.
            "may_fork": is_available(Capability.SUBREAPER),
        }
        try:
            send_with_descriptors(self._connection, message, (output, lock))
        except OSError:
            return None
        await asyncio.wait({self._began}, timeout=timeout_seconds)
        if not self._began.done():
            self._began.set_result(None)  # a later announcement gets the trainer killed
        if self.trainer_pid is None or self.is_trainer:
            return self.process if self.is_trainer else None
        return ForkedProcess(self.trainer_pid)

    async def end(self) -> int | None:
        """Kill and reap the spare, and return its exit status, negative for a signal."""
        self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            await in_thread(lambda: self.process.wait(END_SECONDS))
        return self.process.returncode

    def exit_reason(self, status: int | None) -> str:
        """Return why the spare ended, for users: its own message, or its last line of output."""
        if self.problem is not None:
            return self.problem
        if status is None or status < 0:
            return f"it was killed by {signal.Signals(-(status or -signal.SIGKILL)).name}"
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
        return f"it ended with status {status}: {last}"

    def close(self) -> None:
        """Close this process's descriptors."""
        self._connection.close()
        self._output.close()
