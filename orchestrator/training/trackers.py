"""The experiment trackers in a session's process (docs/how-to/trackers.md)."""

import contextlib
import os
import sys

from orchestrator.rundir.paths import RunDir
from orchestrator.tracking import mlflow_variables, record_mlflow_run, wandb_variables

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
