"""Support for all tests: waiting, child processes that die, and a disk that fails on demand."""

import errno
import io
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from orchestrator.system.durable import Disk

DEADLINE_SECONDS = 20.0
NOBODY = 65534

DIED = 77
_RAISED = 99


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Return as soon as ``condition`` is true, or fail after the deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"after {DEADLINE_SECONDS} s still waiting for {what}"
        time.sleep(0.005)


def in_child(work: Callable[[], object]) -> int:
    """Run ``work`` in a forked process, and return its exit status: 0 if ``work`` returned."""
    pid = os.fork()
    if pid == 0:
        status = _RAISED
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert os.WIFEXITED(status), f"the child was ended by signal {os.WTERMSIG(status)}"
    assert os.WEXITSTATUS(status) != _RAISED, "the child raised: see standard error"
    return os.WEXITSTATUS(status)


@contextmanager
def swapped_in(directory: Path, swap: Callable[[Path], None]) -> Iterator[Path]:
    """Have another process swap whatever is made in a directory; yield a slow path to that.

    A look at a path below it takes milliseconds, by a chain of links, as another user may make it.
    """
    maze = directory.parent / "m"
    (maze / "d").mkdir(parents=True)
    for number in range(30):
        (maze / f"{number}").symlink_to("d/../" * 700 + f"{number + 1}")
    (maze / "30").symlink_to(directory)
    known = {entry.inode() for entry in os.scandir(directory)}
    if (swapper := os.fork()) == 0:
        while True:
            for entry in os.scandir(directory):
                with suppress(OSError):
                    if entry.inode() not in known:
                        swap(directory / entry.name)
                        known.add(os.lstat(directory / entry.name).st_ino)
    try:
        yield maze / "0"
    finally:
        os.kill(swapper, signal.SIGKILL)
        os.waitpid(swapper, 0)


def die() -> NoReturn:
    """End the process as SIGKILL does: without flushing or cleaning up."""
    os._exit(DIED)


def full_disk() -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def input_output_error() -> NoReturn:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


class FailingDisk(Disk):
    """A Disk that counts its operations, writes included, and makes one of them fail.

    Operation number ``fail_at``, counted from 1, calls ``fault`` instead of doing its work. With
    ``after_effect`` it does its work first, as when a reply is lost. With ``forever`` all later
    operations fail too. Each completed operation is written to ``log`` as a line of JSON. Nothing
    is really synced: tests compute from the log what a power loss leaves.
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
        """Whether the operation ``fail_at`` has begun."""
        return 0 < self._fail_at <= self.begun

    def heal(self) -> None:
        """Let all further operations succeed."""
        self._fail_at = 0

    def make_directory(self, path: Path, *, below: Path | None = None) -> None:
        with self._operation("make_directory", path):
            super().make_directory(path, below=below)

    def create(self, path: Path, *, below: Path | None = None) -> BinaryIO:
        with self._operation("create", path):
            return cast(BinaryIO, _FailingFile(super().create(path, below=below), path, self))

    def create_direct(self, path: Path, *, below: Path | None = None) -> BinaryIO:
        return self.create(path, below=below)

    def write(self, file: BinaryIO, path: Path, data: bytes) -> None:
        """Write data; a write that fails leaves half of it, as on a disk that fills up."""
        if self._fails_next and not self._after_effect:
            half = data[: len(data) // 2]
            file.write(half)
            file.flush()
            self.record("write", path, half.hex())
        with self._operation("write", path, data.hex()):
            file.write(data)

    def sync(self, file: BinaryIO) -> None:
        with self._operation("sync", Path(file.name)):
            file.flush()

    def sync_directory(self, path: Path) -> None:
        with self._operation("sync_directory", path):
            assert path.is_dir()

    def rename(
        self,
        source: Path,
        target: Path,
        *,
        below: Path | None = None,
        source_below: Path | None = None,
    ) -> None:
        with self._operation("rename", source, target):
            super().rename(source, target, below=below, source_below=source_below)

    def link(self, source: Path, target: Path, *, below: Path | None = None) -> None:
        with self._operation("link", source, target):
            super().link(source, target, below=below)

    def remove(self, path: Path, *, below: Path | None = None) -> None:
        with self._operation("remove", path):
            super().remove(path, below=below)

    def record(self, *record: object) -> None:
        """Append to the log, which the test reads after the process has died."""
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
        self.record(*record)
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
