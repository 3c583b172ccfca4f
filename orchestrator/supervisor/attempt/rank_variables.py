"""The environment variables that tell each of several ranks which one it is, as torchrun's do."""

import os
import socket

from orchestrator.ipc.messages import RANK_VARIABLE

ADDRESS = "127.0.0.1"


def common_variables(world_size: int, run_id: str) -> dict[str, str]:
    """Return those that are the same for all ranks and attempts; none for a single rank."""
    if world_size == 1:
        return {}
    return {
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
        "ROLE_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": ADDRESS,
        "TORCHELASTIC_RUN_ID": run_id,
        # Read when torch is imported, and so by the spare.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }


def rank_variables(rank: int, attempt: int, port: int) -> dict[str, str]:
    """Return those of one rank in one attempt, whose ranks meet at ``port``."""
    return {
        RANK_VARIABLE: str(rank),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "ROLE_RANK": str(rank),
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RESTART_COUNT": str(attempt - 1),
    }


def free_port() -> int:
    """Return a port of this machine that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        port: int = probe.getsockname()[1]
        return port
