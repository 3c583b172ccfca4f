"""What several test modules share: waiting, dying children, and a disk that fails on demand."""

import errno
import io
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from orchestrator.system.durable import Disk

DEADLINE_SECONDS = 20.0
NOBODY = 65534

DIED = 77
_DEFECT = 99


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Return as soon as ``condition`` is true, or fail after the deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE_SECONDS} s in vain for {what}"
        time.sleep(0.005)


def in_child(work: Callable[[], object]) -> int:
    """Run ``work`` in a forked process; its exit status, which is 0 when ``work`` returned."""
    pid = os.fork()
    if pid == 0:
        status = _DEFECT
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert os.WIFEXITED(status), f"the child was ended by signal {os.WTERMSIG(status)}"
    assert os.WEXITSTATUS(status) != _DEFECT, "the child raised: see standard error"
    return os.WEXITSTATUS(status)


def die() -> NoReturn:
    """End the process as SIGKILL would: nothing is flushed, nothing is cleaned up."""
    os._exit(DIED)


def full_disk() -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def input_output_error() -> NoReturn:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


class FailingDisk(Disk):
    """Counts the operations of a Disk, writes included, and has one of them fail.

    Operation number ``fail_at``, counted from 1, calls ``fault``: instead of doing its work, or
    after it where ``after_effect`` says so (a reply that was lost); with ``forever`` all later ones
    fail too. ``log`` gets each completed operation as a line of JSON. Nothing is really synced:
    what a power loss leaves is computed from the log.
    """

    def __init__(
        self,
        fail_at: int = 0,
        fault: Callable[[], NoReturn] = full_disk,
        *,
        after_effect: bool = False,
        forever: bool = False,
        log: Path | None = None,
    ) -> None:
        self.begun = 0
        self._fail_at = fail_at
        self._fault = fault
        self._after_effect = after_effect
        self._forever = forever
        self._log = None if log is None else open(log, "ab", buffering=0)  # noqa: SIM115

    @property
    def reached(self) -> bool:
        """Whether the operation that was to fail has come."""
        return 0 < self._fail_at <= self.begun

    def heal(self) -> None:
        """From now on nothing fails."""
        self._fail_at = 0

    def make_directory(self, path: Path) -> None:
        with self._operation("make_directory", path):
            super().make_directory(path)

    def create(self, path: Path) -> BinaryIO:
        with self._operation("create", path):
            return cast(BinaryIO, _FailingFile(super().create(path), path, self))

    def create_direct(self, path: Path) -> BinaryIO:
        return self.create(path)

    def write(self, file: BinaryIO, path: Path, data: bytes) -> None:
        """One write; a failing one leaves half of the data, as a filling disk does."""
        if self._fails_next and not self._after_effect:
            half = data[: len(data) // 2]
            file.write(half)
            file.flush()
            self.note("write", path, half.hex())
        with self._operation("write", path, data.hex()):
            file.write(data)

    def sync(self, file: BinaryIO) -> None:
        with self._operation("sync", Path(file.name)):
            file.flush()

    def sync_directory(self, path: Path) -> None:
        with self._operation("sync_directory", path):
            assert path.is_dir()

    def rename(self, source: Path, target: Path) -> None:
        with self._operation("rename", source, target):
            super().rename(source, target)

    def link(self, source: Path, target: Path) -> None:
        with self._operation("link", source, target):
            super().link(source, target)

    def remove(self, path: Path) -> None:
        with self._operation("remove", path):
            super().remove(path)

    def note(self, *record: object) -> None:
        """Append to the log, where the test finds it after the process has died."""
        if self._log is not None:
            self._log.write(json.dumps([str(item) for item in record]).encode() + b"\n")

    @property
    def _fails_next(self) -> bool:
        number = self.begun + 1
        return number == self._fail_at or (self._forever and 0 < self._fail_at < number)

    @contextmanager
    def _operation(self, *record: object) -> Iterator[None]:
        fails = self._fails_next
        self.begun += 1
        if fails and not self._after_effect:
            self._fault()
        yield
        self.note(*record)
        if fails:
            self._fault()


class _FailingFile(io.RawIOBase):
    """The file that ``create`` returns; each of its writes is an operation of the disk."""

    def __init__(self, file: BinaryIO, path: Path, disk: FailingDisk) -> None:
        self._file = file
        self.name = str(path)
        self._disk = disk

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._disk.write(self._file, Path(self.name), bytes(data))
        return len(data)

    def flush(self) -> None:
        if not self._file.closed:
            self._file.flush()

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()
        super().close()
