"""Watches directories for changes, by file system events where the system has them."""

import asyncio
import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Self

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileClosedNoWriteEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileOpenedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver, ObservedWatch

MOST_WATCHED = 16
# A file that is opened for a save is written to within this time.
WRITE_SECONDS = 0.5
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
        self.has_seen_events = False
        """Whether the system tells of what the script does to the files."""
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
            self.has_seen_events = True
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                self._loop.call_soon_threadsafe(self.changed.set)


class ReadWatcher(FileSystemEventHandler):
    """Watches whether a process opens one of some files, or a file in a directory, to read it.

    A save opens its file too, and then writes to it: that is no read, nor is what comes after it.
    """

    _READS: ClassVar[list[type[FileSystemEvent]]] = [
        FileOpenedEvent,
        FileModifiedEvent,
        FileCreatedEvent,
        FileClosedNoWriteEvent,
    ]

    def __init__(self) -> None:
        self._was_read = False
        self._written: set[str] = set()
        self._opened: dict[str, float] = {}
        self._observer: BaseObserver | None = None

    @property
    def is_unread(self) -> bool:
        """Whether no process has read it; False where that is not known."""
        # A file that is mapped into memory stays open.
        mapped = time.monotonic() - min(self._opened.values(), default=math.inf) > WRITE_SECONDS
        return self._observer is not None and not self._was_read and not mapped

    def start(self, paths: Iterable[Path]) -> None:
        """Watch ``paths`` from now on, and nothing else."""
        self.stop()
        self._was_read = False
        self._written.clear()
        self._opened.clear()
        observer = Observer()
        # Where the system allows no watch it is not known whether the script reads.
        with contextlib.suppress(OSError, RuntimeError):
            for path in paths:
                recursive = os.path.isdir(path)
                observer.schedule(self, str(path), recursive=recursive, event_filter=self._READS)
            observer.start()
            self._observer = observer

    def stop(self) -> None:
        """Watch nothing any more."""
        if self._observer is not None:
            self._observer.stop()
            self._observer = None

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Record a read; called in the observer's thread."""
        path = str(event.src_path)
        if event.is_directory or path in self._written:
            return
        if isinstance(event, FileOpenedEvent):
            self._opened.setdefault(path, time.monotonic())
        elif isinstance(event, FileClosedNoWriteEvent):
            self._was_read = self._was_read or path in self._opened
        else:
            self._written.add(path)
            self._opened.pop(path, None)
