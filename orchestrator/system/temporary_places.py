"""Directories for temporary files in which no other user can put anything in a file's place."""

import os
import stat
import tempfile

# The last resort. In a container with users of its own it may seem to belong to nobody.
COMMON_PARENT = "/tmp"


def is_safe(directory: str) -> bool:
    """Return whether only this user and root can rename what this user has made in a directory.

    A variable may name a directory of another user: su and sudo may keep it.
    """
    try:
        facts = os.stat(directory)
    except OSError:
        return False
    if facts.st_mode & stat.S_ISVTX:
        return facts.st_uid in (os.geteuid(), 0)
    return facts.st_uid == os.geteuid() and not facts.st_mode & stat.S_IWOTH


def temporary_parent() -> str:
    """Return the directory that TMPDIR names, or what stands in for one that is not safe."""
    directory = tempfile.gettempdir()
    return directory if is_safe(directory) else COMMON_PARENT
