"""`orchestrator run --detach`: a supervisor out of any terminal's reach, in its own session."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from orchestrator.cli.module_words import MODULE_WORDS
from orchestrator.client import status_of
from orchestrator.exitcodes import ExitStatus
from orchestrator.rundir.paths import RunDir
from orchestrator.supervisor.termination.hang_budgets import Activity
from orchestrator.system.regular_files import open_regular
from orchestrator.system.stop_signals import end_by_interrupt
from orchestrator.telemetry.run_state import State
from orchestrator.terminal.logs import readable

# A script that imports and compiles for longer than this is left alone.
START_WAIT_SECONDS = 30.0
POLL_SECONDS = 0.1
_TRAINS = frozenset({Activity.STEP, Activity.EVALUATE, Activity.SAVE, Activity.DONE})


def start(place: RunDir, words: Sequence[str]) -> int:
    """Run the command line of ``words`` in the background; return when it trains or has ended.

    The status is 0 when it runs, else its own.
    """
    place.create()
    said_before = place.log_file.stat().st_size if place.log_file.exists() else 0
    supervisor = _spawn(place, words)
    try:
        state = _wait_for_training(place, supervisor)
    except KeyboardInterrupt:
        print(_how_to_come_back(place, supervisor.pid, "it goes on in the background"))
        end_by_interrupt()
    if state is None:
        _print_what_it_said(place, said_before)
        return supervisor.returncode if supervisor.returncode >= 0 else ExitStatus.GAVE_UP
    print(_how_to_come_back(place, supervisor.pid, state))
    return ExitStatus.COMPLETE


def _spawn(place: RunDir, words: Sequence[str]) -> subprocess.Popen[bytes]:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    with open(open_regular(place.log_file, flags), "ab") as log:
        return subprocess.Popen(
            [sys.executable, *MODULE_WORDS, *words],
            stdin=subprocess.DEVNULL,
            # The trainer's output is in attempts/; this would be a copy of it.
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )


def _wait_for_training(place: RunDir, supervisor: subprocess.Popen[bytes]) -> str | None:
    """What the run does, in words, once it trains or time is up; None when it has ended."""
    deadline = time.monotonic() + START_WAIT_SECONDS
    status: dict[str, Any] = {"state": State.PREPARING}
    while supervisor.poll() is None:
        status = status_of(place) if place.run_file.exists() else status
        is_ours = status.get("supervisor_pid") == supervisor.pid
        if is_ours and status["state"] == State.TRAINING and status["phase"] in _TRAINS:
            return f"training runs in the background, at step {status['step']}"
        if time.monotonic() > deadline:
            return f"it runs in the background and has not trained a step yet ({status['state']})"
        time.sleep(POLL_SECONDS)
    return None


def _how_to_come_back(place: RunDir, pid: int, state: str) -> str:
    root = os.path.relpath(place.root)
    return (
        f"{state}; supervisor {pid}, run directory {root}\n"
        f"    orchestrator attach {root}    follow its output; Ctrl-C there leaves it running\n"
        f"    orchestrator stop {root}    save and stop"
    )


def _print_what_it_said(place: RunDir, since: int) -> None:
    with open(open_regular(place.log_file, os.O_RDONLY), "rb") as log:
        log.seek(since)
        for line in log.read().decode(errors="replace").splitlines():
            print(readable(line, sys.stderr.isatty()), file=sys.stderr)
