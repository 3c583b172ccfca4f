"""The cycles of a script, by the order in which it makes them."""

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.errors import ConfigError
from orchestrator.training.data.data_pass import DataPass


class Cycles:
    """Which cycles there are, and where each is, also before it has given its first batch.

    Attributes:
        passes: The cycles that have begun to give batches; looked up at every step.
    """

    def __init__(self) -> None:
        self._loaders: list[Any] = []
        self.passes: list[DataPass] = []
        self._begun: dict[int, DataPass] = {}
        self._cut: Sequence[Mapping[str, Any]] = ()

    def load(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Continue from what ``states`` returned."""
        self._cut = states

    def states(self) -> list[dict[str, Any]]:
        """Return the state of each cycle; it is empty for a new one without a batch."""
        numbers = range(max(len(self._loaders), len(self._cut)))
        begun = self._begun
        return [begun[n].state() if n in begun else dict(self.cut(n)) for n in numbers]

    def cut(self, number: int) -> Mapping[str, Any]:
        """Return the saved state of a cycle; it is empty for a new one."""
        return self._cut[number] if number < len(self._cut) else {}

    def add(self, loader: Any) -> int:
        """Return the number of a new cycle. Raises ConfigError if this loader has one."""
        if any(each is loader for each in self._loaders):
            raise ConfigError(
                f"cannot begin a second cycle over this {type(loader).__name__}: write `batches = "
                "session.cycle(loader)` once, before the loop, and next(batches) in it"
            )
        self._loaders.append(loader)
        return len(self._loaders) - 1

    def begin(self, number: int, this: DataPass) -> None:
        """Record that a cycle is about to give its first batch."""
        self._begun[number] = this
        self.passes.append(this)
