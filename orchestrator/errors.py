"""Everything this package raises on purpose, one class per thing a caller can do differently.

OrchestratorError                 carries the exit status that tells a scheduler what to do
├── ConfigError                   an option, a file of ours or a directory is not usable: mend it
│   ├── MismatchError             the checkpoint does not fit the live objects: mend the script
│   ├── UnstorableError           a value cannot be kept in a checkpoint: convert or drop it
│   └── UnreadableError           the system refuses to read a checkpoint: nothing is said of it
├── RunInUseError                 another process works on this run: wait, or stop that one
├── NoValidCheckpointError        checkpoints exist and none can be trusted: a person must look
├── LeftoverError                 the last trainer cannot be ended: look at the machine
├── NoThreadError                 the system grants us no thread: raise its limit
├── CheckpointInvalidError        one checkpoint failed verification: take an older one
├── CheckpointWriteError          a checkpoint could not be written: go on, try again later
└── NotSavedError                 nothing was saved on a command: there is no trainer to do it

Texts start with "cannot" and say what happened, to what, and what to do now.
"""

from pathlib import Path

from orchestrator.exitcodes import ExitStatus


class OrchestratorError(Exception):
    """Base of the tree; ``status`` is what the process ends with if nobody handles it."""

    status = ExitStatus.CONFIGURATION


class ConfigError(OrchestratorError):
    """An option, a file of ours or a directory is not usable."""


class MismatchError(ConfigError):
    """The state in a checkpoint does not fit the objects of the script."""


class UnstorableError(ConfigError):
    """A value cannot be written so that ``torch.load`` reads it with its safe default."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(
            f"cannot store {where} in a checkpoint: {problem}; "
            "keep tensors, numbers, strings, lists, tuples, sets and dicts of these"
        )
        self.where = where


class UnreadableError(ConfigError):
    """A checkpoint cannot be judged now: too many open files, no permission, a stale mount.

    Setting it aside, or resuming from an older one, would punish a good checkpoint.
    """

    def __init__(self, path: Path, cause: OSError) -> None:
        super().__init__(
            f"cannot read {path}: {cause.strerror}; what is there may be good, so nothing else is "
            "tried: mend that and run again"
        )
        self.path = path


class RunInUseError(OrchestratorError):
    """The run's lock is held by another process."""

    status = ExitStatus.IN_USE


class NoValidCheckpointError(OrchestratorError):
    """Checkpoints exist and none is valid; starting from zero silently is never right."""

    status = ExitStatus.NO_VALID_CHECKPOINT


class LeftoverError(OrchestratorError):
    """The last trainer is in uninterruptible sleep; another beside it would meet it on the disk."""

    status = ExitStatus.GAVE_UP

    def __init__(self, processes: str) -> None:
        super().__init__(
            f"cannot start the next attempt: {processes}, and SIGKILL does not end that; it waits "
            "for a disk or a device: mend or reboot the machine, then run again"
        )


class NoThreadError(OrchestratorError):
    """The system has granted no thread for long: a limit of processes, or of memory."""

    status = ExitStatus.GAVE_UP

    def __init__(self) -> None:
        super().__init__(
            "cannot go on: the system grants no thread; raise its limit of processes (ulimit -u, "
            "TasksMax, pids.max), or end some, then run again"
        )


class CheckpointInvalidError(OrchestratorError):
    """One checkpoint failed verification."""

    status = ExitStatus.NO_VALID_CHECKPOINT

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"cannot trust {path}: {reason}")
        self.path = path
        self.reason = reason


class NotSavedError(OrchestratorError):
    """A command asked for a checkpoint and none was made."""

    status = ExitStatus.STOPPED_UNSAVED


class CheckpointWriteError(OrchestratorError):
    """A checkpoint could not be written; nothing that was published before is affected."""

    status = ExitStatus.STOPPED_UNSAVED

    def __init__(self, step: int, cause: OSError, has_older: bool = False) -> None:
        intact = "; older checkpoints are intact" if has_older else ""
        super().__init__(
            f"cannot save the checkpoint of step {step}: {cause.strerror or cause}{intact}"
        )
        self.step = step
        self.cause = cause
