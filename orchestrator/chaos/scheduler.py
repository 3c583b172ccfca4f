"""A scheduler for one run: starts `orchestrator run`, and again after each end that asks for it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

from orchestrator.breakpoints.trial_files import HISTORY_FILE, VARIABLE
from orchestrator.chaos.step_history import History
from orchestrator.exitcodes import ExitStatus
from orchestrator.ipc.invitation import INVITATION_VARIABLE
from orchestrator.ipc.messages import (
    ATTEMPT_VARIABLE,
    RESUME_PATHS_VARIABLE,
    RESUME_VARIABLE,
    RUN_DIR_VARIABLE,
    SOCKET_VARIABLE,
)
from orchestrator.rundir.lock import lock_owner
from orchestrator.rundir.paths import RunDir
from orchestrator.system import process_tree
from orchestrator.system.stop_signals import MERGE_SECONDS

RERUN_STATUSES = frozenset({ExitStatus.STOPPED_SAVED, ExitStatus.STOPPED_UNSAVED})
# The variables of a run in which chaos itself is started.
OUTER_VARIABLES = (
    ATTEMPT_VARIABLE,
    INVITATION_VARIABLE,
    RESUME_PATHS_VARIABLE,
    RESUME_VARIABLE,
    RUN_DIR_VARIABLE,
    SOCKET_VARIABLE,
)
# Faults must not use up the restarts.
MAX_RESTARTS = "1000000"
STOPS = 3
END_SECONDS = 20.0
POLL_SECONDS = 0.02


class RunLostError(Exception):
    """The run did not complete."""


class Scheduler:
    """Starts the supervisor of one run, again and again until the run is complete."""

    def __init__(self, run_arguments: list[str], root: Path) -> None:
        """Start the supervisor. ``root`` is the trial's directory, and the run is below it."""
        self.run = RunDir(root / "run")
        self.is_complete = False
        self._log_file = root / "supervisor.log"
        self._history_file = root / HISTORY_FILE
        self._arguments = [
            *(sys.executable, "-P", "-m", "orchestrator", "run", "--run-dir", str(self.run.root)),
            *("--max-restarts", MAX_RESTARTS, "--log-format", "text", *run_arguments),
        ]
        self._environment = {k: v for k, v in os.environ.items() if k not in OUTER_VARIABLES}
        self._environment[VARIABLE] = str(root)
        self._start()

    def _start(self) -> None:
        self._expected: set[int] = {*RERUN_STATUSES}
        with open(self._log_file, "ab") as log:
            # A terminal's Ctrl-C must reach chaos only, which ends its runs itself.
            self.process = subprocess.Popen(
                self._arguments,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def poll(self) -> None:
        """Start the supervisor again if it has ended with a status that asks for it.

        Raises RunLostError after any other end.
        """
        if self.is_complete or (status := self.process.poll()) is None:
            return
        # A trainer that is killed before its last message may have completed the training.
        done = status == ExitStatus.GAVE_UP and os.path.exists(self.run.done_file)
        if status == ExitStatus.COMPLETE:
            self.is_complete = True
        elif status in self._expected or done:
            if lock_owner(self.run) is None:
                self._start()
        else:
            raise RunLostError(f"`orchestrator run` ended with {status}: {self._last_message()}")

    @property
    def is_down(self) -> bool:
        """Whether both the supervisor and its trainer have ended."""
        return self.process.poll() is not None and lock_owner(self.run) is None

    # --- faults ---------------------------------------------------------------------------------

    def trainers(self) -> dict[int, int]:
        """Return the process that holds the session, or was started for it, of each rank."""
        return History.read(self._history_file).trainers

    def signal_trainers(self, number: signal.Signals, ranks: Collection[int]) -> None:
        """Send a signal to the trainers of these ranks."""
        trainers = self.trainers()
        for rank in ranks:
            _signal(trainers[rank], number)

    def kill_trainers(self) -> None:
        """Send SIGKILL to the trainers of all ranks."""
        for pid in self.trainers().values():
            _signal(pid, signal.SIGKILL)

    def kill_supervisor(self) -> None:
        """Send SIGKILL to `orchestrator run`."""
        self._expected.add(-signal.SIGKILL)
        self.process.kill()

    def stop(self) -> None:
        """Send SIGTERM to `orchestrator run` alone."""
        self._expect_sigterm()
        self.process.send_signal(signal.SIGTERM)

    def terminate_all(self) -> None:
        """Send SIGTERM to all of the run's processes, children first."""
        self._expect_sigterm()
        for pid in reversed(_tree(self.process.pid)):
            _signal(pid, signal.SIGTERM)

    def _expect_sigterm(self) -> None:
        # At its very start and end, the supervisor does not handle SIGTERM.
        self._expected.add(-signal.SIGTERM)

    # --- the end -------------------------------------------------------------------------------

    def end(self) -> None:
        """Stop the run, and kill what is left of it after 20 s, with every process below it."""
        deadline = time.monotonic() + END_SECONDS
        for _ in range(STOPS):
            if self.process.poll() is None:
                self.stop()
                _wait(lambda: self.process.poll() is not None, 2 * MERGE_SECONDS)
        while not self.is_down and time.monotonic() < deadline:
            if self.process.poll() is not None:
                self.kill_trainers()  # they may be orphans
            time.sleep(POLL_SECONDS)
        tree = _tree(self.process.pid) if self.process.poll() is None else []
        for pid in tree:
            _signal(pid, signal.SIGKILL)
        self.process.wait()

    def _last_message(self) -> str:
        """Return the supervisor's last message in one line, without the details below it."""
        lines = self._log_file.read_text(errors="replace").splitlines()
        heads = (line for line in reversed(lines) if line.strip() and not line.startswith(" "))
        return next(heads, "it printed nothing")


def _tree(pid: int) -> list[int]:
    """Return a process and all of its descendants, parents first."""
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
