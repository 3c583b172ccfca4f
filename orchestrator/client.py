"""Finds the run and checkpoint that a command refers to, and connects to its supervisor."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.disposal import FilesOfAnyRun
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verification import verify
from orchestrator.config import Config
from orchestrator.errors import (
    CheckpointInvalidError,
    ConfigError,
    NoValidCheckpointError,
    OrchestratorError,
)
from orchestrator.ipc.messages import Connection, Message
from orchestrator.rundir.lock import has_ended, lock_owner
from orchestrator.rundir.paths import DEFAULT_PARENT, RunDir
from orchestrator.system.lock_holder import has_open, signal_holder
from orchestrator.system.units import LONGEST_SECONDS
from orchestrator.telemetry.status import LONGEST_READING_SECONDS, status_from_disk
from orchestrator.telemetry.status_reply import checked_status, is_number

REPLY_SECONDS = 5.0
# The supervisor looks for its socket every second.
REBUILD_SECONDS = 2.0
RETRY_SECONDS = 0.1
ENDED_SUPERVISOR = "the supervisor has ended; its trainer is saving, and then ends too"


def existing_run(argument: Path | None) -> RunDir:
    """Return the run that the argument, the settings, or the only directory in runs/ names.

    Raises ConfigError when there is none, or more than one in runs/.
    """
    root = argument or Config.resolve({}, os.environ, Path.cwd()).run_dir
    run = RunDir(root or _only_run())
    if not os.path.exists(run.run_file):
        problem = f"there is no {run.run_file}"
        with contextlib.suppress(ValueError):
            problem = _why_not_seen(run.run_file) or problem
        raise ConfigError(f"cannot find a run in {run.root}: {problem}; {_choice()}")
    return run


def _why_not_seen(path: Path) -> str | None:
    """Return why a path cannot be looked at; None where nothing is there. Raises ValueError."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return f"{path}: {error.strerror}"
    return None


def _only_run() -> Path:
    found = _default_runs()
    if not found:
        raise ConfigError(f"cannot find a run: there is none in ./{DEFAULT_PARENT}; {_choice()}")
    if len(found) > 1:
        raise ConfigError(
            f"cannot tell which run is meant: ./{DEFAULT_PARENT} holds {len(found)}; {_choice()}"
        )
    return found[0]


def _default_runs() -> list[Path]:
    return sorted(path.parent for path in DEFAULT_PARENT.glob("*/run.json"))


def _choice() -> str:
    """Return what to type instead."""
    if found := _default_runs():
        return f"give the directory of a run: {', '.join(map(str, found))}"
    return "start one with `orchestrator run -- python train.py` or give its directory"


def open_store(argument: Path | None) -> Store:
    """Return the checkpoint store of the run that ``existing_run`` finds."""
    return store_of(existing_run(argument))


def store_of(run: RunDir) -> Store:
    """Return the checkpoint store of a run of a session or of a script; nothing trains with it."""
    return Store.open(run, command=[], disposal=FilesOfAnyRun())


def status_of(
    run: RunDir,
    *,
    from_supervisor: bool = True,
    most_seconds_of_reading: float = LONGEST_READING_SECONDS,
) -> dict[str, Any]:
    """Return the content of `status --json`, from the supervisor, or else from the disk.

    Raises ConfigError where the disk tells it neither, or not in time.
    """
    owner = lock_owner(run)
    if owner is not None and from_supervisor:
        with contextlib.suppress(OrchestratorError), supervisor_of(run, owner) as connection:
            reply = {} if connection is None else ask(connection, {"type": "status"})
            if "state" in reply:
                with contextlib.suppress(ValueError):
                    return checked_status({"run_dir": str(run.root)} | reply)
    status = status_from_disk(store_of(run), most_seconds_of_reading).to_json()
    if owner is not None:
        # A script without a supervisor has no socket; a supervisor may be on another machine.
        holder = "supervisor_pid" if "socket" in owner else "trainer_pid"
        if has_ended(owner):
            status |= {"state": "interrupted", "problem": ENDED_SUPERVISOR}
        else:
            status |= {"state": "running", "failure": None, holder: owner.get("pid")}
    return status


