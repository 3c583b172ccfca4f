"""Cycles over loaders, which continue where a run was cut."""

import itertools
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from orchestrator.errors import ConfigError, MismatchError
from orchestrator.training.data.data_position import DataPosition

SIZE = 10


class Noisy(Dataset[torch.Tensor]):
    """Samples with noise of all three libraries."""

    def __init__(self, size: int = SIZE) -> None:
        self.size = size
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> torch.Tensor:
        self.read.append(index)
        noise = [torch.rand(()).item(), random.random(), np.random.random()]
        return torch.tensor([index, *noise], dtype=torch.float64)


class Stream(IterableDataset[torch.Tensor]):
    """The samples in an order of their own."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (torch.tensor([i, random.random()]) for i in torch.randperm(SIZE).tolist())


class Growing:
    """A sampler whose passes have more and more indices."""

    def __init__(self) -> None:
        self.passes = 0

    def set_epoch(self, epoch: int) -> None:
        self.passes = epoch

    def __len__(self) -> int:
        return 2 + self.passes

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(SIZE).tolist()[: len(self)])


def replaced() -> RandomSampler:
    return RandomSampler(Noisy(), replacement=True, num_samples=7)


LOADERS: dict[str, Callable[[], Any]] = {
    "shuffled": lambda: DataLoader(Noisy(), 4, shuffle=True),
    "dropping the last": lambda: DataLoader(Noisy(), 4, shuffle=True, drop_last=True),
    "in order": lambda: DataLoader(Noisy(), 4),
    "with replacement": lambda: DataLoader(Noisy(), 2, sampler=replaced()),
    "workers": lambda: DataLoader(Noisy(), 4, shuffle=True, num_workers=1),
    "of growing passes": lambda: DataLoader(Noisy(), 1, sampler=Growing()),
    "with a state of its own": lambda: StatefulDataLoader(Noisy(), 4, shuffle=True),
    "without positions": lambda: DataLoader(Stream(), 4),
    "list": lambda: [[1, 2], [3], [4, 5]],
}


def take(position: DataPosition, batches: Iterator[Any], count: int, each: int = 1) -> list[Any]:
    """Take ``count`` batches, ``each`` of them for a step."""
    taken = []
    for _ in range(count // each):
        taken += list(itertools.islice(batches, each))
        position.consume()
    return taken


def begin(state: dict[str, Any] | None = None) -> DataPosition:
    """The position in a process of its own, whose streams are others."""
    random.seed()
    np.random.seed()
    torch.seed()
    position = DataPosition(seed=7)
    if state is not None:
        position.load(state)
    return position


def as_lists(batches: list[Any]) -> list[Any]:
    return [torch.as_tensor(batch).tolist() for batch in batches]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "skipping")
        yield


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("cuts", [[1], [3], [2, 4, 8]])
def test_cycle_continues_bit_for_bit(name: str, cuts: list[int]) -> None:
    """A cycle that is cut, also at the end of a pass, goes on with the batch that was next."""
    whole = begin()
    expected = as_lists(take(whole, whole.cycle(LOADERS[name]()), 12))
    position, state = begin(), None
    found: list[Any] = []
    for cut in [*cuts, 12]:
        position = begin(state)
        found += as_lists(take(position, position.cycle(LOADERS[name]()), cut - len(found)))
        state = position.state()
    assert found == expected
    assert position.problems == []


def test_passes_of_a_cycle_have_the_samples_in_other_orders() -> None:
    """Each pass has every sample once, and an order and noise of its own."""
    position = begin()
    batches = take(position, position.cycle(DataLoader(Noisy(), 5, shuffle=True)), 4)
    first, second = torch.cat(batches[:2]), torch.cat(batches[2:])
    assert sorted(first[:, 0].tolist()) == sorted(second[:, 0].tolist()) == list(range(SIZE))
    assert first[:, 0].tolist() != second[:, 0].tolist()
    assert not set(first[:, 1].tolist()) & set(second[:, 1].tolist())


def test_several_cycles_of_other_lengths_continue() -> None:
    """Semi-supervised training takes from a short and from a long loader, through epochs."""

    def run(state: dict[str, Any] | None, steps: int) -> tuple[list[Any], dict[str, Any]]:
        position, taken = begin(state), []
        short = position.cycle(DataLoader(Noisy(4), 2, shuffle=True))
        long = position.cycle(DataLoader(Noisy(14), 2, shuffle=True))
        for step in range(steps):
            taken.append((next(short).tolist(), next(long).tolist()))
            position.consume()
            if step % 5 == 4:
                position.begin_epoch()
        return taken, position.state()

    whole, _ = run(None, 20)
    first, state = run(None, 9)
    second, _ = run(state, 11)
    assert first + second == whole


def test_step_of_several_batches_may_span_two_passes() -> None:
    """With gradient accumulation a step that is cut begins with its own first batch."""
    whole = begin()
    expected = as_lists(take(whole, whole.cycle(LOADERS["shuffled"]()), 12, each=2))
    position = begin()
    batches = position.cycle(LOADERS["shuffled"]())
    found = as_lists(take(position, batches, 2, each=2))
    state = position.state()
    list(itertools.islice(batches, 2))  # of a step that never ends; the first pass has three
    assert position.mid_batch
    resumed = begin(state)
    found += as_lists(take(resumed, resumed.cycle(LOADERS["shuffled"]()), 10, each=2))
    assert found == expected


def test_skipped_samples_are_not_read() -> None:
    """A resumed cycle reads nothing of the passes before."""
    position = begin()
    take(position, position.cycle(DataLoader(Noisy(), 2)), 8)
    dataset = Noisy()
    resumed = begin(position.state())
    take(resumed, resumed.cycle(DataLoader(dataset, 2)), 1)
    assert dataset.read == [6, 7]


def test_position_is_kept_before_the_cycle_begins() -> None:
    """A resumed run that is cut again before its loop loses nothing."""
    position = begin()
    take(position, position.cycle(LOADERS["shuffled"]()), 4)
    assert begin(position.state()).state()["cycles"] == position.state()["cycles"]


def test_another_loader_is_refused() -> None:
    """A position in a pass over other data means nothing."""
    position = begin()
    take(position, position.cycle(DataLoader(Noisy(), 2)), 3)
    state = position.state()
    with pytest.raises(MismatchError, match=r"batch 3 of cycle 1 .*\n  samples 10 then, 9 now"):
        next(iter(begin(state).cycle(DataLoader(Noisy(9), 2))))
    allowing = DataPosition(7, allow_change=True)
    allowing.load(state)
    next(iter(allowing.cycle(DataLoader(Noisy(9), 2))))
    assert allowing.problems == ["cycle 1 over the data: samples 10 then, 9 now"]


@pytest.mark.parametrize("empty", [list, lambda: DataLoader(Noisy(3), 4, drop_last=True)])
def test_loader_without_a_batch_is_refused(empty: Callable[[], Any]) -> None:
    """A cycle over nothing would never yield, nor end."""
    with pytest.raises(ConfigError, match="a pass over it has no batch"):
        next(iter(begin().cycle(empty())))


def test_iterator_is_refused_when_it_is_used_up() -> None:
    """An iterator has one pass only."""
    batches = begin().cycle(iter([1, 2]))
    assert [next(batches), next(batches)] == [1, 2]
    with pytest.raises(ConfigError, match="not an iterator"):
        next(batches)


def test_second_cycle_over_a_loader_is_refused() -> None:
    """A cycle that is made in each round would always give the first batch."""
    position, loader = begin(), LOADERS["in order"]()
    next(position.cycle(loader))
    with pytest.raises(ConfigError, match="once, before the loop"):
        next(position.cycle(loader))
