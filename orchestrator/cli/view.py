"""Shows a value once or again and again, as a table for people or as JSON for programs."""

import contextlib
import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any, TypeVar

from orchestrator.terminal.printing import print_text

WATCH_SECONDS = 1.0
PIPE_COLUMNS = 200

T = TypeVar("T")


def show(
    arguments: Namespace,
    read: Callable[[], T],
    table: Callable[[T], Any],
    is_over: Callable[[T], bool],
) -> None:
    """Show what ``read`` returns, by the options --json and --watch.

    With --watch it is read every second until it is over, or until Ctrl-C.
    """
    if arguments.json and not arguments.watch:
        print_text(json.dumps(read()))
        return
    if not arguments.watch:
        console().print(table(read()), soft_wrap=True)
        return
    from rich.live import Live

    with contextlib.suppress(KeyboardInterrupt), Live(auto_refresh=False) as live:
        while True:
            current = read()
            if arguments.json:
                print_text(json.dumps(current))
            else:
                live.update(table(current), refresh=True)
            if is_over(current):
                return
            time.sleep(WATCH_SECONDS)


def console() -> Any:
    """Return a console for standard output."""
    from rich.console import Console

    # A file or a pipe has no width of its own.
    return Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS)
