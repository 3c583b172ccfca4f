"""Hung trainers: detected, described, killed and restarted."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.rundir.history_index import read_history
from tests.e2e.support import (
    Supervised,
    assert_nothing_left,
    assert_same_result,
    events,
    live_status,
    wait_for,
)

Start = Callable[..., Supervised]

SHORT = ("--epochs", "2", "--samples", "32")
AT_STEP_5 = (*SHORT, "--run-at", "5", "--code")
OPTIONS = ("--hang-timeout", "2s", "--snapshot-budget", "50%", "--every", "1h")
# A short grace period for a hung trainer.
QUICK = (*OPTIONS, "--grace", "1s")

# The second attempt finds the file and trains normally.
ONCE = """
import collections, itertools, os, pathlib, signal
def hangs_here():
    {}
if not pathlib.Path('met').exists():
    pathlib.Path('met').touch()
    hangs_here()
"""
IN_C = "collections.deque(itertools.repeat(0), maxlen=0)"
STOPPED = "os.kill(os.getpid(), signal.SIGSTOP)"
# A spawned child that opens a fifo waits there before it executes anything, and its parent, as the
# parent of any vfork, in uninterruptible sleep.
UNINTERRUPTIBLE = (
    "os.mkfifo('fifo'); action = (os.POSIX_SPAWN_OPEN, 0, 'fifo', os.O_RDONLY, 0); "
    "os.posix_spawn('/bin/true', ['true'], os.environ, file_actions=[action])"
)
# A call in C that keeps the interpreter's lock, and leaves the CPU to other tests.
NEVER_RETURNS = "import ctypes; ctypes.PyDLL(None).sleep(300)"
SLOW = "time.sleep(4)"
STUCK_WORKER = """
class Stuck(torch.utils.data.Dataset):
    def __len__(self): return 8
    def __getitem__(self, index): self.sleeps_for_ever()
    def sleeps_for_ever(self): time.sleep(1000)
def hangs_here(): list(DataLoader(Stuck(), num_workers=1))
if not Path('met').exists():
    Path('met').touch()
    hangs_here()
"""
# This hook runs longer than the hung trainer's processes.
NOTE = """
[ "$ORCHESTRATOR_EVENT" = done ] || sleep 3
echo "$ORCHESTRATOR_EVENT at $ORCHESTRATOR_EVENT_STEP" >> events
"""
POLLS = """
for _ in range(7):
    time.sleep(0.5)
    session.poll()
