"""Takes in the files of a checkpoint that somebody else has written."""

import contextlib
import errno
import os
import shutil
from pathlib import Path
from typing import BinaryIO

from orchestrator.checkpoint.manifest import FileRecord
from orchestrator.checkpoint.verification import digest_of
from orchestrator.system.durable import Disk

COPY_BYTES = 16 << 20


def take_in(source: Path, target: Path, disk: Disk, *, link: bool) -> dict[str, FileRecord]:
    """Have the files at ``source``, a directory or one file, in a new directory, durable.

    Returns what the manifest says of them, by their names below it. With ``link`` they are hard
    links where the filesystem has them, else copies. Raises OSError.
    """
    disk.make_directory(target)
    if source.is_dir():
        origins = {name: source / name for name in sorted(files_below(source))}
    else:
        origins = {source.name: source}
    if not origins:
        raise FileNotFoundError(errno.ENOENT, "there are no files", str(source))
    records = {}
    for name, origin in origins.items():
        place(origin, target / name, disk, link=link)
        records[name] = durable_record(target / name, disk)
    for folder, _, _ in os.walk(target, topdown=False):
        disk.sync_directory(Path(folder))
    return records


def files_below(directory: Path) -> set[str]:
    """The names, from there, of everything below a directory that is no directory itself."""
    names = set()
    for folder, folders, files in os.walk(directory):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        names |= {os.path.relpath(os.path.join(folder, name), directory) for name in files + links}
    return names


def place(origin: Path, file: Path, disk: Disk, *, link: bool) -> None:
    """Have a file of the same content, in a folder that may be new. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if link and not origin.is_symlink():
        # Another filesystem, or one without links; a real problem comes up when it is copied.
        with contextlib.suppress(OSError):
            disk.link(origin, file)
            return
    with open(origin, "rb") as old, disk.create(file) as new:
        _copy_bytes(old, new)


def durable_record(file: Path, disk: Disk) -> FileRecord:
    """What the manifest says of a file, once it is on the disk. Raises OSError."""
    with open(file, "rb") as opened:
        disk.sync(opened)
    return digest_of(file, direct=False)


def _copy_bytes(source: BinaryIO, target: BinaryIO) -> None:
    """By reference where the filesystem can do that, else inside the kernel, else by hand."""
    with contextlib.suppress(OSError, AttributeError):
        while os.copy_file_range(source.fileno(), target.fileno(), COPY_BYTES):
            pass
    # What the kernel could not do; both stand where it stopped. Errors of the disk come up here.
    shutil.copyfileobj(source, target, COPY_BYTES)
