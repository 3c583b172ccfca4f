"""Has experiment trackers go on with the run they began, in the environment of each attempt."""

import json
from collections.abc import Mapping

from orchestrator.rundir.paths import RunDir
from orchestrator.system.durable import write_json

MLFLOW_VARIABLE = "MLFLOW_RUN_ID"
_MLFLOW_KEY = "mlflow_run_id"


def wandb_variables(run_id: str, environment: Mapping[str, str]) -> dict[str, str]:
    """What has W&B resume the run of our id, less what ``environment`` says already."""
    # W&B refuses these together with WANDB_RESUME.
    if environment.keys() & {"WANDB_RESUME_FROM", "WANDB_FORK_FROM"}:
        return {}
    variables = {"WANDB_RUN_ID": run_id, "WANDB_RESUME": "allow"}
    return {name: value for name, value in variables.items() if name not in environment}


def mlflow_variables(run: RunDir, environment: Mapping[str, str]) -> dict[str, str]:
    """What has MLflow resume the run that was recorded, unless ``environment`` names one.

    MLflow resumes only what its server has made, so that there is none in a run's first attempt.
    """
    try:
        run_id = json.loads(run.tracking_file.read_bytes())[_MLFLOW_KEY]
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return {} if MLFLOW_VARIABLE in environment else {MLFLOW_VARIABLE: str(run_id)}


def record_mlflow_run(run: RunDir, run_id: str) -> None:
    """Keep the id for the attempts to come. Raises OSError."""
    write_json(run.tracking_file, {_MLFLOW_KEY: run_id})
