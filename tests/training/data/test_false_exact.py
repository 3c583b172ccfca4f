"""Data that is not the same again after a resume, with indices and sizes that could be."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from orchestrator.checkpoint.store import Store
from orchestrator.rundir.paths import RunDir
from orchestrator.training import Session, TrainingStopped
from orchestrator.training.data.first_batch import FirstBatch
from tests.training.support import as_new_process

SIZE, BATCH, EPOCHS = 24, 4, 2
WHOLE = SIZE // BATCH
SAME_NEXT = [*range(12, 16)]


def by(seed: float | None) -> list[int]:
    """An order that a sampler draws in a way which nobody can see."""
    return [int(i) for i in torch.randperm(SIZE, generator=_generator(seed))]


def _generator(seed: float | None) -> torch.Generator:
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(int(seed))
    return generator


class Numbers(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: Any) -> torch.Tensor:
        return torch.tensor([int(index)])


class Order(Sampler[Any]):
    """Gives the indices that ``draw`` returns, at each begin of an epoch."""

    def __init__(self, draw: Callable[[], list[Any]]) -> None:
        self.draw = draw

    def __len__(self) -> int:
        return SIZE

    def __iter__(self) -> Iterator[Any]:
        return iter(self.draw())


class Batches(Order):
    """The same in batches."""

    def __len__(self) -> int:
        return WHOLE

    def __iter__(self) -> Iterator[list[Any]]:
        order = self.draw()
        yield from (order[i : i + BATCH] for i in range(0, SIZE, BATCH))


class CountsItsEpochs(Order):
    epoch = 0

    def __iter__(self) -> Iterator[int]:
        self.epoch += 1
        return iter(by(self.epoch))


class Stream(IterableDataset[torch.Tensor]):
    """Reads the numbers that ``draw`` returns, in its order."""

    def __init__(self, draw: Callable[[], list[Any]]) -> None:
        self.draw = draw

    def __iter__(self) -> Iterator[torch.Tensor]:
        yield from (torch.tensor([float(number)]) for number in self.draw())


class Pairs(Stream):
    """Batches as the script makes them itself, without a DataLoader."""

    def __iter__(self) -> Iterator[Any]:
        order = self.draw()
        for i in range(0, SIZE, BATCH):
            yield {"numbers": torch.tensor(order[i : i + BATCH]), "names": [str(order[i])]}


def lives(*orders: list[Any]) -> Callable[[], list[Any]]:
    """Return an order for each time that one is asked for; the last one stays."""
    left = list(orders)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


def with_same_next(*past: int) -> list[int]:
    rest = [i for i in range(SIZE) if i not in past and i not in SAME_NEXT]
    return [*past, *rest[: 12 - len(past)], *SAME_NEXT, *rest[12 - len(past) :]]


ordered = list(range(SIZE))
HIDDEN: dict[str, Callable[[], Any]] = {
    "sampler by the time": lambda: Order(lambda: by(time.time_ns())),
    "sampler by entropy": lambda: Order(lambda: by(None)),
    "lazy numbers": lambda: Order(lambda: list(map(str, by(None)))),
    "batch sampler by entropy": lambda: Batches(lambda: by(None)),
}


def loader_of(kind: str, **options: Any) -> Any:
    sampler = HIDDEN[kind]()
    if isinstance(sampler, Batches):
        return DataLoader(Numbers(), batch_sampler=sampler, **options)
    return DataLoader(Numbers(), BATCH, sampler=sampler, **options)


def train(run_dir: Path, loader: Any, stop_at: int | None = None) -> str | None:
    """Train on, up to a SIGTERM at step ``stop_at``; return what the session says."""
    as_new_process()
    torch.manual_seed(0)
    session = Session(run_dir=run_dir, model=torch.nn.Linear(1, 1))
    try:
        with session:
            for _ in session.epochs(EPOCHS):
                for _batch in session.batches(loader):
                    if session.global_step + 1 == stop_at:
                        signal.raise_signal(signal.SIGTERM)
                    session.step()
    except TrainingStopped:
        assert stop_at is not None
    return session.exactness


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", HIDDEN)
def test_sampler_that_draws_otherwise_is_a_doubt(tmp_path: Path, kind: str, workers: int) -> None:
    """Its order comes from where nobody looks; a resumed run is not called EXACT."""
    train(tmp_path, loader_of(kind, num_workers=workers), stop_at=3)
    exactness = train(tmp_path, loader_of(kind, num_workers=workers))
    assert exactness is not None
    assert exactness.startswith("APPROXIMATE: pass 1 over the data")


@pytest.mark.parametrize("stop_at", [3, WHOLE])
def test_other_indices_before_the_same_next_ones_are_a_doubt(tmp_path: Path, stop_at: int) -> None:
    """What was skipped counts, not only what comes next; also where the whole pass was done."""
    two = lives(with_same_next(0, 1, 2), with_same_next(2, 1, 0), ordered)
    loader = DataLoader(Numbers(), BATCH, sampler=Order(two))
    train(tmp_path, loader, stop_at)
    reason = "Order has drawn other indices for the batches before the cut than it had"
    assert train(tmp_path, loader) == f"APPROXIMATE: pass 1 over the data: {reason}"


def test_sampler_that_counts_its_epochs_is_a_doubt(tmp_path: Path) -> None:
    """In a new process it counts from 1 again: the second epoch of the run is its first."""
    first, second = (DataLoader(Numbers(), BATCH, sampler=CountsItsEpochs(list)) for _ in range(2))
    train(tmp_path, first, stop_at=WHOLE + 2)
    exactness = train(tmp_path, second)
    assert exactness is not None
    assert "CountsItsEpochs has drawn other indices" in exactness


STREAMS: dict[str, Callable[[Path], Any]] = {
    "shuffles by itself": lambda _: DataLoader(Stream(lambda: by(None)), BATCH),
    "a file": lambda file: DataLoader(Stream(file.read_text().split), BATCH),
    "without a loader": lambda file: Pairs(lambda: list(map(int, file.read_text().split()))),
}


@pytest.mark.filterwarnings("ignore:skipping")
@pytest.mark.parametrize("kind", STREAMS)
def test_stream_that_gives_other_data_is_a_doubt(tmp_path: Path, kind: str) -> None:
    """A stream that shuffles by itself, or reads a file that was written again or has grown."""
    file = tmp_path / "numbers"
    file.write_text(" ".join(map(str, ordered)))
    train(tmp_path / "run", STREAMS[kind](file), stop_at=3)
    file.write_text(" ".join(map(str, [99, *ordered])))
    exactness = train(tmp_path / "run", STREAMS[kind](file))
    assert exactness is not None
    assert "has given other batches before the cut than it had" in exactness


@pytest.mark.filterwarnings("ignore:skipping")
@pytest.mark.parametrize("kind", ["a file", "without a loader", "indices"])
@pytest.mark.parametrize("stop_at", [3, WHOLE, WHOLE + 2])
def test_same_data_is_exact(tmp_path: Path, kind: str, stop_at: int) -> None:
    """Streams, and samplers that give text or tensors, continue without a doubt."""
    (tmp_path / "numbers").write_text(" ".join(map(str, ordered)))

    def make() -> Any:
        if kind != "indices":
            return STREAMS[kind](tmp_path / "numbers")
        mixed = [torch.tensor(0), *map(str, range(1, 9)), *range(9, SIZE)]
        return DataLoader(Numbers(), BATCH, sampler=Order(lambda: mixed))

    train(tmp_path / "run", make(), stop_at)
    assert train(tmp_path / "run", make()) == "EXACT"


def test_random_numbers_of_the_system_are_a_doubt(tmp_path: Path) -> None:
    """A transform with a SystemRandom trains, and a resumed run names it."""

    class Noisy(Numbers):
        noise = random.SystemRandom()

        def __init__(self) -> None:
            self.draw = self.noise.random

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.tensor([index + self.draw()])

    train(tmp_path, DataLoader(Noisy(), BATCH), stop_at=3)
    exactness = train(tmp_path, DataLoader(Noisy(), BATCH))
    reason = "the data draws from random.SystemRandom, which nothing can restore"
    assert exactness == f"APPROXIMATE: {reason}"


@pytest.mark.filterwarnings("ignore:skipping")
@pytest.mark.parametrize("stop_at", [3, WHOLE, WHOLE + 2])
@pytest.mark.parametrize("hidden", [True, False])
@pytest.mark.parametrize("of_indices", [True, False])
def test_round_of_a_cycle_is_compared(
    tmp_path: Path, stop_at: int, hidden: bool, of_indices: bool
) -> None:
    """A cycle draws or reads the round that was cut again; at the end of one nothing is skipped."""

    def cycle(stop: int | None) -> str | None:
        as_new_process()
        torch.manual_seed(0)
        draw = (lambda: by(None)) if hidden else (lambda: by(3))
        data = DataLoader(Numbers(), BATCH, sampler=Order(draw))
        loader = data if of_indices else DataLoader(Stream(draw), BATCH)
        session = Session(run_dir=tmp_path, model=torch.nn.Linear(1, 1))
        try:
            with session:
                batches = session.cycle(loader)
                for _ in session.steps(2 * WHOLE + 2):
                    next(batches)
                    if session.global_step + 1 == stop:
                        signal.raise_signal(signal.SIGTERM)
                    session.step()
        except TrainingStopped:
            assert stop is not None
        return session.exactness

    cycle(stop_at)
    exactness = cycle(None)
    assert exactness is not None
    if hidden and stop_at != WHOLE:
        assert "cycle 1 over the data" in exactness
        assert "before the cut than it had" in exactness
    elif not hidden:
        assert exactness == "EXACT"


@pytest.mark.parametrize("noted", ["right", "wrong"])
def test_first_batch_is_compared_with_a_checkpoint_on_disk(tmp_path: Path, noted: str) -> None:
    """The digest may be in the manifest, by an attempt that has gone on after the save."""
    loader = DataLoader(Numbers(), BATCH)
    train(tmp_path, loader, stop_at=3)
    found: list[int] = []
    first = FirstBatch()
    first.note(0, {"pass": 0, "passes": [{"batches": 3}]}, found.append)
    first.differs((0, 0, 3), torch.tensor([[12], [13], [14], [15]]))
    (*_, newest) = Store.open(RunDir(tmp_path), command=[]).all()
    digests = newest.manifest.digests | {"first_batch": f"{found[0] + (noted == 'wrong'):016x}"}
    manifest = replace(newest.manifest, digests=digests)
    (newest.path / "manifest.json").write_bytes(manifest.to_json())
    exactness = train(tmp_path, loader)
    reason = "batch 4 holds other data than it had after the snapshot"
    expected = "EXACT" if noted == "right" else f"APPROXIMATE: pass 1 over the data: {reason}"
    assert exactness == expected


OF_A_SET = """
import os, sys, torch
from torch.utils.data import DataLoader, Sampler, TensorDataset
from orchestrator.training import Session

