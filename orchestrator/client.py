"""Which run and which checkpoint are meant, and how to reach what works on it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.checkpoint.checkpoint import Checkpoint
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
from orchestrator.rundir.lock import lock_owner
from orchestrator.rundir.paths import DEFAULT_PARENT, RunDir
from orchestrator.system.lock_holder import signal_holder
from orchestrator.telemetry.status import status_from_disk

REPLY_SECONDS = 5.0


def existing_run(argument: Path | None) -> RunDir:
    """The run that the command line, the settings, or the contents of runs/ name."""
    root = argument or Config.resolve({}, os.environ, Path.cwd()).run_dir
    if root is None:
        found = sorted(path.parent for path in DEFAULT_PARENT.glob("*/run.json"))
        if len(found) != 1:
            names = ", ".join(map(str, found)) or "none"
            raise ConfigError(f"cannot tell which run is meant: name one (in runs/: {names})")
        root = found[0]
    place = RunDir(root)
    if not place.run_file.exists():
        raise ConfigError(f"cannot find a run in {root}: there is no {place.run_file}")
    return place


def open_store(argument: Path | None) -> Store:
    """The store of that run."""
    return Store.open(existing_run(argument), command=[])


def status_of(place: RunDir) -> dict[str, Any]:
    """The keys of `status --json`: the supervisor's own word, or what the disk says."""
    owner = lock_owner(place)
    if owner is not None:
        with contextlib.suppress(OrchestratorError), supervisor_of(owner) as connection:
            if connection is not None:
                return ask(connection, {"type": "status"})
    status = status_from_disk(Store.open(place, command=[])).to_json()
    if owner is not None:
        # A script on its own has no socket; the supervisor may be on another machine.
        holder = "supervisor_pid" if "socket" in owner else "trainer_pid"
        status |= {"state": "running", holder: owner.get("pid")}
    return status


def owner_here(place: RunDir) -> dict[str, Any] | None:
    """Who works on the run on this machine; None for nobody. Raises ConfigError for elsewhere."""
    owner = lock_owner(place)
    if owner is not None and not isinstance(owner.get("pid"), int):
        raise ConfigError(
            f"cannot reach the run {place.root}: it is held by a process that has not signed the "
            "lock; try again in a moment"
        )
    if owner is not None and owner.get("host") not in (None, os.uname().nodename):
        raise ConfigError(
            f"cannot reach the run {place.root} from here: it runs on {owner['host']}, "
            f"process {owner.get('pid')}"
        )
    return owner


def signal_script(place: RunDir, owner: dict[str, Any], number: int) -> None:
    """Signal the script that works on the run without a supervisor. Raises ConfigError."""
    try:
        signal_holder(owner["pid"], place.lock_file, number)
    except OSError as error:
        raise ConfigError(
            f"cannot signal the owner of {place.root}: {error.args[-1]}; the note in "
            f"{place.lock_file} is not to be trusted: see who may write there"
        ) from None


@contextlib.contextmanager
def supervisor_of(owner: dict[str, Any]) -> Iterator[Connection | None]:
    """A connection to the supervisor; None for a script on its own, which has no socket."""
    path = owner.get("socket")
    if path is None:
        yield None
        return
    try:
        connection = Connection(path, REPLY_SECONDS)
    except OSError as error:
        raise ConfigError(
            f"cannot reach the supervisor (process {owner.get('pid')}): {error}"
        ) from None
    try:
        yield connection
    finally:
        connection.close()


def ask(
    connection: Connection, message: Message, timeout_seconds: float = REPLY_SECONDS
) -> Message:
    """The supervisor's one answer; empty where it has ended. Raises ConfigError."""
    try:
        connection.send(message)
        connection.set_timeout(timeout_seconds)
        return connection.receive() or {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot talk to the supervisor: {error}") from None


def chosen_checkpoint(store: Store, step: int | None, *, to_load: bool = False) -> Checkpoint:
    """The newest checkpoint that a run would resume from, or the newest of a step; verified."""
    if step is not None:
        of_step = [c for c in store.all() if c.manifest.step == step]
        if not of_step:
            raise NoValidCheckpointError(
                f"cannot find a checkpoint of step {step} in {store.run.checkpoints}; "
                "see `orchestrator checkpoints list`"
            )
        verify(of_step[-1], to_load=to_load)
        return of_step[-1]
    for candidate in reversed(store.all()):
        if candidate.manifest.healthy:
            with contextlib.suppress(CheckpointInvalidError):
                verify(candidate, to_load=to_load)
                return candidate
    raise NoValidCheckpointError(
        f"cannot find a valid checkpoint in {store.run.checkpoints}; "
        "see `orchestrator checkpoints list`, name one with --step"
    )


@contextlib.contextmanager
def file_errors(text: str) -> Iterator[None]:
    """What the system refuses inside becomes a ConfigError that begins with ``text``."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{text}: {error.strerror}") from None
