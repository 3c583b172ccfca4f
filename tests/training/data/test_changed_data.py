"""Another data set, batch size or sampler than before the cut, and loaders with a state."""

import json
import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, WeightedRandomSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from orchestrator.training import Session, TrainingRefused, TrainingStopped
from tests.training.support import Noisy

EPOCHS = 3


def train(
    root: Path, loader: Any, stop: int | None = None, place: str = "step"
) -> tuple[list[Any], str | None]:
    """Train on; what the steps saw, and what the session says. A SIGTERM comes at step ``stop``."""
    torch.manual_seed(3)
    model, seen = torch.nn.Linear(4, 1), []
    session = Session(run_dir=root, model=model)
    try:
        with session:
            for epoch in session.epochs(EPOCHS):
                for batch in session.batches(loader):
                    seen.append((epoch, batch.tolist()))
                    if (place, session.global_step + 1) == ("step", stop):
                        signal.raise_signal(signal.SIGTERM)
                    session.step()
                if (place, session.global_step) == ("evaluation", stop):
                    signal.raise_signal(signal.SIGTERM)
                session.poll()
                if (place, session.global_step) == ("edge", stop):
                    signal.raise_signal(signal.SIGTERM)
    except TrainingStopped:
        assert stop is not None
    return seen, session.exactness


def loader(size: int = 24, batch_size: int = 4, **options: Any) -> Any:
    return DataLoader(Noisy(size), batch_size, **({"shuffle": True} | options))


CHANGES = {
    "samples 24 then, 25 now": {"size": 25},
    "batch size 4 then, 2 now": {"batch_size": 2},
    "sampler RandomSampler then, SequentialSampler now": {"shuffle": False},
    "sampler RandomSampler then, WeightedRandomSampler now": {
        "shuffle": False,
        "sampler": WeightedRandomSampler([1.0] * 24, 24),
    },
    "drop last False then, True now": {"drop_last": True},
}


