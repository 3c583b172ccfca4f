"""What torch can load is resumed from; only what torch refuses or would drop is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.training import Session, TrainingRefused
from tests.training.support import as_new_process

Objects = dict[str, Any]


class Bank(nn.Module):
    """A buffer that grows, in a module that can load one of any length."""

    def __init__(self, *, keeps: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)
        self.keeps = keeps
        self.register_buffer("seen", torch.empty(0, 2))

    def forward(self, x: torch.Tensor) -> Any:
        self.seen = torch.cat([self.seen, x.detach()])
        return self.linear(x)

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        saved = state[prefix + "seen"]
        self.seen = saved if self.keeps else torch.empty_like(saved)
        super()._load_from_state_dict(state, prefix, *rest)


class Casting(Bank):
    """Loads a buffer of any length, and drops half of its precision."""

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        state = state.copy()
        state[prefix + "seen"] = state[prefix + "seen"].half().float() + 1e-3
        super()._load_from_state_dict(state, prefix, *rest)


class CountsInItsGroup(torch.optim.Optimizer):
    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for parameter in group["params"]:
                parameter.add_(parameter.grad, alpha=-group["lr"] / group["step"])


class LateScheduler(torch.optim.lr_scheduler.LRScheduler):
    """A scheduler with an attribute that its second step makes."""

    def get_lr(self) -> list[float]:
        if self.last_epoch > 0:
            self.peak = self.last_epoch
        return [0.1 for _ in self.base_lrs]


def _lazy_linear() -> Objects:
    model = nn.Sequential(nn.LazyLinear(3), nn.ReLU(), nn.LazyLinear(1))
    return {"model": model, "optimizer": torch.optim.Adam(model.parameters())}


def _lazy_norm_after_its_optimizer() -> Objects:
    model = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d(), nn.LazyLinear(1))
    return {"optimizer": torch.optim.Adam(model.parameters()), "model": model}


def _lazy_group_key() -> Objects:
    model = nn.Linear(2, 1)
    return {"model": model, "optimizer": CountsInItsGroup(model.parameters())}


def _late_scheduler() -> Objects:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return {"model": model, "optimizer": optimizer, "scheduler": LateScheduler(optimizer)}


def _growing_buffer() -> Objects:
    model = nn.Sequential(Bank(), nn.BatchNorm1d(1))
    return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}


def _growing_buffer_that_keeps_what_it_loads() -> Objects:
    model = Bank(keeps=True)
    return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}


def train(run_dir: Path, make: Callable[[], Objects], steps: int) -> tuple[Session, Objects]:
    as_new_process()
    torch.manual_seed(0)
    objects = make()
    session = Session(run_dir=run_dir, **objects)
    with session:
        for _ in session.steps(steps):
            objects["optimizer"].zero_grad()
            objects["model"](torch.randn(4, 2)).square().mean().backward()
            objects["optimizer"].step()
            if "scheduler" in objects:
                objects["scheduler"].step()
            session.step()
    return session, objects


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "make",
    [
        _lazy_linear,
        _lazy_norm_after_its_optimizer,
        _lazy_group_key,
        _late_scheduler,
        _growing_buffer,
        _growing_buffer_that_keeps_what_it_loads,
    ],
)
def test_state_that_appears_in_training_is_resumed_exactly(
    make: Callable[[], Objects], tmp_path: Path
) -> None:
    """A new object loads what only the trained one has, and the run is bit for bit the same."""
    train(tmp_path / "cut", make, 3)
    session, objects = train(tmp_path / "cut", make, 6)
    _, whole = train(tmp_path / "whole", make, 6)
    assert session.exactness == "EXACT"
    for name, value in whole.items():
        assert str(objects[name].state_dict()) == str(value.state_dict())


def _casting() -> Objects:
    model = Casting()
    return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}


def _other_optimizer() -> Objects:
    model = Bank()
    return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)}


def _adam() -> Objects:
    model = Bank()
    return {"model": model, "optimizer": torch.optim.Adam(model.parameters())}


def _growing_buffer_without_a_way_to_load() -> Objects:
    class Grows(Bank):
        def _load_from_state_dict(self, *arguments: Any) -> None:
            nn.Module._load_from_state_dict(self, *arguments)

    model = Grows()
    return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}


def _step_scheduler() -> Objects:
    objects = _growing_buffer()
    objects["scheduler"] = torch.optim.lr_scheduler.StepLR(objects["optimizer"], 1)
    return objects


def _exponential_scheduler() -> Objects:
    objects = _growing_buffer()
    objects["scheduler"] = torch.optim.lr_scheduler.ExponentialLR(objects["optimizer"], 0.1)
    return objects


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (_casting, _casting, "seen"),
        (_other_optimizer, _adam, "options are"),
        (
            _growing_buffer_without_a_way_to_load,
            _growing_buffer_without_a_way_to_load,
            r"layer seen is [12, 2] in the file, [0, 2] here",
        ),
        (_step_scheduler, _exponential_scheduler, "entry step_size is only in the file"),
    ],
)
def test_state_that_would_be_dropped_or_refused_is_a_mismatch(
    before: Callable[[], Objects],
    after: Callable[[], Objects],
    text: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What the object refuses or does not take over whole ends the resume with its name."""
    train(tmp_path, before, 3)
    with pytest.raises(TrainingRefused) as refused:
        train(tmp_path, after, 6)
    assert refused.value.status == 78
    assert text in capsys.readouterr().err
