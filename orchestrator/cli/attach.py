"""`orchestrator attach`: shows the live output of a run on any terminal."""

import os
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import NoReturn

from orchestrator.client import existing_run, status_of
from orchestrator.exitcodes import ExitStatus
from orchestrator.rundir.journal import Journal
from orchestrator.rundir.lock import lock_owner
from orchestrator.rundir.paths import RunDir
from orchestrator.system.regular_files import open_regular
from orchestrator.system.stop_signals import end_by_interrupt
from orchestrator.system.text import shown
from orchestrator.telemetry.status import exit_status_after
from orchestrator.terminal.logs import text_of
from orchestrator.terminal.screen import Screen

POLL_SECONDS = 0.2
FIRST_LINES = 20
FIRST_BYTES = 1 << 14
READ_BYTES = 1 << 20
LAST_LINES_SECONDS = 5.0


def attach(arguments: Namespace) -> ExitStatus:
    """Follow a run's output until it ends; return its exit status. Ctrl-C leaves it running."""
    run = existing_run(arguments.run_dir)
    viewer = _Viewer()
    try:
        _follow(run, viewer)
    except KeyboardInterrupt:
        _detach(run, viewer)
    viewer.close()
    events, _ = Journal(run.journal_file).read()
    return exit_status_after(events)


def _detach(run: RunDir, viewer: "_Viewer") -> NoReturn:
    if lock_owner(run) is not None:
        viewer.print_message(
            f"detached: training goes on; come back with `orchestrator attach {run.root}`, "
            f"save and stop it with `orchestrator stop {run.root}`"
        )
    viewer.close()
    # In `attach && upload`, a shell must not take this for the end of the training.
    end_by_interrupt()


def _follow(run: RunDir, viewer: "_Viewer") -> None:
    number = _newest_attempt(run)
    output = Tail(run.attempt(number).output_file)
    log = Tail(run.log_file)
    viewer.print_output(output.last_lines(FIRST_LINES))
    *_, last = ["", *log.last_lines(FIRST_LINES).decode(errors="replace").splitlines()]
    if lock_owner(run) is None:
        viewer.print_log_line(last)
    viewer.print_message(_headline(run))
    while True:
        # This comes first, so that what the run wrote before its end is read below.
        is_over = lock_owner(run) is None
        _print_all(output, viewer)
        if (newest := _newest_attempt(run)) > number:
            _print_all(output, viewer)
            number = newest
            output = Tail(run.attempt(number).output_file)
            _print_all(output, viewer)
        for line in log.lines():
            viewer.print_log_line(line)
        if is_over:
            return
        time.sleep(POLL_SECONDS)


def _print_all(output: "Tail", viewer: "_Viewer") -> None:
    while data := output.read():
        viewer.print_output(data)


def _headline(run: RunDir) -> str:
    status = status_of(run)
    at = "" if status["step"] is None else f", step {status['step']}"
    tail = "; Ctrl-C leaves it running" if status["supervisor_pid"] else ""
    if (failure := status["failure"]) is not None:
        tail = f"; {failure['cause']}; see `orchestrator status {run.root}`"
    return shown(f"{run.root}: {status['state']}{at}, attempt {status['attempt'] or 0}{tail}")


def _newest_attempt(run: RunDir) -> int:
    names = (path.name for path in run.attempts.glob("*"))
    return max((int(name) for name in names if name.isdecimal()), default=0)


class Tail:
    """Reads what is appended to a file, which need not exist yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = b""

    def last_lines(self, count: int) -> bytes:
        """Return the last lines of the file; ``read`` and ``lines`` continue after them."""
        try:
            with open(open_regular(self._path, os.O_RDONLY), "rb") as file:
                self._offset = file.seek(0, 2)
                file.seek(max(0, self._offset - FIRST_BYTES))
                data = file.read(FIRST_BYTES)
        except OSError:
            return b""
        return b"".join(data.splitlines(keepends=True)[-count:])

    def read(self) -> bytes:
        """Return up to 1 MiB of new data; empty when there is none."""
        try:
            with open(open_regular(self._path, os.O_RDONLY), "rb") as file:
                file.seek(self._offset)
                data = file.read(READ_BYTES)
        except OSError:
            return b""
        self._offset += len(data)
        return data

    def lines(self) -> list[str]:
        """Return the new complete lines."""
        *lines, self._rest = (self._rest + self.read()).split(b"\n")
        return [line.decode(errors="replace") for line in lines]


class _Viewer:
    """Shows a trainer's output on standard output, and the supervisor's log.

    The log go to the same terminal, or else to standard error.
    """

    def __init__(self) -> None:
        on_terminal = sys.stdout.isatty()
        # No process waits for this one, so a terminal that is paused with Ctrl-S loses nothing.
        self._screen = Screen(sys.stdout.fileno(), patience_seconds=None) if on_terminal else None
        self._on_terminal = on_terminal or sys.stderr.isatty()

    def print_output(self, data: bytes) -> None:
        """Print the trainer's output unchanged."""
        if self._screen is not None:
            self._screen.write(data)
        elif data:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()

    def print_log_line(self, line: str) -> None:
        """Print a line of the supervisor's log as text."""
        self.print_message(text_of(line, on_terminal=self._on_terminal))

    def print_message(self, text: str) -> None:
        """Print a message that does not come from the trainer."""
        if self._screen is not None:
            self._screen.print_message(text)
        elif text:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Write what is left, and leave the cursor on a fresh line."""
        if self._screen is not None:
            self._screen.close(LAST_LINES_SECONDS)
