"""What several ranks hold in common, what each has of its own, and digests that compare the first.

Common are the parameters of the registered modules, and all of the optimizers, schedulers and
gradient scalers: data-parallel training keeps them equal on all ranks. Everything else is a rank's
own: buffers, such as running statistics, objects of the script, random streams, the position in the
data, and the pieces of sharded tensors.
"""

import ctypes
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from orchestrator.checkpoint.boxes import Box
from orchestrator.checkpoint.shards import KeyPath, shown
from orchestrator.errors import ConfigError
from orchestrator.snapshot.rank_snapshots import piece_label
from orchestrator.training.state.digests import Hasher, digest
from orchestrator.training.state.dtensors import Placed
from orchestrator.training.state.progress import SUFFIX
from orchestrator.training.state.shard_reader import SHARDS
from orchestrator.training.state.sharding import Sharding
from orchestrator.training.state.wrappers import plain_name

# A digest of 64 bits for each; with more leaves there is one for each object.
DIGITS = 16
MOST_LEAVES = 4000
CHUNK_BYTES = 1 << 20
# The bytes of a whole tensor count, since replicas may differ in a single element.
ALL_BYTES = 1 << 62

COMMON_KINDS = (
    torch.optim.Optimizer,
    torch.optim.lr_scheduler.LRScheduler,
    torch.amp.grad_scaler.GradScaler,
)
# By name: most are in packages that need not be installed.
SHARDED_KINDS = frozenset(
    {
        *("FullyShardedDataParallel", "FlatParameter", "ZeroRedundancyOptimizer"),
        *("DeepSpeedEngine", "ZeROOptimizer"),
    }
)
# What each rank saves of its own, beside the entries of these names in the state of a run.
OWN_ENTRIES = ("epoch", "step", "state", "rng", "data")
# The states of its own objects, and the buffers of the modules.
OBJECTS, BUFFERS, DIGESTS = "objects", "buffers", "digests"


def refuse_sharded(objects: Mapping[str, Any], *, is_prepared: bool) -> None:
    """Check that it is known of these objects what each rank holds. Raises ConfigError."""
    found = {name: _sharded_kinds(value) for name, value in objects.items()}
    reasons = [f"{name} is sharded by {min(kinds)}" for name, kinds in found.items() if kinds]
    reasons += ["accelerate has prepared the optimizer"] if is_prepared else []
    if reasons:
        raise ConfigError(
            f"cannot train with several ranks yet where {reasons[0]}; use fully_shard, plain "
            "DistributedDataParallel, or one process"
        )


def _sharded_kinds(value: Any) -> set[str]:
    parts = [value]
    if isinstance(value, torch.nn.Module):
        parts += [*value.modules(), *value.parameters()]
    return {kind.__name__ for part in parts for kind in type(part).__mro__} & SHARDED_KINDS


class Replicas:
    """Tells what is common from a rank's own, in states that ``Registry.capture`` returned."""

    def __init__(self, objects: Mapping[str, Any], sharding: Sharding | None = None) -> None:
        """``objects`` are the registered ones by name."""
        self._sharding = sharding
        self._modules = {
            name + SUFFIX: frozenset(plain_name(key) for key, _ in value.named_parameters())
            for name, value in objects.items()
            if isinstance(value, torch.nn.Module)
        }
        self._common = [
            name + SUFFIX for name, value in objects.items() if isinstance(value, COMMON_KINDS)
        ]

    def own(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a rank other than 0 saves of the whole ``state``."""
        shared = {*self._modules, *self._common}
        objects = {k: v for k, v in state.items() if k.endswith(SUFFIX) and k not in shared}
        buffers = {
            key: {
                name: value
                for name, value in state[key].items()
                if name not in parameters and self._place_at((key, name)) is None
            }
            for key, parameters in self._modules.items()
        }
        own = {name: state[name] for name in OWN_ENTRIES} | {OBJECTS: objects, BUFFERS: buffers}
        if self._sharding is not None:
            own[SHARDS] = self._sharding.pieces_of(state)
        return own

    def _place_at(self, path: KeyPath) -> Placed | None:
        return None if self._sharding is None else self._sharding.place_at(path)

    def digests(
        self,
        state: Mapping[str, Any],
        addresses: Mapping[int, int] | None = None,
        breathe: Callable[[], None] | None = None,
    ) -> dict[str, str]:
        """Return digests of all that is common in ``state``, by the names of the tensors.

        The arguments are as for ``digests.digest``.
        """
        found: dict[str, str] = {}
        pieces: dict[tuple[str, Box], str] = {}
        for key in (*self._modules, *self._common):
            name, values = key.removesuffix(SUFFIX), []
            for path, leaf in _leaves(self._common_of(key, state[key]), (key,)):
                label, place = shown((name, *path[1:])), self._place_at(path)
                if place is not None and not place.has_replicas:
                    continue
                if isinstance(leaf, torch.Tensor):
                    hasher = _WholeHasher(addresses, breathe, ALL_BYTES)
                    hasher.add(leaf)
                    if place is None:
                        found[label] = hasher.hexdigest()[:DIGITS]
                    else:
                        pieces[label, place.box] = hasher.hexdigest()[:DIGITS]
                else:
                    values.append((label, leaf))
            found[f"{name} (its numbers)"] = digest(values)[:DIGITS]
        if len(found) + len(pieces) <= MOST_LEAVES:
            return found | {piece_label(*piece): each for piece, each in pieces.items()}
        objects = [key.removesuffix(SUFFIX) for key in (*self._modules, *self._common)]
        whole = {name: digest(_of_object(found, name))[:DIGITS] for name in objects}
        # Ranks that hold the same pieces have the same name for all of them together.
        held = digest(list(pieces))[:DIGITS]
        return whole | ({f"pieces [{held}]": digest(list(pieces.values()))} if pieces else {})

    def _common_of(self, key: str, state: Any) -> Any:
        if key not in self._modules:
            return state
        return {name: value for name, value in state.items() if name in self._modules[key]}


def _of_object(digests: Mapping[str, str], name: str) -> list[tuple[str, str]]:
    begins = (f"{name}.", f"{name} (")
    return [(path, each) for path, each in digests.items() if path.startswith(begins)]


def _leaves(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _leaves(item, (*path, number))
    else:
        yield path, value


class _WholeHasher(Hasher):
    """Reads all bytes of a tensor where they are."""

    def _sample(self, address: int, size: int) -> None:
        for begin in range(0, size, CHUNK_BYTES):
            length = min(CHUNK_BYTES, size - begin)
            self.update((ctypes.c_char * length).from_address(address + begin))
            if self._breathe is not None:
                self._breathe()


def merge_own(content: dict[str, Any], own: Mapping[str, Any]) -> None:
    """Put a rank's own values into the state of rank 0, from which it resumes."""
    content.update({name: own[name] for name in OWN_ENTRIES})
    content.update(own[OBJECTS])
    for key, buffers in own[BUFFERS].items():
        content[key].update(buffers)
