"""Waits until nothing of a dead attempt is left that the next one could meet."""

import asyncio
import contextlib
from collections.abc import Collection

import structlog

from orchestrator.errors import LeftoverError
from orchestrator.supervisor import gpus
from orchestrator.system import process_tree
from orchestrator.system.process_tree import Remains
from orchestrator.system.threads import in_thread

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
            processes=process_tree.describe(remains.stuck[0], remains.stuck),
        )
        left = await in_thread(lambda: process_tree.wait(remains.stuck, STUCK_WAIT_SECONDS))
        if left:
            raise LeftoverError(process_tree.describe(left[0], left))
    with contextlib.suppress(TimeoutError):
        taken = await asyncio.wait_for(
            in_thread(lambda: gpus.wait_until_released(pids, GPU_WAIT_SECONDS)),
            GPU_WAIT_SECONDS + gpus.QUERY_SECONDS,
        )
        if taken:
            log.warning("the dead trainer still holds GPU memory", pids=sorted(taken))
