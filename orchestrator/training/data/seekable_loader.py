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

from orchestrator.training.data.other_loaders import Opened
from orchestrator.training.data.own_generators import doubts_about, find_generators
from orchestrator.training.data.past import DrawnIndices, encode
from orchestrator.training.data.sample_seeding import (
    Indices,
    SeededCollate,
    SeededDataset,
    SingleIndex,
)
from orchestrator.training.state import rng
from orchestrator.training.state.accelerate import base_of, begin_epoch, with_base
from orchestrator.training.state.digests import digest

_DRAW_AT_ONCE = (SequentialSampler, SubsetRandomSampler, WeightedRandomSampler, DistributedSampler)


class SeekableLoader:
    """A copy of a map-style DataLoader whose index sampler starts anywhere in any epoch."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        base = base_of(loader)
        self._doubts = doubts_about(base)
        self._sampler = _EpochSampler(base)
        self._loader = copy.copy(base)
        # DataLoader refuses assignment to these after construction, since an iterator may be in
        # use; the copy has none yet.
        replaced = "sampler" if base.batch_sampler is None else "batch_sampler"
        self._loader.__dict__[replaced] = self._sampler
        dataset = SeededDataset(base.dataset)
        self._loader.__dict__["dataset"] = dataset
        self._loader.collate_fn = SeededCollate(dataset, base.collate_fn)
        self._loader.__dict__["_iterator"] = None
        # torchdata's loader keeps the one by which its state was read, as accelerate reads it.
        self._loader.__dict__["_initial_iter_for_state_dict"] = False
        # Positions are counted in the order of the sampler.
        self._loader.in_order = True
        self._whole = with_base(loader, self._loader)

    def open(self, seed: int, epoch: int, start: int) -> Opened:
        """Return the pass with this ``seed``, from batch ``start`` on."""
        ahead = self._loader.num_workers * (self._loader.prefetch_factor or 0)
        order = self._sampler.begin_order(ahead)
        self._sampler.seed, self._sampler.epoch, self._sampler.start = seed, epoch, start
        if self._whole is not self._loader and self._sampler.is_used_up():
            batches: Any = iter(())  # a prepared loader may fail without a batch
        else:
            begin_epoch(self._whole, epoch)
            # Creating an iterator draws from the global stream; a resumed run creates one more.
            with rng.scoped(seed):
                batches = begun = iter(self._whole)
            if isinstance(begun, GeneratorType):  # it has not begun: its first batch draws
                batches = rng.drawing(lambda: begun, rng.Streams(seed))
        return Opened(batches, order.digest_of, order.digest_before, doubts=self._doubts)


class _Order:
    """The indices that a pass draws, by the number of their batch."""

    def __init__(self, sampler: Any, ahead: int, *, is_batched: bool) -> None:
        """Expect ``ahead`` batches to be drawn before they are needed."""
        self._sampler = sampler
        self._is_batched = is_batched
        self._drawn = DrawnIndices(ahead)
        self._indices: Iterator[Any] = iter(())
        self._may_look_ahead = False
        self._next = 0
        self._looked_at: list[Any] = []

    def skip(self, batches: int) -> Iterator[Any]:
        """Draw the indices of the first ``batches``; return an iterator over those after them."""
        sampler = self._sampler
        rest = iter(sampler.sampler if type(sampler) is BatchSampler else sampler)
        if type(sampler) is BatchSampler:
            # Skipping single indices runs in C, skipping batches would build each one first.
            self._drawn.skip(rest, batches * sampler.batch_size)
            rest = iter(BatchSampler(_Once(rest), sampler.batch_size, sampler.drop_last))
        elif self._is_batched:
            for item in itertools.islice(rest, batches):
                self._drawn.add_to_past(self._encode(item))
        else:
            self._drawn.skip(rest, batches)
        self._drawn.begin(batches)
        return rest

    def begin(self, indices: Iterator[Any], start: int, *, may_look_ahead: bool) -> None:
        """Draw from ``indices``; ahead of need only where that changes nothing."""
        self._indices, self._next, self._may_look_ahead = indices, start, may_look_ahead

    def draw(self) -> tuple[int, Any]:
        """Return the next batch's number and indices. Raises StopIteration."""
        item = self._looked_at.pop() if self._looked_at else next(self._indices)
        if self._is_batched:
            item = list(item)
        number, self._next = self._next, self._next + 1
        self._drawn.add(number, self._encode(item))
        return number, item

    def _encode(self, item: Any) -> bytes:
        if type(self._sampler) is BatchSampler:
            return encode(item)
        return encode([len(batch := list(item)), *batch] if self._is_batched else [item])

    def digest_of(self, number: int) -> str | None:
        """Return a digest of the indices of a batch; None where they are not known."""
        if number == self._next and self._may_look_ahead and not self._looked_at:
            self._looked_at = list(itertools.islice(self._indices, 1))
        if number == self._next and self._looked_at:
            return digest(self._encode(self._looked_at[0]))
        return self._drawn.digest_of(number)

    def digest_before(self, number: int) -> str | None:
        """Return a digest of all indices before a batch; None where they are not known."""
        return self._drawn.digest_before(number)


