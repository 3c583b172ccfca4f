"""Batches that continue where a run was cut."""

import itertools
import multiprocessing
import os
import random
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    WeightedRandomSampler,
    default_collate,
    get_worker_info,
)

from orchestrator.training import Session
from orchestrator.training.data.data_position import DataPosition
from tests.support import wait_until

SIZE = 22
Loader = Callable[[], Any]


class Augmented(Dataset[torch.Tensor]):
    """Samples with noise of all three libraries; appends what is read to a file if there is one."""

    def __init__(self, log: Path | None = None, size: int = SIZE) -> None:
        self.log = log
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.log is not None:
            descriptor = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, f"{index}\n".encode())
            os.close(descriptor)
        noise = [torch.rand(()).item(), random.random(), np.random.random()]
        return torch.tensor([index, *noise], dtype=torch.float64)


class FetchedAtOnce(Augmented):
    """A dataset that reads a whole batch in one call."""

    def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
        shared = random.random()
        return [self[index] + shared for index in indices]


class Rows(Augmented):
    """A dataset that is indexed with whole batches, as columnar ones are."""

    def __getitem__(self, index: Any) -> torch.Tensor:
        return torch.stack([super(Rows, self).__getitem__(row) for row in index])


class NoNoise(Augmented):
    """Samples that are all the same."""

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.ones(2)


class LazySampler(Sampler[int]):
    """Draws each index only when it is asked for, as bucketing samplers do."""

    def __len__(self) -> int:
        return SIZE

    def __iter__(self) -> Iterator[int]:
        for _ in range(SIZE):
            yield random.randrange(SIZE)


class LazyBatches(Sampler[list[int]]):
    """Draws each batch only when it is asked for."""

    def __len__(self) -> int:
        return 6

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(6):
            yield torch.randint(SIZE, (4,)).tolist()


class GeneratorLoader(DataLoader[torch.Tensor]):
    """A loader whose ``__iter__`` is a generator, as those that move batches to a device are."""

    def __iter__(self) -> Any:
        yield from super().__iter__()


class Stream(IterableDataset[int]):
    """An iterable dataset in a fixed order."""

    def __iter__(self) -> Iterator[int]:
        yield from range(SIZE)


