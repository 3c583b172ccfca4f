"""The commands that look at a run or talk to it; they print what they find."""

import contextlib
import json
import signal
import sys
import time
from argparse import Namespace
from typing import Any

from orchestrator.checkpoint.store import Store
from orchestrator.client import (
    ask,
    chosen_checkpoint,
    existing_run,
    file_errors,
    open_store,
    owner_here,
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
from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.rundir.lock import lock_owner
from orchestrator.telemetry.run_state import State
from orchestrator.telemetry.status import status_from_disk

CHECKPOINT_WAIT_SECONDS = 600.0
STOP_MARGIN_SECONDS = 15.0
POLL_SECONDS = 0.1
WATCH_SECONDS = 1.0
PIPE_COLUMNS = 200


def status(arguments: Namespace) -> None:
    """Show what a run is doing, how far it is, and what a kill now would lose."""
    as_json, watch = arguments.json, arguments.watch
    place = existing_run(arguments.run_dir)
    if as_json and not watch:
        print(json.dumps(status_of(place)))
        return
    from rich.live import Live

    from orchestrator.cli.tables import status_table

    if not watch:
        _console().print(status_table(status_of(place)))
        return
    with contextlib.suppress(KeyboardInterrupt), Live(auto_refresh=False) as live:
        while True:
            current = status_of(place)
            if as_json:
                print(json.dumps(current), flush=True)
            else:
                live.update(status_table(current), refresh=True)
            if current["supervisor_pid"] is current["trainer_pid"] is None:
                return
            time.sleep(WATCH_SECONDS)


def stop(arguments: Namespace) -> ExitStatus:
    """Have a run save and stop, and wait for its end; ends with 74 if not all was saved."""
    place = existing_run(arguments.run_dir)
    owner = owner_here(place)
    if owner is None:
        print(f"nothing works on {place.root}")
        return ExitStatus.COMPLETE
    wait_seconds = STOP_MARGIN_SECONDS
    with supervisor_of(owner) as connection:
        if connection is None:
            # Not SIGTERM: a second one, from another user's `stop`, would end it unsaved.
            signal_script(place, owner, signal.SIGUSR1)
        else:
            reply = ask(connection, {"type": "stop"})
            wait_seconds += float(reply.get("grace_seconds", 0))
    deadline = time.monotonic() + wait_seconds
    while lock_owner(place) is not None:
        if time.monotonic() > deadline:
            raise ConfigError(
                f"cannot see the end of {place.root} after {wait_seconds:g} s; "
                f"look with `orchestrator status {place.root}`"
            )
        time.sleep(POLL_SECONDS)
    return _report_end(Store.open(place, command=[]))


def _report_end(store: Store) -> ExitStatus:
    """Say how a run that has just ended did so, what was saved and what was lost."""
    final = status_from_disk(store)
    newest = final.newest_checkpoint
    where = f"the newest checkpoint is {newest['path']}" if newest else "there is no checkpoint"
    if final.state == State.COMPLETED:
        print(f"training is complete at step {final.step}; {where}")
        return ExitStatus.COMPLETE
    if final.state != State.STOPPED:
        print(f"{final.state}: it ended otherwise than by this stop; {where}")
        return ExitStatus.GAVE_UP if final.state == State.FAILED else ExitStatus.STOPPED_UNSAVED
    events, _ = Journal(store.run.journal_file).read()
    record = [event for event in events if event["event"] == JournalEvent.RUN_STOPPED][-1]
    if record.get("status") != ExitStatus.STOPPED_SAVED:
        lost = (record.get("step") or 0) - (final.step or 0)
        print(
            f"stopped; the last {f'{lost} steps' if lost > 0 else 'steps'} are lost: {where}"
            + (f", of step {final.step}" if newest else "")
        )
        return ExitStatus.STOPPED_UNSAVED
    if newest is None:
        print("stopped before the first step: there was nothing to save")
    else:
        print(f"stopped at step {final.step}; the state is saved: {newest['path']}")
    return ExitStatus.COMPLETE


def checkpoint(arguments: Namespace) -> None:
    """Have a run save now and keep training; print the new checkpoint's path.

    Ends with 74 if none was made.
    """
    place = existing_run(arguments.run_dir)
    owner = owner_here(place)
    if owner is None:
        raise NotSavedError(f"cannot save: nothing works on {place.root}; start it to train on")
    with supervisor_of(owner) as connection:
        if connection is None:
            signal_script(place, owner, signal.SIGUSR2)
            print("asked the script to save at its next safe point")
            return
        reply = ask(connection, {"type": "checkpoint"}, CHECKPOINT_WAIT_SECONDS)
    if reply.get("type") != "published":
        raise NotSavedError(f"cannot save: {reply.get('problem', 'the supervisor has ended')}")
    print(reply["path"])


def list_(arguments: Namespace) -> None:
    """List the checkpoints, newest last; every byte is verified."""
    _print_checkpoints(open_store(arguments.run_dir), arguments.json)


def verify(arguments: Namespace) -> ExitStatus:
    """Verify every checkpoint; ends with 65 if one is damaged or none is left to be valid."""
    store = open_store(arguments.run_dir)
    rows = _print_checkpoints(store, arguments.json)
    if not rows and (aside := store.quarantine_folder.checkpoints()):
        raise NoValidCheckpointError(
            f"cannot find a valid checkpoint in {store.run.checkpoints}: all {len(aside)} are in "
            "quarantine; repair one and move it back, or start anew with another --run-dir"
        )
    if any(not row["valid"] for row in rows):
        return ExitStatus.NO_VALID_CHECKPOINT
    return ExitStatus.COMPLETE


def pin(arguments: Namespace) -> None:
    """Keep a checkpoint whatever --keep says."""
    store = open_store(arguments.run_dir)
    chosen = chosen_checkpoint(store, arguments.step)
    with file_errors(f"cannot pin {chosen.path}"):
        store.pin(chosen)
    print(f"pinned {chosen.path}")


def unpin(arguments: Namespace) -> None:
    """Let --keep decide about a checkpoint again."""
    store = open_store(arguments.run_dir)
    chosen = chosen_checkpoint(store, arguments.step)
    with file_errors(f"cannot unpin {chosen.path}"):
        store.unpin(chosen)
    print(f"unpinned {chosen.path}")


def _print_checkpoints(store: Store, as_json: bool) -> list[dict[str, Any]]:
    from orchestrator.cli.checkpoint_list import list_checkpoints, list_quarantined

    rows = list_checkpoints(store)
    if as_json:
        print(json.dumps(rows))
    else:
        from orchestrator.cli.tables import checkpoints_table, quarantine_table

        console = _console()
        # Too long a line is the terminal's to wrap: a name that is cut off is no use.
        console.print(checkpoints_table(rows, console.width), soft_wrap=True)
        if aside := list_quarantined(store):
            console.print(quarantine_table(aside), soft_wrap=True)
    return rows


def _console() -> Any:
    from rich.console import Console

    # Into a file or a pipe nothing is cut off to fit a terminal that is not there.
    return Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS)
