"""What ``accelerate.Accelerator.prepare`` returns, understood without importing accelerate.

A prepared loader takes its batches from a DataLoader inside of it, one ahead of the loop, moves
them to the device and tells the accelerator when the last one has come. A prepared optimizer or
scheduler passes everything on to the one inside.
"""

import sys
from collections.abc import Iterable
from typing import Any


def is_optimizer(value: Any) -> bool:
    """Whether it is a prepared optimizer, which has a ``scaler`` and a ``gradient_state``."""
    return _is_a(value, "optimizer", "AcceleratedOptimizer")


def inside(value: Any) -> Any:
    """The optimizer or scheduler in a prepared one, or what it is given."""
    if is_optimizer(value):
        return value.optimizer
    return value.scheduler if _is_a(value, "scheduler", "AcceleratedScheduler") else value


def base_of(loader: Any) -> Any:
    """The DataLoader in a prepared one, or what it is given."""
    return loader.base_dataloader if _is_loader(loader) else loader


def with_base(loader: Any, base: Any) -> Any:
    """A prepared loader like this one that takes its batches from ``base``; else ``base``."""
    if not _is_loader(loader):
        return base
    # copy.copy() takes it for a DataLoader, and its constructor makes one.
    twin = object.__new__(type(loader))
    twin.__dict__.update(vars(loader), base_dataloader=base)
    return twin


def begin_epoch(loader: Iterable[Any], epoch: int) -> None:
    """Tell a prepared loader its epoch, which it counts from 0 in each process."""
    if _is_loader(loader):
        loader.iteration = epoch  # type: ignore[attr-defined]


def _is_loader(value: Any) -> bool:
    return _is_a(value, "data_loader", "DataLoaderAdapter")


def _is_a(value: Any, module: str, name: str) -> bool:
    # Of a package that is not loaded nothing can be an object.
    kind = getattr(sys.modules.get(f"accelerate.{module}"), name, None)
    return kind is not None and isinstance(value, kind)
