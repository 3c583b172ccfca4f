"""Takes in the files of a checkpoint that somebody else has written."""

import errno
import os
from pathlib import Path

from orchestrator.checkpoint.manifest import FileRecord
from orchestrator.checkpoint.reading import READ_CHUNK_BYTES, DigestingWriter, digest_of
from orchestrator.durable import Disk


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
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        records[name] = (link and _linked(origin, file, disk)) or _copied(origin, file, disk)
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


def _linked(origin: Path, file: Path, disk: Disk) -> FileRecord | None:
    if origin.is_symlink():
        return None
    try:
        disk.link(origin, file)
    except OSError:
        # Another filesystem, or one without links; a real problem comes up when it is copied.
        return None
    with open(file, "rb") as opened:
        disk.sync(opened)
    return digest_of(file, direct=False)


def _copied(origin: Path, file: Path, disk: Disk) -> FileRecord:
    with open(origin, "rb") as old, disk.create(file) as new:
        writer = DigestingWriter(new)
        while chunk := old.read(READ_CHUNK_BYTES):
            writer.write(chunk)
        disk.sync(new)
    return writer.record()
