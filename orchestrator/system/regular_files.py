"""Opens files in directories that others may have written to: regular files only, and no links.

A symbolic link there would lead a write to another file of this user, and a FIFO or a device would
block the program or feed it without end.
"""

import errno
import os
import stat
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_regular(
    path: Path, flags: int, mode: int = 0o666, *, real_parents: int = 0, follow_link: bool = False
) -> int:
    """Open a regular file, as ``os.open`` does, and return its descriptor.

    Unless ``follow_link``, the path may not end in a symbolic link, and none of the last
    ``real_parents`` directories above the file may be one. A new file gets ``mode`` without the
    bits of the umask. Raises OSError.
    """
    # A FIFO would hold up the open until its other end is opened.
    flags |= os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow_link else os.O_NOFOLLOW)
    folder = None
    try:
        if real_parents:
            folder = open_folder(path, real_parents)
            descriptor = os.open(path.name, flags, mode, dir_fd=folder)
        else:
            descriptor = os.open(path, flags, mode)
    except OSError as error:
        raise explained(error, path) from None
    finally:
        if folder is not None:
            os.close(folder)
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        os.close(descriptor)
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    os.set_blocking(descriptor, True)
    return descriptor


def read_regular(
    path: Path, maximum_bytes: int, *, real_parents: int = 0, follow_link: bool = False
) -> bytes:
    """Return the content of a regular file of at most ``maximum_bytes``. Raises OSError."""
    descriptor = open_regular(path, os.O_RDONLY, real_parents=real_parents, follow_link=follow_link)
    with open(descriptor, "rb") as file:
        content = file.read(maximum_bytes + 1)
    if len(content) > maximum_bytes:
        raise OSError(errno.EFBIG, f"it has more than {maximum_bytes} bytes", str(path))
    return content


def open_folder(path: Path, real_parents: int) -> int:
    """Open the directory of a file and return its descriptor. Raises OSError.

    The last ``real_parents`` directories are opened one after the other, and none may be a link.
    """
    names = path.parts[-real_parents - 1 : -1]
    folder = os.open(Path(*path.parts[: -real_parents - 1]), os.O_RDONLY | os.O_DIRECTORY)
    for name in names:
        above, folder = folder, -1
        try:
            folder = open_directory(name, above)
        finally:
            os.close(above)
    return folder


def open_directory(name: str, folder: int) -> int:
    """Open a directory that is no link, in an opened one; return its descriptor. Raises OSError."""
    return os.open(name, _DIRECTORY, dir_fd=folder)


def explained(error: OSError, path: Path) -> OSError:
    """Return the error of an open that refuses links, with words that say so."""
    match error.errno:
        case errno.ELOOP | errno.EMLINK:
            return OSError(errno.ELOOP, "it is a symbolic link", str(path))
        case errno.ENXIO:  # a socket, or a FIFO that no process reads
            return OSError(errno.EINVAL, "it is not a regular file", str(path))
        case errno.ENOTDIR:
            return OSError(errno.ENOTDIR, "a directory above it is a link or a file", str(path))
    return error
