"""The durable publication of checkpoints: all of one is on the disk before it gets its name.

The format and the write order are normative: docs/reference/checkpoint-format.md.
"""

import contextlib
import errno
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from orchestrator.checkpoint.checkpoint import (
    MANIFEST_FILE,
    Checkpoint,
    PublicationOrder,
    checkpoint_names,
)
from orchestrator.checkpoint.contents import CONTENT_FOLDER, STATE_FILE
from orchestrator.checkpoint.digesting_writer import DigestingWriter
from orchestrator.checkpoint.external_files import copy_tree_durably
from orchestrator.checkpoint.manifest import FileRecord, Manifest
from orchestrator.checkpoint.position import MAXIMUM_STEP
from orchestrator.checkpoint.quarantine import QuarantineFolder
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.temporary import writing_path
from orchestrator.errors import CheckpointWriteError, UnreadableError
from orchestrator.rundir.paths import RunDir
from orchestrator.system.durable import Disk, remove_tree
from orchestrator.system.regular_files import NEW_DIRECTORY_MODE


def publish_state(
    store: Store,
    manifest: Manifest,
    write: Callable[[DigestingWriter], None],
    *,
    direct: bool = False,
    parts: Mapping[str, Callable[[DigestingWriter], None]] = MappingProxyType({}),
) -> Checkpoint:
    """Make a checkpoint durable, in the normative order, and return it.

    ``manifest`` comes without files. ``write`` writes the bytes of state.pt to the file it is
    given, which with ``direct`` expects large pieces of aligned memory; ``parts`` writes further
    files, by their names. Raises CheckpointWriteError when the disk refuses, after removing what
    was begun; what ``write`` raises for other reasons passes through, also after the clean-up.
    """

    def fill(directory: Path) -> dict[str, FileRecord]:
        return {
            name: _write_file(directory / name, store.disk, write_it, direct=direct)
            for name, write_it in {STATE_FILE: write, **parts}.items()
        }

    return _publish(store, manifest, fill)


def publish_files(store: Store, manifest: Manifest, source: Path, *, link: bool) -> Checkpoint:
    """Make a checkpoint of what a framework has written: a directory with all files, or a file.

    With ``link`` hard links take the place of copies where the filesystem has them, which is safe
    only if the framework never writes into these files again. Raises CheckpointWriteError.
    """

    def fill(directory: Path) -> dict[str, FileRecord]:
        target, run = directory / CONTENT_FOLDER, store.run.root
        return copy_tree_durably(source, target, store.disk, link=link, below=run)

    return _publish(store, manifest, fill)


def _publish(
    store: Store, manifest: Manifest, fill: Callable[[Path], dict[str, FileRecord]]
) -> Checkpoint:
    try:
        # The script may have moved or deleted the run directory.
        store.run.checkpoints.mkdir(NEW_DIRECTORY_MODE, parents=True, exist_ok=True)
        return publish_directory(store.run, store.disk, manifest, fill)
    except OSError as error:
        has_older = False
        with contextlib.suppress(UnreadableError):  # the failure to write is what counts
            has_older = bool(store.names())
        raise CheckpointWriteError(manifest.step, error, has_older, store.run.root) from error


def publish_directory(
    run: RunDir,
    disk: Disk,
    manifest: Manifest,
    fill: Callable[[Path], dict[str, FileRecord]],
) -> Checkpoint:
    """Publish a directory that ``fill`` has filled, and return the checkpoint.

    ``fill`` gets the path of the new directory, makes its files durable and returns their records,
    which the manifest then names. Raises OSError and whatever ``fill`` raises, after removing the
    directory.
    """
    if manifest.step > MAXIMUM_STEP:
        # The name would not be recognised, and the next start would begin at zero.
        problem = f"no step above {MAXIMUM_STEP} can be saved"
        raise OSError(errno.EOVERFLOW, problem)
    temporary = writing_path(run)
    try:
        disk.make_directory(temporary, below=run.root)
        manifest = replace(manifest, files=fill(temporary))
        with disk.create(temporary / MANIFEST_FILE, below=run.root) as file:
            file.write(manifest.to_json())
            disk.sync(file)
        disk.sync_directory(temporary)
        target = _unused_path(run, disk, manifest.step)
        disk.rename(temporary, target, below=run.root)
        disk.sync_directory(run.checkpoints)
    except Exception:
        remove_tree(temporary, below=run.root)
        raise
    return Checkpoint(target, manifest, pinned=False)


def _write_file(
    file_path: Path, disk: Disk, write: Callable[[DigestingWriter], None], *, direct: bool
) -> FileRecord:
    """Write one file of a checkpoint durably and return its record.

    Raises what ``write`` raises, or the OSError of the disk that ``write`` has hidden behind
    another exception.
    """
    create = disk.create_direct if direct else disk.create
    with create(file_path, below=file_path.parents[2]) as file:
        writer = DigestingWriter(file)
        try:
            write(writer)
        except Exception as error:
            if writer.error is not None:
                raise writer.error from error
            raise
        disk.sync(file)
    return writer.record()


def _unused_path(run: RunDir, disk: Disk, step: int) -> Path:
    # What is in quarantine keeps its name: the journal and people know it by that.
    quarantined = QuarantineFolder(run, disk).checkpoints()
    names = [*checkpoint_names(run), *(path.name.partition(".")[0] for path in quarantined)]
    base = run.checkpoints / f"step-{step:012d}"
    same_step = (name for name in names if name.startswith(base.name))
    taken = {PublicationOrder.of_name(name).sequence for name in same_step}
    return base if not taken else base.with_name(f"{base.name}-{max(taken) + 1}")
