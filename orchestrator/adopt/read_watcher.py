"""Watches whether a script reads the checkpoint that it was offered."""

import contextlib
import math
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from watchdog.events import (
    FileClosedNoWriteEvent,
    FileCreatedEvent,
    FileModifiedEvent,
    FileOpenedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from orchestrator.adopt.files import SavedFiles
from orchestrator.system.regular_files import open_regular

# A file that is opened for a save is written to within this time.
WRITE_SECONDS = 0.5
# The event of the first read, which is the watcher's own, comes within this time or never.
PROOF_SECONDS = 5.0


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
        self._was_read = threading.Event()
        self._written: set[str] = set()
        self._opened: dict[str, float] = {}
        self._observer: BaseObserver | None = None

    @property
    def is_unread(self) -> bool:
        """Whether no process has read it; False where that is not known."""
        # A file that is mapped into memory stays open.
        mapped = time.monotonic() - min(self._opened.values(), default=math.inf) > WRITE_SECONDS
        return self._observer is not None and not self._was_read.is_set() and not mapped

    def start(self, paths: Sequence[Path]) -> None:
        """Watch ``paths`` from now on, and nothing else; it takes up to ``PROOF_SECONDS``."""
        self.stop()
        observer = Observer()
        # Where the system allows no watch it is not known whether the script reads.
        with contextlib.suppress(OSError, RuntimeError):
            for path in paths:
                recursive = os.path.isdir(path)
                observer.schedule(self, str(path), recursive=recursive, event_filter=self._READS)
            observer.start()
            if self._sees_own_read(paths):
                self._observer = observer
            else:
                observer.stop()
        self._was_read.clear()
        self._written.clear()
        self._opened.clear()

    def _sees_own_read(self, paths: Sequence[Path]) -> bool:
        """Whether this system tells of reads: not every system does, nor every filesystem."""
        files = SavedFiles.at(*paths)
        if files is None or not files.states:
            return False
        os.close(open_regular(files.root / next(iter(files.states)), os.O_RDONLY))
        return self._was_read.wait(PROOF_SECONDS)

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
            if path in self._opened:
                self._was_read.set()
        else:
            self._written.add(path)
            self._opened.pop(path, None)
