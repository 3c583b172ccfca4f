"""Passes over a loader, one after another, as one pass without an end."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from orchestrator.errors import ConfigError
from orchestrator.training.data.data_pass import Facts, start_of
from orchestrator.training.data.other_loaders import Opened
from orchestrator.training.state import rng

OpenRound = Callable[[int, int, int, Any], Opened]
"""Opens a pass by its seed, its number, the batch to begin at, and the loader's own state."""


class Rounds:
    """The rounds of a cycle over a loader; the order of each is drawn from a seed of its own."""

    def __init__(
        self,
        loader: Iterable[Any],
        open_round: OpenRound,
        seed: int,
        saved: Mapping[str, Any],
        facts: Facts | None,
    ) -> None:
        """Begin where the cycle of the ``saved`` state is; at the first batch if it is empty."""
        self._loader = loader
        self._open_round = open_round
        self._seed = seed
        start = start_of(saved, facts)
        own = saved.get("own") or _position(loader, start)
        self._round = int(own["round"])
        self._batch = start_of({**saved, "batches": own["batch"]}, facts)
        self._began_at = start - self._batch  # the number of the first batch of the round
        self._opened = self._open(own["own"])

    def opened(self) -> Opened:
        """Return the cycle as a pass."""
        return Opened(
            self._batches(), self._upcoming, self._past, self._own_state, self._opened.doubts
        )

    def _open(self, own_state: Any) -> Opened:
        seed = rng.derive_seed(self._seed, self._round)
        return self._open_round(seed, self._round, self._batch, own_state)

    def _batches(self) -> Iterator[Any]:
        while True:
            for batch in self._opened.batches:
                self._batch += 1
                yield batch
            if not self._batch:
                raise ConfigError(
                    f"cannot cycle over this {type(self._loader).__name__}: a pass over it has no "
                    "batch; give session.cycle() a loader, and not an iterator"
                )
            self._began_at += self._batch
            self._round, self._batch = self._round + 1, 0
            self._opened = self._open(None)

    def _upcoming(self, number: int) -> str | None:
        return self._opened.upcoming(number - self._began_at) if number >= self._began_at else None

    def _past(self, number: int) -> str | None:
        # At the beginning of a round, what a cut at the end of the one before has saved is of that.
        return self._opened.past(number - self._began_at) if number > self._began_at else None

    def _own_state(self) -> dict[str, Any]:
        return {"round": self._round, "batch": self._batch, "own": self._opened.own_state()}


def _position(loader: Any, start: int) -> dict[str, Any]:
    """Return the position of a cycle that was saved in the middle of a step."""
    batches = len(loader) if start else 1
    return {"round": start // batches, "batch": start % batches, "own": None}
