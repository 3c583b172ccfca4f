"""Publishing: the writes, in their normative order, that make a directory a checkpoint.

The order is the one of docs/reference/checkpoint-format.md.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from orchestrator.checkpoint.checkpoint import (
    MANIFEST_FILE,
    Checkpoint,
    PublicationOrder,
    checkpoint_directories,
)
from orchestrator.checkpoint.contents import STATE_FILE
from orchestrator.checkpoint.digesting_writer import DigestingWriter
from orchestrator.checkpoint.manifest import FileRecord, Manifest
from orchestrator.checkpoint.quarantine import QuarantineFolder
from orchestrator.checkpoint.temporary import writing_path
from orchestrator.rundir.paths import RunDir
from orchestrator.system.durable import Disk


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
    temporary = writing_path(run)
    try:
        disk.make_directory(temporary)
        manifest = replace(manifest, files=fill(temporary))
        with disk.create(temporary / MANIFEST_FILE) as file:
            file.write(manifest.to_json())
            disk.sync(file)
        disk.sync_directory(temporary)
        target = _unused_path(run, disk, manifest.step)
        disk.rename(temporary, target)
        disk.sync_directory(run.checkpoints)
    except Exception:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return Checkpoint(target, manifest, pinned=False)


def write_state_file(
    directory: Path, disk: Disk, write: Callable[[DigestingWriter], None], *, direct: bool
) -> dict[str, FileRecord]:
    """Write state.pt durably and return its record.

    Raises what ``write`` raises, or the OSError of the disk that ``write`` has hidden behind
    another exception.
    """
    create = disk.create_direct if direct else disk.create
    with create(directory / STATE_FILE) as file:
        writer = DigestingWriter(file)
        try:
            write(writer)
        except Exception as error:
            if writer.error is not None:
                raise writer.error from error
            raise
        disk.sync(file)
    return {STATE_FILE: writer.record()}


def _unused_path(run: RunDir, disk: Disk, step: int) -> Path:
    # What is in quarantine keeps its name: the journal and people know it by that.
    quarantined = QuarantineFolder(run, disk).checkpoints()
    names = [path.name for path in checkpoint_directories(run)]
    names += [path.name.partition(".")[0] for path in quarantined]
    taken = {o.sequence for o in map(PublicationOrder.of_name, names) if o.step == step}
    base = run.checkpoints / f"step-{step:012d}"
    return base if not taken else base.with_name(f"{base.name}-{max(taken) + 1}")
