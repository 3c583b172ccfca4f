"""A disk that fills up during the training."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.rundir.paths import RunDir
from tests.e2e.support import (
    TRAIN,
    Supervised,
    Terminal,
    assert_all_valid,
    events,
    open_store,
    orchestrator,
    wait_for,
)

Start = Callable[..., Supervised]
NOISY = "model.register_forward_hook(lambda *_: print('noise ' * 100, flush=True))"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of one MiB with few files for the run."""
    place = tmp_path / "run"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=500,mode=755", "tmpfs", place],
        capture_output=True,
        text=True,
    )
    if made.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def fill(file: Path) -> None:
    """Write until the disk is full."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT)
    try:
        while os.write(descriptor, bytes(1024)):
            pass
    except OSError:
        os.close(descriptor)


def test_full_disk_stops_saves_and_not_the_training(small_disk: Path, supervise: Start) -> None:
    """The training continues with an alarm, older checkpoints stay, and saves resume with space."""
    run = supervise("--epochs", "900", "--step-seconds", "0.02", options=("--every", "10steps"))
    run.wait_for_event("checkpoint_published", count=3)
    fill(small_disk / "ballast")
    newest = open_store(run.run).all()[-1].manifest.step
    wait_for(lambda: run.status()["step"] > newest + 40, "steps beyond the next save")
    assert open_store(run.run).all()[-1].manifest.step <= newest + 10
    assert_all_valid(run.run, at_least=2)
    assert "No space left on device; older checkpoints are intact" in run.status()["problem"]
    (small_disk / "ballast").unlink()
    wait_for(lambda: open_store(run.run).all()[-1].manifest.step > newest + 40, "a new checkpoint")
    assert run.status()["problem"] is None
    run.signal(signal.SIGTERM)
    status, _, stderr = run.end()
    assert status == 75
    assert "No space left on device" in stderr
    assert_all_valid(run.run, at_least=2)


def test_last_save_on_a_full_disk_is_retried(small_disk: Path, supervise: Start) -> None:
    """The end of the training waits for space, and says that it does."""
    run = supervise("--epochs", "3", "--step-seconds", "0.05", options=("--every", "1000steps"))
    wait_for(lambda: run.run.journal_file.exists() and run.run.reserve_file.exists(), "a reserve")
    run.run.reserve_file.unlink()
    fill(small_disk / "ballast")
    wait_for(lambda: run.status()["problem"], "a problem")
    run.wait_for_output("the last save of the run is tried again for up to 5 minutes")
    (small_disk / "ballast").unlink()
    status, stdout, stderr = run.end()
    assert status == 0
    assert "No space left on device" in stderr
    assert "training goes on" not in stdout + stderr
    assert "training=goes on" not in stderr


def test_stop_on_a_full_disk_says_that_nothing_was_saved(
    small_disk: Path, supervise: Start
) -> None:
    """A stop that cannot save ends with 74, and the older checkpoints stay."""
    run = supervise("--epochs", "900", "--step-seconds", "0.02", options=("--every", "10steps"))
    run.wait_for_event("checkpoint_published", count=3)
    run.run.reserve_file.unlink()
    fill(small_disk / "ballast")
    newest = open_store(run.run).all()[-1].manifest.step
    wait_for(lambda: run.status()["step"] > newest + 15, "steps that are not saved")
    stopped = orchestrator("stop", str(run.run.root), cwd=run.run.root.parent)
    status, _, stderr = run.end()
    assert status == stopped.returncode == 74
    told = [stderr]
    # Where the disk has no byte left for the journal, `stop` can only say that.
    if "its disk is full; the newest checkpoint is" not in stopped.stdout:
        told.append(stopped.stdout)
    for text in told:
        assert re.search(r"stopped, but the last \d+ steps are not saved; run the same", text)
        assert re.search(r"to resume from step \d+, .*step-", text)
        assert "free some space or raise the quota on the disk of " in text
    assert "None" not in stopped.stdout + stderr
    assert "lost_steps=" not in stderr
    assert_all_valid(run.run, at_least=2)


def test_stop_on_a_full_disk_uses_the_reserve(small_disk: Path, supervise: Start) -> None:
    """The reserved space is enough for the save of a stop."""
    run = supervise("--epochs", "900", "--step-seconds", "0.02", options=("--every", "10steps"))
    run.wait_for_event("checkpoint_published", count=3)
    fill(small_disk / "ballast")
    run.wait_for_event("checkpoint_failed")
    run.signal(signal.SIGTERM)
    status, _, stderr = run.end()
    assert status == 75, stderr
    assert events(run.run, "checkpoint_published")[-1]["reason"] == "emergency"
    assert not run.run.reserve_file.exists()
    assert_all_valid(run.run, at_least=2)


@pytest.mark.parametrize("on_terminal", [False, True])
def test_full_disk_loses_output_and_not_the_training(
    small_disk: Path, supervise: Start, tmp_path: Path, on_terminal: bool
) -> None:
    """Output that the log cannot store is counted; print() neither raises nor blocks."""
    arguments = ("--epochs", "900", "--step-seconds", "0.02", "--run-at", "1", "--code", NOISY)
    options = ("--every", "10steps")
    if on_terminal:
        terminal = Terminal(tmp_path, [sys.executable, str(TRAIN), *arguments], options)
        pid = terminal.pid
    else:
        pid = supervise(*arguments, options=options, stdout=subprocess.DEVNULL).process.pid
    run = RunDir(small_disk)

    def step() -> int:
        shown = orchestrator("status", "run", "--json", cwd=tmp_path)
        return json.loads(shown.stdout)["step"] or 0 if shown.returncode == 0 else 0

    wait_for(lambda: len(events(run, "checkpoint_published")) >= 2, "checkpoints")
    fill(small_disk / "ballast")
    full_at = step()
    wait_for(lambda: step() > full_at + 40, "steps on a full disk")
    (small_disk / "ballast").unlink()
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: events(run, "attempt_exited"), "the end")
    (end,) = events(run, "attempt_exited")
    assert end["outcome"] == "stopped"
    assert end["output_bytes_lost"] > 0
    if on_terminal:
        assert terminal.end() == 75


def test_full_disk_does_not_prevent_a_restart(small_disk: Path, supervise: Start) -> None:
    """A killed trainer is restarted even if the attempt's directory cannot be created."""
    run = supervise("--epochs", "900", "--step-seconds", "0.02", options=("--every", "10steps"))
    run.wait_for_event("checkpoint_published", count=2)
    ballast: list[Path] = []
    for _ in range(2):
        with contextlib.suppress(OSError):
            while True:
                ballast.append(small_disk / f"ballast-{len(ballast)}")
                ballast[-1].touch()
        # Else what the dead trainer leaves in memory would use it up, and leave room.
        run.run.reserve_file.unlink(missing_ok=True)
    before = run.status()["step"]
    os.kill(run.trainer_pid(), signal.SIGKILL)
    wait_for(lambda: (s := run.status())["attempt"] == 2 and (s["step"] or 0) > before, "steps")
    assert not run.run.attempt(2).root.exists()
    for file in ballast:
        file.unlink(missing_ok=True)
    run.signal(signal.SIGTERM)
    assert run.end()[0] == 75
    assert_all_valid(run.run, at_least=2)