def owner_here(run: RunDir) -> dict[str, Any] | None:
    """Return what the lock says of the process on this machine that holds it; None if it is free.

    Raises ConfigError when the holder is on another machine, or has not signed the lock yet.
    """
    owner = lock_owner(run)
    if owner is not None and not isinstance(owner.get("pid"), int):
        raise ConfigError(
            f"cannot reach the run {run.root}: the process that holds it has not signed the lock; "
            "try again in a moment"
        )
    if owner is not None and owner.get("host") not in (None, os.uname().nodename):
        raise ConfigError(
            f"cannot reach the run {run.root} from here: it runs on {owner['host']}, "
            f"process {owner.get('pid')}; run the command there"
        )
    return owner


def signal_script(run: RunDir, owner: dict[str, Any], number: int) -> None:
    """Signal the script that works on the run without a supervisor. Raises ConfigError."""
    try:
        signal_holder(owner["pid"], run.lock_file, number)
    except OSError as error:
        raise ConfigError(
            f"cannot signal the owner of {run.root}: {error.args[-1]}; the note in "
            f"{run.lock_file} is not to be trusted: see who may write there"
        ) from None


@contextlib.contextmanager
def supervisor_of(run: RunDir, owner: dict[str, Any]) -> Iterator[Connection | None]:
    """Connect to the run's supervisor; yield None for a script without one, which has no socket.

    Raises ConfigError when the supervisor does not accept the connection, or is another run's.
    """
    path = owner.get("socket")
    if path is None:
        yield None
        return
    deadline = time.monotonic() + REBUILD_SECONDS
    while True:
        try:
            connection = Connection(path, REPLY_SECONDS)
            break
        except FileNotFoundError as error:  # a cleaner has removed it: it is made again
            if time.monotonic() >= deadline:
                raise _unreachable(owner, f"{error}; try again in a moment") from None
            time.sleep(RETRY_SECONDS)
        except OSError as error:
            raise _unreachable(owner, str(error)) from None
    try:
        if not has_open(connection.peer_pid, run.lock_file):
            raise ConfigError(
                f"cannot reach the supervisor of {run.root}: the socket that {run.lock_file} names "
                "is not of a process that holds this run; see who may write there"
            )
        yield connection
    finally:
        connection.close()


def _unreachable(owner: dict[str, Any], problem: str) -> ConfigError:
    return ConfigError(f"cannot reach the supervisor (process {owner.get('pid')}): {problem}")


def ask(
    connection: Connection, message: Message, timeout_seconds: float = REPLY_SECONDS
) -> Message:
    """Send a message and return the supervisor's answer, which is empty if it has ended.

    Raises ConfigError when no answer comes in time.
    """
    try:
        connection.send(message)
        connection.set_timeout(timeout_seconds)
        return connection.receive() or {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot talk to the supervisor: {error}") from None


def seconds_in(reply: Message, key: str) -> float:
    """Return a duration of an answer, within the range of durations; 0 for anything else."""
    value = reply.get(key)
    return min(max(0.0, float(value)), LONGEST_SECONDS) if is_number(value) else 0.0


def chosen_checkpoint(store: Store, step: int | None, *, to_load: bool = False) -> Checkpoint:
    """Return the checkpoint that a run would resume from, or the newest of a step, verified.

    Raises NoValidCheckpointError, and CheckpointInvalidError for a damaged one of that step.
    """
    if step is not None:
        made_at_step = [c for c in store.all() if c.manifest.step == step]
        if not made_at_step:
            raise NoValidCheckpointError(
                f"cannot find a checkpoint of step {step} in {store.run.checkpoints}; "
                f"see `orchestrator checkpoints list {store.run.root}`"
            )
        verify(made_at_step[-1], to_load=to_load)
        return made_at_step[-1]
    for candidate in store.newest_first():
        if candidate.manifest.healthy:
            with contextlib.suppress(CheckpointInvalidError):
                verify(candidate, to_load=to_load)
                return candidate
    raise NoValidCheckpointError(
        f"cannot find a valid checkpoint in {store.run.checkpoints}; "
        f"see `orchestrator checkpoints list {store.run.root}`, and name one with --step"
    )


@contextlib.contextmanager
def file_errors(text: str) -> Iterator[None]:
    """Turn an OSError inside the block into a ConfigError that begins with ``text``."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{text}: {error.strerror}") from None
