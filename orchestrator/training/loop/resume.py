"""Restores what a run continues from: a snapshot, a checkpoint, or a file in the classic form."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.contents import STATE_FILE
from orchestrator.checkpoint.manifest import Reason
from orchestrator.checkpoint.shards import SHARDS_FILE
from orchestrator.errors import ConfigError
from orchestrator.rundir.start import OTHER_EXPERIMENT, Start
from orchestrator.snapshot.slots import Snapshot
from orchestrator.training.exits import print_message
from orchestrator.training.formats.classic import read_classic
from orchestrator.training.loop.loop_state import LoopState
from orchestrator.training.loop.resize import resized
from orchestrator.training.runtime.backend import Report, RunBackend
from orchestrator.training.runtime.rank_link import World
from orchestrator.training.state.loaded_state import LoadedState, Reader
from orchestrator.training.state.object_restore import ObjectRestore
from orchestrator.training.state.options import OptimizerOptions
from orchestrator.training.state.progress import Progress
from orchestrator.training.state.registered_objects import Registry
from orchestrator.training.state.shard_restore import ShardRestore
from orchestrator.training.state.sharding import Sharding

# Where only two are added, their order changes nothing.
LEAST_RANKS_THAT_ROUND = 3
REGROUPED = (
    "DistributedDataParallel groups gradients in another way in the first step after a start, so "
    "that sums over three or more ranks are rounded differently; find_unused_parameters=True keeps "
    "the groups as they are"
)


def resume_newest(
    backend: RunBackend,
    registry: Registry,
    loop_state: LoopState,
    options: OptimizerOptions,
    before_restore: Callable[[dict[str, Any]], object] | None,
) -> Path | None:
    """Restore the newest state of a session's run; return its checkpoint, None in a new run.

    ``before_restore`` is the script's function of that name.

    Raises:
        ConfigError: A framework has saved it.
        MismatchError: It does not fit the registered objects.
        NoValidCheckpointError: There are checkpoints, and none of them is valid.
        RuntimeError: It cannot be loaded.
    """
    newest = backend.newest_state()
    if newest is None:
        return None
    source = _path_of(newest, backend)
    _refuse_others(newest, source, framework=None)
    saved, world = newest.manifest.world_size, backend.facts.world
    is_resized = isinstance(newest, Checkpoint) and saved != world.size
    if is_resized:
        _refuse_other_world(newest, source, registry, world)
    if isinstance(newest, Checkpoint) and newest.manifest.reason is Reason.IMPORTED:
        start_from_classic(newest.state_file, registry, loop_state)
        loop_state.exactness.begin(newest.manifest.doubts)
    else:
        restored = _read(newest, backend, registry.sharding)
        if is_resized:
            restored = resized(restored, source, saved, world, registry)
        if before_restore is not None:
            before_restore(restored.state)
        ObjectRestore(registry.objects, source, registry.sharding).restore(
            restored.content, borrowed=True, classes=restored.classes, fresh=restored.fresh
        )
        loop_state.resume(restored)
    replaced = options.after_restore(newest.manifest.options)
    loop_state.exactness.add(options.doubts)
    if registry.regroups_gradients and backend.facts.world.size >= LEAST_RANKS_THAT_ROUND:
        loop_state.exactness.add([REGROUPED])
    report_resumed(backend, newest, source, loop_state.exactness.text(), replaced)
    return source


def checkpoint_of(backend: RunBackend, framework: str) -> Checkpoint | None:
    """Return the newest checkpoint of a framework's run, None in a new run.

    Raises:
        ConfigError: A session or another framework has saved it.
        NoValidCheckpointError: There are checkpoints, and none of them is valid.
    """
    newest = backend.newest_state()
    if newest is not None:
        _refuse_others(newest, _path_of(newest, backend), framework)
    # Frameworks take no snapshots, so that one in memory has been refused by now.
    return newest if isinstance(newest, Checkpoint) else None


def report_resumed(
    backend: RunBackend,
    state: Snapshot | Checkpoint,
    source: Path,
    exactness: str | None,
    replaced: Sequence[str] = (),
) -> None:
    """Print and report at which step, from what, and how exactly the run was resumed.

    Below that stand what differs from the start that saved the state, and the options of this
    start that the state has ``replaced``.
    """
    step, from_memory = state.manifest.step, isinstance(state, Snapshot)
    where = "memory" if from_memory else source.name
    start, earlier = backend.facts.store.start, Start.from_json(state.manifest.start)
    differences = start.differences_from(earlier) if start and earlier else []
    differences += replaced
    # Nothing is known of a replay buffer, an environment or a queue that nobody has registered.
    covers = " (all that is registered)" if exactness == "EXACT" else ""
    lines = [f"resumed at step {step} from {where}: {exactness}{covers}"]
    if differences:
        lines += ["WARNING: this start differs from the one that saved it", *differences]
        lines.append(OTHER_EXPERIMENT)
    print_message("\n    ".join(lines))
    backend.report(
        Report.RESUMED,
        path=str(source),
        step=step,
        from_memory=from_memory,
        exactness=exactness,
        differences=differences,
    )


def start_from_classic(source: Path, registry: Registry, loop_state: LoopState) -> None:
    """Begin a run with the content of a file in the classic form.

    Raises:
        ConfigError: The file cannot be read, or is not in that form.
        MismatchError: It does not fit the registered objects.
    """
    content = read_classic(source)
    content = ShardRestore(None, registry.sharding, STATE_FILE).apply(content, source)
    left_alone = ObjectRestore(registry.objects, source, registry.sharding).restore_classic(content)
    if left_alone:
        print_message(f"{source} has no state of {', '.join(left_alone)}: left as it is")
    loop_state.progress = Progress(content["epoch"], content["step"])


def _path_of(state: Snapshot | Checkpoint, backend: RunBackend) -> Path:
    """Return a checkpoint's path; that of a snapshot is being written, or was."""
    if isinstance(state, Checkpoint):
        return state.path
    return backend.facts.run_dir.checkpoints / f"step-{state.manifest.step:012d}"


