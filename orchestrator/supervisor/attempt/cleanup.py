"""Waits until every process and GPU allocation of a finished attempt is gone.

The driver releases GPU memory a moment after a process ends. A trainer that starts before that
runs out of GPU memory, for which its own state gives no reason.
"""

import asyncio
import contextlib
import shutil
import subprocess
import time
from collections.abc import Collection

import structlog

from orchestrator.errors import LeftoverError
from orchestrator.system import process_tree
from orchestrator.system.process_tree import KillResult
from orchestrator.system.threads import in_thread

# A process that SIGKILL does not end waits for a disk or a device.
STUCK_WAIT_SECONDS = 1800.0
GPU_WAIT_SECONDS = 30.0
GPU_QUERY = ("nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader")
GPU_QUERY_SECONDS = 10.0
GPU_POLL_SECONDS = 0.2


async def all_gone(remains: KillResult, pids: Collection[int]) -> None:
    """Wait until the remaining processes have ended and ``pids`` hold no GPU memory.

    Raises LeftoverError when a process does not end within STUCK_WAIT_SECONDS.
    """
    log = structlog.get_logger()
    if remains.foreign:
        log.warning("processes of another user were left running", pids=sorted(remains.foreign))
    if remains.stuck:
        log.error(
            "SIGKILL does not end processes in uninterruptible sleep: the next attempt waits for "
            "their end",
            processes=process_tree.describe_processes(remains.stuck[0], remains.stuck),
        )
        left = await in_thread(
            lambda: process_tree.wait_for_exit(remains.stuck, STUCK_WAIT_SECONDS)
        )
        if left:
            raise LeftoverError(process_tree.describe_processes(left[0], left))
    with contextlib.suppress(TimeoutError):
        holders = await asyncio.wait_for(
            in_thread(lambda: wait_until_gpus_released(pids, GPU_WAIT_SECONDS)),
            GPU_WAIT_SECONDS + GPU_QUERY_SECONDS,
        )
        if holders:
            log.warning("the dead trainer still holds GPU memory", pids=sorted(holders))


def wait_until_gpus_released(pids: Collection[int], timeout_seconds: float) -> set[int]:
    """Wait until none of these processes uses a GPU; return those that still do at the timeout.

    Without an answer from nvidia-smi nothing is known, and this returns at once.
    """
    if shutil.which(GPU_QUERY[0]) is None:
        return set()
    deadline = time.monotonic() + timeout_seconds
    while (left := _gpu_users() & set(pids)) and time.monotonic() < deadline:
        time.sleep(GPU_POLL_SECONDS)
    return left


def _gpu_users() -> set[int]:
    """Return the processes that nvidia-smi shows on any GPU."""
    try:
        answer = subprocess.run(
            GPU_QUERY, capture_output=True, text=True, timeout=GPU_QUERY_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return set()
    return {int(line) for line in answer.stdout.split() if line.isdecimal()}
