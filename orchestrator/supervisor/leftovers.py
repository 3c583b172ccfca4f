"""Waits until nothing of a dead attempt is left that the next one could meet."""

import asyncio
import contextlib
from collections.abc import Collection

import structlog

from orchestrator.errors import LeftoverError
from orchestrator.supervisor import gpus, processes
from orchestrator.supervisor.processes import Remains
from orchestrator.supervisor.threads import in_thread

# As for a disk: a process that cannot be ended waits for one, or for a device.
STUCK_WAIT_SECONDS = 1800.0
GPU_WAIT_SECONDS = 30.0


async def all_gone(remains: Remains, pids: Collection[int]) -> None:
    """Return when the processes that remained have ended and ``pids`` hold no GPU memory.

    Raises LeftoverError when that does not come.
    """
    log = structlog.get_logger()
    if remains.foreign:
        log.warning("processes of another user were left running", pids=sorted(remains.foreign))
    if remains.stuck:
        log.error(
            "processes that SIGKILL does not end, in uninterruptible sleep: the next attempt "
            "waits for their end",
            processes=processes.describe(remains.stuck[0], remains.stuck),
        )
        left = await in_thread(lambda: processes.wait(remains.stuck, STUCK_WAIT_SECONDS))
        if left:
            raise LeftoverError(processes.describe(left[0], left))
    with contextlib.suppress(TimeoutError):
        taken = await asyncio.wait_for(
            in_thread(lambda: gpus.wait_until_released(pids, GPU_WAIT_SECONDS)),
            GPU_WAIT_SECONDS + gpus.QUERY_SECONDS,
        )
        if taken:
            log.warning("the dead trainer still holds GPU memory", pids=sorted(taken))
