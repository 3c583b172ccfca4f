"""Generators that data sets, samplers and collate functions own, and that nobody registers."""

import functools
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    default_collate,
    get_worker_info,
)

from orchestrator.training import Session, TrainingStopped
from orchestrator.training.data.own_generators import find_generators
from orchestrator.training.data.seekable_loader import SeekableLoader
from tests.training.support import as_new_process

SIZE, BATCH, EPOCHS = 12, 4, 3
of_module = np.random.default_rng(3)


class OwnOrder(Sampler[int]):
    def __init__(self, generator: Any) -> None:
        self.generator_of_order = generator

    def __len__(self) -> int:
        return SIZE

    def __iter__(self) -> Iterator[int]:
        order = list(range(SIZE))
        self.generator_of_order.shuffle(order)
        return iter(order)


class Augmented(Dataset[torch.Tensor]):
    def __init__(self, noise: Callable[[], float] = lambda: 0.0) -> None:
        self.noise = noise

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index + self.noise()])


class MadeInTheWorker(Augmented):
    generator: Any = None

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index + self.generator.random()])


class Stream(IterableDataset[torch.Tensor]):
    def __init__(self) -> None:
        self.generator = np.random.RandomState(4)

    def __iter__(self) -> Iterator[torch.Tensor]:
        for index in range(SIZE):
            yield torch.tensor([index + self.generator.rand()])


def _make_generator(worker: int) -> None:
    info = get_worker_info()
    assert info is not None
    info.dataset.generator = random.Random(torch.initial_seed())


def _mixing(generator: torch.Generator) -> Callable[[Any], Any]:
    def collate(samples: Any) -> Any:
        return default_collate(samples) + torch.rand((), generator=generator)

    return collate


def _uses_the_generator_of_its_module(samples: Any) -> Any:
    return default_collate(samples) + of_module.random()


LOADERS: dict[str, Callable[[], DataLoader[Any]]] = {
    "python sampler": lambda: DataLoader(Augmented(), BATCH, sampler=OwnOrder(random.Random(5))),
    "numpy sampler": lambda: DataLoader(
        Augmented(), BATCH, sampler=OwnOrder(np.random.default_rng(5))
    ),
    "legacy sampler": lambda: DataLoader(
        Augmented(), BATCH, sampler=OwnOrder(np.random.RandomState(5))
    ),
    "transform": lambda: DataLoader(Augmented(random.Random(1).random), BATCH, shuffle=True),
    "partial in workers": lambda: DataLoader(
        Augmented(functools.partial(np.random.default_rng(1).normal, 3)), BATCH, num_workers=2
    ),
    "made in the worker": lambda: DataLoader(
        MadeInTheWorker(), BATCH, num_workers=1, worker_init_fn=_make_generator
    ),
    "collate function": lambda: DataLoader(
        Augmented(), BATCH, collate_fn=_mixing(torch.Generator().manual_seed(1))
    ),
    "module": lambda: DataLoader(Augmented(), BATCH, collate_fn=_uses_the_generator_of_its_module),
    "stream": lambda: DataLoader(Stream(), BATCH),
}


def train(run_dir: Path, loader: DataLoader[Any], stop_at: int | None) -> tuple[list[Any], Any]:
    as_new_process()
    torch.manual_seed(0)
    seen = []
    session = Session(run_dir=run_dir, model=torch.nn.Linear(1, 1))
    try:
        with session:
            for _ in session.epochs(EPOCHS):
                for batch in session.batches(loader):
                    seen.append(batch.flatten().tolist())
                    if session.global_step + 1 == stop_at:
                        signal.raise_signal(signal.SIGTERM)
                    session.step()
    except TrainingStopped:
        assert stop_at is not None
    return seen, session.exactness


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stop_at", [3, 5])
@pytest.mark.parametrize("kind", LOADERS)
def test_batches_after_a_resume_are_those_of_the_whole_run(
    kind: str, stop_at: int, tmp_path: Path
) -> None:
    """A generator found by looking makes the same batches after a cut in or between epochs."""
    whole, _ = train(tmp_path / "whole", LOADERS[kind](), None)
    first, _ = train(tmp_path / "cut", LOADERS[kind](), stop_at)
    second, exactness = train(tmp_path / "cut", LOADERS[kind](), None)
    assert first + second == whole
    assert exactness == "EXACT"


def test_generators_of_the_script_are_where_they_were() -> None:
    """What a script draws from a generator of its data does not depend on the session's seeds."""
    generator = random.Random(5)
    before = generator.getstate()
    loader = DataLoader(Augmented(generator.random), BATCH, sampler=OwnOrder(generator))
    list(SeekableLoader(loader).open(1, 0, 0).batches)
    assert generator.getstate() == before


def test_large_data_is_not_searched() -> None:
    """A data set of a million samples is looked at in its first items only."""

    class Watched(list[int]):
        read = 0

        def __iter__(self) -> Iterator[int]:
            for item in super().__iter__():
                Watched.read += 1
                yield item

    assert find_generators({"samples": Watched(range(10**6)), "rng": random.Random(1)})
    assert Watched.read <= 64
