"""Makes experiment trackers continue a run after a restart (docs/how-to/trackers.md)."""

import contextlib
import os
import sys
from collections.abc import Mapping

from orchestrator.rundir.identity import is_id
from orchestrator.rundir.paths import RunDir
from orchestrator.rundir.records import MAXIMUM_JSON_BYTES
from orchestrator.system.durable import write_json
from orchestrator.system.json_input import parse_object
from orchestrator.system.regular_files import read_regular

MLFLOW_VARIABLE = "MLFLOW_RUN_ID"
_MLFLOW_KEY = "mlflow_run_id"
_MLFLOW_PARENT_TAG = "mlflow.parentRunId"


class MlflowWatch:
    """Records the first active MLflow run of the script, so that later attempts resume it."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._is_known = os.path.exists(run.tracking_file)

    def poll(self) -> None:
        """Record the active run if there is one.

        Call it in the thread that trains, since MLflow keeps an active run for each thread.
        """
        if self._is_known or (run_id := active_mlflow_run()) is None:
            return
        with contextlib.suppress(OSError):  # a full disk; the next poll tries again
            record_mlflow_run(self._run, run_id)
            self._is_known = True


def active_mlflow_run() -> str | None:
    """Return the id of MLflow's active run, or of the run in which it is nested; None without."""
    # A script that has not imported MLflow has no run.
    active_run = getattr(sys.modules.get("mlflow"), "active_run", None)
    active = active_run() if active_run is not None else None
    if active is None:
        return None
    return str(active.data.tags.get(_MLFLOW_PARENT_TAG, active.info.run_id))


class TrackerVariables:
    """Sets the environment variables for trackers in a session without a supervisor."""

    def __init__(self, run: RunDir, run_id: str) -> None:
        self._variables = wandb_variables(run_id, os.environ)
        # MLflow applies the variable to the next run that the script starts, whichever it is.
        if active_mlflow_run() is None:
            self._variables |= mlflow_variables(run, os.environ)
        os.environ.update(self._variables)

    def restore(self) -> None:
        """Remove the variables, since the next session of this process is another run."""
        for name, value in self._variables.items():
            if os.environ.get(name) == value:
                del os.environ[name]


def wandb_variables(run_id: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that make W&B resume the run of this id.

    A variable that ``environment`` already contains is left out.
    """
    # W&B refuses these together with WANDB_RESUME.
    if environment.keys() & {"WANDB_RESUME_FROM", "WANDB_FORK_FROM"}:
        return {}
    variables = {"WANDB_RUN_ID": run_id, "WANDB_RESUME": "allow"}
    return {name: value for name, value in variables.items() if name not in environment}


def mlflow_variables(run: RunDir, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variable that makes MLflow resume the recorded run.

    The result is empty if ``environment`` names a run, and in a run's first attempt, since MLflow
    resumes only runs that its server has created.
    """
    try:
        run_id = parse_object(read_regular(run.tracking_file, MAXIMUM_JSON_BYTES))[_MLFLOW_KEY]
    except (OSError, ValueError, LookupError):
        return {}
    if MLFLOW_VARIABLE in environment or not is_id(run_id):
        return {}
    return {MLFLOW_VARIABLE: run_id}


def record_mlflow_run(run: RunDir, run_id: str) -> None:
    """Write the id to disk for later attempts. Raises OSError."""
    write_json(run.tracking_file, {_MLFLOW_KEY: run_id})
