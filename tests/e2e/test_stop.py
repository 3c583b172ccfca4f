"""Ordinary stops of a run."""

import os
import re
import signal
import sys
import time
from collections.abc import Callable

import pytest

from orchestrator.system.stop_signals import MERGE_SECONDS
from tests.e2e.support import (
    SLOW_SAVE,
    TRAIN,
    Supervised,
    assert_all_valid,
    assert_nothing_left,
    events,
    open_store,
    wait_for,
)

WORKERS = [
    pytest.param((), id="no-workers"),
    pytest.param(("--workers", "2"), id="workers"),
    pytest.param(("--workers", "2", "--persistent"), id="persistent"),
]
SLOW = ("--epochs", "50", "--step-seconds", "0.05")
# One step that takes longer than any test waits, without a safe point.
STUCK = ("--run-at", "3", "--code", "print('stuck', flush=True); time.sleep(300)")

Start = Callable[..., Supervised]


def assert_saved_and_resumable(run: Supervised, status: int) -> None:
    assert status == 75
    assert_nothing_left(run.run)
    assert_all_valid(run.run)
    newest = open_store(run.run).all()[-1]
    assert newest.manifest.reason == "emergency"
    assert newest.manifest.step == events(run.run, "attempt_exited")[-1]["step"]


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_to_supervisor_saves(
    supervise: Start, workers: tuple[str, ...], number: signal.Signals
) -> None:
    """A stop signal to the supervisor saves the state and ends with 75."""
    run = supervise(*SLOW, *workers)
    run.wait_for_event("checkpoint_published")
    run.signal(number)
    status, _, _ = run.end()
    assert_saved_and_resumable(run, status)
    assert events(run.run, "stop_requested")[0]["source"] == number.name


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_all_processes_saves(
    supervise: Start, workers: tuple[str, ...], number: signal.Signals
) -> None:
    """A stop signal to every process of the job, loader workers included, saves the state."""
    run = supervise(*SLOW, *workers, cold=True)
    run.wait_for_event("checkpoint_published")
    run.signal_all(number)
    status, _, _ = run.end()
    assert_saved_and_resumable(run, status)


def test_stopped_run_continues_at_its_step(supervise: Start) -> None:
    """The same command continues at the step that the stop saved."""
    run = supervise(*SLOW)
    run.wait_for_event("checkpoint_published")
    run.signal(signal.SIGTERM)
    run.end()
    saved = events(run.run, "run_stopped")[-1]["step"]
    again = supervise(*SLOW)
    again.wait_for_output(f"begins at step {saved}", attempt=2)
    again.signal(signal.SIGTERM)
    assert again.end()[0] == 75
    assert events(run.run, "resumed")[-1]["exactness"] == "EXACT"


def test_preemption_notice_saves_and_stops(supervise: Start) -> None:
    """SIGUSR1 saves and stops with 75, so that a scheduler runs it again."""
    run = supervise(*SLOW)
    run.wait_for_event("checkpoint_published")
    run.signal(signal.SIGUSR1)
    assert_saved_and_resumable(run, run.end()[0])


def test_save_request_does_not_stop_the_training(supervise: Start) -> None:
    """SIGUSR2 makes a checkpoint, and the training continues."""
    run = supervise(*SLOW)
    run.wait_for_event("checkpoint_published")
    run.signal(signal.SIGUSR2)
    made = run.wait_for_event("checkpoint_published", count=2)
    assert made["reason"] == "requested"
    wait_for(lambda: (run.status()["step"] or 0) > made["step"], "another step")
    run.signal(signal.SIGTERM)
    assert run.end()[0] == 75


def test_signal_to_the_trainer_alone_is_a_stop(supervise: Start) -> None:
    """A scheduler's SIGTERM to the trainer saves and stops the run instead of a restart."""
    run = supervise(*SLOW, cold=True)
    run.wait_for_event("checkpoint_published")
    os.kill(run.trainer_pid(), signal.SIGTERM)
    assert_saved_and_resumable(run, run.end()[0])
    assert len(events(run.run, "attempt_started")) == 1


