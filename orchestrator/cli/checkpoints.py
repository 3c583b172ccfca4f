"""The commands below `orchestrator checkpoints` that list, verify and pin."""

import json
from argparse import Namespace
from typing import Any

from orchestrator.checkpoint.store import Store
from orchestrator.cli.view import console
from orchestrator.client import (
    chosen_checkpoint,
    file_errors,
    open_store,
)
from orchestrator.errors import (
    NoValidCheckpointError,
)
from orchestrator.exitcodes import ExitStatus
from orchestrator.terminal.printing import print_text


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
        from orchestrator.cli.checkpoints_table import checkpoints_table, quarantine_table

        terminal = console()
        # The terminal wraps a long line, so that no name is cut off.
        terminal.print(checkpoints_table(rows, terminal.width), soft_wrap=True)
        if quarantined := list_quarantined(store):
            terminal.print(quarantine_table(quarantined), soft_wrap=True)
    return rows
