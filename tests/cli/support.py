"""Tables as a terminal shows them."""

from typing import Any

from rich.console import Console


def shown(table: Any, columns: int) -> str:
    """The text of a table on a terminal of this width."""
    console = Console(width=columns, color_system=None)
    with console.capture() as capture:
        console.print(table, soft_wrap=True)
    return capture.get()
