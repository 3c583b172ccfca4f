"""Removes the sockets that killed supervisors have left."""

import contextlib
import os
import socket
import stat
from pathlib import Path

from orchestrator.ipc.socket_address import DIRECTORY_NAME, SOCKET_NAME


def remove_stale_sockets(run_directory: Path, noted_path: object) -> None:
    """Remove the socket of a killed supervisor, and its temporary directory if that is then empty.

    The noted path comes from a file that another program may have written. So nothing is removed
    recursively, nothing that a process still listens on, and nothing but in a directory that only
    this user can change, as this program makes it.
    """
    _remove_stale(run_directory / SOCKET_NAME)
    path = Path(str(noted_path))
    if (
        path.is_absolute()
        and path.name == SOCKET_NAME
        and DIRECTORY_NAME.fullmatch(path.parent.name)
    ):
        _remove_stale(path, private=True)
        with contextlib.suppress(OSError, ValueError):
            if _is_private(os.lstat(path.parent)):
                os.rmdir(path.parent)


def _remove_stale(path: Path, *, private: bool = False) -> None:
    """Remove a stale socket from its directory, which must be this user's alone if ``private``.

    The directory is opened once: at its path another one may be when the socket is removed.
    """
    follow = os.O_NOFOLLOW if private else 0
    with contextlib.suppress(OSError, ValueError):
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | follow)
        try:
            facts = os.stat(path.name, dir_fd=folder, follow_symlinks=False)
            is_allowed = not private or _is_private(os.fstat(folder))
            if is_allowed and stat.S_ISSOCK(facts.st_mode) and not _is_listened_on(path):
                os.unlink(path.name, dir_fd=folder)
        finally:
            os.close(folder)


def _is_private(facts: os.stat_result) -> bool:
    is_own = stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid()
    return is_own and not facts.st_mode & (stat.S_IRWXG | stat.S_IRWXO)


def _is_listened_on(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True  # for example full: no proof that it is abandoned
    return True
