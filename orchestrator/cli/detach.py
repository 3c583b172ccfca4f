"""`orchestrator run --detach`: starts a supervisor that no terminal can end."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from orchestrator.cli.module_words import MODULE_WORDS
from orchestrator.cli.start_traces import StartTraces
from orchestrator.client import file_errors, status_of
from orchestrator.errors import OrchestratorError
from orchestrator.exitcodes import ExitStatus
from orchestrator.rundir.lock import RunLock
from orchestrator.rundir.paths import RunDir
from orchestrator.supervisor.attempt.activity import Activity
from orchestrator.system.given_descriptors import given_descriptors
from orchestrator.system.regular_files import open_regular
from orchestrator.system.stop_signals import end_by_interrupt
from orchestrator.telemetry.run_state import State
from orchestrator.terminal.logs import text_of
from orchestrator.terminal.printing import print_text
from orchestrator.terminal.rotating_file import read_since

# A script may import and compile for longer; `run --detach` then returns before it trains.
START_WAIT_SECONDS = 30.0
POLL_SECONDS = 0.1
_TRAINING = frozenset({Activity.STEP, Activity.EVALUATE, Activity.SAVE, Activity.DONE})


def start(run: RunDir, arguments: Sequence[str]) -> int:
    """Run a command line in the background; return once it trains or has ended.

    The exit status is 0 when the run goes on, else that of the run.
    """
    traces = StartTraces(run)
    run.create()
    log_bytes_before = run.log_file.stat().st_size if os.path.exists(run.log_file) else 0
    supervisor = _spawn(run, arguments)
    try:
        state = _wait_for_training(run, supervisor)
    except KeyboardInterrupt:
        print_text(_how_to_come_back(run, supervisor.pid, "the run goes on in the background"))
        end_by_interrupt()
    if state is None:
        _print_log(run, log_bytes_before)
        with contextlib.suppress(OrchestratorError):  # another start has the run, or removed it
            traces.remove_if_nothing_ran(RunLock(run))
        # Whoever has killed it wanted no end of the run: the same command continues it.
        return supervisor.returncode if supervisor.returncode >= 0 else ExitStatus.STOPPED_UNSAVED
    print_text(_how_to_come_back(run, supervisor.pid, state))
    return ExitStatus.COMPLETE


def _spawn(run: RunDir, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    with file_errors(f"cannot write {run.log_file}"):
        descriptor = open_regular(run.log_file, flags)
    with open(descriptor, "ab") as log, file_errors(f"cannot start {sys.executable}"):
        return subprocess.Popen(
            [sys.executable, *MODULE_WORDS, *arguments],
            stdin=subprocess.DEVNULL,
            # The trainer's output is in attempts/ already.
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
            pass_fds=given_descriptors(),
        )


def _wait_for_training(run: RunDir, supervisor: subprocess.Popen[bytes]) -> str | None:
    """Wait until the run trains, or time is up; return what it does, or None when it has ended."""
    began = time.monotonic()
    state, awaited = str(State.PREPARING), "step"
    while supervisor.poll() is None:
        status = status_of(run) if os.path.exists(run.run_file) else {}
        if status.get("supervisor_pid") == supervisor.pid:
            state = status["state"]
            if state == State.TRAINING and _trains(status, time.monotonic() - began):
                return f"training runs in the background, at step {status['step']}"
            # Of a script that saves for itself only its saves are seen.
            awaited = "save" if state == State.TRAINING and status["phase"] is None else "step"
        if time.monotonic() - began > START_WAIT_SECONDS:
            return f"the run is in the background, before its first {awaited} ({state})"
        time.sleep(POLL_SECONDS)
    return None


def _trains(status: dict[str, Any], waited_seconds: float) -> bool:
    """Return whether the trainer is past its first step, or has saved since the start."""
    newest = status["newest_checkpoint"]
    has_saved = newest is not None and newest["age_seconds"] < waited_seconds
    return status["phase"] in _TRAINING or has_saved


def _how_to_come_back(run: RunDir, pid: int, state: str) -> str:
    root = os.path.relpath(run.root)
    return (
        f"{state}; supervisor {pid}, run directory {root}\n"
        f"    orchestrator attach {root}    follow its output; Ctrl-C there leaves it running\n"
        f"    orchestrator stop {root}    save and stop"
    )


def _print_log(run: RunDir, since: int) -> None:
    for line in read_since(run.log_file, since).decode(errors="replace").splitlines():
        print(text_of(line, on_terminal=sys.stderr.isatty()), file=sys.stderr)
