"""Notices that this machine is about to be taken away: a file that appears, a command that agrees.

Spot instances, Kubernetes volumes and agents of a cluster give them in one of these forms.
"""

import asyncio
import contextlib
import os
from pathlib import Path

import structlog

from orchestrator.system.subprocesses import SubprocessRunner

# Network filesystems, and what another machine writes on them, tell watchers nothing.
LOOK_SECONDS = 5.0
COMMAND_SECONDS = 10.0
# What a shell ends with when there is no such program, or it is none.
NO_COMMAND = (126, 127)


async def file_appears(path: Path) -> None:
    """Return when there is such a file."""
    # Only those who watch a file pay for it.
    from watchdog.events import FileSystemEvent, FileSystemEventHandler
    from watchdog.observers import Observer

    loop, seen = asyncio.get_running_loop(), asyncio.Event()

    class Look(FileSystemEventHandler):
        def on_any_event(self, event: FileSystemEvent) -> None:
            # Asked of the path, not the event: in Kubernetes a link above it is what changes.
            if os.path.exists(path):
                with contextlib.suppress(RuntimeError):  # the loop has closed meanwhile
                    loop.call_soon_threadsafe(seen.set)

    observer = Observer()
    try:
        # No such directory yet, or no more watches to be had: looking now and then remains.
        with contextlib.suppress(OSError):
            observer.schedule(Look(), str(path.parent))
            observer.start()
        while not os.path.exists(path):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(seen.wait(), LOOK_SECONDS)
    finally:
        observer.stop()


async def command_agrees(command: str, tools: SubprocessRunner) -> None:
    """Return when the shell command, run now and then, ends with 0."""
    warned = False
    while True:
        answer = await tools.run(("sh", "-c", command), COMMAND_SECONDS, {})
        if answer.status == 0:
            return
        if answer.status in NO_COMMAND and not warned:
            warned = True
            structlog.get_logger().warning(
                "the notice command cannot be run", command=command, problem=answer.problem
            )
        await asyncio.sleep(LOOK_SECONDS)