class _EpochSampler:
    """The loader's own sampler, made a function of a seed and started at a batch."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._batched = loader.batch_sampler is not None
        self._sampler: Any = loader.batch_sampler if self._batched else loader.sampler
        # A prepared loader tells the accelerator how many samples the last batch has.
        self.batch_size = getattr(self._sampler, "batch_size", None)
        self._generators = [
            generator
            for generator in (
                loader.generator,
                getattr(loader.sampler, "generator", None),
                getattr(self._sampler, "generator", None),
                getattr(getattr(self._sampler, "sampler", None), "generator", None),
            )
            if generator is not None
        ] + find_generators(self._sampler, loader.sampler)
        self.seed = self.epoch = self.start = 0
        self.order = self.begin_order(0)

    def begin_order(self, ahead: int) -> _Order:
        """Return the order of a new pass, which is drawn up to ``ahead`` batches ahead."""
        self.order = _Order(self._sampler, ahead, is_batched=self._batched)
        return self.order

    def __len__(self) -> int:
        return max(0, len(self._sampler) - self.start)

    def is_used_up(self) -> bool:
        """Return whether no batch is left, as far as the sampler knows how many it has."""
        try:
            return 0 < len(self._sampler) <= self.start
        except TypeError:
            return False

    def __iter__(self) -> Iterator[Any]:
        # Bound now: another pass over the same loader may begin before this one draws.
        return self._items(self.order, self.seed, self.epoch, self.start)

    def _items(self, order: _Order, pass_seed: int, epoch: int, start: int) -> Iterator[Any]:
        indices = self._draw(order, pass_seed, epoch, start)
        order.begin(indices, start, may_look_ahead=self._draws_at_once())
        while True:
            try:
                number, item = order.draw()
            except StopIteration:
                return
            seed = rng.derive_seed(pass_seed, number)
            if self._batched:
                batch = Indices(item)
                batch.seed = seed
                yield batch
            else:
                yield SingleIndex(item, seed)

    def _draw(self, order: _Order, seed: int, epoch: int, start: int) -> Iterator[Any]:
        """Return the pass's batches of indices from ``start`` on, drawn under the pass's seed."""
        for part in (self._sampler, getattr(self._sampler, "sampler", None)):
            set_epoch = getattr(part, "set_epoch", None)
            if set_epoch is not None:
                set_epoch(epoch)
        streams = rng.Streams(seed, self._generators)
        if not self._draws_at_once():
            return rng.drawing(lambda: order.skip(start), streams)
        with streams:
            rest = order.skip(start)
            first = list(itertools.islice(rest, 1))
        return itertools.chain(first, rest)

    def _draws_at_once(self) -> bool:
        """Return whether the sampler draws all when its first index is asked for.

        Any other costs 0.1 ms a batch.
        """
        sampler = self._sampler
        if type(sampler) is BatchSampler:
            sampler = sampler.sampler
        if type(sampler) is RandomSampler:
            return sampler.generator is None
        return type(sampler) in _DRAW_AT_ONCE


class _Once:
    """A sampler that yields what an iterator yields, once."""

    def __init__(self, indices: Iterator[Any]) -> None:
        self._indices = indices

    def __iter__(self) -> Iterator[Any]:
        return self._indices
