"""Metrics and counters: which metrics are kept, and as which numbers."""

from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.errors import ConfigError
from orchestrator.training.state.progress import Progress, detach


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (1, 1.0),
        (True, 1.0),
        (np.float32(0.5), 0.5),
        (np.array(2), 2.0),
        (torch.tensor([[3.0]]), 3.0),
        (torch.ones(1, requires_grad=True).sum(), 1.0),
        (torch.tensor(4, dtype=torch.int64), 4.0),
    ],
    ids=str,
)
def test_single_number_is_a_metric(value: Any, number: float) -> None:
    """Numbers, and tensors and arrays of one element, are accepted as metrics."""
    assert Progress(metrics={"loss": value}).metric_values() == {"loss": number}


@pytest.mark.parametrize(
    "value", [torch.ones(2), torch.ones(0), np.ones(3), "high", None, [1.0], 1j], ids=str
)
def test_metric_that_is_not_one_number_is_refused(value: Any) -> None:
    """Any other value is refused, with the name of the metric."""
    with pytest.raises(ConfigError, match="cannot keep the metric accuracy: it is not one number"):
        Progress(metrics={"accuracy": value}).metric_values()


def test_bad_metric_after_the_first_save_is_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """After a run's first save, a bad metric is left out with one warning for its name."""
    progress = Progress(metrics={"norm": None, "loss": 1}, refuses_bad_values=False)
    assert [progress.metric_values() for _ in range(2)] == [{"loss": 1.0}] * 2
    progress.record({"norm": "high"})
    progress.record({"epoch": 3})
    assert progress.metric_values() == {"loss": 1.0}
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "cannot keep the metric norm",
        "cannot keep the metric epoch",
    ]
    assert all("training goes on" in line for line in lines)
    progress.record({"norm": 2})
    assert progress.metric_values() == {"loss": 1.0, "norm": 2.0}


@pytest.mark.parametrize("name", ["epoch", "step", "state", "rng", "data", "model_state_dict"])
def test_metric_with_a_reserved_name_is_refused(name: str) -> None:
    """A metric cannot have the name of another entry of the checkpoint."""
    with pytest.raises(ConfigError, match=f"cannot keep the metric {name}: "):
        Progress(metrics={name: 1.0}).metric_values()


def test_device_failure_while_reading_a_metric_is_raised() -> None:
    """A device error that appears when the loss is read is not the fault of the metric."""

    class OnBrokenDevice:
        def __float__(self) -> float:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        Progress(metrics={"loss": OnBrokenDevice()}).metric_values()


def test_detached_metrics_are_a_copy() -> None:
    """The caller's dict is left alone, and its tensors can be written to without an effect."""
    total = torch.ones((), requires_grad=True) * 2
    metrics = {"total": total, "vector": torch.zeros(2, requires_grad=True), "text": "high"}
    plain = detach(metrics)
    assert metrics["total"] is total
    assert plain["total"] == 2.0
    assert not plain["vector"].requires_grad
    assert plain["text"] == "high"
