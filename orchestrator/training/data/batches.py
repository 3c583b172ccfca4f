"""What ``session.batches()`` returns: an iterator with a length and a position."""

from collections.abc import Callable, Iterator
from typing import Any


class Batches(Iterator[Any]):
    """The batches that a pass over a loader has left.

    ``len()`` is that of the loader, and so counts the whole pass; it raises TypeError where the
    loader has none. A progress bar that begins at ``position`` is right in a resumed pass too:
    ``tqdm(batches, initial=batches.position)``.
    """

    def __init__(self, loader: Any, batches: Iterator[Any], start: Callable[[], int]) -> None:
        """``start`` returns the number of the batch at which a pass that begins now begins."""
        self._loader = loader
        self._batches = batches
        self._start = start
        self._position: int | None = None

    @property
    def position(self) -> int:
        """How many batches of the pass are behind the loop, those before a resume included."""
        return self._start() if self._position is None else self._position

    def __len__(self) -> int:
        return len(self._loader)

    def __bool__(self) -> bool:
        return True  # as any iterator, also over a loader without a length

    def __next__(self) -> Any:
        if self._position is None:
            self._position = self._start()
        batch = next(self._batches)
        self._position += 1
        return batch
