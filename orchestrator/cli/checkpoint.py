"""The command `orchestrator checkpoint`, which saves now."""

import signal
from argparse import Namespace

from orchestrator.client import (
    ask,
    existing_run,
    owner_here,
    signal_script,
    supervisor_of,
)
from orchestrator.errors import (
    NotSavedError,
)
from orchestrator.terminal.printing import print_text

CHECKPOINT_WAIT_SECONDS = 600.0


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
