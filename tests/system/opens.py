"""Tells whether a file was opened, as the kernel says."""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

_IN_OPEN = 0x20


@contextlib.contextmanager
def not_opened(path: Path) -> Iterator[None]:
    """Fail if what is at the path is opened in the block."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        assert libc.inotify_add_watch(watch, os.fsencode(path), _IN_OPEN) >= 0
        yield
        with contextlib.suppress(BlockingIOError):
            os.read(watch, 4096)
            raise AssertionError(f"{path} was opened")
    finally:
        os.close(watch)
