"""Support for what ``accelerate.Accelerator.prepare`` returns, without importing accelerate.

A prepared loader takes its batches from the DataLoader inside it, one batch ahead of the loop. It
moves them to the device and tells the accelerator which batch is the last. A prepared optimizer or
scheduler delegates to the one inside it.
"""

import sys
from collections.abc import Iterable
from typing import Any


def is_optimizer(value: Any) -> bool:
    """Return whether this is a prepared optimizer, with ``scaler`` and ``gradient_state``."""
    return _is_a(value, "optimizer", "AcceleratedOptimizer")


def unprepared(value: Any) -> Any:
    """Return the optimizer or scheduler inside a prepared one; any other value as it is."""
    if is_optimizer(value):
        return value.optimizer
    return value.scheduler if _is_a(value, "scheduler", "AcceleratedScheduler") else value


def base_of(loader: Any) -> Any:
    """Return the DataLoader inside a prepared loader; any other loader as it is."""
    return loader.base_dataloader if _is_loader(loader) else loader


def with_base(loader: Any, base: Any) -> Any:
    """Return a copy of a prepared loader with its batches from ``base``; else ``base`` itself."""
    if not _is_loader(loader):
        return base
    # Not copy.copy(), which treats it as a DataLoader: the constructor would make another loader.
    copied = object.__new__(type(loader))
    copied.__dict__.update(vars(loader), base_dataloader=base)
    return copied


def begin_epoch(loader: Iterable[Any], epoch: int) -> None:
    """Set the epoch of a prepared loader, which counts from 0 in each process by itself."""
    if _is_loader(loader):
        loader.iteration = epoch  # type: ignore[attr-defined]


def _is_loader(value: Any) -> bool:
    return _is_a(value, "data_loader", "DataLoaderAdapter")


def _is_a(value: Any, module: str, name: str) -> bool:
    # If the module is not loaded, no instance of its classes can exist.
    class_ = getattr(sys.modules.get(f"accelerate.{module}"), name, None)
    return class_ is not None and isinstance(value, class_)
