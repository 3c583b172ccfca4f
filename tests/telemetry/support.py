"""A status in which everything is known, for the tests of those who show it."""

from dataclasses import asdict

from orchestrator.rundir.time_ledger import Part
from orchestrator.telemetry.failure import Failure
from orchestrator.telemetry.progress import Progress
from orchestrator.telemetry.status import Status

FULL = Status(
    run_id="0123",
    state="training",
    run_dir="runs/a",
    supervisor_pid=7,
    trainer_pid=8,
    spare_pid=9,
    spare={"state": "ready", "reason": None, "bytes": 5},
    attempt=2,
    restarts=1,
    restarts_by_kind={"killed": 1},
    trained_steps=40,
    epoch=3,
    step=40,
    progress=Progress.of(40, 3, 100, 8, 2.5),
    phase="step",
    silent_seconds=0.5,
    hang_budget_seconds=300,
    metrics={"loss": 0.5, "other": "nan"},
    newest_checkpoint={"path": "runs/a/checkpoints/x", "step": 30, "age_seconds": 5.5},
    newest_snapshot={"step": 39, "age_seconds": 1},
    snapshots={
        "interval_seconds": 1.0,
        "stall_seconds": 0,
        "bytes": 5,
        "write_seconds": 0.5,
        "failure_seconds": 60.0,
    },
    lose_at_most_seconds=1.0,
    machine_loses_at_most_seconds=5,
    ranks=[{"rank": 1, "pid": 8, "step": 40, "state": "train"}],
    problem="the disk is full",
    goodput={
        "percent": 90.0,
        "wall_seconds": 20.0,
        "seconds": dict.fromkeys(Part, 0.0) | {"training": 18.0, "idle": 2.0},
        "attempts": [{"attempt": 2, "seconds": dict.fromkeys(Part, 0.0) | {"training": 18.0}}],
    },
    failure=asdict(Failure(70, "a bug", None, "exception", 2, 40, 3, "output.log", "last")),
)