def test_second_interrupt_does_not_wait_for_the_safe_point(supervise: Start) -> None:
    """A second Ctrl-C ends a trainer that reaches no safe point; the checkpoint stays."""
    run = supervise(*SLOW, *STUCK, options=("--snapshot-budget", "off"))
    run.wait_for_output("stuck")
    run.signal(signal.SIGINT)
    run.wait_for_event("stop_requested")
    wait_out_the_echo_time()
    run.signal(signal.SIGINT)
    status, _, stderr = run.end()
    assert status == 74
    assert re.search(r"stopped, but the last .* not saved; run the same command", stderr)
    assert_nothing_left(run.run)
    assert_all_valid(run.run)


def test_third_interrupt_kills_at_once(supervise: Start) -> None:
    """After a second Ctrl-C a save that has begun continues; a third one kills the trainer."""
    arguments = ("--samples", "8000", "--run-at", "3", "--code", SLOW_SAVE)
    # Without snapshots, since a snapshot that has begun is no save.
    run = supervise(*SLOW, *arguments, options=("--snapshot-budget", "off"))
    run.wait_for_event("checkpoint_published")
    run.wait_for_output("armed")
    run.signal(signal.SIGINT)
    run.wait_for_output("saving")
    wait_out_the_echo_time()
    run.signal(signal.SIGINT)
    run.wait_for_event("stop_requested", count=2)
    assert run.process.poll() is None
    wait_out_the_echo_time()
    run.signal(signal.SIGINT)
    assert run.end()[0] == 74
    assert_nothing_left(run.run)
    assert_all_valid(run.run)


def test_trainer_without_a_safe_point_is_killed_at_the_deadline(supervise: Start) -> None:
    """Without a safe point in the grace period the trainer is killed, and the status is 74."""
    run = supervise(*SLOW, *STUCK, options=("--grace", "2s", "--snapshot-budget", "off"))
    run.wait_for_output("stuck")
    run.signal(signal.SIGTERM)
    status, _, stderr = run.end()
    assert status == 74
    assert "did not come in time" in stderr
    assert_nothing_left(run.run)
    assert_all_valid(run.run)


def test_ignored_hangup_stays_ignored(supervise: Start) -> None:
    """Under nohup a hang-up changes nothing, and the training completes."""
    run = supervise(
        *("--epochs", "2", "--step-seconds", "0.02"),
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    run.wait_for_event("checkpoint_published")
    run.signal_all(signal.SIGHUP)
    assert run.end()[0] == 0
    assert events(run.run, "stop_requested") == []


def test_stop_during_import_loses_nothing(supervise: Start) -> None:
    """A stop before the session is open ends with 75, since there is nothing to save."""
    run = supervise(*SLOW)
    run.trainer_pid()
    run.signal(signal.SIGTERM)
    assert run.end()[0] == 75
    assert_nothing_left(run.run)


@pytest.mark.parametrize("to_shell", [False, True])
def test_stop_with_a_shell_around_the_trainer_saves(supervise: Start, to_shell: bool) -> None:
    """Behind a shell without exec a stop saves, even if it reaches only the shell."""
    script = f"{sys.executable} {TRAIN} {' '.join(SLOW)}; echo the shell goes on"
    run = supervise(command=["bash", "-c", script])
    run.wait_for_event("checkpoint_published")
    if to_shell:
        os.kill(run.trainer_pid(), signal.SIGTERM)
    else:
        run.signal(signal.SIGTERM)
    status, _, stderr = run.end()
    assert_saved_and_resumable(run, status)
    source = "the end of the shell around the trainer" if to_shell else "SIGTERM"
    assert f"stopping on {source}" in stderr


def test_command_without_a_session_gets_sigterm(supervise: Start) -> None:
    """A command that opens no session gets SIGTERM, and no process is left."""
    run = supervise(command=["bash", "-c", "sleep 300 & wait"])
    run.trainer_pid()
    run.signal(signal.SIGTERM)
    assert run.end()[0] == 75
    assert_nothing_left(run.run)


def wait_out_the_echo_time() -> None:
    """Wait until the next signal counts as another request."""
    time.sleep(2 * MERGE_SECONDS)
