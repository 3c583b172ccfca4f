"""The registry takes objects by name, and captures the state of each."""

from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.errors import ConfigError, UnstorableError
from orchestrator.training.state.registered_objects import Registry
from orchestrator.training.state.tensor_kinds import all_finite
from tests.training.state.support import Ema, Script


def test_captured_states_have_keys_by_name() -> None:
    """The name of a registered object determines its key in the checkpoint."""
    keys = {"model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "ema_state_dict"}
    assert Script().registry().capture().keys() == keys


def test_name_in_use_is_refused() -> None:
    """A second object under the same name is refused: one would overwrite the other."""
    registry = Script().registry()
    with pytest.raises(ConfigError, match="cannot register ema: that name is taken"):
        registry.add({"ema": Ema(0)})


@pytest.mark.parametrize("value", [3, "text", {"a": 1}, torch.ones(1), None])
def test_value_without_state_dict_is_refused(value: Any) -> None:
    """A plain value is refused with the advice to keep it in session.state."""
    with pytest.raises(ConfigError, match=r"no state_dict\(\).*session\.state"):
        Registry().add({"thing": value})


def test_unstorable_entry_is_named_when_captured() -> None:
    """An entry of a state that cannot be stored is named with its object."""
    registry = Registry()
    registry.add({"ema": Ema(object())})  # type: ignore[arg-type]
    with pytest.raises(UnstorableError) as refused:
        registry.capture()
    assert refused.value.where == "ema_state_dict['value']"


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.complex64])
def test_non_finite_parameter_is_detected(bad: float, dtype: torch.dtype) -> None:
    """One bad element in one parameter of any floating point type is enough."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).to(dtype)
    registry = Registry()
    registry.add({"ema": Ema(0), "model": model})
    assert registry.is_finite()
    with torch.no_grad():
        model[1].bias[1] = bad
    assert not registry.is_finite()


def test_finite_values_whose_sum_overflows_are_finite() -> None:
    """A sum that the type cannot hold does not make its finite elements count as bad."""
    assert all_finite(torch.full((4,), 60_000.0, dtype=torch.float16))
    assert not all_finite(torch.tensor([float("inf"), float("-inf")]))


def test_infinite_buffer_is_not_checked() -> None:
    """Buffers may hold infinities, as attention masks do; integer parameters cannot."""
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.full((2, 2), float("-inf")))
    model.code = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)
    registry = Registry()
    registry.add({"model": model})
    assert registry.is_finite()
