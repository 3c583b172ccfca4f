"""A Lightning script under real kills, and without a supervisor."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.support import (
    Supervised,
    WarmTrainers,
    assert_all_valid,
    assert_nothing_left,
    assert_same_result,
    clean_environment,
    events,
    forked_by,
    forking_server,
    wait_for,
)

SCRIPT = Path(__file__).with_name("lightning_train.py")
STEPS = 120


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the address of a process that has imported Lightning and forks trainers."""
    address = tmp_path_factory.mktemp("warm") / "server"
    with forking_server(address, "lightning.pytorch", "orchestrator.integrations.lightning"):
        yield address


@pytest.fixture(scope="module")
def uninterrupted(server: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the result of the script without a supervisor."""
    root = tmp_path_factory.mktemp("uninterrupted")
    command = [*forked_by(server), str(SCRIPT), "result.pt"]
    subprocess.run(command, cwd=root, env=clean_environment(), check=True, timeout=90)
    assert (root / "runs" / "lightning_train" / "done.json").exists()
    return root / "result.pt"


@pytest.mark.skipif(
    not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == os.stat("/tmp").st_dev,
    reason="needs two file systems, between which Lightning's save is a copy",
)
def test_training_killed_in_lightnings_own_save_and_elsewhere_is_exact(
    supervise: Callable[..., Supervised], server: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """After 3 SIGKILLs and a SIGTERM the weights are equal; no partial file was used."""
    trainers = WarmTrainers(server)
    command = [*forked_by(server), str(SCRIPT), "result.pt", "--half-written"]
    run = supervise(command=command)
    trainers.newest()
    for number in (2, 3):
        trainer = trainers.newest()
        run.wait_for_event("resumed", count=number - 1)
        progress = run.wait_for_event("attempt_started", count=number)
        wait_for(lambda p=progress: run.status()["step"] > p["resume_step"] + 10, "steps")
        if number == 2:
            # Which the script has found, and Lightning would have taken: last.ckpt.
            assert "cannot be loaded" in run.run.attempt(2).output_file.read_text()
        assert trainer is not None
        trainer.send_signal(signal.SIGKILL)
    run.wait_for_event("resumed", count=3)
    run.signal(signal.SIGTERM)
    assert run.end()[0] == 75
    again = supervise(command=command)
    assert again.end()[0] == 0
    resumed = events(run.run, "resumed")
    assert len(resumed) == 4
    assert {event["exactness"] for event in resumed} == {"EXACT"}
    assert_same_result(tmp_path / "result.pt", uninterrupted)
    assert len(run.run.metrics_file.read_text().splitlines()) == STEPS
    assert_all_valid(run.run)
    assert_nothing_left(run.run)
