"""Snapshots of a state on a CUDA device."""

import io
import time
from collections.abc import Iterator

import pytest
import torch

from orchestrator.ipc.control_page import ControlPage
from orchestrator.snapshot.slots import Slots
from orchestrator.training import Session
from orchestrator.training.saving.snapshotter import SnapshotContent, Snapshotter
from orchestrator.training.state.registered_objects import Registry
from tests.support import DEADLINE_SECONDS
from tests.training.support import draft_of, result_of

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="this machine has no CUDA device"
)

SIZE = 2048
ROUNDS = 20


@pytest.fixture
def slots() -> Iterator[Slots]:
    page, _ = ControlPage.create()
    slots = Slots.create(page)
    yield slots
    slots.close()


class Trained:
    """A model with running statistics on the device, and its optimizer."""

    def __init__(self) -> None:
        self.model = torch.nn.Sequential(torch.nn.Linear(SIZE, SIZE), torch.nn.BatchNorm1d(SIZE))
        self.model.cuda()
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.registry = Registry()
        self.registry.add({"model": self.model, "optimizer": self.optimizer})

    def forward_and_backward(self) -> None:
        self.model(torch.randn(64, SIZE, device="cuda")).square().mean().backward()

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def content(self, step: int) -> SnapshotContent:
        return SnapshotContent(
            {"step": step, **self.registry.capture()},
            draft_of(step),
            self.registry.parameters(),
            self.registry.storages_of_optimizers(),
        )


def test_training_goes_on_while_the_device_copies(slots: Slots) -> None:
    """Forward passes and optimizer steps right behind the copy change nothing of the image."""
    trained, taker = Trained(), Snapshotter(slots)
    trained.forward_and_backward()
    trained.step()
    for round_ in range(ROUNDS):
        torch.cuda.synchronize()
        expected = io.BytesIO()
        torch.save(trained.registry.capture(), expected)
        taking = taker.take(trained.content(round_), deadline=time.monotonic() + DEADLINE_SECONDS)
        trained.forward_and_backward()
        trained.step()
        assert taking is not None
        snapshot = result_of(taking)
        with open(f"/dev/fd/{snapshot.descriptor}", "rb") as file:
            image = io.BytesIO(file.read(snapshot.image_bytes))
        actual = torch.load(image, map_location="cpu")
        expected.seek(0)
        wanted = torch.load(expected, map_location="cpu")
        for name, value in wanted["model_state_dict"].items():
            assert torch.equal(actual["model_state_dict"][name], value), (round_, name)
        for key, state in wanted["optimizer_state_dict"]["state"].items():
            for name, value in state.items():
                mine = actual["optimizer_state_dict"]["state"][key][name]
                assert torch.equal(mine, value), (round_, key, name)
    taker.close()


def test_slots_are_pinned(slots: Slots) -> None:
    """The device copies straight into the slots, and forgets them at the end."""
    trained, taker = Trained(), Snapshotter(slots)
    taking = taker.take(trained.content(1), deadline=time.monotonic() + DEADLINE_SECONDS)
    assert taking is not None
    result_of(taking)
    memories = taker._memories
    assert all(memory.is_pinned for memory in memories)
    taker.close()
    assert not any(memory.is_pinned for memory in memories)


def test_session_on_a_device_resumes_exactly(tmp_path: object) -> None:
    """Weights, optimizer and the device's random stream continue where they were."""

    def train(directory: str, steps: int, upto: int) -> tuple[torch.Tensor, bool]:
        torch.manual_seed(0)
        trained = Trained()
        session = Session(
            run_dir=f"{tmp_path}/{directory}", model=trained.model, optimizer=trained.optimizer
        )
        with session:
            for step in session.steps(steps):
                if step == upto:
                    break
                trained.forward_and_backward()
                trained.step()
                session.step()
        return torch.cat([p.flatten() for p in trained.model.parameters()]), bool(session.epoch)

    straight, _ = train("straight", 8, 8)
    train("cut", 8, 3)
    resumed, _ = train("cut", 8, 8)
    assert torch.equal(straight, resumed)
