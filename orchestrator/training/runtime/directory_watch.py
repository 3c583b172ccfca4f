"""Notices that a run directory was moved, deleted or replaced while the run trains."""

import contextlib
import os

from orchestrator.errors import ConfigError
from orchestrator.rundir.paths import RunDir
from orchestrator.training.exits import print_message

_DELETED = " (deleted)"


class DirectoryWatch:
    """The run directory as it was opened; ``check`` is called about once a second."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._descriptor: int | None = None
        self._open()

    def _open(self) -> None:
        self._descriptor = None
        with contextlib.suppress(OSError):
            self._descriptor = os.open(self._run.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def check(self) -> None:
        """Say, once, that the directory is no longer the one that was opened.

        It is made again where it is missing, so that the next checkpoint can be saved there.
        """
        if self._descriptor is None or self._is_same(self._descriptor):
            return
        found = self._found(self._descriptor)
        self.close()
        where = f"is now {found}" if found else "is gone"
        lost = f"the run directory {self._run.root} was moved, deleted or replaced: the one that "
        lost += f"the run began in {where}"
        try:
            self._run.create()
        except ConfigError as error:
            print_message(f"{lost}; {error}")
            return
        print_message(
            f"{lost}; checkpoints are saved in {self._run.root} from now on. Leave a directory "
            "alone while a run uses it"
        )
        self._open()

    def _is_same(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.stat(self._run.root), os.fstat(descriptor))
        except OSError:
            return False

    def _found(self, descriptor: int) -> str | None:
        """Return where the directory that was opened is now; None where it was deleted."""
        with contextlib.suppress(OSError):
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            if os.fstat(descriptor).st_nlink and not path.endswith(_DELETED):
                return path
        return None

    def close(self) -> None:
        """Stop watching."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
