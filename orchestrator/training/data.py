"""Batches that continue where a run was cut, without reading what was already consumed.

The order of an epoch is a function of (seed, epoch), and of the number of the pass where an epoch
makes several; the position is counted in batches consumed by steps, not in batches prefetched. Each
batch re-seeds the random streams that its samples see from that and its own number, so that
augmentation depends neither on where the run was cut nor on the number of workers.
"""

import copy
import hashlib
import itertools
import warnings
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from types import GeneratorType
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from orchestrator.training import rng


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
        self._loaders: weakref.WeakKeyDictionary[DataLoader[Any], _SeekableLoader]
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
        order_seed = derive_seed(self.seed, epoch, index)
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
            self._loaders[loader] = _SeekableLoader(loader)
        return self._loaders[loader].seek(seed, epoch, start)

    def _fast_forward(self, loader: Iterable[Any], seed: int, start: int) -> Iterator[Any]:
        if start:
            warnings.warn(
                f"skipping {start} batches by reading them: {type(loader).__name__} has no "
                "positions to seek to; a DataLoader over a map-style dataset has",
                stacklevel=4,
            )
        return itertools.islice(_with_streams(lambda: iter(loader), rng.Streams(seed)), start, None)


def _with_streams(begin: Callable[[], Iterator[Any]], streams: rng.Streams) -> Iterator[Any]:
    """What the iterator yields; it draws from ``streams`` whenever it is asked."""
    end = object()
    with streams:
        iterator = begin()
    while True:
        with streams:
            item = next(iterator, end)
        if item is end:
            return
        yield item


def _size_of(loader: Any) -> str | None:
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    try:
        samples = len(loader.dataset)  # type: ignore[arg-type]
    except TypeError:
        return None
    batches_of = getattr(loader.batch_sampler, "batch_size", loader.batch_size)
    return f"{samples} samples by {type(loader.sampler).__name__} in batches of {batches_of}"


def derive_seed(*parts: int) -> int:
    """63 bits that depend on every part; equal parts give equal seeds on every machine."""
    text = ",".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


class _SeekableLoader:
    """A copy of a map-style DataLoader whose index sampler starts anywhere in any epoch."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._sampler = _EpochSampler(loader)
        self._loader = copy.copy(loader)
        # DataLoader refuses assignment to these after construction, since an iterator may be under
        # way; the copy has none yet.
        replaced = "sampler" if loader.batch_sampler is None else "batch_sampler"
        self._loader.__dict__[replaced] = self._sampler
        dataset = _SeededDataset(loader.dataset)
        self._loader.__dict__["dataset"] = dataset
        self._loader.collate_fn = _SeededCollate(dataset, loader.collate_fn)
        self._loader.__dict__["_iterator"] = None
        # Positions are counted in the order of the sampler.
        self._loader.in_order = True

    def seek(self, seed: int, epoch: int, start: int) -> Iterator[Any]:
        self._sampler.seed, self._sampler.epoch, self._sampler.start = seed, epoch, start
        # Creating an iterator draws from the global stream; a resumed run creates one more.
        with rng.scoped(seed):
            iterator = iter(self._loader)
        if isinstance(iterator, GeneratorType):  # it has not begun: its first batch draws
            return _with_streams(lambda: iterator, rng.Streams(seed))
        return iterator


_DRAW_AT_ONCE = (SequentialSampler, SubsetRandomSampler, WeightedRandomSampler, DistributedSampler)


class _Indices(list[Any]):
    """The indices of one batch, with the seed that its samples' random streams get."""

    seed: int


class _SingleIndex:
    """The index of one sample, for loaders that do not batch."""

    def __init__(self, index: Any, seed: int) -> None:
        self.index = index
        self.seed = seed


