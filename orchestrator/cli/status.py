"""The command `orchestrator status`."""

from argparse import Namespace
from typing import Any

from orchestrator.cli.view import show
from orchestrator.client import (
    existing_run,
    status_of,
)


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
    from orchestrator.cli.status_table import status_table

    return status_table(status)
