"""Restoring loads every state into its live object, and changes none where one does not fit."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from orchestrator.errors import MismatchError
from orchestrator.training.state.compatibility import SHOWN_DIFFERENCES
from orchestrator.training.state.object_restore import ObjectRestore
from orchestrator.training.state.registered_objects import Registry
from tests.training.state.support import Ema, Script

SOURCE = Path("state.pt")
Content = dict[str, Any]


@pytest.fixture
def trained() -> Script:
    return Script(seed=3)


@pytest.fixture
def live() -> Script:
    return Script(seed=1)


def captured(script: Script) -> Content:
    return copy.deepcopy(script.registry().capture())


def restore_of(registry: Registry) -> ObjectRestore:
    return ObjectRestore(registry.objects, SOURCE)


def test_restore_loads_every_bit_into_the_live_objects(trained: Script, live: Script) -> None:
    """Restoring loads every captured value into the live objects, without replacing them."""
    model, weight = live.model, live.model[0].weight
    assert live.snapshot() != trained.snapshot()
    restore_of(live.registry()).restore(captured(trained))
    assert live.snapshot() == trained.snapshot()
    assert live.model is model
    assert live.model[0].weight is weight


def _missing_layer(content: Content) -> None:
    del content["model_state_dict"]["2.bias"]


def _extra_layer(content: Content) -> None:
    content["model_state_dict"]["3.weight"] = torch.ones(2)


def _other_shape(content: Content) -> None:
    content["model_state_dict"]["0.weight"] = torch.ones(9, 3)


def _no_tensor(content: Content) -> None:
    content["model_state_dict"]["1.running_mean"] = 1.0


def _other_dtype(content: Content) -> None:
    state = content["model_state_dict"]
    state["0.weight"] = state["0.weight"].double()


def _other_dtype_of_the_optimizer(content: Content) -> None:
    state = content["optimizer_state_dict"]["state"][2]
    state["exp_avg"] = state["exp_avg"].half()


def _missing_name(content: Content) -> None:
    del content["ema_state_dict"]


def _unregistered_name(content: Content) -> None:
    content["scaler_state_dict"] = {}


def _other_group_sizes(content: Content) -> None:
    content["optimizer_state_dict"]["param_groups"][1]["params"].append(9)


def _other_number_of_groups(content: Content) -> None:
    del content["optimizer_state_dict"]["param_groups"][1]


def _no_optimizer_state(content: Content) -> None:
    content["optimizer_state_dict"] = {"state": {}}


def _no_state_dict(content: Content) -> None:
    content["model_state_dict"] = [1, 2]


def _other_optimizer_class(content: Content) -> None:
    other = torch.optim.SGD(
        [{"params": [torch.ones(1)] * 2}, {"params": [torch.zeros(1)] * 2}], lr=0.1
    )
    content["optimizer_state_dict"] = other.state_dict()


def _other_scheduler_class(content: Content) -> None:
    optimizer = torch.optim.SGD([torch.ones(1)], lr=0.1)
    other = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)
    content["scheduler_state_dict"] = other.state_dict()


DIFFERENCES: list[tuple[Callable[[Content], None], str]] = [
    (_missing_layer, "model: layer 2.bias is missing in the file"),
    (_extra_layer, "model: layer 3.weight is only in the file"),
    (_other_shape, "model: layer 0.weight is [9, 3] in the file, [4, 3] here"),
    (_no_tensor, "model: layer 1.running_mean is no tensor in the file, [4] here"),
    (_other_dtype, "model: layer 0.weight is torch.float64 in the file, torch.float32 here"),
    (
        _other_dtype_of_the_optimizer,
        "optimizer: exp_avg of parameter 2 is torch.float16 in the file, torch.float32 here",
    ),
    (_missing_name, "ema is registered, but not in the file"),
    (_unregistered_name, "scaler is in the file, but not registered"),
    (_other_group_sizes, "optimizer: parameters per group are [2, 3] in the file, [2, 2] here"),
    (_other_number_of_groups, "optimizer: parameters per group are [2] in the file, [2, 2] here"),
    (_no_optimizer_state, "optimizer: the file holds no optimizer state"),
    (_no_state_dict, "model: the file holds a list, not a state_dict"),
    (_other_optimizer_class, "optimizer: "),
    (_other_scheduler_class, "scheduler: "),
]


@pytest.mark.parametrize(
    ("damage", "text"), DIFFERENCES, ids=[damage.__name__ for damage, _ in DIFFERENCES]
)
def test_mismatch_is_named_before_any_object_changes(
    trained: Script, live: Script, damage: Callable[[Content], None], text: str
) -> None:
    """A checkpoint that does not fit is refused with the difference, and no object changes."""
    content = captured(trained)
    damage(content)
    before = live.snapshot()
    with pytest.raises(MismatchError) as refused:
        restore_of(live.registry()).restore(content)
    assert live.snapshot() == before
    assert text in str(refused.value)
    assert str(refused.value).startswith(f"cannot resume from {SOURCE}: ")


def test_mismatch_lists_all_differences(trained: Script, live: Script) -> None:
    """One error names every difference in every object."""
    content = captured(trained)
    for damage in (_missing_layer, _extra_layer, _other_shape, _unregistered_name):
        damage(content)
    with pytest.raises(MismatchError) as refused:
        restore_of(live.registry()).restore(content)
    lines = [line.strip() for line in str(refused.value).splitlines()]
    expected = [text for damage, text in DIFFERENCES[:4] if damage is not _no_tensor]
    assert all(text in lines for text in expected)
    assert "scaler is in the file, but not registered" in lines


def test_long_list_of_differences_is_shortened(trained: Script, live: Script) -> None:
    """Only the first differences are shown, followed by the number of the others."""
    content = captured(trained)
    for number in range(SHOWN_DIFFERENCES + 5):
        content["model_state_dict"][f"x.{number:02}"] = torch.ones(1)
    with pytest.raises(MismatchError, match=r"and 5 more\n") as refused:
        restore_of(live.registry()).restore(content)
    assert str(refused.value).count("is only in the file") == SHOWN_DIFFERENCES


def test_state_refused_by_its_object_is_a_mismatch(trained: Script, live: Script) -> None:
    """The error of an object's load_state_dict is reported with the object's name."""
    content = captured(trained)
    content["ema_state_dict"] = {}
    with pytest.raises(MismatchError, match="ema: 'value'"):
        restore_of(live.registry()).restore(content)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, torch.AcceleratorError])
def test_device_error_in_load_state_dict_is_not_a_mismatch(
    trained: Script, live: Script, error: type[RuntimeError]
) -> None:
    """A full or broken device while restoring is not reported as a mismatch of the script."""

    class Failing(Ema):
        def load_state_dict(self, state: dict[str, float]) -> None:
            raise error("CUDA error")

    live.ema = Failing(0)
    with pytest.raises(error):
        restore_of(live.registry()).restore(captured(trained))


def test_device_error_while_a_module_copies_is_not_a_mismatch(
    trained: Script, live: Script
) -> None:
    """A module reports a failed copy in a text of its own; the cause is still the device."""

    class OnFullDevice(torch.Tensor):
        def copy_(self, *args: Any, **options: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

    live.model[0].weight = nn.Parameter(torch.zeros(4, 3).as_subclass(OnFullDevice))
    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        restore_of(live.registry()).restore(captured(trained))


def test_versions_of_layers_are_restored() -> None:
    """A module that migrates old layouts sees its version, also next to a converted value."""

    class Versioned(nn.Module):
        _version = 3
        seen: int | None = None

        def get_extra_state(self) -> Any:
            return {"path": Path("x"), "value": np.float64(1)}

        def set_extra_state(self, state: Any) -> None:
            assert state == {"path": Path("x"), "value": 1.0}

        def _load_from_state_dict(self, state: Any, prefix: str, local: Any, *rest: Any) -> None:
            self.seen = local.get("version")
            super()._load_from_state_dict(state, prefix, local, *rest)

    module = Versioned()
    registry = Registry()
    registry.add({"model": module})
    restore_of(registry).restore(registry.capture())
    assert module.seen == 3


def test_classic_file_may_lack_registered_objects(trained: Script, live: Script) -> None:
    """An object that is missing in a classic file keeps its state and is returned by name."""
    content = captured(trained)
    del content["ema_state_dict"], content["scheduler_state_dict"]
    assert restore_of(live.registry()).restore_classic(content) == ["scheduler", "ema"]
    assert live.ema.value == 1.0
    assert torch.equal(live.model[0].weight, trained.model[0].weight)


def test_mismatching_classic_file_changes_no_object(trained: Script, live: Script) -> None:
    """A classic file too is compared with every object before any of them changes."""
    content = captured(trained)
    del content["ema_state_dict"]
    _other_shape(content)
    before = live.snapshot()
    with pytest.raises(MismatchError):
        restore_of(live.registry()).restore_classic(content)
    assert live.snapshot() == before


class KeepsExtraState(torch.nn.Module):
    """A module that keeps the tensor of its extra state without copying it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.zeros(3)

    def get_extra_state(self) -> torch.Tensor:
        return self.table

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.table = state


def test_restored_tensors_are_copied_from_borrowed_memory() -> None:
    """Optimizers and extra states that would keep the tensors of a slot get copies."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 1), KeepsExtraState())
    optimizer = torch.optim.Adam(model.parameters())
    model[0](torch.ones(3)).backward()
    optimizer.step()
    registry = Registry()
    registry.add({"model": model, "optimizer": optimizer})
    content = registry.capture()
    expected = copy.deepcopy(content)
    shared = copy.deepcopy(content)
    restore_of(registry).restore(shared, borrowed=True)

    def overwrite(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            value.fill_(77)
        for item in value.values() if isinstance(value, dict) else ():
            overwrite(item)

    overwrite(shared)
    current = registry.capture()
    assert torch.equal(
        current["model_state_dict"]["0.weight"], expected["model_state_dict"]["0.weight"]
    )
    assert torch.equal(
        current["model_state_dict"]["1._extra_state"],
        expected["model_state_dict"]["1._extra_state"],
    )
    for key, state in expected["optimizer_state_dict"]["state"].items():
        for name, value in state.items():
            assert torch.equal(current["optimizer_state_dict"]["state"][key][name], value)