class ShuffledStream(IterableDataset[torch.Tensor]):
    """An iterable dataset that shuffles and augments by the global streams."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        for index in torch.randperm(SIZE).tolist():
            yield torch.tensor([index, random.random()])


def noisy_collate(samples: Any) -> torch.Tensor:
    batch: torch.Tensor = samples if torch.is_tensor(samples) else default_collate(samples)
    return batch * random.random() + torch.randn(batch.shape) + np.random.random()


def generator() -> torch.Generator:
    """A generator of the caller, in another state in every process."""
    fresh = torch.Generator()
    fresh.seed()
    return fresh


def augmented(size: int = 4, **options: Any) -> Loader:
    return lambda: DataLoader(Augmented(), size, **options)


LOADERS: dict[str, Loader] = {
    f"{order}-{tail}-{collate}": augmented(
        shuffle=order == "shuffled",
        drop_last=tail == "dropped",
        collate_fn=noisy_collate if collate == "noisy" else None,
    )
    for order in ("shuffled", "ordered")
    for tail in ("kept", "dropped")
    for collate in ("plain", "noisy")
} | {
    "unbatched": lambda: DataLoader(Augmented(size=7), batch_size=None, shuffle=True),
    "unbatched-noisy": lambda: DataLoader(
        Augmented(size=7), batch_size=None, shuffle=True, collate_fn=noisy_collate
    ),
    "batches-as-samples": lambda: DataLoader(
        Rows(), batch_size=None, sampler=BatchSampler(RandomSampler(range(SIZE)), 4, False)
    ),
    "fetched-at-once": lambda: DataLoader(FetchedAtOnce(), 4, shuffle=True),
    "subset": lambda: DataLoader(Subset(Augmented(), range(3, 20)), 4, shuffle=True),
    "weighted": augmented(sampler=WeightedRandomSampler([1.0, 3.0] * (SIZE // 2), SIZE)),
    "batch-sampler": lambda: DataLoader(
        Augmented(), batch_sampler=BatchSampler(RandomSampler(range(SIZE)), 4, True)
    ),
    "distributed": lambda: DataLoader(
        Augmented(), 2, sampler=DistributedSampler(Augmented(), num_replicas=2, rank=1, seed=3)
    ),
    "more-samples-than-data": augmented(sampler=RandomSampler(range(SIZE), num_samples=30)),
    "generator": lambda: DataLoader(Augmented(), 4, shuffle=True, generator=generator()),
    "sampler-generator": lambda: DataLoader(
        Augmented(), 4, sampler=RandomSampler(range(SIZE), generator=generator())
    ),
    "weighted-generator": lambda: DataLoader(
        Augmented(), 4, sampler=WeightedRandomSampler([1.0] * SIZE, SIZE, generator=generator())
    ),
    "replacement-generator": lambda: DataLoader(
        Augmented(),
        8,
        sampler=RandomSampler(range(SIZE), replacement=True, num_samples=48, generator=generator()),
    ),
    "more-samples-than-data-generator": lambda: DataLoader(
        Augmented(), 8, sampler=RandomSampler(range(SIZE), num_samples=48, generator=generator())
    ),
    "batch-sampler-generator": lambda: DataLoader(
        Augmented(),
        batch_sampler=BatchSampler(RandomSampler(range(SIZE), generator=generator()), 4, False),
    ),
    "lazy-sampler": lambda: DataLoader(Augmented(), 4, sampler=LazySampler()),
    "lazy-batch-sampler": lambda: DataLoader(Augmented(), batch_sampler=LazyBatches()),
    "generator-iter": lambda: GeneratorLoader(Augmented(), 4, shuffle=True),
    "iterable-shuffled": lambda: DataLoader(ShuffledStream(), 4),
}


def consume(position: DataPosition) -> None:
    """Complete a step."""
    position.consume()


def cut_at(*batches: int) -> dict[str, Any]:
    """The position of an epoch whose passes were cut there, over loaders that are not recorded."""
    passes = [{"batches": count, "loader": None} for count in batches]
    return {"seed": 7, "passes": passes, "pass": None, "last_epoch": []}


def positions(state: dict[str, Any]) -> list[int]:
    """How many batches of each pass were consumed."""
    return [each["batches"] for each in state["passes"]]


def new_process() -> None:
    """The global streams of another process; nothing of an epoch may depend on them."""
    random.seed()
    np.random.seed()
    torch.seed()


def take(position: DataPosition, loader: Any, epoch: int = 0) -> list[torch.Tensor]:
    """One pass, each batch consumed by a step."""
    batches = []
    for batch in position.batches(loader, epoch):
        batches.append(batch)
        consume(position)
    return batches


def global_streams() -> tuple[Any, ...]:
    numpy_state = [np.asarray(part).tolist() for part in np.random.get_state()]
    return random.getstate(), torch.get_rng_state().tolist(), numpy_state


def drain(
    loader: Any, state: dict[str, Any] | None = None, stop_after: int | None = None, epoch: int = 1
) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """The batches of a pass in a process of its own, each consumed, and the position then.

    It must not be in doubt.
    """
    new_process()
    position = DataPosition(seed=7 if state is None else 0)
    if state is not None:
        position.load(state)
        position.arrive()
    batches: list[torch.Tensor] = []
    if stop_after == 0:
        return batches, position.state()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "skipping")
        for batch in position.batches(loader, epoch):
            batches.append(batch)
            consume(position)
            if len(batches) == stop_after:
                break
    assert not position.problems
    return batches, position.state()


def assert_same(mine: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert [len(batch) for batch in mine] == [len(batch) for batch in expected]
    assert all(torch.equal(a, b) for a, b in zip(mine, expected, strict=True))


def read(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().split()]


@pytest.mark.parametrize("name", LOADERS)
def test_cut_epoch_continues_bit_for_bit(name: str) -> None:
    """Wherever an epoch is cut, the two parts are the batches of the uncut one."""
    make = LOADERS[name]
    whole, _ = drain(make())
    assert len(whole) > 3
    for cut in range(len(whole) + 1):
        before, position = drain(make(), stop_after=cut)
        after, _ = drain(make(), position)
        assert_same(before + after, whole)


@pytest.mark.parametrize("name", LOADERS)
def test_epoch_has_the_batches_that_torch_would_make(name: str) -> None:
    """Through the session a loader gives as many batches, of the same sizes, as without."""
    plain = [batch.shape for batch in LOADERS[name]()]
    assert [batch.shape for batch in drain(LOADERS[name]())[0]] == plain


@pytest.mark.parametrize("collate", [None, noisy_collate], ids=["sample", "collate"])
def test_noise_is_new_in_each_batch_and_epoch(collate: Any) -> None:
    """Random numbers of one batch are given to no other batch, of this epoch or the next."""
    noise = []
    for epoch in range(2):
        loader = DataLoader(NoNoise() if collate else Augmented(), 2, collate_fn=collate)
        noise += [batch.flatten()[-1].item() for batch in drain(loader, epoch=epoch)[0]]
    assert len(set(noise)) == len(noise) == SIZE


@pytest.mark.parametrize("collate", [None, noisy_collate], ids=["plain", "noisy"])
@pytest.mark.parametrize("persistent", [False, True], ids=["", "persistent"])
def test_workers_change_nothing(tmp_path: Path, persistent: bool, collate: Any) -> None:
    """With two workers the batches are those of none, also after a cut, and none is read twice."""
    log = tmp_path / "log"

    def loader() -> Any:
        return DataLoader(
            Augmented(log),
            4,
            shuffle=True,
            num_workers=2,
            persistent_workers=persistent,
            collate_fn=collate,
        )

    whole, _ = drain(augmented(shuffle=True, collate_fn=collate)())
    before, position = drain(loader(), stop_after=2)
    assert positions(position) == [2]  # and not what the workers had fetched ahead
    log.unlink()
    after, _ = drain(loader(), position)
    assert_same(before + after, whole)
    consumed = set() if collate else {int(index) for batch in before for index in batch[:, 0]}
    assert not consumed & set(read(log))
    assert len(read(log)) == SIZE - 8


def test_persistent_workers_serve_every_epoch() -> None:
    """Workers that stay alive get the order and the noise of each epoch."""
    loader = DataLoader(Augmented(), 4, shuffle=True, num_workers=1, persistent_workers=True)
    position = DataPosition(seed=7)
    for epoch in range(3):
        batches = take(position, loader, epoch)
        position.begin_epoch()
        assert_same(batches, drain(augmented(shuffle=True)(), epoch=epoch)[0])


@pytest.mark.parametrize("batch_size", [4, None])
def test_skipped_samples_are_never_read(tmp_path: Path, batch_size: int | None) -> None:
    """Continuing at batch 3 reads what comes after it and nothing else."""
    log = tmp_path / "log"
    position = DataPosition(seed=0)
    position.load(cut_at(3))
    rest = take(position, DataLoader(Augmented(log), batch_size))
    done = 3 * (batch_size or 1)
    assert read(log) == list(range(done, SIZE))
    assert len(rest) == len(range(done, SIZE, batch_size or 1))


@settings(max_examples=40)
@given(
    size=st.integers(1, 30),
    batch_size=st.integers(1, 8),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    data=st.data(),
)
def test_cut_epoch_of_any_size_loses_and_repeats_nothing(
    size: int, batch_size: int, shuffle: bool, drop_last: bool, data: st.DataObject
) -> None:
    """Two cuts in an epoch of any size lose and repeat nothing."""

    def loader() -> Any:
        dataset = Augmented(size=size)
        return DataLoader(dataset, batch_size, shuffle=shuffle, drop_last=drop_last)

    whole, _ = drain(loader())
    first = data.draw(st.integers(0, len(whole)), label="first cut")
    second = data.draw(st.integers(0, len(whole) - first), label="second cut")
    one, position = drain(loader(), stop_after=first)
    two, position = drain(loader(), position, stop_after=second)
    three, _ = drain(loader(), position)
    assert_same(one + two + three, whole)


@pytest.mark.parametrize("name", sorted(LOADERS.keys() - {"iterable-shuffled"}))
def test_global_streams_do_not_see_the_loader(name: str) -> None:
    """After an epoch, whole or continued, the global streams are where the loop left them."""
    new_process()
    before = global_streams()
    position = DataPosition(seed=7)
    for cut in ([], [2]):
        position.begin_epoch()
        position.load(cut_at(*cut))
        take(position, LOADERS[name](), 1)
        assert global_streams() == before


def test_order_depends_on_seed_epoch_and_pass() -> None:
    """Another seed, epoch, or pass of an epoch has another order; the same ones have the same."""
    orders = []
    for seed, epoch in ((7, 0), (7, 1), (8, 0)):
        position = DataPosition(seed)
        for _ in range(2):
            batches = take(position, augmented(shuffle=True)(), epoch)
            orders.append([int(index) for batch in batches for index in batch[:, 0]])
    assert all(sorted(order) == list(range(SIZE)) for order in orders)
    assert len({tuple(order) for order in orders}) == len(orders)


@pytest.mark.parametrize("workers", [0, 1])
def test_two_open_passes_over_one_loader_continue(workers: int) -> None:
    """Passes that are open together, as under zip, keep the order and noise they began with."""

    def pairs(position: DataPosition) -> Iterator[torch.Tensor]:
        loader = DataLoader(Augmented(), 4, shuffle=True, num_workers=workers)
        passes = position.batches(loader, 0), position.batches(loader, 0)
        for pair in zip(*passes, strict=True):
            consume(position)
            yield torch.cat(pair)

    whole = list(pairs(DataPosition(seed=7)))
    for cut in (1, 3):
        begun, resumed = DataPosition(seed=7), DataPosition(seed=0)
        before = list(itertools.islice(pairs(begun), cut))
        resumed.load(begun.state())
        assert_same(before + list(pairs(resumed)), whole)


def test_second_pass_of_an_epoch_continues() -> None:
    """An epoch with two passes that is cut in the second one repeats nothing of the first."""
    whole, begun = DataPosition(seed=7), DataPosition(seed=7)
    first, second = augmented(shuffle=True), augmented(shuffle=True, size=2)
    expected = [take(whole, make()) for make in (first, second)]
    take(begun, first())
    passes = begun.batches(second(), 0)
    head = [next(passes) for _ in range(3)]
    consume(begun)
    resumed = DataPosition(seed=0)
    resumed.load(begun.state())
    assert list(resumed.batches(first(), 0)) == []
    assert_same(head + list(resumed.batches(second(), 0)), expected[1])


def test_position_counts_what_steps_consumed() -> None:
    """Batches taken by the loop count only once a step has used them."""
    position = DataPosition(seed=7)
    passes = position.batches(augmented()(), 0)
    next(passes)
    assert position.mid_batch
    assert positions(position.state()) == [0]
    next(passes)
    consume(position)
    assert not position.mid_batch
    assert positions(position.state()) == [2]


def test_resumed_position_is_kept_before_the_first_batch() -> None:
    """A run that is stopped again before its first batch continues at the same place."""
    position = DataPosition(seed=0)
    position.load(cut_at(4, 2))
    assert position.state()["seed"] == 7
    assert positions(position.state()) == [4, 2]
    position.begin_epoch()
    assert positions(position.state()) == []


@pytest.mark.parametrize("make", [lambda: DataLoader(Stream(), 4), lambda: [*range(6)]])
def test_loader_without_positions_is_read_up_to_the_cut(make: Loader) -> None:
    """An iterable dataset, or any iterable, continues by reading on, with one warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = [str(batch) for batch in DataPosition(seed=7).batches(make(), 0)]
    resumed = DataPosition(seed=7)
    resumed.load(cut_at(2))
    with pytest.warns(UserWarning, match="skipping 2 batches") as caught:
        rest = [str(batch) for batch in resumed.batches(make(), 0)]
    assert rest == whole[2:]
    assert len(caught) == 1


