"""The commands that show a run, control it, or verify and pin its checkpoints."""

import json
import signal
import time
from argparse import Namespace
from typing import Any

from orchestrator.checkpoint.store import Store
from orchestrator.cli.view import console, show
from orchestrator.client import (
    ask,
    chosen_checkpoint,
    existing_run,
    file_errors,
    open_store,
    owner_here,
    seconds_in,
    signal_script,
    status_of,
    supervisor_of,
)
from orchestrator.errors import (
    ConfigError,
    NotSavedError,
    NoValidCheckpointError,
)
from orchestrator.exitcodes import ExitStatus
from orchestrator.rundir.history_index import read_history
from orchestrator.rundir.lock import lock_owner
from orchestrator.telemetry.run_state import State
from orchestrator.telemetry.status import status_from_disk
from orchestrator.telemetry.stop_text import Stop
from orchestrator.terminal.printing import print_text

CHECKPOINT_WAIT_SECONDS = 600.0
STOP_MARGIN_SECONDS = 15.0
POLL_SECONDS = 0.1


def status(arguments: Namespace) -> None:
    """Show what a run is doing, how far it is, what is at risk, or why it failed."""
    run = existing_run(arguments.run_dir)
    show(
        arguments,
        read=lambda: status_of(run),
        table=_table,
        is_over=lambda status: status["supervisor_pid"] is status["trainer_pid"] is None,
    )


def _table(status: dict[str, Any]) -> Any:
    from orchestrator.cli.tables import status_table

    return status_table(status)


def stop(arguments: Namespace) -> ExitStatus:
    """Save and stop a run, and wait until it has ended; exit with 74 if steps were lost."""
    run = existing_run(arguments.run_dir)
    owner = owner_here(run)
    if owner is None:
        print_text(f"no process is training in {run.root}")
        return ExitStatus.COMPLETE
    wait_seconds = STOP_MARGIN_SECONDS
    with supervisor_of(run, owner) as connection:
        if connection is None:
            # A second SIGTERM, from another `stop`, would end it unsaved; SIGUSR1 never does.
            signal_script(run, owner, signal.SIGUSR1)
        else:
            reply = ask(connection, {"type": "stop"})
            wait_seconds += seconds_in(reply, "grace_seconds")
    deadline = time.monotonic() + wait_seconds
    while lock_owner(run) is not None:
        if time.monotonic() > deadline:
            raise ConfigError(
                f"cannot stop {run.root}: it has not ended after {wait_seconds:g} s; "
                f"see `orchestrator status {run.root}`"
            )
        time.sleep(POLL_SECONDS)
    return _report_end(Store.open(run, command=[]))


def _report_end(store: Store) -> ExitStatus:
    """Print how a run has ended, what was saved and what was lost; return the exit status."""
    final = status_from_disk(store)
    newest = final.newest_checkpoint
    path = str(newest["path"]) if newest else None
    where = "there is no checkpoint" if path is None else f"the newest checkpoint is {path}"
    if final.state == State.COMPLETED:
        step = "" if path is None else f" at step {final.step}"
        print_text(f"{'training' if step else 'the command'} is complete{step}; {where}")
        return ExitStatus.COMPLETE
    if final.state != State.STOPPED:
        how = "the run ended for another reason"
        if final.state == "interrupted":
            how = "the run ended without a record, since it was killed or its disk is full"
        print_text(f"{final.state}: {how}; {where}; see `orchestrator status {store.run.root}`")
        return ExitStatus.GAVE_UP if final.state == State.FAILED else ExitStatus.STOPPED_UNSAVED
    history = read_history(store.run)
    lost = (history.last_stop.get("step") or 0) - (final.step or 0)
    is_saved = history.last_stop.get("status") == ExitStatus.STOPPED_SAVED
    stop = Stop(
        is_saved=is_saved,
        step=final.step,
        path=path,
        lost_steps=lost if lost > 0 else None,
        problem=final.problem,
        shows_saves=bool(history.last_exit.get("connected", True)),
    )
    print_text("\n    ".join(stop.lines))
    return ExitStatus.COMPLETE if is_saved else ExitStatus.STOPPED_UNSAVED


def checkpoint(arguments: Namespace) -> None:
    """Save a checkpoint now, without stopping the run, and print its path.

    The exit status is 74 if none was made.
    """
    run = existing_run(arguments.run_dir)
    owner = owner_here(run)
    if owner is None:
        raise NotSavedError(
            f"cannot save: no process is training in {run.root}; run its command again first"
        )
    with supervisor_of(run, owner) as connection:
        if connection is None:
            signal_script(run, owner, signal.SIGUSR2)
            print_text("the script will save at its next safe point")
            return
        reply = ask(connection, {"type": "checkpoint"}, CHECKPOINT_WAIT_SECONDS)
    if reply.get("type") != "published":
        problem = str(reply.get("problem", "the supervisor has ended"))
        raise NotSavedError(
            problem if problem.startswith("cannot save") else f"cannot save: {problem}"
        )
    print_text(reply.get("path"))


def list_(arguments: Namespace) -> None:
    """List the checkpoints, newest last, with every byte verified."""
    _print_checkpoints(open_store(arguments.run_dir), arguments.json)


def verify(arguments: Namespace) -> ExitStatus:
    """Verify every checkpoint; exit with 65 if one is damaged, or if all are in quarantine."""
    store = open_store(arguments.run_dir)
    rows = _print_checkpoints(store, arguments.json)
    if not rows and (quarantined := store.quarantine_folder.checkpoints()):
        raise NoValidCheckpointError(
            f"cannot find a valid checkpoint in {store.run.checkpoints}: all {len(quarantined)} "
            f"are in quarantine; repair one and move it back from {store.run.quarantine}, or start "
            "over with another --run-dir"
        )
    if any(not row["valid"] for row in rows):
        return ExitStatus.NO_VALID_CHECKPOINT
    return ExitStatus.COMPLETE


def pin(arguments: Namespace) -> None:
    """Keep a checkpoint, whatever --keep says."""
    store = open_store(arguments.run_dir)
    chosen = chosen_checkpoint(store, arguments.step)
    with file_errors(f"cannot pin {chosen.path}"):
        store.pin(chosen)
    print_text(f"pinned {chosen.path}")


def unpin(arguments: Namespace) -> None:
    """Let --keep decide about a checkpoint again."""
    store = open_store(arguments.run_dir)
    chosen = chosen_checkpoint(store, arguments.step)
    with file_errors(f"cannot unpin {chosen.path}"):
        store.unpin(chosen)
    print_text(f"unpinned {chosen.path}")


def _print_checkpoints(store: Store, as_json: bool) -> list[dict[str, Any]]:
    from orchestrator.cli.checkpoint_list import list_checkpoints, list_quarantined

    rows = list_checkpoints(store)
    if as_json:
        print_text(json.dumps(rows))
    else:
        from orchestrator.cli.tables import checkpoints_table, quarantine_table

        terminal = console()
        # The terminal wraps a long line, so that no name is cut off.
        terminal.print(checkpoints_table(rows, terminal.width), soft_wrap=True)
        if quarantined := list_quarantined(store):
            terminal.print(quarantine_table(quarantined), soft_wrap=True)
    return rows
