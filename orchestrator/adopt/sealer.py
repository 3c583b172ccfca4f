"""Seals saves, and keeps the time that this takes within limits."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from orchestrator.adopt.files import SavedFiles
from orchestrator.adopt.seal_store import Sealing, SealStore
from orchestrator.checkpoint.checkpoint import Checkpoint

# A file that the script overwrites all the time is copied no more than this share of the time.
SEALING_SHARE = 0.1
# Of a path among others that the script writes over, so many copies stay.
KEPT_VERSIONS = 2
# What the disk has refused is tried again after this time.
RETRY_SECONDS = 60.0


class Sealer:
    """Seals saves one at a time, and remembers how the running trainer writes them."""

    def __init__(self, store: SealStore, clock: Callable[[], float]) -> None:
        self.cpu_seconds = 0.0
        """The processor time that all sealing so far has taken."""
        self._store = store
        self._clock = clock
        self._not_before: dict[Path, float] = {}
        self._last_sealed: dict[Path, SavedFiles] = {}

    def forget_write_habits(self) -> None:
        """Forget whether the script replaces its files: another trainer begins."""
        self._last_sealed.clear()

    def is_postponed(self, path: Path) -> bool:
        """Return whether sealing this path must wait."""
        return self._clock() < self._not_before.get(path, 0.0)

    def has_sealed(self, files: SavedFiles) -> bool:
        """Return whether this version was sealed before, in the running attempt.

        Retention may have deleted that checkpoint, and there is no reason to make it again.
        """
        return self._last_sealed.get(files.path) == files

    def postpone(self, path: Path) -> None:
        """Try this path again after RETRY_SECONDS."""
        self._not_before[path] = self._clock() + RETRY_SECONDS

    def seal(self, sealing: Sealing, *, has_older: bool) -> Checkpoint | None:
        """Seal a save, with hard links where the script replaces its files.

        ``has_older`` says that there are earlier seals of the path, which are then withdrawn.
        Return None if the files changed meanwhile. Raises OSError.
        """
        path, began = sealing.files.path, self._clock()
        link = _has_replaced(self._last_sealed.get(path), sealing.files)
        cpu_began = time.thread_time()
        try:
            checkpoint = self._store.seal(replace(sealing, link=link))
        finally:
            self.cpu_seconds += time.thread_time() - cpu_began
        now = self._clock()
        self._not_before[path] = now + (now - began) / SEALING_SHARE
        if checkpoint is not None and has_older:
            versions = None if sealing.keeps_all_versions else KEPT_VERSIONS
            self._store.withdraw_older(checkpoint, versions)
        if checkpoint is not None:
            self._last_sealed[path] = sealing.files
        return checkpoint


def _has_replaced(previous: SavedFiles | None, files: SavedFiles) -> bool:
    """Return whether the script replaced the old files by new ones."""
    if previous is None:
        return False
    both = previous.states.keys() & files.states.keys()
    return all(previous.states[name].inode != files.states[name].inode for name in both)
