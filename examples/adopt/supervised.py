"""Runs a program under the orchestrator, and reads what the run directory says."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import psutil

from orchestrator.rundir.paths import RunDir

DEADLINE_SECONDS = 240.0
BY_SAVES = "saves"
Progress = tuple[int, int]
T = TypeVar("T")


class TooLateError(Exception):
    """Something did not happen before its deadline."""


class Supervised:
    """One start of ``orchestrator run``, on a terminal of its own if that is wanted."""

    def __init__(
        self,
        directory: Path,
        words: list[str],
        environment: Mapping[str, str],
        terminal: bool = False,
    ) -> None:
        command = [sys.executable, "-m", "orchestrator", *words]
        self._log = (directory / "messages.txt").open("ab")
        if not terminal:
            self._process = subprocess.Popen(
                command,
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
            )
            self.pid = self._process.pid
            return
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            termios.tcsetwinsize(1, (50, 200))
            os.chdir(directory)
            os.execvpe(command[0], command, environment)
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        with contextlib.suppress(OSError):  # the end of a terminal
            while data := os.read(self._terminal, 65536):
                self._log.write(data)

    def signal(self, number: int) -> None:
        """Send a signal to the supervisor alone."""
        os.kill(self.pid, number)

    def press_ctrl_c(self) -> None:
        """Type Ctrl-C on the terminal."""
        os.write(self._terminal, b"\x03")

    def alive(self) -> bool:
        """Tell whether the supervisor still runs."""
        with contextlib.suppress(psutil.Error):
            return psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
        return False

    def end(self, seconds: float = DEADLINE_SECONDS) -> int:
        """Wait for the end, and return the exit status as a shell shows it."""
        wait_for(lambda: not self.alive(), "the end of the run", seconds)
        if hasattr(self, "_process"):
            status = self._process.wait()
        else:
            status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return 128 - status if status < 0 else status


def wait_for(condition: Callable[[], T], what: str, seconds: float = DEADLINE_SECONDS) -> T:
    """Return the first true value of a condition. Raises TooLateError after the deadline."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TooLateError(f"after {seconds:.0f} s still waiting for {what}")
        time.sleep(0.05)
    return value


def events(run: RunDir, *kinds: str) -> list[dict[str, Any]]:
    """Return the journal's events of some kinds."""
    if not run.journal_file.exists():
        return []
    lines = run.journal_file.read_text().splitlines(keepends=True)
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [record for record in records if record["event"] in kinds]


def progress_of(run: RunDir, attempt: int, expression: str) -> Progress | None:
    """Return the first and the last count that an attempt has printed; None if it printed none.

    ``saves`` as the expression takes the numbers in the names of the attempt's saves instead.
    """
    if expression == BY_SAVES:
        saves = [
            event for event in events(run, "checkpoint_published") if event["attempt"] == attempt
        ]
        names = [re.findall(r"\d+", Path(save["adopted"]).name) for save in saves]
        return (int(names[0][-1]), int(names[-1][-1])) if names else None
    counts = []
    for found in re.finditer(expression, output_of(run, attempt), re.MULTILINE):
        numbers = [int(group) for group in found.groups()]
        counts.append(numbers[0] if len(numbers) == 1 else numbers[0] * numbers[2] + numbers[1])
    return (counts[0], counts[-1]) if counts else None


def output_of(run: RunDir, attempt: int) -> str:
    """Return what an attempt has printed; empty where there is nothing yet."""
    file = run.attempt(attempt).output_file
    return file.read_text(errors="replace") if file.exists() else ""


def processes_of(run: RunDir) -> list[psutil.Process]:
    """Return the living processes that were started for a run."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            belongs = process.environ().get("ORCHESTRATOR_RUN_DIR") == str(run.root.absolute())
            if belongs and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def kill(processes: list[psutil.Process]) -> None:
    """Kill processes, those that have ended already aside."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
