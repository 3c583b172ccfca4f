"""The length and the position of what ``session.batches()`` returns."""

import io
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from orchestrator.training import Session, TrainingStopped
from orchestrator.training.data.batches import Batches
from tests.training.support import as_new_process

BATCHES = 6


def a_session(root: Path) -> Session:
    as_new_process()
    return Session(run_dir=root / "run", model=torch.nn.Linear(1, 1))


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.arange(BATCHES)), shuffle=True)


def stop_after(root: Path, steps: int) -> None:
    """Leave a run that was stopped after some steps."""
    with pytest.raises(TrainingStopped), a_session(root) as session:
        for _ in session.epochs(2):
            for _ in session.batches(loader()):
                if session.global_step == steps - 1:
                    signal.raise_signal(signal.SIGTERM)
                session.step()


def test_resumed_pass_has_the_whole_length_and_begins_at_its_position(tmp_path: Path) -> None:
    """Four of six batches are behind a pass that was cut after four, and none behind the next."""
    stop_after(tmp_path, 4)
    found = []
    with a_session(tmp_path) as session:
        for _ in session.epochs(2):
            batches = session.batches(loader())
            found.append((batches.position, len(batches)))
            for _ in batches:
                session.step()
                found.append((batches.position, len(batches)))
    assert [position for position, _ in found] == [4, 5, 6, *range(7)]
    assert {length for _, length in found} == {BATCHES}


def test_progress_bar_shows_where_a_resumed_pass_is(tmp_path: Path) -> None:
    """A bar of tqdm begins at 4/6 and ends at 6/6, and not at 0/6 and 2/6."""
    stop_after(tmp_path, 4)
    bar = io.StringIO()
    with a_session(tmp_path) as session:
        for _ in session.epochs(1):
            batches = session.batches(loader())
            for _ in tqdm(batches, initial=batches.position, file=bar, mininterval=0):
                session.step()
    assert re.findall(r"\d/\d", bar.getvalue())[:1] == ["4/6"]
    assert re.findall(r"\d/\d", bar.getvalue())[-1:] == ["6/6"]


def test_passes_side_by_side_have_positions_of_their_own(tmp_path: Path) -> None:
    """Under zip each pass knows where it is once it has begun."""
    with a_session(tmp_path) as session:
        for _ in session.epochs(1):
            first, second = session.batches(loader()), session.batches(loader())
            for number, _ in enumerate(zip(first, second, strict=True), 1):
                session.step()
                assert (first.position, second.position) == (number, number)


def test_batches_without_a_length_have_a_position(tmp_path: Path) -> None:
    """A generator of batches has no length; it counts, and is true like any iterator."""

    def stream() -> Iterator[int]:
        yield from range(3)

    with a_session(tmp_path) as session:
        for _ in session.epochs(1):
            batches = session.batches(stream())
            assert isinstance(batches, Batches)
            assert batches
            with pytest.raises(TypeError):
                len(batches)
            for number in batches:
                session.step()
                assert batches.position == number + 1
