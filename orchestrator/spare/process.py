"""A spare as a process: what it was started for, the conversation with it, its end."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from orchestrator.ipc.messages import RECEIVE_BYTES, LineBuffer, Message, send_with_descriptors
from orchestrator.spare import worker
from orchestrator.spare.forked_process import ForkedProcess, TrainerProcess
from orchestrator.spare.python_command import PythonCommand
from orchestrator.system.capabilities import Capability, has
from orchestrator.system.threads import in_thread

TAKE_OVER_SECONDS = 2.0
END_SECONDS = 5.0
# So many modules that a spare has not imported are worth another one.
MANY_MODULES = 50


@dataclass(frozen=True)
class Modules:
    """The content of a modules.json, or nothing where it cannot be read."""

    third_party: frozenset[str] = frozenset()
    own: frozenset[str] = frozenset()
    environment: tuple[tuple[str, str | None], ...] = ()

    @classmethod
    def read(cls, file: Path) -> Self:
        """What a trainer has written there."""
        try:
            content = json.loads(file.read_bytes())
            return cls(
                frozenset(content["third_party"]),
                frozenset(content["own"]),
                tuple(sorted(content["environment"].items())),
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return cls()

    def suit(self, later: Self) -> bool:
        """Whether a spare for these is one for a later trainer's too, whose script may differ."""
        return (
            self.environment == later.environment
            and not self.third_party & later.own
            and len(later.third_party - self.third_party) < MANY_MODULES
        )


class SpareProcess:
    """One process and the conversation with it."""

    def __init__(
        self, command: PythonCommand, environment: Mapping[str, str], modules_file: Path
    ) -> None:
        """Start it. Raises OSError."""
        loop = asyncio.get_running_loop()
        self.modules = Modules.read(modules_file)
        """What it was started for."""
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
                worker.command_line(command.python, theirs.fileno(), modules_file, command.words),
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
