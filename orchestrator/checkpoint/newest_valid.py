"""The choice of the checkpoint to resume from: the newest one whose every byte is right."""

from collections.abc import Callable

from orchestrator.checkpoint.checkpoint import Checkpoint, read_checkpoint
from orchestrator.checkpoint.store import Store
from orchestrator.errors import CheckpointInvalidError, NoValidCheckpointError


def newest_valid(
    store: Store, on_quarantine: Callable[[CheckpointInvalidError], None] = lambda error: None
) -> Checkpoint | None:
    """Return the newest checkpoint that can be trusted; None in a run that never saved one.

    The search goes from the newest to the oldest and reads every byte again. A checkpoint that
    fails verification is moved to quarantine, if the disk allows that, and reported to
    ``on_quarantine``. Non-finite ones and those of another run are passed over. Raises
    NoValidCheckpointError when there were candidates and none is left, since a silent start from
    zero loses a run, and UnreadableError when one cannot be judged.
    """
    passed_over = store.unrecognised()
    for name in reversed(store.names()):
        path = store.run.checkpoints / name
        try:
            checkpoint = read_checkpoint(path)
            if checkpoint.manifest.run_id != store.run_id:
                passed_over.append(f"{path.name} belongs to run {checkpoint.manifest.run_id}")
                continue
            if not checkpoint.manifest.healthy:
                passed_over.append(f"{path.name} holds non-finite values")
                continue
            located = store.disposal.locate(checkpoint)
            if located is None:
                elsewhere = checkpoint.resume_path
                passed_over.append(
                    f"{path.name} is of {elsewhere}, which this command does not name"
                )
                continue
            checkpoint = located
            store.verified.forget(checkpoint.name)
            store.verified.verify(checkpoint, to_load=True)
        except CheckpointInvalidError as error:
            # A disk that allows no change keeps it where it is, and it is passed over too.
            try:
                store.quarantine(path, error.reason)
            except OSError:
                passed_over.append(f"{path.name}: {error.reason}")
            on_quarantine(error)
            continue
        return checkpoint
    lost = store.quarantine_folder.checkpoints()
    passed_over += [f"{path.name} is in quarantine" for path in lost]
    if passed_over:
        where = f" in {store.run.quarantine}" if lost else ""
        raise NoValidCheckpointError(
            f"cannot resume: none of the checkpoints in {store.run.checkpoints} is valid "
            f"({'; '.join(passed_over)}); see `orchestrator checkpoints list "
            f"{store.run.root}`; repair one{where}, or start over with another --run-dir"
        )
    return None
