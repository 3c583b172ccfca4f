"""The options of optimizers: those that a script sets, and those that a restored state brings."""

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch

from orchestrator.errors import ConfigError
from orchestrator.system.json_input import LARGEST_INTEGER, SMALLEST_INTEGER
from orchestrator.training.state.accelerate import unprepared
from orchestrator.training.state.registered_objects import Registry

MAXIMUM_GROUPS = 100
_NOT_SET_BY_SCRIPTS = frozenset({"params", "initial_lr", "param_names"})


class OptimizerOptions:
    """The options that this start has set, to be compared with the restored ones.

    Attributes:
        as_set: Each optimizer's options as the script that is in force has set them, before any
            schedule; what checkpoints keep.
        doubts: Which of the kept options differ from the saved ones.
    """

    def __init__(self, registry: Registry, kept: Iterable[str]) -> None:
        """Note the options before anything is restored.

        Raises:
            ConfigError: No registered optimizer has an option of a name in ``kept``.
        """
        self._registry = registry
        self._kept = frozenset(kept)
        self._groups = {
            name: [
                {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}
                for group in optimizer.param_groups
            ]
            for name, optimizer in registry.optimizers().items()
        }
        self.as_set = {name: _plain(groups) for name, groups in self._groups.items()}
        self.doubts: list[str] = []
        known = {key for options in self.as_set.values() for key in options}
        if unknown := sorted(self._kept - known):
            raise ConfigError(
                f"cannot keep the options {', '.join(unknown)}: no registered optimizer has them; "
                f"the options are {', '.join(sorted(known)) or 'none'}"
            )

    def after_restore(self, saved: dict[str, dict[str, Any]] | None) -> list[str]:
        """Put the kept options back, and return a line for each other one that was replaced.

        ``saved`` is what ``as_set`` was when the restored state was saved.
        """
        lines = []
        for name, optimizer in self._registry.optimizers().items():
            earlier = (saved or {}).get(name) or _plain(optimizer.param_groups)
            for key, value in self.as_set.get(name, {}).items():
                then = earlier.get(key, value)
                if then == value:
                    continue
                if key in self._kept:
                    self._put_back(name, optimizer, key)
                    self.doubts.append(
                        f"{key} of {name} is {value}, as this start sets it, and was {then}"
                    )
                else:
                    self.as_set[name][key] = then
                    lines.append(
                        f"{name}: {key} stays {then} as saved; this start's {value} is not used "
                        f'(Session(..., keep_options=("{key}",)) uses it)'
                    )
        return lines

    def _put_back(self, name: str, optimizer: torch.optim.Optimizer, key: str) -> None:
        # A group that before_restore has added keeps its saved options.
        for index, (group, own) in enumerate(
            zip(optimizer.param_groups, self._groups[name], strict=False)
        ):
            if key != "lr":
                group[key] = copy.deepcopy(own[key])
            elif "initial_lr" not in group:
                group["lr"] = copy.deepcopy(own["lr"])
            else:
                self._put_back_scheduled_lr(optimizer, index, own)

    def _put_back_scheduled_lr(
        self, optimizer: torch.optim.Optimizer, index: int, own: dict[str, Any]
    ) -> None:
        """Set the initial rate of a group, and the rate where its schedule has got to with it."""
        group = optimizer.param_groups[index]
        before, initial = group["initial_lr"], own.get("initial_lr", own["lr"])
        group["lr"] = group["lr"] / before * initial if before else copy.deepcopy(own["lr"])
        group["initial_lr"] = copy.deepcopy(initial)
        for scheduler in self._registry.schedulers():
            if unprepared(scheduler.optimizer) is unprepared(optimizer):
                _set_rates(scheduler, index, initial, group["lr"])


def _set_rates(scheduler: Any, index: int, initial: Any, current: Any) -> None:
    for inner in getattr(scheduler, "_schedulers", ()):
        _set_rates(inner, index, initial, current)
    if hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs[index] = initial
    if hasattr(scheduler, "_last_lr"):
        scheduler._last_lr[index] = current


def _plain(groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Return each option as JSON holds it: one value, or a list where the groups differ."""
    options: dict[str, Any] = {}
    for key in groups[0] if groups else ():
        if key in _NOT_SET_BY_SCRIPTS:
            continue
        source = "initial_lr" if key == "lr" else key
        try:
            values = [_plain_value(group.get(source, group[key])) for group in groups]
        except (KeyError, TypeError, ValueError):
            continue
        if all(value == values[0] for value in values):
            options[key] = values[0]
        elif len(values) <= MAXIMUM_GROUPS:
            options[key] = values
    return options


def _plain_value(value: Any) -> Any:
    """Return a number, text, truth value, None, or list of these. Raises TypeError, ValueError."""
    if isinstance(value, torch.Tensor):
        value = value.item()
    if isinstance(value, (list, tuple)):
        return [_plain_value(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and not SMALLEST_INTEGER <= value <= LARGEST_INTEGER:
        raise ValueError("no manifest holds it")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError
