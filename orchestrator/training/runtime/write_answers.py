"""What the supervisor answers to a request to write a checkpoint."""

import errno
from concurrent.futures import Future

from orchestrator.checkpoint.checkpoint import Checkpoint, read_checkpoint
from orchestrator.errors import CheckpointWriteError, OrchestratorError
from orchestrator.ipc.messages import Message
from orchestrator.rundir.paths import RunDir


def complete(written: Future[Checkpoint], message: Message, run: RunDir, step: int) -> None:
    """Complete a save of ``step`` with its checkpoint, or with the error that is the answer."""
    if message.get("type") != "written":
        written.set_exception(write_error(step, str(message.get("problem"))))
        return
    try:
        written.set_result(read_checkpoint(run.checkpoints / str(message["name"])))
    except OrchestratorError as error:
        written.set_exception(error)


def write_error(step: int, problem: str) -> CheckpointWriteError:
    """Return the error of a save that others have failed to make."""
    return CheckpointWriteError(step, OSError(errno.EIO, problem))
