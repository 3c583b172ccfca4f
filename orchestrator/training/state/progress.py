"""The counters of a training run and its latest metrics, as a checkpoint holds them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from orchestrator.errors import ConfigError
from orchestrator.training.exits import print_message

SUFFIX = "_state_dict"
RESERVED = frozenset({"epoch", "step", "state", "rng", "data"})


@dataclass
class Progress:
    """The numbers of completed epochs and steps, and the latest metrics."""

    epoch: int = 0
    step: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    refuses_bad_values: bool = True
    """True until the run's first save: after it, one bad value must not cost trained weights."""
    measured_at: dict[str, int] = field(default_factory=dict)
    """The step whose weights each metric was measured on, as far as that is known."""
    _reported: set[str] = field(default_factory=set)

    def record(self, metrics: Mapping[str, Any]) -> None:
        """Keep ``metrics``, as ``detach`` returns them, as the latest ones."""
        latest, measured_at, step = self.metrics, self.measured_at, self.step
        for name, value in metrics.items():
            latest[name] = value
            measured_at[name] = step

    def metric_values(self) -> dict[str, float]:
        """Return the metrics as numbers; wait for the device where one is a tensor on it.

        A metric that is not a single number is left out with one warning. Raises ConfigError for
        it while ``refuses_bad_values`` is set.
        """
        values = {}
        for name, value in self.metrics.items():
            try:
                values[name] = number(name, value)
            except ConfigError as error:
                if self.refuses_bad_values:
                    raise
                if name not in self._reported:
                    self._reported.add(name)
                    print_message(f"{error}; it is left out, and training goes on")
        return values

    def measured_here(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return those of ``values`` that were measured on the weights of the current step."""
        return {n: value for n, value in values.items() if self.measured_at.get(n) == self.step}


def detach(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of ``metrics`` that a loop cannot change any more, without autograd graphs.

    A tensor of one element on the CPU becomes a number, since a loop may keep adding to it. A
    tensor on a device stays one: to read it is to wait for the device.
    """
    plain = {}
    for name, value in metrics.items():
        if isinstance(value, Tensor):
            value = value.item() if value.is_cpu and value.numel() == 1 else value.detach()
        plain[name] = value
    return plain


def number(name: str, value: Any) -> float:
    """Return a metric as a number; wait for the device that it is on. Raises ConfigError."""
    if name in RESERVED or name.endswith(SUFFIX):
        raise ConfigError(f"cannot keep the metric {name}: the checkpoint has its own")
    try:
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"a tensor of the shape {list(value.shape)}")
        # What the device has to report, such as a failed kernel, passes as it is.
        return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"cannot keep the metric {name}: it is not one number ({error})"
        ) from None
