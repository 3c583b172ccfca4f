"""Snapshots in memory survive a trainer that is killed, hangs or fails."""

import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.support import (
    TRAIN,
    Supervised,
    WarmTrainers,
    assert_all_valid,
    assert_nothing_left,
    assert_same_result,
    events,
    live_status,
    open_store,
    wait_for,
)

Start = Callable[..., Supervised]

# Snapshots as often as possible, and no checkpoint on disk after the first step.
MEMORY_ONLY = ("--every", "1h", "--snapshot-budget", "50%", "--max-restarts", "1000")
BALLAST = ("--ballast", str(8 << 20))
KILLS = 100
STEP_SECONDS = 0.005


def snapshot_step(run: Supervised) -> int:
    """Return the step of the newest snapshot; 0 without one."""
    return int((live_status(run).get("newest_snapshot") or {"step": 0})["step"])


@pytest.mark.long
def test_each_kill_loses_about_one_snapshot_interval(
    supervise: Start,
    uninterrupted: Callable[..., Path],
    warm_trainers: WarmTrainers,
    tmp_path: Path,
) -> None:
    """After each of 100 SIGKILLs the next attempt resumes from a complete, recent snapshot."""
    arguments = ("--epochs", "60", *BALLAST)  # about three steps an attempt, and more
    pace = ("--step-seconds", str(STEP_SECONDS), "--result", str(tmp_path / "result.pt"))
    command = [*warm_trainers.command, *arguments, *pace]
    moment = random.Random(20261124)
    run = supervise(command=command, options=MEMORY_ONLY)
    intervals: list[float] = []
    for kill in range(KILLS):
        trainer = warm_trainers.newest()
        assert trainer is not None, (kill, run.end())
        if kill == 0 or moment.random() < 0.75:
            # Most attempts make progress. Otherwise the growing restart delay fills the test.
            begun = run.wait_for_event("resumed", count=kill)["step"] if kill else 0
            wait_for(lambda n=begun: snapshot_step(run) > n, "a new snapshot")
        else:
            run.wait_for_event("resumed", count=kill)
        time.sleep(moment.uniform(0.0, 0.05))
        facts = live_status(run)["snapshots"] or {}
        intervals += filter(None, [facts.get("interval_seconds")])
        trainer.kill()
        run.wait_for_event("attempt_exited", count=kill + 1)
    status, _, stderr = run.end()
    assert status == 0, stderr[-2000:]
    assert_same_result(tmp_path / "result.pt", uninterrupted(*arguments))

    exits, resumes = events(run.run, "attempt_exited")[:KILLS], events(run.run, "resumed")
    assert len(resumes) == KILLS
    assert all(resumed["from_memory"] for resumed in resumes)
    assert [e["step"] for e in resumes] == [e["left_step"] for e in exits]
    assert all(e["step"] >= e["left_step"] for e in exits)
    # One interval, as the trainer reports it, a step, and the time to complete the snapshot. The
    # median leaves out single attempts that a busy machine delayed.
    lost = statistics.median(e["lost_seconds"] for e in exits)
    assert lost <= 3 * max(statistics.median(intervals or [0]), STEP_SECONDS)
    assert_all_valid(run.run, at_least=2)


def test_run_that_fails_takes_snapshots_more_often(supervise: Start) -> None:
    """After a failure the interval is shorter than the budget's, and the status says why."""
    run = supervise("--epochs", "10000", *BALLAST, options=("--every", "1h"))

    def snapshots() -> dict[str, float]:
        return live_status(run).get("snapshots") or {}

    wait_for(lambda: snapshots().get("interval_seconds"), "a measured interval")
    before = snapshots()
    assert before["failure_seconds"] is None
    os.kill(live_status(run)["trainer_pid"], signal.SIGKILL)
    run.wait_for_event("resumed")
    wait_for(lambda: snapshots().get("failure_seconds"), "a snapshot after the failure")
    assert snapshots()["interval_seconds"] < before["interval_seconds"]


STOPPED = "os.kill(os.getpid(), signal.SIGSTOP)"
IN_C = "import ctypes; ctypes.PyDLL(None).sleep(300)"


