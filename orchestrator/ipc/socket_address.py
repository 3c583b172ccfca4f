"""The place of the supervisor's socket in the filesystem."""

import contextlib
import os
import re
import secrets
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from orchestrator.errors import ConfigError
from orchestrator.system.temporary_places import COMMON_PARENT, is_safe, temporary_parent

SOCKET_NAME = "socket"
DIRECTORY_PREFIX = "orchestrator-"
DIRECTORY_NAME = re.compile(rf"{DIRECTORY_PREFIX}[0-9a-f]{{8}}")
# sun_path has 108 bytes on Linux and 104 on macOS, one of them the final zero.
MAXIMUM_PATH_BYTES = 103

Announce = Callable[[str], None]


def ignore(path: str) -> None:
    """Announce a path to nobody."""


class SocketAddress:
    """The socket that listens at a path, which can be made again.

    Its directory is opened once. At the path of that another directory may be later.
    """

    def __init__(self, directory: Path | None, announce: Announce) -> None:
        """Listen. Raises ConfigError when no directory is suitable."""
        self._preferred = directory
        self._announce = announce
        self._temporary: Path | None = None
        self._folder: int | None = None
        self._listen()

    def renew(self) -> None:
        """Listen again, at the same path if that is possible. Raises OSError, ConfigError."""
        self.close()
        self._listen()

    def is_there(self) -> bool:
        """Return whether the path leads to the socket; touch a directory that may be swept."""
        try:
            if self._temporary is not None and self._folder is not None:
                os.utime(self._folder)
                os.utime(SOCKET_NAME, dir_fd=self._folder, follow_symlinks=False)
            return os.path.samestat(os.lstat(self.path), self._facts)
        except OSError:
            return False

    def close(self) -> None:
        """Stop listening, and remove the socket from the filesystem."""
        self.listener.close()
        if self._folder is not None:
            with contextlib.suppress(OSError):
                facts = os.stat(SOCKET_NAME, dir_fd=self._folder, follow_symlinks=False)
                if os.path.samestat(facts, self._facts):
                    os.unlink(SOCKET_NAME, dir_fd=self._folder)
            os.close(self._folder)
            self._folder = None
        if self._temporary is not None:
            with contextlib.suppress(OSError):
                os.rmdir(self._temporary)
            self._temporary = None

    def _listen(self) -> None:
        if self._preferred is not None:
            with contextlib.suppress(OSError):  # it is gone, or its filesystem has no sockets
                path = (self._preferred / SOCKET_NAME).absolute()
                if len(os.fsencode(path)) <= MAXIMUM_PATH_BYTES:
                    self._bind(path)
                    return
        self._temporary = make_socket_directory(self._announce)
        self._bind(self._temporary / SOCKET_NAME)

    def _bind(self, path: Path) -> None:
        """Make the socket in a directory that is there. Raises OSError."""
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.setblocking(False)
        try:
            if self._temporary is None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(SOCKET_NAME, dir_fd=folder)
                self._announce(str(path))
            # Some systems do not say whose a connection is; nothing can connect before listen().
            # Not by its path, where by now there may be a link to another file.
            if sys.platform == "linux":
                os.fchmod(listener.fileno(), 0o600)
                listener.bind(str(path))
            else:
                listener.bind(str(path))
                os.chmod(path, 0o600, follow_symlinks=False)
            listener.listen(64)
            self._facts = os.stat(SOCKET_NAME, dir_fd=folder, follow_symlinks=False)
        except OSError:
            listener.close()
            os.close(folder)
            raise
        self.listener, self.path, self._folder = listener, str(path), folder


def make_socket_directory(announce: Announce = ignore) -> Path:
    """Create a private directory with a path that is short enough for a socket.

    A run directory may have a longer path. ``announce`` is told the path of the socket first.
    Raises ConfigError when no directory is suitable.
    """
    for parent in _parents():
        with contextlib.suppress(OSError):
            directory = Path(parent, f"{DIRECTORY_PREFIX}{secrets.token_hex(4)}").absolute()
            if len(os.fsencode(directory / SOCKET_NAME)) <= MAXIMUM_PATH_BYTES:
                announce(str(directory / SOCKET_NAME))
                directory.mkdir(mode=0o700)
                return directory
    raise ConfigError(
        "cannot create a socket: no temporary directory of yours or root's is writable and has a "
        f"path of at most {MAXIMUM_PATH_BYTES - len(SOCKET_NAME) - 30} bytes; set TMPDIR to such "
        "a one"
    )


def _parents() -> Iterator[str]:
    directory = os.environ.get("XDG_RUNTIME_DIR")
    if directory and is_safe(directory):
        yield directory
    yield from (temporary_parent(), COMMON_PARENT)
