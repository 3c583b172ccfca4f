"""The environment that every attempt of a run starts with."""

import os

from orchestrator.ipc.messages import (
    ATTEMPT_VARIABLE,
    RESUME_VARIABLE,
    RUN_DIR_VARIABLE,
    SOCKET_VARIABLE,
)
from orchestrator.rundir.paths import RunDir
from orchestrator.telemetry.trackers import wandb_variables


def common_environment(run: RunDir, run_id: str, socket_path: str) -> dict[str, str]:
    """What the trainers of all attempts, and the spare, find in their environment."""
    environment = {
        **os.environ,
        **wandb_variables(run_id, os.environ),
        SOCKET_VARIABLE: socket_path,
        RUN_DIR_VARIABLE: str(run.root.absolute()),
    }
    # Of a supervisor around us.
    for name in (ATTEMPT_VARIABLE, RESUME_VARIABLE):
        environment.pop(name, None)
    # Output into a pipe would be held back in blocks, and a SIGKILL would lose the last one.
    environment.setdefault("PYTHONUNBUFFERED", "1")
    # A fatal signal leaves the stacks of all threads in the output.
    environment.setdefault("PYTHONFAULTHANDLER", "1")
    return environment
