"""Measures how long the loop stands still to save, for the control page."""

from time import monotonic_ns

from orchestrator.ipc.control_page import Field


class SavingClock:
    """Adds up the time in its ``with`` blocks; of nested ones the outermost counts."""

    def __init__(self, page: memoryview) -> None:
        self._page = page
        self._depth = 0
        self._began_ns = 0

    @property
    def seconds(self) -> float:
        """The sum so far; without what has begun and not ended."""
        return round(self._page[Field.SAVING_NS] / 1e9, 3)

    def __enter__(self) -> None:
        if self._depth == 0:
            self._began_ns = monotonic_ns()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._add_since(self._began_ns)

    def add_since_safe_point(self) -> None:
        """Count the time since the last safe point or save: a framework has saved by itself."""
        self._add_since(max(self._page[Field.HEARTBEAT_NS], self._page[Field.SAVED_NS]))

    def _add_since(self, began_ns: int) -> None:
        now = monotonic_ns()
        self._page[Field.SAVING_NS] += now - began_ns
        self._page[Field.SAVED_NS] = now
