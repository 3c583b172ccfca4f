"""Opens files in directories that others may have written to: regular files only, and no links.

A symbolic link there would lead a write to another file of this user. A FIFO or a device would
block the program or feed it without end, and to open one is an act already: a tape rewinds, and
who writes to a FIFO is ended when its last reader closes it.
"""

import contextlib
import errno
import os
import stat
from pathlib import Path

# Whatever the umask is, no new file of a run may be written by every user: the next start would
# refuse it.
NEW_FILE_MODE = 0o664
NEW_DIRECTORY_MODE = 0o775
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Names a file without opening it; only Linux has it.
_O_PATH = getattr(os, "O_PATH", 0)
_OWN_DESCRIPTORS = "/proc/self/fd"


def open_regular(
    path: Path,
    flags: int,
    mode: int = NEW_FILE_MODE,
    *,
    real_parents: int = 0,
    follow_link: bool = False,
) -> int:
    """Open a regular file, as ``os.open`` does, and return its descriptor.

    Unless ``follow_link``, the path may not end in a symbolic link, and none of the last
    ``real_parents`` directories above the file may be one. Whatever else is there is not opened. A
    new file, which is never made behind a link, gets ``mode`` without the bits of the umask. Raises
    OSError.
    """
    folder = None
    try:
        folder = open_folder(path, real_parents) if real_parents else None
        name = path.name if real_parents else str(path)
        # A lease of another process would hold up the open.
        opening = flags | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = _open_or_create(name, folder, opening, mode, follow_link)
    except OSError as error:
        error = OSError(error.errno, error.strerror, str(path))
        raise explained(error, path) from None
    finally:
        if folder is not None:
            os.close(folder)
    os.set_blocking(descriptor, True)
    return descriptor


def _open_or_create(name: str, folder: int | None, flags: int, mode: int, follow_link: bool) -> int:
    while True:
        try:
            return _open_existing(name, folder, flags & ~os.O_CREAT, follow_link)
        except FileNotFoundError:
            if follow_link or not flags & os.O_CREAT:
                raise
        with contextlib.suppress(FileExistsError):  # another process has made it meanwhile
            return os.open(name, flags | os.O_EXCL, mode, dir_fd=folder)


def _open_existing(name: str, folder: int | None, flags: int, follow_link: bool) -> int:
    """Open a file after a look at what it is: by its inode, or its name where that is impossible.

    Without Linux, or without /proc, what takes its place in between is opened, and refused then.
    """
    followed = flags if follow_link else flags | os.O_NOFOLLOW
    if not _O_PATH:
        _check_kind(os.stat(name, dir_fd=folder, follow_symlinks=follow_link).st_mode)
        return _open_by_name(name, folder, followed)
    place = os.open(name, _O_PATH | os.O_CLOEXEC | followed & os.O_NOFOLLOW, dir_fd=folder)
    try:
        _check_kind(os.fstat(place).st_mode)
        return os.open(f"{_OWN_DESCRIPTORS}/{place}", flags)
    except FileNotFoundError:
        return _open_by_name(name, folder, followed)
    finally:
        os.close(place)


def _open_by_name(name: str, folder: int | None, flags: int) -> int:
    descriptor = os.open(name, flags, dir_fd=folder)
    try:
        _check_kind(os.fstat(descriptor).st_mode)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check_kind(mode: int) -> None:
    """Raise the OSError of an open for everything that is no regular file."""
    if stat.S_ISLNK(mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a regular file")


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
