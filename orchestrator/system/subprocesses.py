"""Other programs that are asked something while the run goes on: scontrol, a user's command."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.errors import NoThreadError
from orchestrator.system.threads import in_thread

PIPES_SECONDS = 1.0


@dataclass(frozen=True)
class Answer:
    """What a program has said; ``status`` is None where it could not be run or took too long."""

    status: int | None
    output: str = ""
    problem: str = ""


class SubprocessRunner:
    """Runs programs beside the event loop.

    ``running`` are their processes: children of ours, but no part of the training, and not to be
    collected by anybody else.
    """

    def __init__(self) -> None:
        self.running: set[int] = set()

    async def run(
        self, words: Sequence[str], timeout_seconds: float, variables: Mapping[str, str]
    ) -> Answer:
        """Run a program, at most so long, with ``variables`` added to the environment."""
        try:
            # On the loop's thread: nobody collects it before it is known to be running.
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
            return Answer(None, problem=f"cannot run {words[0]}: {error.strerror}")
        self.running.add(process.pid)
        try:
            return await in_thread(lambda: _listen(process, timeout_seconds))
        except NoThreadError as error:
            return Answer(None, problem=str(error))
        finally:
            _kill(process)
            self.running.discard(process.pid)


def _listen(process: subprocess.Popen[str], timeout_seconds: float) -> Answer:
    try:
        output, problem = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        _kill(process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=PIPES_SECONDS)
        return Answer(None, problem=f"no answer within {timeout_seconds:g} s")
    return Answer(process.returncode, output, problem.strip())


def _kill(process: subprocess.Popen[str]) -> None:
    """End it, and what it has started, unless it has ended by itself."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
