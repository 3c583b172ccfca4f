"""Watches directories for changes, by file system events where the system has them."""

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
# Not each write: a large file has thousands of them, and regular scans see it anyway.
_EVENTS: list[type[FileSystemEvent]] = [
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
]


class DirectoryWatcher(FileSystemEventHandler):
    """A context in which directories are watched.

    ``changed`` is set when something happens to a path that ``is_relevant``.
    """

    def __init__(self, is_relevant: Callable[[str], bool]) -> None:
        self.changed = asyncio.Event()
        self._is_relevant = is_relevant
        self._loop = asyncio.get_running_loop()
        self._observer = Observer()
        self._watched: dict[Path, ObservedWatch] = {}

    def __enter__(self) -> Self:
        # Where the system allows no thread or no watch, the regular scans remain.
        with contextlib.suppress(OSError, RuntimeError):
            self._observer.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._observer.stop()

    def watch(self, directories: Iterable[Path]) -> None:
        """Watch these directories and no others.

        ``changed`` is set for a new one: a scan must find what came into it before.
        """
        # Each takes a thread; the regular scans see the rest.
        wanted = set(islice(directories, MOST_WATCHED))
        for gone in self._watched.keys() - wanted:
            with contextlib.suppress(KeyError, OSError):
                self._observer.unschedule(self._watched.pop(gone))
        for new in wanted - self._watched.keys():
            # The directory is gone, or the system allows no more watches.
            with contextlib.suppress(OSError):
                self._watched[new] = self._observer.schedule(self, str(new), event_filter=_EVENTS)
                self.changed.set()

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Set ``changed`` if the event is relevant; called in the observer's thread."""
        if any(self._is_relevant(str(path)) for path in (event.src_path, event.dest_path) if path):
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                self._loop.call_soon_threadsafe(self.changed.set)
