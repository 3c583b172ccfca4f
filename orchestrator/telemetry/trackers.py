"""Makes experiment trackers continue the run that they began (docs/how-to/trackers.md)."""

import contextlib
import json
import os
import sys
from collections.abc import Mapping

from orchestrator.rundir.paths import RunDir
from orchestrator.system.durable import write_json

MLFLOW_VARIABLE = "MLFLOW_RUN_ID"
_MLFLOW_KEY = "mlflow_run_id"
_MLFLOW_PARENT_TAG = "mlflow.parentRunId"


class MlflowWatch:
    """Records the first run that the script has active in MLflow, for the attempts to come."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._is_known = run.tracking_file.exists()

    def consider(self) -> None:
        """Look for it; for the thread that trains, since MLflow's active run is a thread's own."""
        if self._is_known or (run_id := active_mlflow_run()) is None:
            return
        with contextlib.suppress(OSError):  # a full disk; the next look tries it again
            record_mlflow_run(self._run, run_id)
            self._is_known = True


def active_mlflow_run() -> str | None:
    """The id of MLflow's active run, or of the one that it is nested in."""
    # Nobody who has not imported it has a run.
    active_run = getattr(sys.modules.get("mlflow"), "active_run", None)
    active = active_run() if active_run is not None else None
    if active is None:
        return None
    return str(active.data.tags.get(_MLFLOW_PARENT_TAG, active.info.run_id))


class TrackerVariables:
    """What a supervisor would have put into the environment, while a session is without one."""

    def __init__(self, run: RunDir, run_id: str) -> None:
        self._set = wandb_variables(run_id, os.environ)
        # MLflow takes the variable for whichever run is started next.
        if active_mlflow_run() is None:
            self._set |= mlflow_variables(run, os.environ)
        os.environ.update(self._set)

    def restore(self) -> None:
        """Remove what is still there: the next session of this process is another run."""
        for name, value in self._set.items():
            if os.environ.get(name) == value:
                del os.environ[name]


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
