"""A small training loop in the test's own process."""

import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from orchestrator.checkpoint.manifest import Manifest, Reason
from orchestrator.snapshot.slots import Snapshot
from orchestrator.training import Session, TrainingStopped
from orchestrator.training.runtime import standalone
from orchestrator.training.saving.snapshotter import PendingSnapshot
from tests.support import DEADLINE_SECONDS


def as_new_process() -> None:
    """Act as another process, which may open a run that this one completed."""
    standalone._trained.clear()


class Noisy(Dataset[torch.Tensor]):
    """Points with random augmentation; remembers which indices were read in this process."""

    def __init__(self, size: int = 24) -> None:
        self.size = size
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> torch.Tensor:
        self.read.append(index)
        noise = torch.randn(4) * random.random() + np.random.random()
        return torch.full((4,), float(index)) + noise


class Training:
    """A model with dropout, Adam, a scheduler, a generator of its own and a loader.

    ``run`` trains and may be stopped.
    """

    def __init__(
        self, *, epochs: int = 3, accumulate: int = 1, size: int = 24, **loader: Any
    ) -> None:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        self.generator = np.random.default_rng(0)
        self.epochs, self.accumulate = epochs, accumulate
        self.model = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1)
        )
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 1, 0.5)
        self.loader = DataLoader(Noisy(size), **({"batch_size": 4, "shuffle": True} | loader))
        self.history: list[float] = []
        self.exactness: str | None = None

    def run(
        self,
        run_dir: Path,
        stop: Callable[[Session, str], bool] = lambda session, place: False,
    ) -> bool:
        """Train; at each place where ``stop`` says so a SIGTERM comes. Whether it completed."""

        def pass_by(place: str) -> None:
            if stop(session, place):
                signal.raise_signal(signal.SIGTERM)

        parts = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        session = Session(run_dir=run_dir, **parts, generator=self.generator)
        try:
            with session:
                self.exactness = session.exactness
                self.history = session.state.setdefault("history", [])
                for _ in session.epochs(self.epochs):
                    for number, batch in enumerate(session.batches(self.loader), start=1):
                        loss = (self.model(batch) - batch.sum(1, keepdim=True)).square().mean()
                        loss.backward()
                        if number % self.accumulate:
                            continue
                        self.optimizer.step()
                        self.optimizer.zero_grad()
                        noise = random.random() + np.random.random() + self.generator.random()
                        self.history.append(loss.item() + noise)
                        pass_by("step")
                        session.step(loss=loss)
                    self.scheduler.step()
                    pass_by("evaluation")
                    session.poll(accuracy=0.5 + torch.rand(()))
                self.exactness = session.exactness
        except TrainingStopped as end:
            assert end.status == 75
            return False
        return True

    def result(self) -> dict[str, Any]:
        """Everything that must be equal bit for bit."""
        return {
            **self.model.state_dict(),
            "optimizer": str(self.optimizer.state_dict()),
            "scheduler": str(self.scheduler.state_dict()),
            "history": list(self.history),
            "torch": torch.get_rng_state(),
            "python": random.getstate(),
            "numpy": str(np.random.get_state()),
            "generator": str(self.generator.bit_generator.state),
        }


def assert_equal(mine: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in other.items():
        equal = torch.equal(mine[key], value) if torch.is_tensor(value) else mine[key] == value
        assert equal, key


def draft_of(step: int, epoch: int = 0) -> Manifest:
    """The manifest of a snapshot, as little as there can be in it."""
    return Manifest("a run", step, epoch, Reason.PERIODIC, {}, True, "now", {}, {})


def result_of(taking: PendingSnapshot) -> Snapshot:
    """The snapshot, once the thread that completes it has ended too."""
    snapshot = taking.done.result(timeout=DEADLINE_SECONDS)
    running = [thread for thread in threading.enumerate() if thread.name == "snapshot"]
    for thread in running:
        thread.join(DEADLINE_SECONDS)
    return snapshot