@pytest.mark.parametrize("difference", CHANGES)
def test_changed_data_is_refused_in_mid_epoch(
    tmp_path: Path,
    difference: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The difference is shown; a setting allows it, and the run says APPROXIMATE from then on."""
    train(tmp_path, loader(), stop=3)
    changed = loader(**CHANGES[difference])
    with pytest.raises(TrainingRefused) as refusal:
        train(tmp_path, changed)
    assert refusal.value.status == 78
    text = capsys.readouterr().err
    assert "cannot resume at batch 3 of pass 1 over the data" in text
    assert f"\n  {difference}\n" in text
    assert "--allow-data-change" in text
    monkeypatch.setenv("ORCHESTRATOR_ALLOW_DATA_CHANGE", "on")
    _, exactness = train(tmp_path, changed, stop=12)
    assert exactness == f"APPROXIMATE: pass 1 over the data: {difference}"
    monkeypatch.delenv("ORCHESTRATOR_ALLOW_DATA_CHANGE")
    assert train(tmp_path, changed)[1] == exactness  # what the run went through stays with it


def test_changed_batch_size_goes_on_at_the_same_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With smaller batches no sample of the epoch is repeated or left out."""
    monkeypatch.setenv("ORCHESTRATOR_ALLOW_DATA_CHANGE", "on")
    data = torch.arange(24.0).repeat(4, 1).T
    before, _ = train(tmp_path, DataLoader(data, 4, shuffle=True), stop=3)  # type: ignore[arg-type]
    after, _ = train(tmp_path, DataLoader(data, 2, shuffle=True))  # type: ignore[arg-type]
    first_epoch = [row[0] for epoch, batch in before + after if epoch == 0 for row in batch]
    assert sorted(first_epoch) == list(range(24))


def test_changed_data_at_an_epochs_edge_is_a_doubt(tmp_path: Path) -> None:
    """A data set may grow from epoch to epoch: nothing is refused there, and nothing hidden."""
    train(tmp_path, loader(), stop=6, place="edge")
    _, exactness = train(tmp_path, loader(size=32))
    assert exactness == "APPROXIMATE: pass 1 over the data: samples 24 then, 32 now"


def test_other_next_samples_are_a_doubt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sampler of the same kind that gives other samples makes a run APPROXIMATE, with a word."""
    weights = [0.0] * 12 + [1.0] * 12

    def weighted(weights: list[float]) -> Any:
        return loader(shuffle=False, sampler=WeightedRandomSampler(weights, 24))

    train(tmp_path, weighted(weights), stop=3)
    _, exactness = train(tmp_path, weighted(weights[::-1]))
    reason = "pass 1 over the data continues with other samples than expected"
    assert exactness == f"APPROXIMATE: {reason}"
    assert f"turns out to be APPROXIMATE: {reason}" in capsys.readouterr().err
    journal = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    told = {event["event"]: event for event in journal if "exactness" in event}
    assert told["resumed"]["exactness"] == "EXACT"
    assert told["exactness_lost"]["exactness"] == exactness


class Counter(IterableDataset[torch.Tensor]):
    """A stream that knows its position; ``read`` counts what was read in this process."""

    def __init__(self, size: int = 24) -> None:
        self.size, self.position, self.read = size, 0, 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        while self.position < self.size:
            self.position += 1
            self.read += 1
            yield torch.full((4,), float(self.position)) + torch.rand(4)
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


@pytest.mark.parametrize(
    ("place", "stops"),
    [
        ("step", [2]),
        ("step", [2, 3, 5]),
        ("step", [6, 12]),
        ("evaluation", [6]),
        ("edge", [6, 12]),
    ],
)
def test_loader_with_a_state_continues_by_it(tmp_path: Path, place: str, stops: list[int]) -> None:
    """The loader of torchdata continues in mid-epoch, again and again, and at the edge."""
    whole, _ = train(tmp_path / "whole", StatefulDataLoader(Counter(), 4))
    seen: list[Any] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "skipping")
        for stop in [*stops, None]:
            dataset = Counter()
            part, exactness = train(tmp_path / "cut", StatefulDataLoader(dataset, 4), stop, place)
            seen += part
    assert seen == whole
    assert exactness == "EXACT"
    assert dataset.read == 24 * EPOCHS - 4 * stops[-1]


def test_epoch_that_ends_in_an_attempt_without_batches(tmp_path: Path) -> None:
    """Cut at the last step of an epoch and again at its edge: the next epoch is not left out."""
    whole, _ = train(tmp_path / "whole", StatefulDataLoader(Counter(), 4))
    seen: list[Any] = []
    for stop, place in ((6, "step"), (6, "edge"), (None, "step")):
        part, exactness = train(tmp_path / "cut", StatefulDataLoader(Counter(), 4), stop, place)
        seen += part
    assert seen == whole
    assert exactness == "EXACT"


@pytest.mark.parametrize("persistent", [False, True])
def test_stateful_loader_with_workers_is_a_doubt(tmp_path: Path, persistent: bool) -> None:
    """The position is restored; that the workers' random numbers are not is said."""

    def make() -> Any:
        options = {"num_workers": 1, "persistent_workers": persistent}
        return StatefulDataLoader(Counter(), 4, **options)

    def positions(seen: list[Any]) -> list[Any]:
        return [(epoch, [int(row[0]) for row in batch]) for epoch, batch in seen]

    whole, _ = train(tmp_path / "whole", make())
    before, _ = train(tmp_path / "cut", make(), stop=2)
    middle, exactness = train(tmp_path / "cut", make(), stop=4)
    after, _ = train(tmp_path / "cut", make())
    assert positions(before + middle + after) == positions(whole)
    reason = "random numbers that the workers of StatefulDataLoader draw are not restored"
    assert exactness == f"APPROXIMATE: {reason}"


def test_stateful_loader_over_a_map_style_data_set(tmp_path: Path) -> None:
    """It is sought like any DataLoader, augmentation in workers included."""

    def make(workers: int) -> Any:
        return StatefulDataLoader(Noisy(), 4, shuffle=True, num_workers=workers)

    whole, _ = train(tmp_path / "whole", make(0))
    before, _ = train(tmp_path / "cut", make(2), stop=3)
    after, exactness = train(tmp_path / "cut", make(1))
    assert before + after == whole
    assert exactness == "EXACT"


def test_workers_of_a_stateful_loader_do_not_hear_a_stop(tmp_path: Path) -> None:
    """A SIGTERM to them, as schedulers send it to everybody, ends none of them."""
    loader = StatefulDataLoader(Counter(), 4, num_workers=1)
    with Session(run_dir=tmp_path, model=torch.nn.Linear(4, 1)) as session:
        for _ in session.epochs(1):
            for _ in session.batches(loader):
                (worker,) = loader._iterator._workers  # type: ignore[union-attr]
                os.kill(worker.pid, signal.SIGTERM)
                session.step()
    assert session.global_step == 6