"""


@pytest.mark.parametrize(
    ("hang", "seems", "stack"),
    [
        pytest.param(IN_C, "is running", "in hangs_here", id="loops in C"),
        # It is woken up to write its stack, and may continue for an instant before that.
        pytest.param(STOPPED, "is stopped", "train.py", id="stopped"),
        # Every signal is blocked there, so that only the kernel can tell where it is.
        pytest.param(UNINTERRUPTIBLE, "in uninterruptible sleep", "), D", id="uninterruptible"),
    ],
)
def test_hung_trainer_is_restarted(
    supervise: Start,
    uninterrupted: Callable[..., Path],
    tmp_path: Path,
    hang: str,
    seems: str,
    stack: str,
) -> None:
    """Each kind of hang is detected and described, and training ends with the same bits."""
    result = ("--result", str(tmp_path / "result.pt"))
    pace = ("--step-seconds", "0.1")  # it must not complete before the stop
    run = supervise(*AT_STEP_5, ONCE.format(hang), *pace, *result, options=QUICK, cold=True)
    status, _, stderr = run.end()
    assert status == 0, stderr
    (found,) = events(run.run, "hang_detected")
    assert (found["attempt"], found["phase"], found["step"]) == (1, "step", 5)
    assert found["seconds"] >= found["budget_seconds"] == 2
    assert seems in found["seems"]
    assert stack in run.run.attempt(1).stacks_file.read_text()
    ended = json.loads(run.run.attempt(1).exit_file.read_text())
    assert (ended["outcome"], ended["cause"]) == ("failed", f"the trainer hung: {ended['hang']}")
    assert seems in ended["hang"]
    assert len(events(run.run, "attempt_started")) == 2
    # The silence is no training that is done twice; a part of it may have been a save.
    assert read_history(run.run).goodput.ledger.seconds["restarting"] >= 0.5 * found["seconds"]
    assert_same_result(tmp_path / "result.pt", uninterrupted(*SHORT))
    assert_nothing_left(run.run)


def test_stuck_worker_is_a_hang_and_seen_in_its_own_process(supervise: Start) -> None:
    """A trainer that waits for a loader worker is restarted; the stacks of both say where.

    The user's command for events is told of it.
    """
    run = supervise(*AT_STEP_5, STUCK_WORKER, options=(*QUICK, "--on-event", NOTE), cold=True)
    assert run.end()[0] == 0
    told = (run.run.root.parent / "events").read_text().splitlines()
    # The order is that in which the two commands end, not that in which they start.
    assert sorted(told)[1] == "hang at 5"
    assert [line.split()[0] for line in sorted(told)] == ["done", "hang"]
    assert len(events(run.run, "hang_detected")) == 1
    trainer, worker = run.run.attempt(1).stacks_file.read_text().split("=== process ")[1:3]
    assert "in hangs_here" in trainer
    assert "in sleeps_for_ever" in worker
    assert_nothing_left(run.run)


def test_repeated_hang_at_the_same_step_stops_the_run(supervise: Start) -> None:
    """A first hang is retried; a second at the same step ends the run with 70 and the reason."""
    # The next attempt resumes at 4 and takes a step before it hangs. An attempt that hangs before
    # its first step gets ten times the longest start, which may be long on a busy machine.
    at_4 = (
        "--hang-timeout",
        "2s",
        "--grace",
        "1s",
        "--snapshot-budget",
        "off",
        "--every",
        "4steps",
    )
    run = supervise(*AT_STEP_5, NEVER_RETURNS, options=at_4)
    status, _, stderr = run.end()
    assert status == 70
    assert "the same failure came again at step 5" in stderr
    assert len(events(run.run, "hang_detected")) == len(events(run.run, "attempt_started")) == 2
    assert events(run.run, "gave_up")[0]["cause"].startswith("the trainer hung: no progress for")
    assert events(run.run, "checkpoint_quarantined") == []
    assert_nothing_left(run.run)


def test_slow_trainer_saves_before_it_is_restarted(supervise: Start) -> None:
    """A trainer that continues after it was considered hung saves before its restart."""
    run = supervise(*AT_STEP_5, SLOW, options=OPTIONS)
    assert run.end()[0] == 0
    hung, complete = events(run.run, "attempt_exited")
    assert (hung["outcome"], hung["step"], complete["outcome"]) == ("failed", 6, "complete")
    assert events(run.run, "resumed")[0]["step"] == 6
    assert events(run.run, "stop_requested") == []


def test_trainer_that_completes_after_a_hang_is_not_killed(
    supervise: Start, tmp_path: Path
) -> None:
    """A trainer that continues and completes may finish its work."""
    upload = "import atexit; atexit.register(lambda: (time.sleep(3), open('uploaded', 'w')))"
    code = f"{upload}\n{ONCE.format(STOPPED)}"
    run = supervise("--epochs", "1", "--run-at", "15", "--code", code, options=QUICK, cold=True)
    assert run.end()[0] == 0
    assert (tmp_path / "uploaded").exists()


def test_polls_count_as_progress(supervise: Start) -> None:
    """An evaluation that polls may take longer than the timeout."""
    run = supervise(*AT_STEP_5, POLLS, options=OPTIONS)
    assert run.end()[0] == 0
    assert len(events(run.run, "attempt_started")) == 1


def test_command_without_session_never_counts_as_hung(supervise: Start) -> None:
    """A command without a session has no pace, and so no hang timeout."""
    run = supervise(command=["sleep", "3.5"], options=OPTIONS)
    assert run.end()[0] == 0
    assert events(run.run, "hang_detected") == []


def test_time_while_the_supervisor_was_stopped_does_not_count(supervise: Start) -> None:
    """A run that is stopped as a whole for longer than the timeout continues."""
    run = supervise(
        "--epochs", "1000", "--step-seconds", "0.05", options=("--hang-timeout", "5s"), cold=True
    )
    run.wait_for_event("checkpoint_published")
    run.signal_all(signal.SIGSTOP)
    time.sleep(7)
    run.signal(signal.SIGCONT)  # the supervisor checks again before the trainer continues
    wait_for(lambda: live_status(run)["silent_seconds"], "a look at the trainer")
    os.kill(run.trainer_pid(), signal.SIGCONT)
    wait_for(lambda: live_status(run)["silent_seconds"] == 0, "a sign of life")
    assert events(run.run, "hang_detected") == []
    run.signal(signal.SIGTERM)
    assert run.end()[0] == 75


def test_stop_during_a_hang_ends_the_run(supervise: Start) -> None:
    """A stop during a hang ends the run instead of restarting it, and saves the snapshot."""
    run = supervise(*AT_STEP_5, NEVER_RETURNS, options=OPTIONS)
    run.wait_for_event("hang_detected")
    run.signal(signal.SIGTERM)
    assert run.end()[0] in (74, 75)
    assert len(events(run.run, "attempt_started")) == 1
    assert_nothing_left(run.run)
