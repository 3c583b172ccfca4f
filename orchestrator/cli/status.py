"""The command `orchestrator status`."""

from argparse import Namespace
from functools import partial
from typing import Any

from orchestrator.cli.view import show
from orchestrator.client import existing_run, status_of
from orchestrator.rundir.paths import RunDir


def status(arguments: Namespace) -> None:
    """Show what a run is doing, how far it is, what is at risk, or why it failed."""
    run = existing_run(arguments.run_dir)
    show(
        arguments,
        read=lambda: status_of(run),
        table=partial(_watched, run) if arguments.watch else _table,
        is_over=lambda status: status["supervisor_pid"] is status["trainer_pid"] is None,
    )


def _table(status: dict[str, Any]) -> Any:
    from orchestrator.cli.status_table import status_table

    return status_table(status)


def _watched(run: RunDir, status: dict[str, Any]) -> Any:
    from orchestrator.cli.watched_status import watched_status

    return watched_status(run, status)
