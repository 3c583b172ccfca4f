"""Loaders that cannot seek to a batch: by their own state, or by reading up to the batch."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from orchestrator.training.data.own_generators import doubts_about, find_generators
from orchestrator.training.data.past import ReadBatches
from orchestrator.training.exits import warn
from orchestrator.training.state import rng
from orchestrator.training.state.accelerate import base_of
from orchestrator.training.state.plain_values import from_plain, to_plain


def _unknown(number: int) -> str | None:
    return None


@dataclass
class Opened:
    """A pass over a loader, from some batch on.

    Attributes:
        batches: The batches.
        upcoming: Returns a digest of the indices of a batch that no step has used; None where they
            are not known.
        past: Returns a digest of the indices, or of the batches, before a batch; None where it is
            not known.
        own_state: Returns the loader's own state of its position after the batch it gave last.
        doubts: Why a resumed pass may differ from one that was not interrupted.
    """

    batches: Iterator[Any]
    upcoming: Callable[[int], str | None] = _unknown
    past: Callable[[int], str | None] = _unknown
    own_state: Callable[[], Any] = lambda: None
    doubts: tuple[str, ...] = ()


def has_positions(loader: Iterable[Any]) -> bool:
    """Return whether it is a DataLoader over a map-style dataset, which can start anywhere."""
    return isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)


def has_own_state(loader: Iterable[Any]) -> bool:
    """Return whether it can save and restore its own position, as torchdata's loaders can."""
    base = base_of(loader)
    return hasattr(base, "state_dict") and hasattr(base, "load_state_dict")


def open_by_reading(loader: Iterable[Any], seed: int, start: int) -> Opened:
    """Read from the beginning and drop the first batches, under the same random streams."""
    if start:
        warn(
            f"skipping {start} batches by reading them: {type(loader).__name__} cannot seek to a "
            "batch; a DataLoader over a map-style dataset can, and a loader with a state_dict "
            "restores its own position",
            depth=5,
        )
    batches = rng.drawing(lambda: iter(loader), rng.Streams(seed, find_generators(loader)))
    read = ReadBatches(batches, start)
    return Opened(iter(read), past=read.digest_before, doubts=doubts_about(loader))


def open_by_own_state(loader: Any, seed: int, start: int, state: Any, *, ended: bool) -> Opened:
    """Give the loader its ``state`` back, if there is one; each batch has streams of its own.

    ``ended`` says that the pass has no more batches: the state of some loaders then begins the next
    pass.
    """
    doubts = [*doubts_about(base_of(loader))]
    if state is not None:
        state = from_plain(state)
        # A loader that fetches ahead knows the end with its last batch; at the start it still has
        # that of the epoch before.
        ended = ended or (start > 0 and bool(state.get("_iterator_finished")))
        loader.load_state_dict(state)
        if start and not ended and getattr(loader, "num_workers", 0):
            doubts.append(
                f"random numbers that the workers of {type(loader).__name__} draw are not restored"
            )
    batches = iter(()) if ended else _with_streams_of_each(loader, seed, start)
    return Opened(batches, own_state=lambda: _state_of(loader), doubts=tuple(doubts))


def _with_streams_of_each(loader: Any, seed: int, start: int) -> Iterator[Any]:
    with rng.scoped(rng.derive_seed(seed, start)):
        iterator = iter(loader)
    for number in itertools.count(start):
        try:
            with rng.scoped(rng.derive_seed(seed, number)):
                batch = next(iterator)
        except StopIteration:
            return
        yield batch


def _state_of(loader: Any) -> Any:
    return to_plain(loader.state_dict(), "the state of the data loader")
