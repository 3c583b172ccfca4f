"""The comparison of two checkpoints: which values are compared, and which count as equal."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.chaos.final_state import differences, read_content


def content_of(directory: Path, state: dict[str, Any]) -> dict[str, str]:
    directory.mkdir(exist_ok=True)
    torch.save(state, directory / "state.pt")
    return read_content(directory / "state.pt")


def a_state() -> dict[str, Any]:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        "step": 3,
        "loss": 0.5,
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "rng": {"torch": torch.get_rng_state()},
        "state": {"best": float("nan"), "names": ["a", "b"], "tags": {1, 2}},
    }


def test_equal_states_are_equal(tmp_path: Path) -> None:
    """Two files with the same values have no differences, whatever their pickles look like."""
    one, other = a_state(), a_state()
    other["model_state_dict"] = dict(reversed(other["model_state_dict"].items()))
    assert differences(content_of(tmp_path / "a", one), content_of(tmp_path / "b", other)) == []


def change_weight(state: dict[str, Any]) -> None:
    state["model_state_dict"]["weight"][1, 2] += 1e-7


def change_sign_of_zero(state: dict[str, Any]) -> None:
    state["optimizer_state_dict"]["state"][0]["step"] = torch.tensor(-0.0)


def change_random_stream(state: dict[str, Any]) -> None:
    state["rng"]["torch"][100] ^= 1


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (change_weight, "model_state_dict.weight"),
        (change_sign_of_zero, "optimizer_state_dict.state.0.step"),
        (change_random_stream, "rng.torch"),
        (lambda state: state.update(loss=0.5000000000000001), "loss"),
        (lambda state: state["state"]["names"].reverse(), "state.names.0"),
        (lambda state: state["state"].update(more=None), "state.more"),
        (lambda state: state["optimizer_state_dict"]["param_groups"][0].update(lr=2.0), ".lr"),
    ],
)
def test_each_change_is_named(tmp_path: Path, change: Any, path: str) -> None:
    """A value that differs in its last bit is found, and named by its path."""
    whole, changed = content_of(tmp_path / "a", a_state()), a_state()
    change(changed)
    assert any(
        found.endswith(path) for found in differences(whole, content_of(tmp_path / "b", changed))
    )


def test_parts_of_storages(tmp_path: Path) -> None:
    """A view is compared by its own elements, whatever else its storage holds."""
    one, other = torch.arange(6.0), torch.arange(6.0)
    other[5] = random.random()
    contents = [content_of(tmp_path / n, {"x": t[:4]}) for n, t in (("a", one), ("b", other))]
    assert contents[0] == contents[1]
    assert content_of(tmp_path / "c", {"x": one[1:5]}) != contents[0]


def test_objects_of_unknown_classes(tmp_path: Path) -> None:
    """Sparse tensors and parameters are compared too, without importing their classes."""
    sparse = torch.eye(3).to_sparse()
    parameter = torch.nn.Parameter(torch.ones(2))
    state = {"sparse": sparse, "parameter": parameter, "dtype": torch.float16}
    first = content_of(tmp_path / "a", state)
    assert first == content_of(tmp_path / "b", state)
    state["sparse"] = (2 * torch.eye(3)).to_sparse()
    assert differences(first, content_of(tmp_path / "c", state))