@pytest.mark.parametrize("hang", [STOPPED, IN_C], ids=["SIGSTOP", "a call in C"])
def test_stop_of_a_hung_trainer_saves_its_newest_snapshot(supervise: Start, hang: str) -> None:
    """A trainer that reaches no safe point gets its newest snapshot saved in time."""
    code = f"import os, signal, time; time.sleep(1); print('hangs', flush=True); {hang}"
    options = (*MEMORY_ONLY, "--grace", "5s")
    run = supervise("--run-at", "40", "--code", code, options=options)
    run.wait_for_output("hangs")
    step = snapshot_step(run)
    assert step > 1
    begun = time.monotonic()
    run.signal(signal.SIGTERM)
    status, _, stderr = run.end()
    taken = time.monotonic() - begun
    newest = open_store(run.run).all()[-1].manifest
    assert (newest.step, newest.reason) == (step, "emergency")
    assert status == (75 if step == 40 else 74), stderr
    assert taken < 15, "the grace period is 5 s, and the machine may be busy"
    assert_nothing_left(run.run)


def test_second_signal_saves_the_newest_snapshot_at_once(supervise: Start) -> None:
    """A second Ctrl-C does not wait for the safe point, and saves the snapshot."""
    code = "print('slow', flush=True); time.sleep(300)"
    run = supervise("--run-at", "30", "--code", code, options=(*MEMORY_ONLY, "--grace", "10m"))
    run.wait_for_output("slow")
    step = snapshot_step(run)
    run.signal(signal.SIGTERM)
    run.wait_for_event("stop_requested")
    time.sleep(0.4)  # within 0.3 s it would count as the same
    run.signal(signal.SIGTERM)
    run.end()
    newest = open_store(run.run).all()[-1].manifest
    assert (newest.step, newest.reason) == (step, "emergency")
    assert_nothing_left(run.run)


def test_exception_leaves_a_crash_checkpoint(supervise: Start) -> None:
    """The newest snapshot is written to disk when the script fails for good."""
    options = ("--every", "1h", "--snapshot-budget", "50%", "--max-restarts", "0")
    code = "time.sleep(0.5); raise OSError('flaky')"
    run = supervise("--run-at", "30", "--code", code, options=options)
    assert run.end()[0] == 70
    newest = open_store(run.run).all()[-1].manifest
    assert newest.reason == "crash"
    assert newest.step == events(run.run, "attempt_exited")[0]["left_step"] > 1
    assert_all_valid(run.run, at_least=2)


SCRIBBLE = """
import glob, os, signal
if not os.path.exists('scribbled'):
    open('scribbled', 'w').close()
    time.sleep(0.5)
    for path in glob.glob('/proc/self/fd/*'):
        if 'orchestrator-slot' in os.readlink(path):
            with open(path, 'r+b') as slot:
                slot.write(bytes(1 << 16))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_unloadable_snapshot_does_not_end_the_run(supervise: Start) -> None:
    """A dying trainer that overwrites its snapshots loses them, and not the run."""
    options = ("--every", "10steps", "--snapshot-budget", "50%")
    run = supervise("--epochs", "2", "--run-at", "25", "--code", SCRIBBLE, options=options)
    status, stdout, stderr = run.end()
    assert status == 0, (stdout, stderr)
    assert "the snapshot in memory cannot be loaded" in stderr
    resumed = events(run.run, "resumed")
    assert resumed[-1]["from_memory"] is False
    assert resumed[-1]["step"] <= 25


def test_small_shared_memory_does_not_limit_snapshots(supervise: Start) -> None:
    """A container's /dev/shm of 64 MB does not limit snapshots."""
    script = 'mount -t tmpfs -o size=64m tmpfs /dev/shm || exit 7; exec "$@"'
    trainer = [sys.executable, str(TRAIN), "--epochs", "2", "--ballast", str(100 << 20)]
    command = ["unshare", "--mount", "sh", "-c", script, "sh", *trainer]
    if os.system("unshare --mount true") != 0:
        pytest.skip("no mount namespace can be made here")
    code = ("--run-at", "20", "--code", "time.sleep(2)")
    run = supervise(command=[*command, *code], options=MEMORY_ONLY)
    wait_for(lambda: snapshot_step(run) > 1, "a snapshot beyond the first")
    assert run.end()[0] == 0
