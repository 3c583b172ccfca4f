"""Tells when something may have changed in directories: by events where there are any."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any, Self

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import ObservedWatch

MOST_WATCHED = 16
# Not each write: a large file has thousands of them, and is looked at now and then anyway.
_EVENTS: list[type[FileSystemEvent]] = [
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
]


class Changes(FileSystemEventHandler):
    """A context in which directories are watched; ``changed`` is set by what ``concerns`` us."""

    def __init__(self, concerns: Callable[[str], bool]) -> None:
        self.changed = asyncio.Event()
        self._concerns = concerns
        self._loop = asyncio.get_running_loop()
        self._observer = Observer()
        self._watched: dict[Path, ObservedWatch] = {}

    def __enter__(self) -> Self:
        # Without a thread or a watch to be had, looking now and then remains.
        with contextlib.suppress(OSError, RuntimeError):
            self._observer.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._observer.stop()

    def watch(self, directories: Iterable[Path]) -> None:
        """Watch these and no others.

        What came into a new one before that is found by looking: ``changed`` is set.
        """
        # A thread each: the rest is looked at now and then.
        wanted = set(islice(directories, MOST_WATCHED))
        for gone in self._watched.keys() - wanted:
            with contextlib.suppress(KeyError, OSError):
                self._observer.unschedule(self._watched.pop(gone))
        for new in wanted - self._watched.keys():
            # No such directory, or no more watches to be had.
            with contextlib.suppress(OSError):
                self._watched[new] = self._observer.schedule(self, str(new), event_filter=_EVENTS)
                self.changed.set()

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Called in the observer's thread."""
        if any(self._concerns(str(path)) for path in (event.src_path, event.dest_path) if path):
            with contextlib.suppress(RuntimeError):  # the loop has closed meanwhile
                self._loop.call_soon_threadsafe(self.changed.set)