def _refuse_others(state: Snapshot | Checkpoint, source: Path, framework: str | None) -> None:
    """Raise ConfigError for a state that another framework, or with None any, has saved."""
    if state.manifest.framework != framework:
        raise ConfigError(
            f"cannot resume from {source}: it was saved by "
            f"{state.manifest.framework or 'a Session'}, and this script trains with "
            f"{framework or 'a Session'}; use the script that made it, or start a new run in "
            "another run directory"
        )


def _refuse_other_world(
    state: Snapshot | Checkpoint, source: Path, registry: Registry, world: World
) -> None:
    """Raise ConfigError for replicas that another number of them has saved."""
    manifest = state.manifest
    is_sharded = SHARDS_FILE in manifest.files or registry.sharding is not None
    if is_sharded or manifest.reason is Reason.IMPORTED:
        return
    saved, here = manifest.world_size, world.size
    raise ConfigError(
        f"cannot resume from {source}: {saved} {'ranks have' if saved > 1 else 'rank has'} saved "
        f"it, and there {'are' if here > 1 else 'is'} {here} now, which does not work yet; use "
        f"--nproc-per-node {saved}, or start a new run in another run directory"
    )


def _read(
    state: Snapshot | Checkpoint, backend: RunBackend, sharding: Sharding | None
) -> LoadedState:
    rank_link = backend.facts.rank_link
    reader = Reader(backend.facts.world.rank, sharding)
    try:
        if isinstance(state, Snapshot):
            return reader.read_snapshot(state, None if rank_link is None else rank_link.common)
        return reader.read_state(state)
    except RuntimeError:
        backend.report(Report.RESUME_FAILED)
        raise
