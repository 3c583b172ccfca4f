"""Takes over what a run goes on from: a snapshot, a checkpoint, or a file in the classic form."""

from pathlib import Path

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.manifest import Reason
from orchestrator.errors import ConfigError
from orchestrator.rundir.journal import JournalEvent
from orchestrator.training.exits import print_message
from orchestrator.training.formats.classic import read_classic
from orchestrator.training.loop.loop_state import LoopState
from orchestrator.training.runtime.backend import RunBackend
from orchestrator.training.state.progress import Progress
from orchestrator.training.state.registry import Registry
from orchestrator.training.state.restore import LoadedState, read_snapshot, read_state


def checkpoint_of(home: RunBackend, framework: str | None) -> Checkpoint | None:
    """The newest valid checkpoint, which a framework, or with None a session, must have saved.

    Raises ConfigError where it is another's.
    """
    checkpoint = home.checkpoint_to_resume()
    if checkpoint is not None and checkpoint.manifest.framework != framework:
        raise ConfigError(
            f"cannot resume from {checkpoint.path}: it was saved by "
            f"{checkpoint.manifest.framework or 'a Session'}, and this script trains with "
            f"{framework or 'a Session'}; use the script that made it, or start anew with another "
            "run directory"
        )
    return checkpoint


def resume_newest(home: RunBackend, registry: Registry, course: LoopState) -> Path | None:
    """Restore the newest state of the run; its checkpoint, None in a run without one.

    Raises MismatchError, and RuntimeError for what cannot be loaded.
    """
    snapshot = home.snapshot_to_resume()
    checkpoint = None if snapshot else checkpoint_of(home, framework=None)
    if checkpoint is not None and checkpoint.manifest.reason is Reason.IMPORTED:
        return _take_over_imported(checkpoint, home, registry, course)
    try:
        if snapshot is not None:
            # Its checkpoint is being written, or was.
            name = f"step-{snapshot.manifest.step:012d}"
            restored, source = read_snapshot(snapshot), home.run.checkpoints / name
        elif checkpoint is not None:
            restored, source = read_state(checkpoint), checkpoint.path
        else:
            return None
    except RuntimeError:
        home.reject()
        raise
    _take_over(restored, source, home, registry, course)
    return source


def _take_over(
    restored: LoadedState, source: Path, home: RunBackend, registry: Registry, course: LoopState
) -> None:
    registry.restore(restored.content, source, borrowed=True)
    course.resume(restored)
    _tell_resumed(source, home, course, in_memory=restored.in_memory)


def _take_over_imported(
    checkpoint: Checkpoint, home: RunBackend, registry: Registry, course: LoopState
) -> Path:
    start_from_classic(checkpoint.state_file, registry, course)
    course.mark_resumed(list(checkpoint.manifest.doubts))
    _tell_resumed(checkpoint.path, home, course, in_memory=False)
    return checkpoint.path


def _tell_resumed(source: Path, home: RunBackend, course: LoopState, *, in_memory: bool) -> None:
    step, exactness = course.progress.step, course.exactness
    where = "memory" if in_memory else source.name
    print_message(f"resumed at step {step} from {where}: {exactness}")
    home.tell(
        JournalEvent.RESUMED,
        path=str(source),
        step=step,
        from_memory=in_memory,
        exactness=exactness,
    )


def start_from_classic(source: Path, registry: Registry, course: LoopState) -> None:
    """Begin a run with what a file in the classic form has. Raises ConfigError, MismatchError."""
    content = read_classic(source)
    left_alone = registry.restore_classic(content, source)
    if left_alone:
        print_message(f"{source} has no state of {', '.join(left_alone)}: left as it is")
    course.progress = Progress(content["epoch"], content["step"])
