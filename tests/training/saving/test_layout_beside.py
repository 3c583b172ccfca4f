"""The file is laid out beside the training, which changes its objects meanwhile."""

import io
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.training import Session, TrainingStopped
from orchestrator.training.saving.image import InexpressibleError
from orchestrator.training.saving.snapshotter import PendingSnapshot, SnapshotContent, Snapshotter
from tests.support import DEADLINE_SECONDS, wait_until
from tests.training.saving.support import assert_same, bytes_of, loaded
from tests.training.support import draft_of, result_of

MANY = 300


class Gate:
    """A value whose pickling, and so the layout, waits until the gate is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._opened = threading.Event()

    def open(self) -> None:
        self._opened.set()

    def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
        self.reached.set()
        assert self._opened.wait(DEADLINE_SECONDS)
        return OrderedDict, ()


class Script:
    """A model of many tiny tensors, an optimizer, and a nested dict of plain values."""

    def __init__(self, make: Callable[[Any], torch.optim.Optimizer] = torch.optim.Adam) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.ParameterList(torch.randn(2) for _ in range(MANY))
        self.optimizer = make(self.model.parameters())
        self.nested: dict[str, Any] = {"a": {"b": [torch.zeros(3), {"c": 1}]}, "history": []}

    def step(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "nested": self.nested,
        }

    def grow_nested(self) -> None:
        self.nested["a"]["b"][0].add_(1)
        self.nested["a"]["b"][1]["c"] = torch.ones(4)
        self.nested["a"]["new"] = {"d": torch.ones(5)}
        self.nested["history"].extend(range(1000))

    def assign_data(self) -> None:
        for parameter in self.model.parameters():
            parameter.data = torch.zeros(7)

    def freeze_and_add_group(self) -> None:
        self.model[0].requires_grad_(False)
        self.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(9))]})


def content_of(state: Any, step: int = 1) -> SnapshotContent:
    return SnapshotContent({"step": step, "state": state}, draft_of(step), [])


def begin(taker: Snapshotter, gate: Gate, state: Any) -> PendingSnapshot:
    """Take a snapshot whose layout is under way, and waits at the gate."""
    pending = taker.take(content_of({"gate": gate, **state}))
    assert pending is not None
    assert gate.reached.wait(DEADLINE_SECONDS)
    assert not pending.done.done()
    return pending


def copied(value: Any) -> Any:
    """Copy a state, tensors included; those that are tied stay so."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


CHANGES = {
    "Adam's state appears": Script.step,
    "a nested dict grows": Script.grow_nested,
    "tensors are replaced": Script.assign_data,
    "a group is added": Script.freeze_and_add_group,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_change_during_the_first_layout_is_not_in_its_image(
    snapshotter: Snapshotter, change: Callable[[Script], None]
) -> None:
    """The loop goes on before the layout is made, and the image holds what was copied."""
    script, gate = Script(), Gate()
    before = copied(script.state())
    pending = begin(snapshotter, gate, script.state())
    change(script)
    after = copied(script.state())
    gate.open()
    image = loaded(bytes_of(result_of(pending)))
    assert_same({key: image[key] for key in before}, before)
    next_one = snapshotter.take(content_of(script.state(), 2), time.monotonic() + DEADLINE_SECONDS)
    assert next_one is not None
    assert_same(loaded(bytes_of(result_of(next_one))), after)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam, torch.optim.Adagrad])
def test_layout_changes_with_the_optimizer(
    snapshotter: Snapshotter, make: Callable[[Any], torch.optim.Optimizer]
) -> None:
    """Images before, at and after the first step of an optimizer are all whole."""
    script = Script(make)
    for step in range(1, 4):
        expected = copied(script.state())
        deadline = time.monotonic() + DEADLINE_SECONDS
        pending = snapshotter.take(content_of(script.state(), step), deadline)
        assert pending is not None
        script.step()
        assert_same(loaded(bytes_of(result_of(pending))), expected)


def test_snapshot_for_which_the_loop_waits_follows_the_layout_under_way(
    snapshotter: Snapshotter,
) -> None:
    """A save that is due during the first layout, as for a stop, comes after it and is whole."""
    script, gate = Script(), Gate()
    first = begin(snapshotter, gate, script.state())
    script.step()
    opener = threading.Timer(0.05, gate.open)
    opener.start()
    second = snapshotter.take(content_of(script.state(), 2), time.monotonic() + DEADLINE_SECONDS)
    assert second is not None
    assert result_of(first).manifest.step == 1
    assert_same(loaded(bytes_of(result_of(second))), copied(script.state()))
    opener.join()


@pytest.mark.parametrize("elements", [0, 50], ids=["freed", "grown"])
def test_tensor_that_is_resized_during_the_layout_tears_no_image(
    snapshotter: Snapshotter, elements: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The snapshot fails and says why, and the next one is whole."""
    tensors, gate = [torch.ones(10), torch.ones(20)], Gate()
    pending = begin(snapshotter, gate, {"tensors": tensors})
    tensors[0].untyped_storage().resize_(elements * 4)
    gate.open()
    with pytest.raises(InexpressibleError, match="resized or freed"):
        result_of(pending)
    assert "resized or freed" in capsys.readouterr().err
    tensors[0] = torch.ones(elements)
    wait_until(lambda: snapshotter.is_ready, "the end of the thread")
    again = snapshotter.take(content_of({"tensors": tensors}, 2))
    assert again is not None
    assert_same(loaded(bytes_of(result_of(again)))["tensors"], tensors)


@pytest.mark.parametrize("stopped_at", [1, 2])
def test_stop_during_the_first_layout_is_saved(tmp_path: Path, stopped_at: int) -> None:
    """A run that is stopped within its first steps leaves a checkpoint of the last one."""
    script = Script()
    script.step()

    def train() -> None:
        objects = {"model": script.model, "optimizer": script.optimizer}
        with Session(run_dir=tmp_path, **objects) as session:
            for step in session.steps(1000):
                script.step()
                if step == stopped_at - 1:
                    signal.raise_signal(signal.SIGTERM)
                session.step()

    with pytest.raises(TrainingStopped) as stopped:
        train()
    assert stopped.value.status == 75
    newest = max(tmp_path.glob("checkpoints/step-*"))
    saved = torch.load(newest / "state.pt")
    assert saved["step"] == stopped_at
    assert_same(saved["model_state_dict"], script.model.state_dict())
    assert_same(saved["optimizer_state_dict"], script.optimizer.state_dict())
