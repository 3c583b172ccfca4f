"""Kills that leave a run no time to react."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.checkpoint.checkpoint import read_checkpoint
from orchestrator.checkpoint.newest_valid import newest_valid
from orchestrator.checkpoint.verification import verify
from orchestrator.client import status_of
from orchestrator.errors import CheckpointInvalidError
from orchestrator.rundir.lock import lock_owner
from orchestrator.rundir.paths import RunDir
from tests.e2e.supervisor_kills import KilledRun, Subject
from tests.e2e.support import (
    TRAIN,
    Supervised,
    WarmTrainers,
    assert_all_valid,
    assert_nothing_left,
    assert_same_result,
    events,
    forked_by,
    open_store,
    wait_for,
)

SLOW = ("--epochs", "6", "--step-seconds", "0.02")

Start = Callable[..., Supervised]


def test_killed_trainer_is_restarted_and_ends_with_the_same_bits(
    supervise: Start, uninterrupted: Callable[..., Path], tmp_path: Path
) -> None:
    """After a SIGKILL of the trainer, training resumes and ends with the same bits."""
    arguments = (*SLOW, "--workers", "2")
    run = supervise(*arguments, "--result", str(tmp_path / "r.pt"), options=("--every", "7steps"))
    run.wait_for_event("checkpoint_published", count=4)
    os.kill(run.trainer_pid(), signal.SIGKILL)
    assert run.end()[0] == 0
    assert len(events(run.run, "attempt_started")) == 2
    assert_same_result(tmp_path / "r.pt", uninterrupted(*arguments))
    assert_nothing_left(run.run)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_trainer_saves_by_itself_when_the_supervisor_is_killed(
    supervise: Start, workers: str
) -> None:
    """After a SIGKILL of the supervisor, the trainer saves, ends and frees the lock."""
    run = supervise(*SLOW, "--workers", workers)
    run.wait_for_event("checkpoint_published")
    run.signal(signal.SIGKILL)
    run.end()
    assert_nothing_left(run.run)
    assert_all_valid(run.run, at_least=2)
    newest = open_store(run.run).all()[-1].manifest
    assert newest.reason == "emergency"
    again = supervise(*SLOW)
    assert again.end()[0] == 0
    assert events(run.run, "resumed")[-1]["step"] == newest.step


def test_orphan_without_safe_point_ends_after_the_grace_period(supervise: Start) -> None:
    """A trainer that loses its supervisor and reaches no safe point is ended.

    `status` shows the run as interrupted, without the process id of the dead supervisor.
    """
    stuck = ("--run-at", "3", "--code", "print('stuck', flush=True); time.sleep(300)")
    run = supervise(*SLOW, *stuck, options=("--grace", "2s"))
    run.wait_for_output("stuck")
    run.signal(signal.SIGKILL)
    run.process.wait(30)
    status = status_of(run.run)
    assert (status["state"], status["supervisor_pid"]) == ("interrupted", None)
    run.end()
    assert_nothing_left(run.run)
    assert_all_valid(run.run)


def test_both_killed_leaves_a_free_lock_and_a_valid_checkpoint(supervise: Start) -> None:
    """After a SIGKILL of supervisor and trainer, the next start resumes from the disk."""
    run = supervise(*SLOW, options=("--every", "5steps"))
    run.wait_for_event("checkpoint_published", count=3)
    run.signal_all(signal.SIGKILL)
    run.end()
    assert_nothing_left(run.run)
    newest = newest_valid(open_store(run.run))
    assert newest is not None
    again = supervise(*SLOW)
    status, _, stderr = again.end()
    assert status == 0
    assert "the last supervisor of this run was killed, or the machine went down" in stderr
    assert events(run.run, "resumed")[-1]["step"] == newest.manifest.step


def test_second_supervisor_is_refused(supervise: Start) -> None:
    """A second supervisor ends with 69; one that follows a killed one waits for the orphan."""
    stuck = ("--run-at", "3", "--code", "print('stuck', flush=True); time.sleep(300)")
    run = supervise(*SLOW, *stuck, options=("--grace", "2s"))
    run.wait_for_output("stuck")
    second = supervise(*SLOW)
    status, _, stderr = second.end()
    assert status == 69
    assert f"process {run.process.pid}" in stderr
    run.signal(signal.SIGKILL)
    run.process.wait()
    assert supervise(*SLOW, options=("--grace", "2s")).end()[0] == 0


def test_same_command_after_any_kill_of_the_supervisor(
    tmp_path: Path, warm_server: Path, request: pytest.FixtureRequest
) -> None:
    """After SIGKILLs from the first millisecond on, the same command at once ends with 0."""
    arguments = ("--epochs", "40", "--step-seconds", "0.01", "--ballast", "2000000")
    subject = Subject(
        [*forked_by(warm_server), str(TRAIN), *arguments, "--result", "result.pt"],
        last_words="epoch 39 done",
        options=("--every", "3steps", "--keep", "2", "--grace", "5s"),
        cold_share=0.2,
    )
    chance = random.Random(20261130)
    runs = [KilledRun(subject, tmp_path / name, chance) for name in ("undisturbed", "killed")]
    for run in runs:
        request.addfinalizer(run.close)
    undisturbed, killed = runs
    undisturbed.kill(0)
    killed.kill(20)
    killed.check(undisturbed)
    assert killed.phases.total() > 15, killed.phases


KILLS = 200


@pytest.mark.long
def test_two_hundred_kills_at_random_moments(
    supervise: Start,
    uninterrupted: Callable[..., Path],
    warm_trainers: WarmTrainers,
    tmp_path: Path,
) -> None:
    """200 SIGKILLs of trainer, supervisor or both lose no checkpoint and change no bit."""
    # Far more steps than the attempts make on a fast machine: nine each, of 16 an epoch.
    arguments = ("--epochs", "200", "--samples", "64")
    result = tmp_path / "result.pt"
    command = [*warm_trainers.command, *arguments, "--result", str(result)]
    options = ("--every", "1steps", "--keep", "2", "--max-restarts", "1000", "--grace", "5s")
    moment = random.Random(20261123)
    run = supervise(command=command, options=options)
    had_two = False
    for kill in range(KILLS):
        trainer = warm_trainers.newest()
        if moment.random() < 0.75:
            # Most attempts make progress. Otherwise the growing restart delay fills the test.
            newer = {*open_store(run.run).directories()}
            wait_for(lambda run=run, n=newer: {*open_store(run.run).directories()} - n, "a save")
            time.sleep(moment.uniform(0.0, 0.05))
        else:
            time.sleep(moment.uniform(0.0, 0.2))
        target = moment.choices(("trainer", "supervisor", "both"), (8, 1, 1))[0]
        assert run.process.poll() is None, (kill, run.end())
        if target != "trainer":
            run.signal(signal.SIGKILL)
        if target != "supervisor" and trainer is not None and trainer.is_running():
            trainer.kill()
        had_two = assert_sound(run.run, had_two)
        if target != "trainer":
            run.process.communicate()
            wait_for(lambda run=run: lock_owner(run.run) is None, "a free lock", 30)
            run = supervise(command=command, options=options)
    run.signal(signal.SIGTERM)
    assert run.end()[0] in (74, 75)  # the last kill may have cost steps
    # Without a checkpoint at each step, which the steps that are left would take minutes for.
    status, _, stderr = supervise(command=command, options=("--keep", "2")).end()
    assert status == 0, stderr[-2000:]
    assert_same_result(result, uninterrupted(*arguments))
    assert_all_valid(run.run, at_least=2)


def assert_sound(run: RunDir, had_two: bool) -> bool:
    """Check for two valid checkpoints once there were two, while a process may publish another."""
    if not run.run_file.exists():
        return had_two
    store, valid = open_store(run), 0

    def all_are_counted() -> bool:
        """Count the valid ones; start again if rotation deleted one during the count."""
        nonlocal valid
        valid, vanished = 0, False
        for path in store.directories():
            try:
                verify(read_checkpoint(path))
            except CheckpointInvalidError:
                # Deleted during the check. A damaged checkpoint would still exist.
                assert not path.exists(), path
                vanished = True
            else:
                valid += 1
        return not vanished

    wait_for(all_are_counted, "a look without a deletion")
    assert valid >= 2 or not had_two
    assert store.quarantine_folder.entries() == []
    return had_two or valid >= 2
