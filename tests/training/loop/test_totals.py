"""How many steps and epochs a loop has in all, as the control page shows it."""

import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from orchestrator.rundir.journal import Journal
from orchestrator.training import Session, TrainingStopped
from tests.training.support import as_new_process

Totals = tuple[int | None, int | None]


class Stream(IterableDataset[int]):
    """Data without a length."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(20))


class Numbers(Dataset[int]):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> int:
        return index


class DrawingSampler(torch.utils.data.Sampler[int]):
    """A sampler that draws its order to count it, and again to give it."""

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(20).tolist())

    def __len__(self) -> int:
        return len(list(iter(self)))


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return a_session(tmp_path)


def a_session(root: Path) -> Session:
    as_new_process()
    return Session(run_dir=root / "run", model=torch.nn.Linear(1, 1))


def totals(session: Session) -> Totals:
    """The totals as they are reported now: about once a second, and here at once."""
    session._open_run.totals.refresh()
    page = session._open_run.membership.backend.facts.memory.page
    return page.total_steps, page.total_epochs


def loader(batch_size: int = 4, **options: Any) -> DataLoader[int]:
    """A loader with five batches."""
    return DataLoader(Numbers(), batch_size=batch_size, **options)


def after_each_step(session: Session, batches: Any, epochs: int = 3) -> list[Totals]:
    found = []
    for _ in session.epochs(epochs):
        for _ in session.batches(batches):
            session.step()
            found.append(totals(session))
    return found


def test_steps_of_a_loop_without_epochs_are_known_at_once(session: Session) -> None:
    """`session.steps(total)` says how many there are."""
    with session:
        for _ in session.steps(7):
            assert totals(session) == (7, None)
            session.step()


def test_epochs_and_the_length_of_the_loader_give_the_steps(session: Session) -> None:
    """Three epochs of five batches have fifteen steps, from the first step to the last."""
    with session:
        assert after_each_step(session, loader()) == [(15, 3)] * 15


@pytest.mark.parametrize("whole", [True, False], ids=["last_part_counts", "last_part_is_left"])
def test_accumulated_batches_are_counted_as_steps(session: Session, whole: bool) -> None:
    """Two of five batches to a step are three steps, or two once an epoch has shown that."""
    found = []
    with session:
        for _ in session.epochs(3):
            for number, _ in enumerate(session.batches(loader()), 1):
                if number % 2 == 0 or (whole and number == 5):
                    session.step()
                    found.append(totals(session)[0])
    assert found == ([9] * 9 if whole else [9, 9, 6, 6, 6, 6])


def test_several_steps_for_each_batch_are_counted(session: Session) -> None:
    """A loop with three steps to a batch has three times as many."""
    with session:
        for _ in session.epochs(2):
            for _ in session.batches(loader()):
                for _ in range(3):
                    session.step()
                assert totals(session) == (30, 2)


def test_evaluation_adds_no_steps(session: Session) -> None:
    """A pass without a step is not part of the training."""
    with session:
        for _ in session.epochs(2):
            for _ in session.batches(loader()):
                session.step()
                assert totals(session) == (10, 2)
            for _ in session.batches(loader(batch_size=1)):
                session.poll()
                assert totals(session) == (10, 2)


def test_two_passes_of_an_epoch_are_known_after_it(session: Session) -> None:
    """What a whole epoch has taken is what each one takes."""
    found = []
    with session:
        for _ in session.epochs(3):
            for each in (loader(), loader(batch_size=10)):
                for _ in session.batches(each):
                    session.step()
            found.append(totals(session)[0])
    assert found == [21] * 3


def test_steps_of_data_without_a_length_are_unknown(session: Session) -> None:
    """The number of the epochs is known then, and no more, after a whole epoch too."""
    with session:
        assert set(after_each_step(session, DataLoader(Stream(), batch_size=4))) == {(None, 3)}


def test_steps_are_unknown_once_an_epoch_has_left_batches(session: Session) -> None:
    """After an early break the length of the loader says nothing; a whole epoch says it again."""
    found = []
    with session:
        for epoch in session.epochs(4):
            for number, _ in enumerate(session.batches(loader())):
                if (epoch, number) == (1, 2):
                    break
                session.step()
            found.append(totals(session)[0])
    assert found == [20, 20, None, 17]


def test_resumed_run_has_the_same_total(tmp_path: Path) -> None:
    """A run that goes on in mid-epoch has as many steps in all, and so has its journal."""
    with pytest.raises(TrainingStopped), a_session(tmp_path) as session:
        for _ in session.epochs(3):
            for _ in session.batches(loader()):
                if session.global_step == 6:
                    signal.raise_signal(signal.SIGTERM)
                session.step()
    with a_session(tmp_path) as session:
        assert after_each_step(session, loader()) == [(15, 3)] * 8
    ends = [e for e in Journal(tmp_path / "run" / "journal.jsonl").read()[0] if "total_steps" in e]
    counts = ("event", "step", "epoch", "total_steps", "total_epochs")
    assert [[end[name] for name in counts] for end in ends] == [
        ["run_stopped", 7, 1, 15, 3],
        ["run_completed", 15, 3, 15, 3],
    ]


def test_run_that_is_started_again_when_complete_keeps_its_totals(tmp_path: Path) -> None:
    """A loop with nothing left to do has as many steps as were done."""
    for _ in range(2):
        with a_session(tmp_path) as session:
            for _ in session.epochs(2):
                for _ in session.batches(loader()):
                    session.step()
            assert totals(session) == (10, 2)


def test_complete_run_has_as_many_steps_as_it_has_made(tmp_path: Path) -> None:
    """The end of the last epoch is reported at once, where nothing was known before it."""
    with a_session(tmp_path) as session:
        for _ in session.epochs(2):
            for _ in session.batches(DataLoader(Stream(), batch_size=4)):
                session.step()
    end = Journal(tmp_path / "run" / "journal.jsonl").read()[0][-1]
    assert (end["event"], end["step"], end["total_steps"]) == ("run_completed", 10, 10)


@pytest.mark.parametrize("endless", [math.inf, 10**15, 10**30])
def test_total_without_end_is_unknown(session: Session, endless: float) -> None:
    """A loop that a script ends by itself has no total."""
    with session:
        for step in session.steps(endless):  # type: ignore[arg-type]
            assert totals(session) == (None, None)
            session.step()
            if step == 3:
                break


def test_loader_that_cannot_be_counted_trains(session: Session) -> None:
    """Whatever a loader raises when it is asked for its length, it is only not shown."""

    class Uncounted(list[int]):
        def __len__(self) -> int:
            raise RuntimeError("not now")

    with session:
        assert set(after_each_step(session, Uncounted([1, 2]), epochs=2)) == {(None, 2)}


def test_counting_the_batches_draws_no_random_numbers(session: Session) -> None:
    """A sampler that draws its order to count it leaves the random streams as they are."""
    with session:
        for _ in session.epochs(2):
            before = torch.get_rng_state()
            for _ in session.batches(loader(sampler=DrawingSampler())):
                session.step()
                assert totals(session) == (10, 2)
            assert torch.equal(torch.get_rng_state(), before)