def test_set_epoch_is_called() -> None:
    """A sampler that wants to know the epoch is told."""
    sampler = DistributedSampler(Augmented(), num_replicas=1, rank=0)
    drain(DataLoader(Augmented(), 4, sampler=sampler), epoch=5)
    assert sampler.epoch == 5


def test_loader_of_the_caller_is_left_alone() -> None:
    """The caller's loader, sampler and generator serve the caller as before."""
    own = torch.Generator().manual_seed(3)
    loader = DataLoader(Augmented(), 4, shuffle=True, generator=own)
    parts = loader.dataset, loader.sampler, loader.batch_sampler, loader.collate_fn
    drain(loader)
    assert parts == (loader.dataset, loader.sampler, loader.batch_sampler, loader.collate_fn)
    assert sorted(int(i) for batch in loader for i in batch[:, 0]) == list(range(SIZE))


class NeedsHandle(Dataset[int]):
    """A dataset that each worker opens for itself, the recipe of torch's documentation."""

    handle: str | None = None

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        return 0 if self.handle is None else 1


def open_in_worker(worker: int) -> None:
    info = get_worker_info()
    assert info is not None
    assert info.dataset.handle is None
    info.dataset.handle = "open"


def test_worker_init_fn_reaches_the_dataset() -> None:
    """Attributes that worker_init_fn puts on the dataset arrive there, as without a session."""
    loader = DataLoader(NeedsHandle(), 4, num_workers=1, worker_init_fn=open_in_worker)
    assert [batch.tolist() for batch in DataPosition(seed=7).batches(loader, 0)] == [[1] * 4]


