"""The look itself: starts the script, watches what it writes, and ends it after two saves."""

import math
import os
import signal
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.first_look.saves import Saves, find_saves
from orchestrator.first_look.script_run import ScriptEnd, ScriptRun
from orchestrator.first_look.stop_requests import StopRequests
from orchestrator.first_look.weights import likeness
from orchestrator.first_look.written_files import FILE_CLOCK_NS, FileWatch, named_directories
from orchestrator.rundir.lock import RunLock
from orchestrator.rundir.orphans import OrphanEnding
from orchestrator.rundir.paths import RunDir
from orchestrator.supervisor.lifeline import lifeline
from orchestrator.system.open_files import files_open_for_writing
from orchestrator.system.temporary_places import temporary_parent

SAVES_TO_SEE = 2
POLL_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
# The files of a save follow each other within this time; a script may save all the time.
REST_SECONDS = 1.0
LONGEST_WAIT_FOR_REST_SECONDS = 5.0


@dataclass(frozen=True)
class LookOptions:
    """How long a look may take, in seconds, and how the script is ended."""

    seconds: float
    grace_seconds: float
    stop_signal: signal.Signals


@dataclass(frozen=True)
class Look:
    """What was seen."""

    seconds: float
    end: ScriptEnd
    was_stopped: bool
    """Whether a signal has ended the look."""
    has_saved_when_asked: bool
    """Whether the script has saved after it was asked to end."""
    saves: Saves | None
    before: Collection[Path]
    """The files that were there before."""
    overwritten: Sequence[Path]
    """Those of them that the script has written over, and that may hold weights."""
    session_run: Path | None
    """The run directory of a session that the script has opened."""
    was_cut_off: bool
    """Whether there were too many names to watch all of them."""


def look_at(command: Sequence[str], options: LookOptions, requests: StopRequests) -> Look:
    """Run the command and watch it. Raises ConfigError if it cannot be run."""
    watch = FileWatch([Path.cwd(), *named_directories(command)])
    began = time.monotonic()
    with _locked(options) as lock:
        script = ScriptRun(command, output=2, inherited=(lock,))
        try:
            _watch(script, watch, began + options.seconds, requests)
            was_stopped = requests.count > 0 and not script.has_ended
            requests.forget_first()
            _let_save_end(script, requests, options.grace_seconds)
            _look_twice(watch)
            seconds = time.monotonic() - began
            asked_ns = time.time_ns() - FILE_CLOCK_NS
        finally:
            end = script.end(options.grace_seconds, options.stop_signal, requests.is_hurried)
    _look_twice(watch)
    newest_ns = max((file.versions[-1].modified_ns for file in watch.written.values()), default=0)
    return Look(
        seconds,
        end,
        was_stopped,
        end.asked_seconds is not None and newest_ns >= asked_ns,
        find_saves(watch.written.values()),
        watch.before.keys(),
        sorted(watch.written.keys() & watch.before.keys()),
        watch.session_run,
        watch.was_cut_off,
    )


def _watch(script: ScriptRun, watch: FileWatch, deadline: float, requests: StopRequests) -> None:
    """Watch until two saves are at rest, the script has ended, or the time is up."""
    last_news = enough_since = math.inf
    while not (script.has_ended or requests.count) and time.monotonic() < deadline:
        if watch.look(files_open_for_writing()):
            last_news = time.monotonic()
            saves = find_saves(watch.written.values())
            if saves is not None and saves.group.saves >= SAVES_TO_SEE:
                enough_since = min(enough_since, last_news)
        now = time.monotonic()
        if enough_since < now and now - last_news >= REST_SECONDS:
            return
        if now - enough_since >= LONGEST_WAIT_FOR_REST_SECONDS:
            return
        _pause(script, requests, min(max(POLL_SECONDS, watch.pause_seconds), LONGEST_PAUSE_SECONDS))


def _let_save_end(script: ScriptRun, requests: StopRequests, seconds: float) -> None:
    """Wait while a file of weights is open for writing."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not (script.has_ended or requests.is_hurried()):
        if not any(map(likeness, files_open_for_writing())):
            return
        time.sleep(POLL_SECONDS)


def _look_twice(watch: FileWatch) -> None:
    """Look until what is there has come to rest."""
    for _ in range(2):
        watch.look(files_open_for_writing())


def _pause(script: ScriptRun, requests: StopRequests, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not (script.has_ended or requests.count):
        time.sleep(min(POLL_SECONDS, seconds))


@contextmanager
def _locked(options: LookOptions) -> Iterator[int]:
    """Hold a lock that the script inherits: by it the lifeline finds what a killed look left."""
    ending = OrphanEnding(options.grace_seconds, options.stop_signal)
    with tempfile.TemporaryDirectory(dir=temporary_parent()) as directory:
        run = RunDir(Path(directory))
        with lifeline(run, ending) as name_lock:
            lock = RunLock(run)
            os.fchmod(lock.descriptor, 0o600)  # the script has nothing else that tells it is ours
            name_lock(lock)
            try:
                yield lock.descriptor
            finally:
                lock.close()
