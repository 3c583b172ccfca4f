"""`orchestrator attach`: shows the live output of a run on any terminal."""

import contextlib
import os
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import BinaryIO, NoReturn

from orchestrator.client import existing_run, status_of
from orchestrator.exitcodes import ExitStatus
from orchestrator.rundir.history_index import read_history
from orchestrator.rundir.lock import lock_owner
from orchestrator.rundir.paths import RunDir, real_parents_of
from orchestrator.system.regular_files import open_regular
from orchestrator.system.stop_signals import end_by_interrupt
from orchestrator.system.text import shown
from orchestrator.telemetry.status import exit_status_after
from orchestrator.terminal.logs import text_of
from orchestrator.terminal.rotating_file import older_path
from orchestrator.terminal.screen import Screen

POLL_SECONDS = 0.2
FIRST_LINES = 20
FIRST_BYTES = 1 << 14
READ_BYTES = 1 << 20
LONGEST_LINE_BYTES = 1 << 20
LAST_LINES_SECONDS = 5.0
SETTLED_NS = 2_000_000_000


def attach(arguments: Namespace) -> ExitStatus:
    """Follow a run's output until it ends; return its exit status. Ctrl-C leaves it running."""
    run = existing_run(arguments.run_dir)
    viewer = _Viewer()
    try:
        _follow(run, viewer)
    except KeyboardInterrupt:
        _detach(run, viewer)
    viewer.close()
    return exit_status_after(read_history(run))


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
    attempts = NewestAttempt(run)
    number = attempts.number()
    output = _tail_of(run, number)
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
        if (newest := attempts.number()) > number:
            _print_all(output, viewer)
            number = newest
            output = _tail_of(run, number)
            _print_all(output, viewer)
        for line in log.lines():
            viewer.print_log_line(line)
        if is_over:
            return
        time.sleep(POLL_SECONDS)


def _tail_of(run: RunDir, attempt: int) -> "Tail":
    file = run.attempt(attempt).output_file
    return Tail(file, real_parents_of(file))


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


class NewestAttempt:
    """Finds the newest attempt on disk, and lists the directory only when it has changed."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._listed_at: int | None = None
        self._number = 0

    def number(self) -> int:
        """Return the number of the newest attempt; 0 before the first."""
        with contextlib.suppress(OSError):
            changed_at = os.stat(self._run.attempts).st_mtime_ns
            if changed_at != self._listed_at:
                self._number = self._run.last_attempt()
                # A directory that has just changed may change again within one tick of its clock.
                settled = time.time_ns() - changed_at > SETTLED_NS
                self._listed_at = changed_at if settled else None
        return self._number


class Tail:
    """Reads what is appended to a log, which need not exist yet, and which may be rotated."""

    def __init__(self, path: Path, real_parents: int = 0) -> None:
        """None of the last ``real_parents`` directories above the file may be a link."""
        self._path = path
        self._real_parents = real_parents
        self._offset = 0
        self._inode: int | None = None
        self._rest = b""

    def last_lines(self, count: int) -> bytes:
        """Return the last lines of the file; ``read`` and ``lines`` continue after them."""
        try:
            with self._open(self._path) as file:
                self._inode = os.fstat(file.fileno()).st_ino
                self._offset = file.seek(0, 2)
                file.seek(max(0, self._offset - FIRST_BYTES))
                data = file.read(FIRST_BYTES)
        except OSError:
            return b""
        return b"".join(data.splitlines(keepends=True)[-count:])

    def read(self) -> bytes:
        """Return up to 1 MiB of new data; empty when there is none."""
        data = self._read_from(self._path)
        if data is None:
            # Rotated: what is left of the file that was followed comes first.
            data = self._read_from(older_path(self._path))
            if not data:
                self._inode, self._offset = None, 0
                data = self._read_from(self._path)
        return data or b""

    def _read_from(self, path: Path) -> bytes | None:
        """Return new data from the file that is followed; None if ``path`` is another file."""
        try:
            with self._open(path) as file:
                status = os.fstat(file.fileno())
                inode = status.st_ino
                # A number may be given again after a deletion.
                if self._inode not in (None, inode) or status.st_size < self._offset:
                    return None
                file.seek(self._offset)
                data = file.read(READ_BYTES)
        except OSError:
            return b""
        self._inode = inode
        self._offset += len(data)
        return data

    def _open(self, path: Path) -> BinaryIO:
        flags = os.O_RDONLY
        return open(open_regular(path, flags, real_parents=self._real_parents), "rb")

    def lines(self) -> list[str]:
        """Return the new complete lines; of a line that is too long only its end."""
        *lines, rest = (self._rest + self.read()).split(b"\n")
        self._rest = rest[-LONGEST_LINE_BYTES:]
        return [line.decode(errors="replace") for line in lines]


class _Viewer:
    """Shows a trainer's output on standard output, and the supervisor's log.

    The log goes to the same terminal, or else to standard error.
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
