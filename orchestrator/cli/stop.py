"""The command `orchestrator stop`."""

import signal
import time
from argparse import Namespace

from orchestrator.checkpoint.store import Store
from orchestrator.client import (
    ask,
    existing_run,
    owner_here,
    seconds_in,
    signal_script,
    store_of,
    supervisor_of,
)
from orchestrator.errors import ConfigError
from orchestrator.exitcodes import ExitStatus
from orchestrator.rundir.history_index import read_history
from orchestrator.rundir.lock import lock_owner
from orchestrator.telemetry.run_state import State
from orchestrator.telemetry.status import status_from_disk
from orchestrator.telemetry.stop_text import Stop
from orchestrator.terminal.printing import print_text

STOP_MARGIN_SECONDS = 15.0
POLL_SECONDS = 0.1


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
    return _report_end(store_of(run))


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
