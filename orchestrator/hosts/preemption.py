"""Waits for a preemption notice: a file that appears, or a command that ends with status 0.

Spot instances, Kubernetes volumes and cluster agents announce a preemption in one of these forms.
"""

import asyncio
import contextlib
import os
from pathlib import Path

import structlog

from orchestrator.system.recorded_command import recorded
from orchestrator.system.subprocesses import SubprocessRunner

# File watchers get no events for files that another machine writes on a network filesystem.
POLL_SECONDS = 5.0
COMMAND_SECONDS = 10.0
# The status of a shell whose command does not exist or is not executable.
NO_COMMAND = (126, 127)


async def wait_for_file(path: Path, poll_seconds: float = POLL_SECONDS) -> None:
    """Return when the file exists."""
    # Imported here, so that only runs with a notice file pay for the import.
    from watchdog.events import FileSystemEvent, FileSystemEventHandler
    from watchdog.observers import Observer

    loop, seen = asyncio.get_running_loop(), asyncio.Event()

    class Handler(FileSystemEventHandler):
        def on_any_event(self, event: FileSystemEvent) -> None:
            # The path of the event is not checked: in Kubernetes a link above the file changes.
            if os.path.exists(path):
                with contextlib.suppress(RuntimeError):  # the loop has been closed
                    loop.call_soon_threadsafe(seen.set)

    observer = Observer()
    try:
        # The directory may not exist yet, or the system may be out of watches: then only poll.
        with contextlib.suppress(OSError):
            observer.schedule(Handler(), str(path.parent))
            observer.start()
        while not os.path.exists(path):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(seen.wait(), poll_seconds)
    finally:
        observer.stop()


async def wait_for_command(
    command: str, subprocesses: SubprocessRunner, poll_seconds: float = POLL_SECONDS
) -> None:
    """Run the shell command repeatedly, and return when it ends with status 0."""
    warned = False
    while True:
        result = await subprocesses.run(("sh", "-c", command), COMMAND_SECONDS, {})
        if result.status == 0:
            return
        if result.status in NO_COMMAND and not warned:
            warned = True
            structlog.get_logger().warning(
                "the notice command cannot be run",
                command=" ".join(recorded(command.split())),
                problem=result.problem,
            )
        await asyncio.sleep(poll_seconds)
