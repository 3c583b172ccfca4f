"""Notices when a script has changed its objects so that it could not load their states back.

A run that resumes registers its objects as this one did. Groups that were added to an optimizer
since, pruned or parametrised layers, and buffers of another length do not fit those.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from orchestrator.training.exits import print_message
from orchestrator.training.state.compatibility import Expectation, compare, expectation_of
from orchestrator.training.state.progress import SUFFIX
from orchestrator.training.state.tensor_kinds import is_uninitialized
from orchestrator.training.state.wrappers import with_plain_names

SHOWN = 6


class LayoutWatch:
    """Compares states that are saved with what new objects of the script can load."""

    def __init__(self, objects: Mapping[str, Any]) -> None:
        """Note what the registered ``objects`` can load, before anything is restored."""
        self._expected = {name: _noted(value) for name, value in objects.items()}
        self._fitted_at = 0
        self._said: list[str] = []

    def begin(self, step: int) -> None:
        """Begin at ``step``, at which the restored state fits."""
        self._fitted_at = step

    def check(self, state: Mapping[str, Any], step: int) -> None:
        """Say what of the ``state`` at ``step`` new objects could not load, each change once."""
        differences = [
            f"{name}: {line}"
            for name, expected in self._expected.items()
            # One that loads in its own way decides when it loads.
            if not expected.decides_itself
            for line in compare(expected, state.get(name + SUFFIX), expected.class_name)
        ]
        if not differences:
            self._fitted_at = step
        elif differences != self._said:
            print_message(self._message(differences, step))
        self._said = differences

    def _message(self, differences: list[str], step: int) -> str:
        lines = differences[:SHOWN]
        if len(differences) > SHOWN:
            lines.append(f"and {len(differences) - SHOWN} more")
        return (
            f"this script will not be able to resume from what is saved from step {step} on: its "
            f"objects have changed since they were registered, after step {self._fitted_at}\n  "
            + "\n  ".join(lines)
            + "\nmake that change before the `with` line, or give the Session a function that "
            "makes it again on a resume: Session(..., before_restore=rebuild), which is called "
            "with session.state as it was saved"
        )


@dataclass(frozen=True)
class _Shape:
    """What is compared of a tensor."""

    shape: Any
    dtype: torch.dtype


def _noted(value: Any) -> Expectation:
    expected = expectation_of(value)
    state = expected.state
    if expected.kind == "module":
        state = with_plain_names(state)
    return replace(expected, state=_without_tensors(state))


def _without_tensors(value: Any) -> Any:
    """Copy the containers of a state; a tensor would be kept alive, and may change its shape."""
    if isinstance(value, torch.Tensor) and not is_uninitialized(value) and not value.is_nested:
        return _Shape(value.shape, value.dtype)
    if isinstance(value, Mapping):
        return {key: _without_tensors(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tensors(item) for item in value]
    return value
