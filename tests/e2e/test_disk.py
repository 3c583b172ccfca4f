"""A disk that is full while training goes on."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.support import Supervised, assert_all_valid, open_store, orchestrator, wait_for

Start = Callable[..., Supervised]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of one MiB where the run will be."""
    place = tmp_path / "run"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def fill(file: Path) -> None:
    """Write until nothing fits any more."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT)
    try:
        while os.write(descriptor, bytes(1024)):
            pass
    except OSError:
        os.close(descriptor)


def test_full_disk_stops_the_saving_and_not_the_training(
    small_disk: Path, supervise: Start
) -> None:
    """Training goes on with an alarm, older checkpoints stay, and saving goes on with new room."""
    run = supervise("--epochs", "900", "--step-seconds", "0.02", options=("--every", "10steps"))
    run.wait_for_event("checkpoint_published", count=3)
    fill(small_disk / "ballast")
    newest = open_store(run.run).all()[-1].manifest.step
    wait_for(lambda: run.status()["step"] > newest + 40, "steps beyond the next save")
    assert open_store(run.run).all()[-1].manifest.step <= newest + 10
    assert_all_valid(run.run, at_least=2)
    (small_disk / "ballast").unlink()
    wait_for(lambda: open_store(run.run).all()[-1].manifest.step > newest + 40, "a new checkpoint")
    run.signal(signal.SIGTERM)
    status, _, stderr = run.end()
    assert status == 75
    assert "No space left on device" in stderr
    assert_all_valid(run.run, at_least=2)


def test_stop_on_a_full_disk_says_that_nothing_was_saved(
    small_disk: Path, supervise: Start
) -> None:
    """A stop that cannot save ends with 74, and the older checkpoints stand."""
    run = supervise("--epochs", "900", "--step-seconds", "0.02", options=("--every", "10steps"))
    run.wait_for_event("checkpoint_published", count=3)
    run.run.reserve_file.unlink()
    fill(small_disk / "ballast")
    newest = open_store(run.run).all()[-1].manifest.step
    wait_for(lambda: run.status()["step"] > newest + 15, "steps that are not saved")
    stopped = orchestrator("stop", str(run.run.root), cwd=run.run.root.parent)
    status, _, stderr = run.end()
    assert status == stopped.returncode == 74
    assert "steps are lost: the newest checkpoint is" in stopped.stdout
    assert "the last steps are not saved" in stderr
    assert_all_valid(run.run, at_least=2)
