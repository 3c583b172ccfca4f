"""What trackers find in the environment of a restarted trainer."""

from pathlib import Path

import pytest

from orchestrator.rundir.paths import RunDir
from orchestrator.telemetry.trackers import mlflow_variables, record_mlflow_run, wandb_variables


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {"WANDB_RUN_ID": "abc", "WANDB_RESUME": "allow"}),
        ({"WANDB_RUN_ID": "mine"}, {"WANDB_RESUME": "allow"}),
        ({"WANDB_RESUME": "must"}, {"WANDB_RUN_ID": "abc"}),
        ({"WANDB_RUN_ID": "mine", "WANDB_RESUME": "never"}, {}),
        ({"WANDB_RESUME_FROM": "other?_step=5"}, {}),
        ({"WANDB_FORK_FROM": "other?_step=5"}, {}),
    ],
)
def test_wandb_resumes_the_run_of_our_id(
    environment: dict[str, str], expected: dict[str, str]
) -> None:
    """W&B is told the run's id and to resume, but for what the user has said."""
    assert wandb_variables("abc", environment) == expected


def test_mlflow_resumes_only_a_run_that_it_has_made(tmp_path: Path) -> None:
    """Nothing is said before a run was recorded, nor against the user."""
    run = RunDir(tmp_path)
    assert mlflow_variables(run, {}) == {}
    record_mlflow_run(run, "f00")
    assert mlflow_variables(run, {}) == {"MLFLOW_RUN_ID": "f00"}
    assert mlflow_variables(run, {"MLFLOW_RUN_ID": "mine"}) == {}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}"])
def test_a_damaged_record_is_none(tmp_path: Path, content: bytes) -> None:
    """Then MLflow begins a new run, which training goes on with."""
    run = RunDir(tmp_path)
    run.tracking_file.write_bytes(content)
    assert mlflow_variables(run, {}) == {}
