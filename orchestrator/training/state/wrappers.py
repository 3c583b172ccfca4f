"""Objects in wrappers: stored as they are without, and under the names that they have then.

torch.compile puts ``_orig_mod.`` before the names of what it wraps, DataParallel ``module.``. A
checkpoint without these fits the script whether it compiles its model or not, and code that knows
nothing of either.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch

from orchestrator.training.state.accelerate import inside

COMPILED = "_orig_mod"
PARALLEL = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)


def unwrapped(value: Any) -> Any:
    """What is inside of such wrappers, or of accelerate's, or what it is given."""
    value = inside(value)
    while isinstance(value, torch.nn.Module):
        # By its name: importing the class takes longer than importing torch.
        if COMPILED in value._modules:
            value = value._modules[COMPILED]
        elif isinstance(value, PARALLEL):
            value = value.module
        else:
            break
    return value


def with_plain_names(state: Any) -> Any:
    """A module's state_dict as it would be without compiled parts in the module."""
    return _renamed(state, _plain) if _has_compiled_names(state) else state


def with_names_of(module: torch.nn.Module, state: Any) -> Any:
    """A state_dict, of a compiled module or not, with the names that this module's has."""
    if not isinstance(state, Mapping):
        return state
    here = module.state_dict().keys()
    if not _has_compiled_names(state) and not _has_compiled_names(here):
        return state
    names = {_plain(name): name for name in here}
    names |= {_plain(name): name for name, _ in module.named_modules()}
    return _renamed(state, lambda name: names.get(_plain(name), _plain(name)))


def _has_compiled_names(names: Any) -> bool:
    return any(COMPILED in str(name).split(".") for name in names)


def _plain(name: str) -> str:
    return ".".join(part for part in str(name).split(".") if part != COMPILED)


def _renamed(state: Any, rename: Callable[[Any], str]) -> Any:
    renamed = OrderedDict((rename(name), value) for name, value in state.items())
    # The versions of layers, by the names of modules.
    if (versions := getattr(state, "_metadata", None)) is not None:
        renamed._metadata = OrderedDict(  # type: ignore[attr-defined]
            (rename(name), version) for name, version in versions.items()
        )
    return renamed
