"""When a run is restarted, and when it is not."""

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from tests.e2e.support import Supervised, WarmTrainers, assert_nothing_left, events

Start = Callable[..., Supervised]

ONCE = """
from pathlib import Path
if not Path('met').exists():
    Path('met').touch()
    raise OSError('flaky disk')
"""


def test_transient_fault_is_survived(supervise: Start) -> None:
    """A failure that does not repeat is retried, and the training completes."""
    run = supervise("--epochs", "1", "--run-at", "5", "--code", ONCE, options=("--every", "2steps"))
    assert run.end()[0] == 0
    first, second = events(run.run, "attempt_exited")
    assert (first["outcome"], second["outcome"]) == ("failed", "complete")
    assert "OSError: flaky disk" in first["cause"]
    assert (first["phase"], second["phase"]) == ("train", "done")
    assert json.loads(run.run.attempt(1).error_file.read_text())["type"] == "OSError"


def test_import_error_is_not_retried(supervise: Start) -> None:
    """A script that fails before its first step is run once and ends with 70."""
    run = supervise(command=[sys.executable, "-c", "import no_such_module"])
    status, _, stderr = run.end()
    assert status == 70
    assert "before its first safe point or checkpoint, and a restart would fail too" in stderr
    assert len(events(run.run, "attempt_started")) == 1


def test_same_failure_at_same_step_stops_the_run(supervise: Start) -> None:
    """The same failure at the same step ends the run with 70 and the reason."""
    run = supervise("--fail-at", "8", options=("--every", "5steps"))
    status, _, stderr = run.end()
    assert status == 70
    assert "the same failure came again at step 8" in stderr
    # Two, or three where the second resumed so close to it that its checkpoint was suspected.
    assert len(events(run.run, "attempt_started")) in (2, 3)
    assert events(run.run, "gave_up")[0]["cause"].startswith("the trainer failed with ValueError")


def test_checkpoint_that_fails_after_resuming_is_demoted_once(supervise: Start) -> None:
    """Two failures right after resuming demote the checkpoint; a third ends the run."""
    code = "if session.resumed_from: raise RuntimeError('poisoned')"
    run = supervise(
        "--run-at", "6", "--code", code, "--fail-at", "7", options=("--every", "3steps")
    )
    assert run.end()[0] == 70
    demoted = [e for e in events(run.run, "checkpoint_quarantined") if e["demoted"]]
    assert len(demoted) == 1
    assert list(run.run.quarantine.iterdir()) != []
    assert_nothing_left(run.run)


def test_failures_before_the_session_demote_no_checkpoint(
    supervise: Start, warm_trainers: WarmTrainers
) -> None:
    """A failure before the session has resumed says nothing about the checkpoint."""
    code = "open('gone', 'w'); raise OSError('the data is gone')"
    train = f'{" ".join(warm_trainers.command)} --epochs 1 --run-at 8 --code "{code}"'
    command = ["bash", "-c", f"test ! -e gone && exec {train}"]
    for _ in range(2):
        run = supervise(command=command, options=("--every", "3steps"))
        assert run.end()[0] == 70
    assert events(run.run, "checkpoint_quarantined") == []
    assert not run.run.quarantine.exists()


# The first step's checkpoint is written beside the training; later ones would be progress.
KILL_SELF = """
import glob, os, signal, time
while not glob.glob(os.environ["ORCHESTRATOR_RUN_DIR"] + "/checkpoints/step-*"):
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_failures_without_progress_are_counted_over_supervisors(supervise: Start) -> None:
    """Deaths without a new checkpoint between them end the run, counted over supervisors."""
    off = ("--snapshot-budget", "off")  # a snapshot would be progress
    arguments = ("--run-at", "3", "--code", KILL_SELF)
    first = supervise(*arguments, options=(*off, "--max-restarts", "1"))
    assert first.end()[0] == 70
    assert len(events(first.run, "attempt_started")) == 2
    assert "--max-restarts allows 1" in events(first.run, "gave_up")[0]["reason"]

    # Stopped while it waits to try again, the next supervisor begins with what was spent.
    second = supervise(*arguments, options=(*off, "--max-restarts", "3"))
    second.wait_for_event("restart_scheduled", count=3)
    second.signal(signal.SIGTERM)
    assert second.end()[0] == 75
    spent = events(first.run, "restart_scheduled")[-1]["failures"]
    third = supervise(*arguments, options=(*off, "--max-restarts", "3"))
    third.wait_for_event("restart_scheduled", count=4)
    assert events(first.run, "restart_scheduled")[-1]["failures"] > spent
    third.signal(signal.SIGTERM)
    third.end()


def test_exit_in_the_loop_is_not_completion(supervise: Start) -> None:
    """sys.exit(0) and os._exit(0) in the loop neither complete the run nor lose checkpoints."""
    for code in ("import sys; sys.exit(0)", "import os; os._exit(0)"):
        run = supervise("--run-at", "5", "--code", code, options=("--every", "2steps"))
        status, _, stderr = run.end()
        assert status == 70
        assert "before training was complete" in stderr
        assert not run.run.done_file.exists()
        assert_nothing_left(run.run)


def test_changed_architecture_is_refused_and_not_retried(
    supervise: Start, tmp_path: Path, warm_trainers: WarmTrainers
) -> None:
    """A model that does not fit the checkpoint ends with 78, and the layers are named."""
    script = (
        "import sys, torch\nfrom orchestrator.training import Session\n"
        "model = torch.nn.Linear(4, int(sys.argv[1]))\n"
        "with Session(model=model) as session:\n"
        "    for step in session.steps(3): session.step()\n"
        "    sys.exit(3)\n"
    )
    (tmp_path / "script.py").write_text(script)
    script_of = [*warm_trainers.command[:-1], "script.py"]
    first = supervise(command=[*script_of, "2"], options=("--max-restarts", "0"))
    assert first.end()[0] == 70
    # A launcher, such as torchrun, ends with a status of its own.
    second = supervise(command=["bash", "-c", '"$@" || exit 1', "sh", *script_of, "3"])
    status, stdout, stderr = second.end()
    assert status == 78
    assert "the script was refused: cannot resume from " in stderr
    assert ".py:" not in stderr
    assert "layer weight is [2, 4] in the file, [3, 4] here" in stdout
    assert "Traceback" not in stdout
    assert len(events(first.run, "attempt_started")) == 2


def test_completed_run_is_not_trained_again(supervise: Start) -> None:
    """The same command ends with 0 at once; other arguments are refused without --continue."""
    assert supervise("--epochs", "1").end()[0] == 0
    again = supervise("--epochs", "1")
    status, _, stderr = again.end()
    assert status == 0
    assert "complete already" in stderr
    assert len(events(again.run, "attempt_started")) == 1
    refused = supervise("--epochs", "2").end()
    assert refused[0] == 78
    assert "arguments now:" in refused[2]
    longer = supervise("--epochs", "2", options=("--continue",))
    assert longer.end()[0] == 0
    assert events(longer.run, "run_completed")[-1]["step"] == 32


def test_interrupted_start_is_not_complete(supervise: Start) -> None:
    """Only the command that completed counts as complete, not a later one."""
    assert supervise("--epochs", "1").end()[0] == 0
    cut = supervise("--epochs", "2", options=("--continue",))
    cut.wait_for_event("attempt_started", count=2)
    cut.signal(signal.SIGTERM)
    assert cut.end()[0] == 75
    again = supervise("--epochs", "2", options=("--continue",))
    assert again.end()[0] == 0
    assert events(again.run, "run_completed")[-1]["step"] == 32
    assert "complete already" in supervise("--epochs", "2").end()[2]
