"""A run that trains and makes no checkpoints any more."""

import subprocess
import sys
from pathlib import Path

from orchestrator.rundir.paths import RunDir
from tests.e2e.support import (
    DEADLINE_SECONDS,
    TRAIN,
    assert_nothing_left,
    clean_environment,
    events,
    forked_by,
)

# The supervisor as it is wired, but for the times.
IMPATIENT = """
from functools import partial
from orchestrator.supervisor import wiring
wiring.StallWatch = partial(wiring.StallWatch, least_usual_seconds=0.2, poll_seconds=0.05)
from orchestrator.__main__ import main
main()
"""
NOTE = 'echo "$ORCHESTRATOR_EVENT at $ORCHESTRATOR_EVENT_STEP" >> told'
# The step takes as long as nobody is told.
WAIT = f"""
deadline = time.monotonic() + {DEADLINE_SECONDS}
while not Path("told").exists() and time.monotonic() < deadline:
    time.sleep(0.02)
"""


def test_stalled_run_is_told_and_goes_on(tmp_path: Path, warm_server: Path) -> None:
    """The command for events runs when no checkpoint comes, and again when training is done."""
    options = ("--run-dir", "run", "--every", "2steps", "--on-event", NOTE)
    trainer = [*forked_by(warm_server), str(TRAIN), "--epochs", "1", "--run-at", "9"]
    ended = subprocess.run(
        [sys.executable, "-c", IMPATIENT, "run", *options, "--", *trainer, "--code", WAIT],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE_SECONDS,
    )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "told").read_text() == "stalled at 9\ndone at 16\n"
    run = RunDir(tmp_path / "run")
    (stalled,) = events(run, "stalled")
    assert stalled["attempt"] == 1
    assert "no new checkpoint for" in ended.stderr
    assert_nothing_left(run)
