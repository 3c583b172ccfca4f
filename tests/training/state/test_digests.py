"""Digests are equal for equal values, whatever their layout in memory."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.checkpoint.store import Store
from orchestrator.rundir.paths import RunDir
from orchestrator.training import Session
from orchestrator.training.state.digests import SAMPLE_BYTES, digest, digest_parts

LONG = SAMPLE_BYTES  # elements of four bytes: twice the bytes of both ends


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": [2, None]}, OrderedDict([("b", (2, None)), ("a", 1)])),
        ({1, 2, 3}, {3, 2, 1}),
        (torch.arange(6.0).reshape(2, 3).T, torch.arange(6.0).reshape(2, 3).T.contiguous()),
        (torch.arange(9.0)[3:], torch.arange(3.0, 9.0)),
        (torch.arange(4.0 * LONG).reshape(2, -1).T, torch.arange(4.0 * LONG).reshape(2, -1).T + 0),
        (torch.arange(12.0)[::4], torch.tensor([0.0, 4.0, 8.0])),
        (torch.ones(1).expand(1000), torch.ones(1000)),
        (torch.empty(0), torch.empty(0)),
        (torch.tensor([float("nan")]), torch.tensor([float("nan")])),
    ],
)
def test_equal_values_have_equal_digests(one: Any, other: Any) -> None:
    """The order of keys, the type of a sequence, strides and offsets do not count."""
    assert digest(one) == digest(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"b": 1}),
        ([1, [2]], [[1], 2]),
        (1, True),
        (torch.zeros(3), torch.zeros(3, dtype=torch.float64)),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(3), torch.tensor([0.0, 0.0, 1e-30])),
        (torch.zeros(LONG), torch.cat((torch.ones(1), torch.zeros(LONG - 1)))),
        (torch.zeros(LONG), torch.cat((torch.zeros(LONG - 1), torch.ones(1)))),
    ],
)
def test_different_values_have_different_digests(one: Any, other: Any) -> None:
    """Another key, type, shape or bit at either end of a tensor changes the digest."""
    assert digest(one) != digest(other)


@pytest.mark.parametrize("budget", ["1%", "no memory"])
def test_checkpoint_records_the_digests_of_its_parts(
    tmp_path: Path, budget: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest has the right digests with a snapshot in memory and without one."""
    if budget == "no memory":
        monkeypatch.setattr("orchestrator.system.memory.available_bytes", lambda: 0)
        monkeypatch.setattr(
            "orchestrator.training.saving.snapshotter.Snapshotter.has_room",
            property(lambda self: False),
        )
    model = torch.nn.Sequential(torch.nn.Linear(300, 300), torch.nn.Conv2d(2, 2, 3))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters())
    model[0](torch.ones(1, 300)).sum().backward()
    optimizer.step()
    with Session(run_dir=tmp_path, model=model, optimizer=optimizer) as session:
        session.step()
    (*_, newest) = Store.open(RunDir(tmp_path), command=[]).all()
    content = torch.load(newest.state_file, weights_only=True)
    assert newest.manifest.digests.items() >= digest_parts(content).items()
    assert newest.manifest.digests.keys() == {
        *("model_state_dict", "optimizer_state_dict", "rng", "next_batch")
    }