class _EpochSampler:
    """The loader's own sampler, made a function of a seed and started at a batch."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._batched = loader.batch_sampler is not None
        self._sampler: Any = loader.batch_sampler if self._batched else loader.sampler
        self._generators = [
            generator
            for generator in (
                loader.generator,
                getattr(loader.sampler, "generator", None),
                getattr(self._sampler, "generator", None),
                getattr(getattr(self._sampler, "sampler", None), "generator", None),
            )
            if generator is not None
        ]
        self.seed = self.epoch = self.start = 0

    def __len__(self) -> int:
        return max(0, len(self._sampler) - self.start)

    def __iter__(self) -> Iterator[Any]:
        # Bound now: another pass over the same loader may begin before this one draws.
        return self._items(self.seed, self.epoch, self.start)

    def _items(self, pass_seed: int, epoch: int, start: int) -> Iterator[Any]:
        order = self._order(pass_seed, epoch, start)
        for number in itertools.count(start):
            try:
                item = next(order)
            except StopIteration:
                return
            seed = derive_seed(pass_seed, number)
            if self._batched:
                indices = _Indices(item)
                indices.seed = seed
                yield indices
            else:
                yield _SingleIndex(item, seed)

    def _order(self, seed: int, epoch: int, start: int) -> Iterator[Any]:
        """The pass's batches of indices from ``start``; drawn now, under the pass's seed."""
        for part in (self._sampler, getattr(self._sampler, "sampler", None)):
            set_epoch = getattr(part, "set_epoch", None)
            if set_epoch is not None:
                set_epoch(epoch)
        streams = rng.Streams(seed, self._generators)
        order = _with_streams(lambda: self._skip(start), streams)
        if not self._draws_at_once():
            return order
        with streams:
            rest = self._skip(start)
            first = list(itertools.islice(rest, 1))
        return itertools.chain(first, rest)

    def _draws_at_once(self) -> bool:
        """Whether all is drawn when the first index is asked for; others cost 0.1 ms a batch."""
        sampler = self._sampler
        if type(sampler) is BatchSampler:
            sampler = sampler.sampler
        if type(sampler) is RandomSampler:
            return sampler.generator is None
        return type(sampler) in _DRAW_AT_ONCE

    def _skip(self, batches: int) -> Iterator[Any]:
        sampler = self._sampler
        if type(sampler) is not BatchSampler:
            return itertools.islice(iter(sampler), batches, None)
        # Skipping single indices runs in C, skipping batches would build each one first.
        indices = itertools.islice(iter(sampler.sampler), batches * sampler.batch_size, None)
        return iter(BatchSampler(_Once(indices), sampler.batch_size, sampler.drop_last))


class _Once:
    """An iterator in the place of a sampler."""

    def __init__(self, indices: Iterator[Any]) -> None:
        self._indices = indices

    def __iter__(self) -> Iterator[Any]:
        return self._indices


class _SeededDataset:
    """The dataset, whose samples see random streams seeded for their batch.

    Everything else is passed through, for ``worker_init_fn`` and the like that look at it.
    """

    def __init__(self, dataset: Any) -> None:
        self.__dict__["_dataset"] = dataset
        self.__dict__["last_seed"] = 0

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "last_seed":
            self.__dict__[name] = value
        else:
            setattr(self._dataset, name, value)

    def __getitems__(self, indices: _Indices) -> Any:
        self.last_seed = indices.seed
        with rng.scoped(indices.seed):
            if hasattr(self._dataset, "__getitems__"):
                return self._dataset.__getitems__(list(indices))
            return [self._dataset[index] for index in indices]

    def __getitem__(self, single: _SingleIndex) -> Any:
        self.last_seed = single.seed
        with rng.scoped(single.seed):
            return self._dataset[single.index]

    def __len__(self) -> int:
        return len(self._dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_dataset":
            raise AttributeError(name)  # unpickling asks before __dict__ is filled
        return getattr(self._dataset, name)


class _SeededCollate:
    """The collate function, for those that mix or crop at random, seeded for their batch too.

    It reaches a worker in one piece with the dataset, so that both still share the last seed.
    """

    def __init__(self, dataset: _SeededDataset, collate: Any) -> None:
        self._dataset = dataset
        self._collate = collate

    def __call__(self, samples: Any) -> Any:
        with rng.scoped(derive_seed(self._dataset.last_seed)):
            return self._collate(samples)
