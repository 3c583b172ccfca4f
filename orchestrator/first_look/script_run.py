"""Runs the script for a look, and ends it with everything that it has started."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.errors import ConfigError
from orchestrator.ipc.messages import RESUME_VARIABLE
from orchestrator.system import process_tree

POLL_SECONDS = 0.05
KILL_SECONDS = 10.0


@dataclass(frozen=True)
class ScriptEnd:
    """How the script ended: with ``status``, negative for a signal.

    ``asked_seconds`` is how long it took to end after it was asked; None if it was not asked.
    """

    status: int
    asked_seconds: float | None = None
    was_killed: bool = False


class ScriptRun:
    """A command that runs in a session of its own, so that Ctrl-C reaches only this process."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        output: int,
        stdin: int | None = None,
        inherited: Sequence[int] = (),
        variables: dict[str, str] | None = None,
    ) -> None:
        """Start it; it writes to the descriptor ``output``. Raises ConfigError if it cannot run."""
        process_tree.become_subreaper()
        self._earlier = set(process_tree.children_of(os.getpid()))
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(variables or {})}
        environment.pop(RESUME_VARIABLE, None)
        try:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=stdin,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=inherited,
            )
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot run {command[0]}: {error}") from None

    @property
    def has_ended(self) -> bool:
        """Whether the command itself has ended."""
        return self._process.poll() is not None

    def wait(self, seconds: float) -> bool:
        """Wait for the end of the command, and return whether it has ended in this time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self.has_ended

    def end(
        self, grace_seconds: float, stop_signal: signal.Signals, is_hurried: Callable[[], bool]
    ) -> ScriptEnd:
        """End the command, if it has not ended, and then everything that it has left behind.

        It gets the stop signal, and is killed after the grace period or when ``is_hurried``.
        """
        began, was_asked = time.monotonic(), not self.has_ended
        if was_asked:
            with contextlib.suppress(OSError):  # it is root's, as sudo is
                self._process.send_signal(stop_signal)
        while not (self.has_ended or is_hurried() or time.monotonic() - began > grace_seconds):
            time.sleep(POLL_SECONDS)
        seconds = time.monotonic() - began
        was_killed = not self.has_ended
        process_tree.kill_all_descendants(KILL_SECONDS, self._earlier)
        # One that waits for a disk or a device ends after that.
        status = self._process.returncode if self.wait(KILL_SECONDS) else -signal.SIGKILL
        process_tree.reap_children(self._earlier)
        return ScriptEnd(status, seconds if was_asked else None, was_killed)
