"""The errors that this package raises: one class for each thing that a caller can do about it.

OrchestratorError                 carries the exit status that tells a scheduler what to do
├── ConfigError                   an option, a file or a directory is not usable: correct it
│   ├── MismatchError             the checkpoint does not fit the script's objects: fix the script
│   ├── UnstorableError           a checkpoint cannot hold a value: convert it or leave it out
│   │   └── FreedStorageError     a tensor has no memory at this moment: save when it has
│   └── UnreadableError           the system refuses to read a checkpoint, which may be valid
├── RunInUseError                 another process trains in this run: wait for it, or stop it
├── NoValidCheckpointError        checkpoints exist and none can be trusted: a person must look
├── LeftoverError                 the last trainer cannot be killed: repair the machine
├── LimitReachedError             the run has had all its attempts or its time: run it again
├── NoThreadError                 the system starts no more threads: raise its limit
├── CheckpointInvalidError        one checkpoint failed verification: use an older one
├── CheckpointWriteError          a checkpoint could not be written: continue, try again later
└── NotSavedError                 a command asked for a save, and no trainer made one

Every text starts with "cannot" and says what happened, to what, and what to do now.
"""

import errno
from pathlib import Path

from orchestrator.exitcodes import ExitStatus

AGAIN_WITH_NEW_LIMITS = "run the same command again to continue; its limits then count from 0"
FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT})


class OrchestratorError(Exception):
    """The base of the tree. An unhandled one ends the process with ``status``."""

    status = ExitStatus.CONFIGURATION


class ConfigError(OrchestratorError):
    """An option, a file of the run or a directory is not usable."""


class MismatchError(ConfigError):
    """The state in a checkpoint does not fit the script's objects."""


class UnstorableError(ConfigError):
    """A value cannot be stored so that ``torch.load(weights_only=True)`` reads it back."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(
            f"cannot store {where} in a checkpoint: {problem}; "
            "keep tensors, numbers, strings, lists, tuples, sets and dicts of these"
        )
        self.where = where
        self.problem = problem


class FreedStorageError(UnstorableError):
    """The memory of a tensor has been given back, so that there is nothing to store now."""

    def __init__(self, where: str) -> None:
        super().__init__(where, "its storage is freed or too small at this moment")


class UnreadableError(ConfigError):
    """A checkpoint cannot be verified now: too many open files, no permission, a stale mount.

    It may be valid, so it is not quarantined, and the run does not fall back to an older one.
    """

    def __init__(self, path: Path, cause: OSError) -> None:
        super().__init__(
            f"cannot read {path}: {cause.strerror}; it may be valid, so no older checkpoint is "
            "used instead: fix this and run again"
        )
        self.path = path


class RunInUseError(OrchestratorError):
    """Another process holds the lock of the run."""

    status = ExitStatus.IN_USE


class NoValidCheckpointError(OrchestratorError):
    """Checkpoints exist and none is valid. The run never starts from zero silently."""

    status = ExitStatus.NO_VALID_CHECKPOINT


class LeftoverError(OrchestratorError):
    """The last trainer is in uninterruptible sleep; a second one could write the same files."""

    status = ExitStatus.GAVE_UP

    def __init__(self, processes: str) -> None:
        super().__init__(
            f"cannot start the next attempt: {processes}, and SIGKILL does not end that; it waits "
            "for a disk or a device: repair or reboot the machine, then run again"
        )


class LimitReachedError(OrchestratorError):
    """The run has had as many attempts, or as much time, as its options allow."""

    status = ExitStatus.GAVE_UP

    def __init__(self, limit: str) -> None:
        super().__init__(f"cannot start another attempt: {limit}; {AGAIN_WITH_NEW_LIMITS}")


class NoThreadError(OrchestratorError):
    """The system has refused to start a thread for a long time: too many processes, no memory."""

    status = ExitStatus.GAVE_UP

    def __init__(self) -> None:
        super().__init__(
            "cannot continue: the system starts no more threads; raise its limit of processes "
            "(ulimit -u, TasksMax, pids.max), or end some, then run again"
        )


class CheckpointInvalidError(OrchestratorError):
    """One checkpoint failed verification."""

    status = ExitStatus.NO_VALID_CHECKPOINT

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"cannot trust {path}: {reason}")
        self.path = path
        self.reason = reason


class NotSavedError(OrchestratorError):
    """A command asked for a checkpoint, and none was made."""

    status = ExitStatus.STOPPED_UNSAVED


class CheckpointWriteError(OrchestratorError):
    """A checkpoint could not be written. Published checkpoints are not affected."""

    status = ExitStatus.STOPPED_UNSAVED

    def __init__(
        self, step: int, cause: OSError, has_older: bool = False, place: Path | None = None
    ) -> None:
        """``place`` is the run directory. A ``cause`` that is such an error already is kept."""
        problem = str(cause.strerror or cause)
        if not problem.startswith("cannot save"):
            problem = f"cannot save the checkpoint of step {step}: {problem}"
        if has_older:
            problem += "; older checkpoints are intact"
        if cause.errno in FULL_DISK:
            where = "" if place is None else f" on the disk of {place}"
            problem += f"; free some space or raise the quota{where}"
        super().__init__(problem)
        self.step = step
        self.cause = cause
