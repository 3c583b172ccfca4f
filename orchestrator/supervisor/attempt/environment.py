"""The environment that every attempt of a run starts with."""

import os

from orchestrator.ipc.invitation import INVITATION_VARIABLE
from orchestrator.ipc.messages import (
    ATTEMPT_VARIABLE,
    RESUME_PATHS_VARIABLE,
    RESUME_VARIABLE,
    RUN_DIR_VARIABLE,
    SOCKET_VARIABLE,
)
from orchestrator.rundir.paths import RunDir
from orchestrator.telemetry.trackers import wandb_variables


def common_environment(
    run: RunDir, run_id: str, socket_path: str, invitation: str
) -> dict[str, str]:
    """Return the environment of the trainers of all attempts, and of the spare."""
    environment = {
        **os.environ,
        **wandb_variables(run_id, os.environ),
        SOCKET_VARIABLE: socket_path,
        INVITATION_VARIABLE: invitation,
        RUN_DIR_VARIABLE: str(run.root.absolute()),
    }
    # These may come from an outer supervisor.
    for name in (ATTEMPT_VARIABLE, RESUME_VARIABLE, RESUME_PATHS_VARIABLE):
        environment.pop(name, None)
    # Output to a pipe would be buffered in blocks, and a SIGKILL would lose the last one.
    environment.setdefault("PYTHONUNBUFFERED", "1")
    # A fatal signal leaves the stacks of all threads in the output.
    environment.setdefault("PYTHONFAULTHANDLER", "1")
    return environment
