"""The trainer's connection to its supervisor, and what happens when the supervisor dies."""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Mapping
from typing import Any, Protocol

from orchestrator.errors import ConfigError
from orchestrator.exitcodes import ExitStatus
from orchestrator.ipc.control_page import ControlPage, Field
from orchestrator.ipc.invitation import INVITATION_VARIABLE, accept_invitation
from orchestrator.ipc.messages import (
    ATTEMPT_VARIABLE,
    DUMP_SIGNAL,
    SOCKET_VARIABLE,
    Connection,
    Message,
)
from orchestrator.rundir.paths import RunDir, real_parents_of
from orchestrator.snapshot.slots import SLOT_COUNT, Image, Slots
from orchestrator.system.regular_files import open_regular
from orchestrator.training.exits import print_message
from orchestrator.training.runtime.rank_link import World

CONNECT_SECONDS = 10.0
NO_AGREEMENT = (
    "the supervisor is dead, and without it several ranks cannot agree where to save: run the same "
    "command again to resume from the newest checkpoint"
)
COPY_BYTES = 1 << 16


class SupervisorListener(Protocol):
    """What is called in the connection's thread."""

    def on_message(self, message: Message) -> None:
        """Handle a message other than a stop, which the connection records itself."""

    def on_supervisor_death(self) -> None:
        """Handle the end of the connection, from which on nothing is answered any more."""


class SupervisorConnection:
    """The connection, and a thread that reads from it and notices its end.

    Attributes:
        welcome: The supervisor's first message: the run's settings.
        page: The control page of this attempt.
        slots: The snapshot memory.
        common: Of several ranks, the image of rank 0's part of the snapshot to resume from; None in
            rank 0, and where there is no snapshot.
        supervisor_died: Whether the connection has ended before the session.
    """

    def __init__(
        self, environment: Mapping[str, str], run_dir: RunDir, listener: SupervisorListener
    ) -> None:
        """Connect and receive the shared memory; ``listener`` is called from ``listen`` on.

        Raises:
            ConfigError: The supervisor cannot be reached, or refuses.
        """
        self._listener = listener
        self._attempt = int(environment.get(ATTEMPT_VARIABLE, "0"))
        self._world = World.of(environment)
        self._output_file = run_dir.attempt(self._attempt).rank(self._world.rank).output_file
        path = environment[SOCKET_VARIABLE]
        try:
            invited = accept_invitation(environment.get(INVITATION_VARIABLE), CONNECT_SECONDS)
            self._connection = Connection(path, CONNECT_SECONDS, invited)
            self._connection.send(
                {
                    "type": "hello",
                    "attempt": self._attempt,
                    "pid": os.getpid(),
                    "rank": int(environment.get("RANK") or "0"),
                    "world_size": int(environment.get("WORLD_SIZE") or "1"),
                }
            )
            welcome, descriptors = self._connection.receive_with_descriptors()
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"cannot reach the supervisor at {path}: {error}; it has ended, or "
                f"{SOCKET_VARIABLE} is left over: unset it to run without a supervisor"
            ) from None
        if welcome is None or welcome.get("type") != "welcome":
            reason = (welcome or {}).get("reason", "it closed the connection")
            raise ConfigError(f"cannot join the run: {reason}")
        self.welcome: Message = welcome
        self.page = ControlPage(descriptors[0])
        os.close(descriptors[0])
        memory, rest = descriptors[1 : SLOT_COUNT + 2], descriptors[SLOT_COUNT + 2 :]
        self.slots = Slots(self.page, memory)
        self._output, self._stacks, *common = rest
        self.common = Image(common[0], welcome["resume_bytes"]) if common else None
        self._connection.set_timeout(None)
        self._closed = threading.Event()
        self.supervisor_died = False

    def listen(self) -> None:
        """Begin to read messages, and to dump this process's stacks when the supervisor asks.

        The dump stays available when the session ends: a process that does not end then hangs too.
        """
        if signal.getsignal(DUMP_SIGNAL) == signal.SIG_DFL:
            faulthandler.register(DUMP_SIGNAL, file=self._stacks)
        threading.Thread(target=self._listen, name="supervisor", daemon=True).start()
        os.register_at_fork(after_in_child=self._close_in_child)

    def send(self, kind: str, **facts: Any) -> None:
        """Send a message; if the supervisor is gone, the listening thread handles that."""
        with contextlib.suppress(OSError):
            self._connection.send({"type": kind, **facts})

    def offer(self, kind: str, **facts: Any) -> None:
        """Send a message, unless too many are unread: the supervisor may be stopped."""
        with contextlib.suppress(OSError):
            self._connection.send_or_drop({"type": kind, **facts})

    def close(self) -> None:
        """End the session: from now on the end of the connection means nothing."""
        self._closed.set()
        self._connection.shut_down()

    def _listen(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while (message := self._connection.receive()) is not None:
                if message.get("type") == "stop":
                    self.page.values[Field.STOP_REQUEST] = 1
                else:
                    self._listener.on_message(message)
        if not self._closed.is_set():
            self._outlive_supervisor()

    def _outlive_supervisor(self) -> None:
        """Request a stop; end the process if the loop does not save and end within the grace."""
        self.supervisor_died = True
        self.page.values[Field.STOP_REQUEST] = 1
        self._keep_output()
        if self._world.size > 1:
            print_message(NO_AGREEMENT)
            os._exit(ExitStatus.STOPPED_UNSAVED)
        self._listener.on_supervisor_death()
        if not self._closed.wait(self.welcome["grace_seconds"]):
            os._exit(ExitStatus.STOPPED_UNSAVED)

    def _keep_output(self) -> None:
        """Redirect standard output and error from the orphaned pipe or terminal to the log."""
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            log = open_regular(
                self._output_file, flags, real_parents=real_parents_of(self._output_file)
            )
        except OSError:
            log = os.open(os.devnull, os.O_WRONLY)
        for file in (sys.__stdout__, sys.__stderr__):
            with contextlib.suppress(OSError, ValueError):  # the script may have closed it
                if file is not None and self._leads_to_output(file.fileno()):
                    os.dup2(log, file.fileno())
        threading.Thread(target=_drain, args=(self._output, log), daemon=True).start()

    def _leads_to_output(self, descriptor: int) -> bool:
        # The two ends of a pipe are one file, those of a pseudo-terminal are not.
        return os.isatty(descriptor) or os.path.sameopenfile(descriptor, self._output)

    def _close_in_child(self) -> None:
        # A forked child that kept the socket would hide this process's death from the supervisor.
        self._connection.close()


def _drain(output: int, log: int) -> None:
    """Move to the log what was written before the switch, and what child processes still write.

    A process may be blocked on the pipe, so that this continues when the disk takes nothing more.
    """
    with contextlib.suppress(OSError):
        while data := os.read(output, COPY_BYTES):
            with contextlib.suppress(OSError):
                os.write(log, data)
