"""`orchestrator run --metrics-file` over the life of a run."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.support import Supervised, orchestrator, wait_for

# It diverges at step 5.
DIVERGE = "torch.nn.init.constant_(model[0].weight, float('nan'))"
NOTE = 'echo "$ORCHESTRATOR_EVENT: $ORCHESTRATOR_EVENT_REASON" >> events'


def series_in(path: Path) -> dict[str, float]:
    """The series in a file; their own label is in the name."""
    found = {}
    for family in text_string_to_metric_families(path.read_text()):
        for sample in family.samples:
            own = {k: v for k, v in sample.labels.items() if k not in ("run", "run_id", "run_dir")}
            found[" ".join([sample.name.removeprefix("orchestrator_"), *own.values()])] = (
                sample.value
            )
    return found


def test_metrics_follow_a_run_over_a_kill_to_its_end(
    supervise: Callable[..., Supervised], tmp_path: Path
) -> None:
    """The file is there from the start, and ends with the state, the restart and all steps."""
    path = tmp_path / "train.prom"
    options = ("--every", "4steps", "--metrics-file", str(path))
    run = supervise("--epochs", "2", "--step-seconds", "0.02", options=options)
    run.wait_for_event("checkpoint_published", count=2)
    assert series_in(path)["restarts_total unknown"] == 0
    os.kill(run.trainer_pid(), signal.SIGKILL)
    assert run.end()[0] == 0
    series = series_in(path)
    assert series["run_state completed"] == series["restarts_total killed"] == 1
    assert series["run_state training"] == series["restarts_total unknown"] == 0
    assert series["step"] == series["planned_steps"] == series["checkpoint_step"] == 32
    assert series["training_steps_total"] >= 32
    assert series["progress_ratio"] == 1
    assert series["training_metric loss"] > 0
    status = run.status()
    assert (status["restarts_by_kind"], status["trained_steps"]) == ({"killed": 1}, None)


def test_unusable_metrics_file_is_refused_before_the_run_begins(tmp_path: Path) -> None:
    """A directory that is not there ends the start with 78, and leaves no run."""
    options = ("--metrics-file", "none/train.prom", "--", sys.executable, "-c", "pass")
    refused = orchestrator("run", *options, cwd=tmp_path)
    assert refused.returncode == 78
    assert refused.stderr.startswith("cannot write --metrics-file none/train.prom: there is no")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_are_told(
    supervise: Callable[..., Supervised], tmp_path: Path
) -> None:
    """The command for events runs once for all the checkpoints that nothing resumes from."""
    options = ("--every", "2steps", "--on-event", NOTE)
    run = supervise("--epochs", "1", "--run-at", "5", "--code", DIVERGE, options=options)
    run.end()
    told = wait_for(lambda: (tmp_path / "events").read_text().splitlines(), "events")
    unhealthy = [line for line in told if line.startswith("unhealthy")]
    assert unhealthy == [
        "unhealthy: the weights are not finite: nothing resumes from what is saved now"
    ]
