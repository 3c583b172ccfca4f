"""`orchestrator attach`: what a run prints, live, on whatever terminal asks for it."""

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
from orchestrator.telemetry.status import exit_status_after
from orchestrator.terminal.logs import readable
from orchestrator.terminal.screen import Screen

POLL_SECONDS = 0.2
FIRST_LINES = 20
FIRST_BYTES = 1 << 14
READ_BYTES = 1 << 20
LAST_LINES_SECONDS = 5.0


def attach(arguments: Namespace) -> ExitStatus:
    """Follow a run's output until its end, and end with its status; Ctrl-C leaves it running."""
    place = existing_run(arguments.run_dir)
    viewer = _Viewer()
    try:
        _follow(place, viewer)
    except KeyboardInterrupt:
        _detach(place, viewer)
    viewer.close()
    events, _ = Journal(place.journal_file).read()
    return exit_status_after(events)


def _detach(place: RunDir, viewer: "_Viewer") -> NoReturn:
    if lock_owner(place) is not None:
        viewer.say(
            f"detached: training goes on; come back with `orchestrator attach {place.root}`, "
            f"end it with `orchestrator stop {place.root}`"
        )
    viewer.close()
    # A shell must not take this for the end of the training: `attach && upload`.
    end_by_interrupt()


def _follow(place: RunDir, viewer: "_Viewer") -> None:
    number = _newest_attempt(place)
    output = Tail(place.attempt(number).output_file)
    messages = Tail(place.log_file)
    viewer.show(output.last_lines(FIRST_LINES))
    *_, last = ["", *messages.last_lines(FIRST_LINES).decode(errors="replace").splitlines()]
    if lock_owner(place) is None:
        viewer.tell(last)
    viewer.say(_headline(place))
    while True:
        # Asked first: what it has written before its end is then read below.
        is_over = lock_owner(place) is None
        _show_all(output, viewer)
        if (newest := _newest_attempt(place)) > number:
            _show_all(output, viewer)
            number = newest
            output = Tail(place.attempt(number).output_file)
            _show_all(output, viewer)
        for line in messages.lines():
            viewer.tell(line)
        if is_over:
            return
        time.sleep(POLL_SECONDS)


def _show_all(output: "Tail", viewer: "_Viewer") -> None:
    while data := output.read():
        viewer.show(data)


def _headline(place: RunDir) -> str:
    status = status_of(place)
    at = "" if status["step"] is None else f", step {status['step']}"
    tail = "; Ctrl-C leaves it running" if status["supervisor_pid"] else ""
    return f"{place.root}: {status['state']}{at}, attempt {status['attempt'] or 0}{tail}"


def _newest_attempt(place: RunDir) -> int:
    names = (path.name for path in place.attempts.glob("*"))
    return max((int(name) for name in names if name.isdecimal()), default=0)


class Tail:
    """What is appended to a file, which may not be there yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = b""

    def last_lines(self, count: int) -> bytes:
        """The end of what is there now; ``read`` and ``lines`` go on from here."""
        try:
            with open(open_regular(self._path, os.O_RDONLY), "rb") as file:
                self._offset = file.seek(0, 2)
                file.seek(max(0, self._offset - FIRST_BYTES))
                data = file.read(FIRST_BYTES)
        except OSError:
            return b""
        return b"".join(data.splitlines(keepends=True)[-count:])

    def read(self) -> bytes:
        """What is new, in pieces of bounded size; empty when there is nothing."""
        try:
            with open(open_regular(self._path, os.O_RDONLY), "rb") as file:
                file.seek(self._offset)
                data = file.read(READ_BYTES)
        except OSError:
            return b""
        self._offset += len(data)
        return data

    def lines(self) -> list[str]:
        """The new lines that are complete."""
        *lines, self._rest = (self._rest + self.read()).split(b"\n")
        return [line.decode(errors="replace") for line in lines]


class _Viewer:
    """The trainer's output on standard output; words of the supervisor on a terminal, or error."""

    def __init__(self) -> None:
        on_terminal = sys.stdout.isatty()
        # Nobody waits for us: a terminal that is held back with Ctrl-S loses nothing.
        self._screen = Screen(sys.stdout.fileno(), patience_seconds=None) if on_terminal else None
        self._is_for_people = on_terminal or sys.stderr.isatty()

    def show(self, data: bytes) -> None:
        """What the trainer has printed."""
        if self._screen is not None:
            self._screen.write(data)
        elif data:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()

    def tell(self, line: str) -> None:
        """A line of the supervisor's log."""
        self.say(readable(line, is_coloured=True) if self._is_for_people else line)

    def say(self, text: str) -> None:
        """Words for a person."""
        if self._screen is not None:
            self._screen.print_message(text)
        elif text:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Have everything written."""
        if self._screen is not None:
            self._screen.close(LAST_LINES_SECONDS)
