"""Decides whether a resumed run is EXACT, or APPROXIMATE and why."""

from collections.abc import Iterable

from orchestrator.checkpoint.manifest import exactness_of
from orchestrator.training.data.data_position import DataPosition
from orchestrator.training.state.plain_capture import PlainCapture


class Exactness:
    """The doubts whether a run goes on as an uninterrupted one would; without them it is EXACT."""

    def __init__(self, data: DataPosition, plain: PlainCapture) -> None:
        """Take into account the problems of the position in the data and of the plain values."""
        self._data = data
        self._plain = plain
        self._is_resumed = False
        self._problems: list[str] = []

    def begin(self, problems: Iterable[str]) -> None:
        """Record that the run was resumed, and what is in doubt from the start."""
        self._is_resumed = True
        self._problems = list(problems)

    def add(self, problems: Iterable[str]) -> None:
        """Record further doubts."""
        self._problems += problems

    def doubts(self) -> list[str]:
        """Return all doubts so far."""
        return self._problems + self._data.problems + self._plain.problems

    def text(self) -> str | None:
        """Return EXACT, or APPROXIMATE and why; None in a run that was not resumed."""
        return exactness_of(self.doubts()) if self._is_resumed else None
