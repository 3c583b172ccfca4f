"""Which files the processes below this one have open for writing, where the system shows that."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from orchestrator.system.capabilities import Capability, is_available
from orchestrator.system.process_tree import descendants

_PROC = Path("/proc")


def files_open_for_writing() -> set[Path]:
    """Return the files that processes below this one have open for writing, without links.

    Nothing is known, and nothing returned, on a system without /proc.
    """
    if not is_available(Capability.PROC):
        return set()
    return {file for pid in descendants() for file in _written_by(pid)}


def open_for_writing(paths: Iterable[Path]) -> set[Path]:
    """Return those of the paths that a process below this one has open for writing.

    A directory counts as long as a file in it is open for writing.
    """
    wanted = {Path(os.path.realpath(path)): path for path in paths}
    files = files_open_for_writing() if wanted else set()
    return {wanted[above] for file in files for above in (file, *file.parents) if above in wanted}


def _written_by(pid: int) -> Iterator[Path]:
    with contextlib.suppress(OSError):  # it has ended, or belongs to another user
        for descriptor in os.listdir(_PROC / str(pid) / "fd"):
            with contextlib.suppress(OSError, ValueError, StopIteration):
                target = os.readlink(_PROC / str(pid) / "fd" / descriptor)
                if target.startswith("/") and _is_for_writing(pid, descriptor):
                    yield Path(target)


def _is_for_writing(pid: int, descriptor: str) -> bool:
    lines = (_PROC / str(pid) / "fdinfo" / descriptor).read_text().splitlines()
    flags = next(line for line in lines if line.startswith("flags:"))
    return int(flags.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY
