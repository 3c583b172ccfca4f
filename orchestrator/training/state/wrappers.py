"""Removal of wrappers around registered objects, so that a checkpoint has the plain names.

torch.compile puts ``_orig_mod.`` before the names of the module that it wraps, DataParallel puts
``module.``. A checkpoint without these prefixes fits the script whether or not it compiles its
model, and fits code that uses neither wrapper.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch

from orchestrator.training.state.accelerate import unprepared

COMPILED = "_orig_mod"
PARALLEL = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)


def unwrapped(value: Any) -> Any:
    """Return the object inside these wrappers and those of accelerate; others as they are."""
    value = unprepared(value)
    while isinstance(value, torch.nn.Module):
        # Recognized by its attribute: importing the class takes longer than importing torch.
        if COMPILED in value._modules:
            value = value._modules[COMPILED]
        elif isinstance(value, PARALLEL):
            value = value.module
        else:
            break
    return value


def regroups_gradients(value: Any) -> bool:
    """Return whether DDP groups this module's gradients anew after the first step of a process."""
    while isinstance(value, torch.nn.Module):
        if COMPILED in value._modules:
            value = value._modules[COMPILED]
        else:
            kind = torch.nn.parallel.DistributedDataParallel
            return isinstance(value, kind) and not value.find_unused_parameters
    return False


def with_plain_names(state: Any) -> Any:
    """Return a module's state_dict without the prefixes of compiled parts in its names."""
    return _renamed(state, plain_name) if _has_compiled_names(state) else state


def with_names_of(module: torch.nn.Module, state: Any) -> Any:
    """Return a state_dict with the names that ``module`` has, with or without prefixes."""
    if not isinstance(state, Mapping):
        return state
    here = module.state_dict().keys()
    if not _has_compiled_names(state) and not _has_compiled_names(here):
        return state
    names = {plain_name(name): name for name in here}
    names |= {plain_name(name): name for name, _ in module.named_modules()}
    return _renamed(state, lambda name: names.get(plain_name(name), plain_name(name)))


def _has_compiled_names(names: Any) -> bool:
    return any(COMPILED in str(name).split(".") for name in names)


def plain_name(name: str) -> str:
    """Return the name of a parameter or buffer without the prefixes of compiled parts."""
    return ".".join(part for part in str(name).split(".") if part != COMPILED)


def _renamed(state: Any, rename: Callable[[Any], str]) -> Any:
    renamed = OrderedDict((rename(name), value) for name, value in state.items())
    # The versions of the layers, keyed by the names of the modules.
    if (versions := getattr(state, "_metadata", None)) is not None:
        renamed._metadata = OrderedDict(  # type: ignore[attr-defined]
            (rename(name), version) for name, version in versions.items()
        )
    return renamed
