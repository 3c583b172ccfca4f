"""The position in a run's data: where each pass over it is, and where it goes on after a cut.

The order of an epoch is a function of (seed, epoch), and of the number of the pass where an epoch
makes several; the position is counted in batches consumed by steps, not in batches prefetched.
"""

import itertools
import warnings
import weakref
from collections.abc import Generator, Iterable, Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from orchestrator.training import rng
from orchestrator.training.seeking import SeekableLoader


class Cursor:
    """The position in one pass over the data, in batches.

    ``taken`` were handed to the loop; ``consumed`` are those that a completed step has used, and
    only they count when the run continues.
    """

    __slots__ = ("consumed", "size", "taken")

    def __init__(self, consumed: int = 0, size: str | None = None) -> None:
        self.size = size
        self.consumed = consumed
        self.taken = consumed


class DataPosition:
    """The positions of all passes that the current epoch has begun, in the order of their begin."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.problems: list[str] = []
        self.resumed_pass: int | None = None
        """The pass in which the checkpoint was made, until the script is there again."""
        self._open: list[Cursor] = []
        self._cursors: list[Cursor] = []
        self._to_resume: list[int] = []
        self._sizes: list[str | None] = []
        # Kept from epoch to epoch, for the sake of persistent workers.
        self._loaders: weakref.WeakKeyDictionary[DataLoader[Any], SeekableLoader]
        self._loaders = weakref.WeakKeyDictionary()

    def state(self) -> dict[str, Any]:
        """What the checkpoint keeps under ``data``."""
        positions = [cursor.consumed for cursor in self._cursors]
        sizes = [cursor.size for cursor in self._cursors]
        return {
            "seed": self.seed,
            "batches": positions + self._to_resume[len(positions) :],
            "sizes": sizes + self._sizes[len(sizes) :],
            "pass": self._current_pass() if self.resumed_pass is None else self.resumed_pass,
        }

    def _current_pass(self) -> int | None:
        """The first of those that are open, or the last that was; evaluations do not count."""
        used = [cursor for cursor in self._cursors if cursor.consumed]
        if not used:
            return None
        return self._cursors.index(next((c for c in used if c in self._open), used[-1]))

    def load(self, state: dict[str, Any]) -> None:
        """Continue from what ``state`` returned."""
        self.seed = int(state["seed"])
        self._to_resume = [int(position) for position in state["batches"]]
        self._sizes = list(state.get("sizes", ()))
        self.resumed_pass = state.get("pass")

    def begin_epoch(self) -> None:
        """Forget the positions of the epoch that ended."""
        if self.resumed_pass is not None:
            self.problems.append("the epoch ended before the pass over the data where it was cut")
        self._cursors = []
        self._to_resume = []
        self._sizes = []
        self._open = []
        self.resumed_pass = None

    def consume(self) -> None:
        """A step has used every batch that was taken: several passes may be open, as under zip."""
        if self.resumed_pass is not None:
            self.problems.append("a step came before the pass over the data where it was cut")
            self.resumed_pass = None
        for cursor in self._open:
            cursor.consumed = cursor.taken

    @property
    def is_at_resumed_pass(self) -> bool:
        """Whether the next pass to begin is the one in which the checkpoint was made."""
        return self.resumed_pass in (None, len(self._cursors))

    @property
    def mid_batch(self) -> bool:
        """Whether batches were taken that no step has consumed yet."""
        return any(cursor.taken != cursor.consumed for cursor in self._open)

    def batches(self, loader: Iterable[Any], epoch: int) -> Generator[Any, None, bool]:
        """The batches of this epoch that are still to do; returns whether steps used them all."""
        index = len(self._cursors)
        inside_another = bool(self._open)
        start = self._to_resume[index] if index < len(self._to_resume) else 0
        cursor = Cursor(start, _size_of(loader))
        still_to_resume = any(self._to_resume[index:])
        if still_to_resume and index < len(self._sizes) and self._sizes[index] != cursor.size:
            self.problems.append(
                f"pass {index + 1} of the epoch had {self._sizes[index]}, now {cursor.size}"
            )
        self._cursors.append(cursor)
        self._open.append(cursor)
        # A second pass in the same epoch has an order of its own.
        order_seed = rng.derive_seed(self.seed, epoch, index)
        try:
            for batch in self._iterate(loader, epoch, order_seed, start):
                cursor.taken += 1
                yield batch
            return cursor.taken == cursor.consumed
        finally:
            if cursor in self._open:
                self._open.remove(cursor)
            if inside_another and not cursor.consumed and cursor in self._cursors:
                # An evaluation between two steps. A resumed run does not repeat it, so it has no
                # place among the passes; one beside them is repeated and needs its own.
                self._cursors.remove(cursor)

    def _iterate(self, loader: Iterable[Any], epoch: int, seed: int, start: int) -> Iterator[Any]:
        if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
            return self._fast_forward(loader, seed, start)
        if loader not in self._loaders:
            self._loaders[loader] = SeekableLoader(loader)
        return self._loaders[loader].seek(seed, epoch, start)

    def _fast_forward(self, loader: Iterable[Any], seed: int, start: int) -> Iterator[Any]:
        if start:
            warnings.warn(
                f"skipping {start} batches by reading them: {type(loader).__name__} has no "
                "positions to seek to; a DataLoader over a map-style dataset has",
                stacklevel=4,
            )
        return itertools.islice(rng.drawing(lambda: iter(loader), rng.Streams(seed)), start, None)


def _size_of(loader: Any) -> str | None:
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    try:
        samples = len(loader.dataset)  # type: ignore[arg-type]
    except TypeError:
        return None
    batches_of = getattr(loader.batch_sampler, "batch_size", loader.batch_size)
    return f"{samples} samples by {type(loader.sampler).__name__} in batches of {batches_of}"
