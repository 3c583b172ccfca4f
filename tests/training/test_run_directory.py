"""A run directory that is relative, moved, deleted or replaced while the run trains."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.checkpoint.store import Store
from orchestrator.rundir.paths import RunDir
from tests.e2e.warm_python import ORCHESTRATOR, TRAINING, WarmPython
from tests.support import NOBODY

SCRIPT = """
import os, shutil, signal, sys, time, torch
from orchestrator.training import Session

def delete(directory):
    # Threads of the session may write to it meanwhile.
    while True:
        try:
            return shutil.rmtree(directory)
        except OSError:
            time.sleep(0.01)

{before}
with Session(model=torch.nn.Linear(2, 1)) as session:
    for step in session.steps(10_000_000):
        if step == 1:
            {inside}
            done_at = time.monotonic()
        if step > 1 and time.monotonic() > done_at + 2.5:
            signal.raise_signal(signal.SIGTERM)
        session.step()
        time.sleep(0.002)
"""

pytestmark = pytest.mark.processes

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the script until it is stopped, alone or under a supervisor."""

    def run_script(
        inside: str = "pass", before: str = "", *, supervised: bool = False
    ) -> subprocess.CompletedProcess[str]:
        (tmp_path / "train.py").write_text(SCRIPT.format(before=before, inside=inside))
        words, modules = ["train.py"], TRAINING
        if supervised:
            words = ["-m", "orchestrator", "run", "--no-spare", "--", sys.executable, "train.py"]
            modules = ORCHESTRATOR
        variables = {**os.environ, "ORCHESTRATOR_SNAPSHOT_BUDGET": "off"}
        process = WarmPython(words, modules, cwd=tmp_path, env=variables)
        out, err = process.communicate(timeout=180)
        return subprocess.CompletedProcess(words, process.wait(), out, err)

    return run_script


def test_change_of_directory_in_the_block_does_not_move_the_run(run: Run, tmp_path: Path) -> None:
    """A relative run directory is resolved when the session opens."""
    stopped = run("os.mkdir('outputs'); os.chdir('outputs')")
    assert stopped.returncode == 75, stopped.stderr
    assert Store.open(RunDir(tmp_path / "runs/train"), []).all()
    assert not (tmp_path / "outputs/runs").exists()


@pytest.mark.parametrize("supervised", [False, True], ids=["alone", "supervised"])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("shutil.move('runs', 'elsewhere')", "is now {}/elsewhere/train"),
        ("delete('runs')", "is gone"),
        ("shutil.move('runs/train', 'old'); os.mkdir('runs/train')", "is now {}/old"),
    ],
    ids=["moved", "deleted", "replaced"],
)
def test_lost_run_directory_is_told_and_made_again(
    run: Run, tmp_path: Path, change: str, told: str, supervised: bool
) -> None:
    """It is said at once, and the stop is saved where the next start finds it."""
    stopped = run(change, supervised=supervised)
    assert f"the one that the run began in {told.format(tmp_path)}" in (
        stopped.stdout + stopped.stderr
    )
    assert stopped.returncode == 75, stopped.stderr
    assert Store.open(RunDir(tmp_path / "runs/train"), []).all()


def test_run_in_a_new_working_directory_is_hinted_at(run: Run, tmp_path: Path) -> None:
    """A script that goes to a directory of its own first, as under Hydra, would start from zero."""
    stopped = run(before="os.makedirs('outputs/1'); os.chdir('outputs/1')")
    assert "the script has changed its working directory" in stopped.stderr
    assert Store.open(RunDir(tmp_path / "outputs/1/runs/train"), []).all()


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("supervised", [False, True], ids=["alone", "supervised"])
def test_history_of_another_user_is_resumed_only_when_trusted(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, supervised: bool
) -> None:
    """Training in another user's run is refused, until it is trusted once."""
    journal = tmp_path / "runs/train/journal.jsonl"
    journal.parent.mkdir(parents=True)
    journal.touch()
    os.chown(journal, NOBODY, NOBODY)
    refused = run(supervised=supervised)
    assert refused.returncode == 78, refused.stderr
    assert "journal.jsonl there belongs to nobody" in refused.stderr
    monkeypatch.setenv("ORCHESTRATOR_TRUST", "on")
    assert run(before="done_at = 0", supervised=supervised).returncode == 75
    monkeypatch.delenv("ORCHESTRATOR_TRUST")
    assert run(before="done_at = 0", supervised=supervised).returncode == 75