class SecondBatchFirst(Dataset[int]):
    """Its first batch is not ready before the loop has taken another one, if it can do that."""

    def __init__(self, taken: Path) -> None:
        self.taken = taken

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        deadline = time.monotonic() + 0.5
        while index == 0 and not self.taken.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        return index


def test_out_of_order_workers_lose_nothing(tmp_path: Path) -> None:
    """A loader with in_order=False that is cut repeats no batch and leaves none out."""

    def loader() -> Any:
        dataset = SecondBatchFirst(tmp_path / "taken")
        return DataLoader(dataset, 2, num_workers=2, in_order=False)

    position = DataPosition(seed=7)
    passes = position.batches(loader(), 1)
    before = [next(passes)]
    (tmp_path / "taken").touch()
    consume(position)
    after, _ = drain(loader(), position.state())
    assert sorted(int(i) for batch in before + after for i in batch) == list(range(8))


def test_workers_end_when_the_loop_leaves_them() -> None:
    """A pass that is broken off keeps no worker, although its position is kept."""
    position = DataPosition(seed=7)
    passes = position.batches(DataLoader(Augmented(), 4, num_workers=1), 0)
    next(passes)
    (worker,) = multiprocessing.active_children()
    passes.close()
    wait_until(lambda: not worker.is_alive(), "the worker's end")
    assert positions(position.state()) == [0]


def test_persistent_workers_serve_after_the_session(tmp_path: Path) -> None:
    """A loader whose workers ended with the session gets new ones where it is used again."""
    loader = DataLoader(Augmented(), 4, num_workers=1, persistent_workers=True)
    with Session(run_dir=tmp_path / "run"):
        assert len(list(loader)) == len(loader)
    assert len(list(loader)) == len(loader)
