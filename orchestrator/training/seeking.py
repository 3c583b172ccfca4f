"""A map-style DataLoader that starts anywhere in any epoch, without reading what is skipped."""

import copy
import itertools
from collections.abc import Iterator
from types import GeneratorType
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from orchestrator.training import rng
from orchestrator.training.augmentation import Indices, SeededCollate, SeededDataset, SingleIndex

_DRAW_AT_ONCE = (SequentialSampler, SubsetRandomSampler, WeightedRandomSampler, DistributedSampler)


class SeekableLoader:
    """A copy of a map-style DataLoader whose index sampler starts anywhere in any epoch."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._sampler = _EpochSampler(loader)
        self._loader = copy.copy(loader)
        # DataLoader refuses assignment to these after construction, since an iterator may be under
        # way; the copy has none yet.
        replaced = "sampler" if loader.batch_sampler is None else "batch_sampler"
        self._loader.__dict__[replaced] = self._sampler
        dataset = SeededDataset(loader.dataset)
        self._loader.__dict__["dataset"] = dataset
        self._loader.collate_fn = SeededCollate(dataset, loader.collate_fn)
        self._loader.__dict__["_iterator"] = None
        # Positions are counted in the order of the sampler.
        self._loader.in_order = True

    def seek(self, seed: int, epoch: int, start: int) -> Iterator[Any]:
        """The batches of the pass with this ``seed`` from number ``start`` on."""
        self._sampler.seed, self._sampler.epoch, self._sampler.start = seed, epoch, start
        # Creating an iterator draws from the global stream; a resumed run creates one more.
        with rng.scoped(seed):
            iterator = iter(self._loader)
        if isinstance(iterator, GeneratorType):  # it has not begun: its first batch draws
            return rng.drawing(lambda: iterator, rng.Streams(seed))
        return iterator


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
            seed = rng.derive_seed(pass_seed, number)
            if self._batched:
                indices = Indices(item)
                indices.seed = seed
                yield indices
            else:
                yield SingleIndex(item, seed)

    def _order(self, seed: int, epoch: int, start: int) -> Iterator[Any]:
        """The pass's batches of indices from ``start``; drawn now, under the pass's seed."""
        for part in (self._sampler, getattr(self._sampler, "sampler", None)):
            set_epoch = getattr(part, "set_epoch", None)
            if set_epoch is not None:
                set_epoch(epoch)
        streams = rng.Streams(seed, self._generators)
        order = rng.drawing(lambda: self._skip(start), streams)
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
