"""The command `orchestrator runs`: one line for each run below a directory."""

import contextlib
import os
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.cli.view import show
from orchestrator.client import status_of
from orchestrator.errors import ConfigError, OrchestratorError
from orchestrator.rundir.paths import DEFAULT_PARENT, RunDir
from orchestrator.telemetry.status import Status

# Below a data set that lies beside the runs there may be millions of directories.
MOST_LEVELS = 4
# A supervisor that does not answer must not hold up the others, and many such not the command.
THREADS = 8
MOST_SECONDS_OF_ASKING = 10.0
MOST_SECONDS_OF_READING = 5.0
MOST_SECONDS_WHEN_LATE = 1.0
UNREADABLE = "unreadable"

# What --sort names: the value of a status, and whether the largest comes first.
SORT_KEYS: dict[str, tuple[Callable[[dict[str, Any]], Any], bool]] = {
    "run": (lambda status: status["run_dir"], False),
    "state": (lambda status: status["state"], False),
    "step": (lambda status: status["step"], True),
    "restarts": (lambda status: status["restarts"], True),
    "risk": (lambda status: status["lose_at_most_seconds"], True),
    "age": (lambda status: checkpoint_age(status), False),
}


def runs(arguments: Namespace) -> None:
    """Show every run below a directory, one line each."""
    parent = arguments.directory or DEFAULT_PARENT
    if not os.path.isdir(parent):
        raise ConfigError(
            f"cannot find runs: there is no directory {parent}; name the one that holds them, or "
            "start a run with `orchestrator run -- python train.py`"
        )

    def table(found: list[dict[str, Any]]) -> Any:
        from orchestrator.cli.runs_table import runs_table

        return runs_table(found, parent)

    show(
        arguments,
        read=lambda: statuses(parent, arguments.sort),
        table=table,
        is_over=lambda _: False,
    )


def statuses(parent: Path, sort_by: str) -> list[dict[str, Any]]:
    """Return the status of every run below a directory, as `status --json` prints it.

    A run that cannot be read has the state ``unreadable``, and its ``problem`` says why. No run is
    read for more than five seconds. After ten seconds no more supervisors are asked, and a run is
    read for one. Runs without a value to sort by come last.
    """
    no_more_asking = time.monotonic() + MOST_SECONDS_OF_ASKING
    with ThreadPoolExecutor(THREADS) as pool:
        read = partial(_status, no_more_asking=no_more_asking)
        found = list(pool.map(read, _runs_below(parent, MOST_LEVELS)))
    found.sort(key=lambda status: str(status["run_dir"]))
    value_of, is_largest_first = SORT_KEYS[sort_by]
    known = [status for status in found if value_of(status) is not None]
    known.sort(key=value_of, reverse=is_largest_first)
    return known + [status for status in found if value_of(status) is None]


def checkpoint_age(status: dict[str, Any]) -> float | None:
    """Return the age of a run's newest checkpoint in seconds; None without one."""
    newest = status["newest_checkpoint"]
    return None if newest is None else float(newest["age_seconds"])


def _runs_below(directory: Path, levels: int) -> Iterator[RunDir]:
    """Yield the run in a directory, or else those below it, without following links."""
    run = RunDir(directory)
    if os.path.isfile(run.run_file):
        yield run
    elif levels > 0:
        with contextlib.suppress(OSError), os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from _runs_below(directory / entry.name, levels - 1)


def _status(run: RunDir, no_more_asking: float) -> dict[str, Any]:
    try:
        is_late = time.monotonic() >= no_more_asking
        seconds = MOST_SECONDS_WHEN_LATE if is_late else MOST_SECONDS_OF_READING
        return status_of(run, from_supervisor=not is_late, most_seconds_of_reading=seconds)
    except OrchestratorError as error:
        problem = str(error)
    except Exception as error:  # of a run that others have made: it must not hide the others
        problem = f"cannot read the run {run.root}: {error!r}; see who may write there"
    unknown = Status(run_id="", state=UNREADABLE, run_dir=str(run.root), problem=problem)
    return unknown.to_json()
