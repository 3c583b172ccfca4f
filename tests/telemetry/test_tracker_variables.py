"""The environment variables that make trackers resume their runs."""

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
def test_wandb_resumes_the_run_of_the_id(
    environment: dict[str, str], expected: dict[str, str]
) -> None:
    """W&B gets the run id and the wish to resume, except for what the user has set."""
    assert wandb_variables("abc", environment) == expected


def test_mlflow_resumes_only_a_recorded_run(tmp_path: Path) -> None:
    """The variable is set only for a recorded run, and never replaces the user's."""
    run = RunDir(tmp_path)
    assert mlflow_variables(run, {}) == {}
    record_mlflow_run(run, "f00")
    assert mlflow_variables(run, {}) == {"MLFLOW_RUN_ID": "f00"}
    assert mlflow_variables(run, {"MLFLOW_RUN_ID": "mine"}) == {}


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"{}", b'{"mlflow_run_id": 7}', b'{"mlflow_run_id": "../../x"}'),
        *(b'{"mlflow_run_id": "a\\u001b[2J"}', b'{"mlflow_run_id": "%s"}' % (b"a" * 1_000_000)),
    ],
    ids=range(8),
)
def test_damaged_record_is_ignored(tmp_path: Path, content: bytes) -> None:
    """A damaged record sets no variable, so that MLflow starts a new run."""
    run = RunDir(tmp_path)
    run.tracking_file.write_bytes(content)
    assert mlflow_variables(run, {}) == {}
