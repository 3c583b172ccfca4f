"""Runs short external commands (scontrol, user hooks) without blocking the event loop."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.errors import NoThreadError
from orchestrator.system.threads import in_thread

# How long to read what a killed command has left in its pipes.
PIPES_SECONDS = 1.0


@dataclass(frozen=True)
class CommandResult:
    """The result of a command; ``status`` is None if it did not start or took too long.

    ``output`` is its standard output, ``problem`` its standard error or why it has no status.
    """

    status: int | None
    output: str = ""
    problem: str = ""


class SubprocessRunner:
    """Runs commands in threads.

    ``running`` contains the ids of their processes. They are children of this process but not part
    of the training, and no other code may reap them.
    """

    def __init__(self) -> None:
        self.running: set[int] = set()

    async def run(
        self, words: Sequence[str], timeout_seconds: float, variables: Mapping[str, str]
    ) -> CommandResult:
        """Run a command with ``variables`` added to the environment; kill it after the timeout."""
        try:
            # Started on the event loop's thread, so that it is in ``running`` before any reaping.
            process = subprocess.Popen(
                words,
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            return CommandResult(None, problem=f"cannot run {words[0]}: {error.strerror}")
        except ValueError as error:  # a NUL or a lone surrogate
            return CommandResult(None, problem=f"cannot run {words[0]}: {error}")
        self.running.add(process.pid)
        try:
            return await in_thread(lambda: _communicate(process, timeout_seconds))
        except NoThreadError as error:
            return CommandResult(None, problem=str(error))
        finally:
            _kill(process)
            self.running.discard(process.pid)


def _communicate(process: subprocess.Popen[str], timeout_seconds: float) -> CommandResult:
    try:
        output, problem = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        _kill(process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=PIPES_SECONDS)
        return CommandResult(None, problem=f"no answer within {timeout_seconds:g} s")
    return CommandResult(process.returncode, output, problem.strip())


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill the command's process group, unless the command has ended by itself."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
