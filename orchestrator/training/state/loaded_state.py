"""Reads checkpoints and snapshots into a ``LoadedState``: the parts that a session restores."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.contents import STATE_FILE, file_of_rank
from orchestrator.checkpoint.manifest import Manifest
from orchestrator.errors import ConfigError
from orchestrator.snapshot.slots import Image, Snapshot
from orchestrator.training.state.plain_values import from_plain
from orchestrator.training.state.progress import RESERVED, SUFFIX, Progress
from orchestrator.training.state.replicas import DIGESTS, merge_own
from orchestrator.training.state.shard_reader import ShardReader
from orchestrator.training.state.shard_restore import ShardRestore
from orchestrator.training.state.sharding import Sharding
from orchestrator.training.state.stored_files import StoredFiles, first_line
from orchestrator.training.state.versions import VERSIONS


@dataclass(frozen=True)
class LoadedState:
    """The parts of a state file and its manifest; ``content`` holds the state_dicts.

    The tensors in ``content`` are borrowed: they belong to a mapped file, or to a slot that a later
    snapshot will overwrite.
    """

    content: dict[str, Any]
    state: dict[str, Any]
    progress: Progress
    position: dict[str, Any]
    streams: dict[str, Any]
    problems: list[str]
    digests: dict[str, str]
    classes: dict[str, str]
    fresh: list[torch.Tensor] = field(default_factory=list)
    """The tensors in ``content`` that belong to nothing else."""


class Reader:
    """Reads what one rank restores."""

    def __init__(self, rank: int = 0, sharding: Sharding | None = None) -> None:
        """``sharding`` tells where the DTensors of this process are, if it has some."""
        self._rank = rank
        self._sharding = sharding

    def read_state(self, checkpoint: Checkpoint) -> LoadedState:
        """Read from a checkpoint.

        Raises RuntimeError if that fails. The digest has been verified before, so the cause is not
        a damaged file but, for example, short memory or another version of torch. The run fails as
        after any exception, and the checkpoint is not put into quarantine at once. Raises
        ConfigError where a sharded tensor has another size than here.
        """
        advice = (
            "the file is intact, so the checkpoint is kept: run again, or move it away to resume "
            "from an older one"
        )
        manifest, files = checkpoint.manifest, StoredFiles.of_checkpoint(checkpoint)
        # A rank that was not there takes what rank 0 has saved.
        file = file_of_rank(self._rank) if self._rank < manifest.world_size else STATE_FILE
        return self._read(files, file, manifest, advice)

    def read_snapshot(self, snapshot: Snapshot, common: Image | None = None) -> LoadedState:
        """Read the snapshot in a slot, without copying its tensors. Raises as ``read_state`` does.

        ``common`` is rank 0's part, of which any other rank reads what the ranks have in common.
        """
        files = StoredFiles.of_snapshot(snapshot, self._rank, common)
        advice = (
            "this snapshot in memory is discarded: run again to resume from the newest checkpoint"
        )
        manifest, file = snapshot.manifest, file_of_rank(self._rank)
        return self._read(files, file, manifest, advice, manifest.digests)

    def _read(
        self,
        files: StoredFiles,
        file: str,
        manifest: Manifest,
        advice: str,
        part_digests: Mapping[str, str] = MappingProxyType({}),
    ) -> LoadedState:
        """Read what rank 0 has saved, and over it this rank's own part, which has its digests."""
        try:
            content, digests = dict(files.load(STATE_FILE)), manifest.digests
            if file != STATE_FILE:
                own = files.load(file)
                merge_own(content, own)
                digests = {**part_digests, **own[DIGESTS]}
            index = files.read_index()
            reader = None if index is None else ShardReader(index, files.load)
            restore = ShardRestore(reader, self._sharding, file)
            content = restore.apply(content, files.paths[file])
            # They are of the pieces in the file.
            digests = {key: each for key, each in digests.items() if key not in restore.recut}
            state = _parts_of(content, manifest, digests)
            problems = state.problems + restore.doubts()
            return replace(state, problems=problems, fresh=restore.fresh)
        except ConfigError:
            raise
        except Exception as error:  # torch raises many classes, some with an empty message
            problem = f"cannot load {files.paths[file]}: {first_line(error)}; {advice}"
            raise RuntimeError(problem) from error


def _parts_of(content: dict[str, Any], manifest: Manifest, digests: dict[str, str]) -> LoadedState:
    for key in ("state", "rng", "data"):
        content[key] = copy.deepcopy(content[key])
    return LoadedState(
        content=content,
        state=from_plain(content["state"]),
        progress=Progress(
            content["epoch"],
            content["step"],
            {k: v for k, v in content.items() if k not in RESERVED and not k.endswith(SUFFIX)},
            refuses_bad_values=False,
            measured_at=dict.fromkeys(manifest.metrics, content["step"]),
        ),
        position=content["data"],
        streams=content["rng"],
        problems=_doubts(manifest),
        digests=digests,
        classes=manifest.classes,
    )


def _doubts(manifest: Manifest) -> list[str]:
    """Return why a run resumed from here may differ from one that was not interrupted."""
    saved, current = manifest.versions.get("torch"), VERSIONS["torch"]
    if saved is None or saved == current:
        return list(manifest.doubts)
    return [*manifest.doubts, f"it was made with torch {saved}, this is {current}"]