class OfASet(Sampler):
    names = {f"name {i}" for i in range(40)}

    def __len__(self):
        return 40

    def __iter__(self):
        return (int(name.split()[1]) for name in self.names)

loader = DataLoader(TensorDataset(torch.arange(40.0)), 4, sampler=OfASet())
with Session(run_dir="run", model=torch.nn.Linear(1, 1)) as session:
    for _ in session.epochs(2):
        for _ in session.batches(loader):
            session.step()
            if len(sys.argv) > 1 and session.global_step == 3:
                session.checkpoint()
                os._exit(0)
print(session.exactness)
"""


@pytest.mark.processes
@pytest.mark.parametrize(("seeds", "exact"), [(("1", "2"), False), (("1", "1"), True)])
def test_order_of_a_set_depends_on_the_process(
    tmp_path: Path, seeds: tuple[str, str], exact: bool
) -> None:
    """With another PYTHONHASHSEED, which is random by default, the order is another one."""
    said = ""
    for seed, words in zip(seeds, (["cut"], []), strict=True):
        said = subprocess.run(
            [sys.executable, "-c", OF_A_SET, *words],
            cwd=tmp_path,
            env=os.environ | {"PYTHONHASHSEED": seed, "ORCHESTRATOR_CONTINUE": "on"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
    assert said.startswith("EXACT") == exact
    assert exact or "OfASet has drawn other indices" in said
