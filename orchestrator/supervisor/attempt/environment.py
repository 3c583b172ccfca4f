"""The environment that every attempt of a run starts with."""

import os

from orchestrator.ipc.invitation import INVITATION_VARIABLE
from orchestrator.ipc.messages import (
    ATTEMPT_VARIABLE,
    RANK_VARIABLE,
    RESUME_PATHS_VARIABLE,
    RESUME_VARIABLE,
    RUN_DIR_VARIABLE,
    SOCKET_VARIABLE,
)
from orchestrator.rundir.paths import RunDir
from orchestrator.supervisor.attempt.rank_variables import common_variables
from orchestrator.telemetry.trackers import wandb_variables


def common_environment(
    run: RunDir, run_id: str, socket_path: str, invitation: str, world_size: int
) -> dict[str, str]:
    """Return the environment of the trainers of all attempts, and of the spare."""
    environment = {
        **os.environ,
        **common_variables(world_size, run_id),
        **wandb_variables(run_id, os.environ),
        SOCKET_VARIABLE: socket_path,
        INVITATION_VARIABLE: invitation,
        RUN_DIR_VARIABLE: str(run.root.absolute()),
    }
    # These may come from an outer supervisor.
    for name in (ATTEMPT_VARIABLE, RESUME_VARIABLE, RESUME_PATHS_VARIABLE, RANK_VARIABLE):
        environment.pop(name, None)
    if world_size > 1:
        # Rank 0 is the server at which the ranks meet: that of a torchrun around all is another.
        environment.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    # Output to a pipe would be buffered in blocks, and a SIGKILL would lose the last one.
    environment.setdefault("PYTHONUNBUFFERED", "1")
    # A fatal signal leaves the stacks of all threads in the output.
    environment.setdefault("PYTHONFAULTHANDLER", "1")
    return environment
