"""Points from which the script's code runs again after a resume.

A safe point inside an evaluation is between two places that the session knows, such as the end of
an epoch's batches and the end of the epoch. A run resumed from there executes everything after the
first place once more. Its checkpoint must therefore hold the state of that place: a scheduler that
has stepped since would step twice, a random stream that has moved would move twice.

In the other direction, a run that was cut among an epoch's batches repeats the code before them
on its way back, and has to undo it on arrival.
"""

from typing import Any

import torch

from orchestrator.training.state.digests import digest, digest_of_all_bytes
from orchestrator.training.state.object_restore import load_captured
from orchestrator.training.state.plain_values import copy_containers, to_plain
from orchestrator.training.state.progress import SUFFIX
from orchestrator.training.state.registered_objects import Registry
from orchestrator.training.state.tensor_kinds import has_its_storage, is_plain

_IMMUTABLE = (bool, int, float, complex, str, bytes, type(None))


class ReplayPoint:
    """The state at such a place: plain values are copied, tensors are referred to and watched."""

    def __init__(self, state: dict[str, Any] | None) -> None:
        """Keep ``state``; None where it cannot be stored at this moment."""
        self._is_lost = state is None
        self._tensors: list[torch.Tensor] = []
        self.state: dict[str, Any] = copy_containers(state or {}, self._tensors)
        self._fingerprints = self._compute_fingerprints()

    def is_intact(self) -> bool:
        """Return whether ``state`` can still be saved: no tensor has been written to since."""
        return not self._is_lost and self._fingerprints == self._compute_fingerprints()

    def undo(self, registry: Registry, state: dict[str, Any]) -> list[str]:
        """Put back what has changed since; return what could not be, for the session's exactness.

        New entries of ``state`` stay, since a script that was changed in the meantime relies on
        them. Containers stay as well, since the script may hold them under names of its own.
        """
        if self._is_lost:
            return ["what was changed on the way to the interrupted batch is not known"]
        problems = []
        if not self.is_intact():
            problems.append("tensors were changed on the way to the interrupted batch")
        for key, value in registry.capture().items():
            if not have_same_values(self.state[key], value):
                captured = copy_containers(self.state[key], [])
                load_captured(registry, key.removesuffix(SUFFIX), captured)
        now, before = to_plain(state, "session.state"), self.state["state"]
        changed = [k for k in now | before if not have_same_values(before.get(k), now.get(k))]
        for key in changed:
            if key in before and type(before[key]) in _IMMUTABLE:
                state[key] = before[key]
            else:
                problems.append(
                    f"session.state[{key!r}] was changed on the way to the interrupted batch"
                )
        return problems

    def _compute_fingerprints(self) -> list[Any]:
        versions = [0 if t.is_inference() else t._version for t in self._tensors]
        # A write through .data leaves the version as it is, and inference tensors and arrays of
        # NumPy have none: averaged weights are swapped in like that for an evaluation. One pass
        # over the values at memory speed shows it.
        return [*versions, *map(_fingerprint, self._tensors)]


def have_same_values(one: Any, other: Any) -> bool:
    """Return whether two states hold equal values; tensors also by the memory they share."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return _are_same_tensors(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            have_same_values(one[key], other[key]) for key in one
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(have_same_values, one, other))
    return bool(one == other or (one != one and other != other))


def _are_same_tensors(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.dtype != other.dtype or one.device != other.device or one.layout != other.layout:
        return False
    if not is_plain(one) or not is_plain(other):
        return digest(one) == digest(other)
    if one.shape != other.shape:
        return False
    if one.data_ptr() == other.data_ptr():
        return True
    try:
        return torch.equal(one, other)
    except NotImplementedError:
        return digest(one) == digest(other)


def _fingerprint(tensor: torch.Tensor) -> str:
    if not is_plain(tensor):
        return ""
    if not has_its_storage(tensor):
        return "freed"
    if tensor.is_cpu and tensor.is_contiguous():
        return digest_of_all_bytes(tensor)
    if tensor.is_complex():
        return ""
    try:
        # As text, in which NaN equals NaN.
        return str(torch.sum(tensor.detach(), dtype=torch.float32).item())
    except NotImplementedError:
        return ""  # bits, or several numbers in a byte


NO_REPLAY_POINT = ReplayPoint({})
