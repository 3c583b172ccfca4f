"""A script that trains more than once: each training has its own run, or is refused."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from orchestrator.rundir.paths import RunDir
from tests.e2e.support import Supervised, clean_environment, events, forked_by, open_store

Start = Callable[..., Supervised]

FOLDS = """
import torch
from orchestrator.training import Session
for fold in range(2):
    with Session(model=torch.nn.Linear(fold + 1, 1)) as session:
        for _ in session.steps(4):
            session.step()
    print("trained", fold, flush=True)
"""

# The second phase continues with the model of the first and another optimizer. The script kills
# itself in the phase and at the step of its arguments.
PHASES = """
import os, signal, sys, torch
from orchestrator.training import Session

killed_at = tuple(map(int, sys.argv[1:]))
del sys.argv[1:]  # they belong to the test, not to the training
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(), torch.nn.Linear(2, 1))
for phase in (0, 1):
    model[0].requires_grad_(phase == 1)
    optimizer = torch.optim.Adam(p for p in model.parameters() if p.requires_grad)
    with Session(run_dir=f"runs/{phase}", model=model, optimizer=optimizer) as session:
        for step in session.steps(6):
            if killed_at == (phase, step):
                session.checkpoint()
                os.kill(os.getpid(), signal.SIGKILL)
            optimizer.zero_grad()
            model(torch.randn(8, 2)).square().mean().backward()
            optimizer.step()
            session.step()
torch.save(model.state_dict(), "result.pt")
"""


@pytest.fixture
def run_alone(tmp_path: Path, warm_server: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a script without a supervisor in a directory of the test."""

    def run(script: str, *words: str, below: str = ".") -> subprocess.CompletedProcess[str]:
        (tmp_path / below).mkdir(exist_ok=True)
        (tmp_path / below / "script.py").write_text(script)
        return subprocess.run(
            [*forked_by(warm_server), "script.py", *words],
            cwd=tmp_path / below,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=90,
        )

    return run


def test_second_training_in_the_same_run_is_refused(
    run_alone: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """It never counts as complete because of the first one's result."""
    for _ in range(2):
        result = run_alone(FOLDS)
        assert result.returncode == 78
        assert result.stdout == "trained 0\n"
        assert "a run is one training" in result.stderr
        assert "run_dir=" in result.stderr
        assert "Traceback" not in result.stderr
    run = RunDir(tmp_path / "runs" / "script")
    assert [c.manifest.step for c in open_store(run).all()] == [1, 4]
    assert run.done_file.exists()


def test_second_training_inside_the_first_is_refused_with_the_same_message(
    run_alone: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """The run is in use by the same process, so the message does not suggest a stop."""
    result = run_alone(
        "import torch\nfrom orchestrator.training import Session\n"
        "with Session(model=torch.nn.Linear(1, 1)), Session(model=torch.nn.Linear(1, 1)):\n"
        "    pass\n"
    )
    assert result.returncode == 78
    assert "a run is one training" in result.stderr


@pytest.mark.parametrize("swallow", [False, True], ids=["", "swallowed"])
def test_second_training_under_a_supervisor_is_refused(
    supervise: Start, warm_server: Path, tmp_path: Path, swallow: bool
) -> None:
    """The status is 78 although the first is complete, and even if the script ignores the error."""
    indented = FOLDS.replace("\n", "\n    ")
    script = f"try:{indented}\nexcept SystemExit: pass\n" if swallow else FOLDS
    (tmp_path / "script.py").write_text(script)
    for count in (1, 2):
        run = supervise(command=[*forked_by(warm_server), "script.py"])
        status, output, told = run.end()
        assert status == 78
        assert "trained 1" not in output
        assert "a run is one training" in output
        assert "--run-dir" in output
        assert "complete already" not in told
        assert len(events(run.run, "attempt_started")) == count
        assert not events(run.run, "run_completed")
    assert open_store(run.run).all()[-1].manifest.step == 4


def test_second_training_beside_the_first_is_refused(
    supervise: Start, warm_server: Path, tmp_path: Path
) -> None:
    """The status is 78 also if the first training completes after the second was refused."""
    (tmp_path / "script.py").write_text(
        "import subprocess, sys, torch\nfrom orchestrator.training import Session\n"
        "with Session(model=torch.nn.Linear(1, 1)) as session:\n"
        "    for _ in session.steps(2):\n"
        "        session.step()\n"
        "    if len(sys.argv) == 1:\n"
        "        subprocess.run([sys.executable, 'script.py', 'fold'])\n"
    )
    for _ in range(2):
        run = supervise(command=[*forked_by(warm_server), "script.py"])
        status, output, told = run.end()
        assert status == 78
        assert "a run is one training" in output
        assert "complete already" not in told
        assert not run.run.done_file.exists()


def test_deleted_run_can_be_followed_by_another(
    run_alone: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """Several trainings in one process may use one directory if each is deleted."""
    result = run_alone(
        FOLDS.replace("    print(", "    shutil.rmtree('runs')\n    print(", 1).replace(
            "import torch", "import shutil, torch", 1
        )
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "trained 0\ntrained 1\n"


def test_two_phases_with_a_run_each_resume_after_kills(
    run_alone: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """A complete phase is skipped with its trained model, and the result is the undisturbed one."""
    assert run_alone(PHASES, below="whole").returncode == 0
    for phase, step in ((0, 3), (1, 3)):
        assert run_alone(PHASES, str(phase), str(step)).returncode == -9
    last = run_alone(PHASES)
    assert last.returncode == 0
    assert "training is complete already (step 6)" in last.stderr
    assert "resumed at step 3" in last.stderr
    mine, other = (torch.load(tmp_path / place / "result.pt") for place in (".", "whole"))
    assert all(torch.equal(value, other[name]) for name, value in mine.items())
