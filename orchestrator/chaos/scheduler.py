"""`orchestrator run` as a scheduler starts it: again after each end that says so."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from orchestrator.breakpoints import VARIABLE
from orchestrator.exitcodes import ExitStatus
from orchestrator.ipc.messages import (
    ATTEMPT_VARIABLE,
    RESUME_VARIABLE,
    RUN_DIR_VARIABLE,
    SOCKET_VARIABLE,
)
from orchestrator.rundir.lock import lock_owner
from orchestrator.rundir.paths import RunDir
from orchestrator.system import process_tree
from orchestrator.system.stop_signals import MERGE_SECONDS

AGAIN = frozenset({ExitStatus.STOPPED_SAVED, ExitStatus.STOPPED_UNSAVED})
# Of a run around chaos.
FOREIGN = (ATTEMPT_VARIABLE, RESUME_VARIABLE, RUN_DIR_VARIABLE, SOCKET_VARIABLE)
# As many failures as there may be faults.
MOST_RESTARTS = "1000000"
STOPS = 3
END_SECONDS = 20.0
POLL_SECONDS = 0.02


class RunLostError(Exception):
    """The run did not come to its end."""


class Scheduler:
    """Starts the supervisor of one run, and starts it again."""

    def __init__(self, command: list[str], root: Path, options: list[str]) -> None:
        """``root`` is the trial's directory: the breakpoints are there, and the run below it."""
        self.run = RunDir(root / "run")
        self.trainer_pid: int | None = None
        self.is_complete = False
        self._log_file = root / "supervisor.log"
        self._words = [
            *(sys.executable, "-P", "-m", "orchestrator", "run", "--run-dir", str(self.run.root)),
            *("--max-restarts", MOST_RESTARTS, *options, "--", *command),
        ]
        self._environment = {k: v for k, v in os.environ.items() if k not in FOREIGN}
        self._environment[VARIABLE] = str(root)
        self._start()

    def _start(self) -> None:
        self._expected: set[int] = {*AGAIN}
        with open(self._log_file, "ab") as log:
            # A terminal's Ctrl-C is for chaos, which ends its runs in its own way.
            self.process = subprocess.Popen(
                self._words,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def look(self) -> None:
        """See whether the supervisor has ended, and start it again where a scheduler would.

        Raises RunLostError.
        """
        if self.is_complete or (status := self.process.poll()) is None:
            return
        # Killed while only its last message was missing, training is complete all the same.
        done = status == ExitStatus.GAVE_UP and self.run.done_file.exists()
        if status == ExitStatus.COMPLETE:
            self.is_complete = True
        elif status in self._expected or done:
            if lock_owner(self.run) is None:
                self._start()
        else:
            raise RunLostError(f"`orchestrator run` ended with {status}: {self.last_line()}")

    @property
    def is_down(self) -> bool:
        """Whether neither the supervisor nor its trainer is there."""
        return self.process.poll() is not None and lock_owner(self.run) is None

    # --- what can be done to it ----------------------------------------------------------------

    def kill_trainer(self) -> None:
        """SIGKILL to the process that the session is in."""
        assert self.trainer_pid is not None
        _signal(self.trainer_pid, signal.SIGKILL)

    def kill_supervisor(self) -> None:
        """SIGKILL to `orchestrator run`."""
        self._expected.add(-signal.SIGKILL)
        self.process.kill()

    def stop(self) -> None:
        """SIGTERM to `orchestrator run` alone."""
        self._expect_sigterm()
        self.process.send_signal(signal.SIGTERM)

    def stop_everybody(self) -> None:
        """SIGTERM to all its processes, the lowest first."""
        self._expect_sigterm()
        for pid in reversed(_tree(self.process.pid)):
            _signal(pid, signal.SIGTERM)

    def _expect_sigterm(self) -> None:
        # Before it listens, and when all is done, it ends it as it ends any process.
        self._expected.add(-signal.SIGTERM)

    # --- the end -------------------------------------------------------------------------------

    def end(self) -> None:
        """End all of it, whatever it is doing, with every process below it."""
        deadline = time.monotonic() + END_SECONDS
        for _ in range(STOPS):
            if self.process.poll() is None:
                self.stop()
                _wait(lambda: self.process.poll() is not None, 2 * MERGE_SECONDS)
        while not self.is_down and time.monotonic() < deadline:
            if self.process.poll() is not None and self.trainer_pid is not None:
                _signal(self.trainer_pid, signal.SIGKILL)  # an orphan, if it is one
            time.sleep(POLL_SECONDS)
        tree = _tree(self.process.pid) if self.process.poll() is None else []
        for pid in tree:
            _signal(pid, signal.SIGKILL)
        self.process.wait()

    def last_line(self) -> str:
        """What the supervisor printed last."""
        lines = self._log_file.read_text(errors="replace").splitlines()
        return next((line for line in reversed(lines) if line.strip()), "it printed nothing")


def _tree(pid: int) -> list[int]:
    """A process and all below it, parents first."""
    found = [pid]
    for one in found:
        found += process_tree.children_of(one)
    return found


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _wait(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
