"""State beside the model: several models, averages, scalers, best values."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from orchestrator.training import Session, TrainingStopped
from tests.training.support import Noisy, as_new_process, assert_equal

PATIENCE = 2


class Ensemble:
    """A body and a critic, averages of the first, schedules, a scaler and early stopping."""

    def __init__(self) -> None:
        torch.manual_seed(5)
        self.body = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
        self.critic = torch.nn.DataParallel(torch.nn.Linear(8, 1))
        self.ema = AveragedModel(self.body, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        self.swa = AveragedModel(self.body)
        self.first = torch.optim.SGD(self.body.parameters(), lr=0.1, momentum=0.9)
        # Its state is created at its first step, in the second epoch.
        self.second = torch.optim.Adam(self.critic.parameters(), lr=0.01, amsgrad=True)
        self.swa_schedule = SWALR(self.first, swa_lr=0.05, anneal_epochs=3)
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(self.second, patience=0)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
        self.loader = DataLoader(Noisy(), 4, shuffle=True)

    def run(self, root: Path, stop: int | None = None) -> str | None:
        parts = {name: value for name, value in vars(self).items() if name != "loader"}
        session = Session(run_dir=root, **parts)
        try:
            with session:
                self.values = session.state
                for epoch in session.epochs(6):
                    worst = 0.0
                    for batch in session.batches(self.loader):
                        worst = max(worst, self.update(batch, epoch))
                        if session.global_step + 1 == stop:
                            signal.raise_signal(signal.SIGTERM)
                        session.step(loss=worst)
                    self.swa.update_parameters(self.body)
                    self.swa_schedule.step()
                    if self.should_end():
                        break
        except TrainingStopped:
            assert stop is not None
        return session.exactness

    def update(self, batch: torch.Tensor, epoch: int) -> float:
        loss = self.critic(self.body(batch)).square().mean()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.first)
        if epoch:
            self.scaler.step(self.second)
        self.scaler.update()
        self.first.zero_grad()
        self.second.zero_grad()
        self.ema.update_parameters(self.body)
        return loss.item()

    def should_end(self) -> bool:
        """Early stopping, by values in ``session.state``."""
        score = self.swa(torch.ones(3, 4)).square().mean().item()
        self.plateau.step(score)
        if score < self.values.get("best", float("inf")):
            self.values |= {"best": score, "waited": 0}
        else:
            self.values["waited"] += 1
        return bool(self.values["waited"] >= PATIENCE)

    def result(self) -> dict[str, Any]:
        states = {
            name: str(value.state_dict())
            for name, value in vars(self).items()
            if hasattr(value, "state_dict")
        }
        return states | {"values": dict(self.values), "torch": torch.get_rng_state()}


@pytest.mark.parametrize("stops", [[4], [6, 7, 12], [13, 14]])
def test_every_registered_object_continues(tmp_path: Path, stops: list[int]) -> None:
    """Averages, scalers, schedules, lazily created state and best values are as in one attempt."""
    whole = Ensemble()
    whole.run(tmp_path / "whole")
    for stop in stops:
        Ensemble().run(tmp_path / "cut", stop)
    resumed = Ensemble()
    assert resumed.run(tmp_path / "cut") == "EXACT"
    assert_equal(resumed.result(), whole.result())


class Forgetful(torch.nn.Linear):
    """Loads everything but its bias."""

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict({**state_dict, "bias": self.bias}, strict, assign)


def test_object_that_does_not_take_over_its_state_is_named(tmp_path: Path) -> None:
    """The session compares what an object has with what it was given."""
    for expected in (None, "APPROXIMATE: model has not loaded what was saved"):
        model = Forgetful(2, 1)
        as_new_process()
        with Session(run_dir=tmp_path, model=model, head=torch.nn.Linear(1, 1)) as session:
            assert session.exactness == expected
            session.step()
