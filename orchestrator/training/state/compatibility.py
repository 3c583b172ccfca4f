"""Comparison of a saved state with a live object: keys, shapes, dtypes, groups and options."""

from collections.abc import Mapping
from typing import Any

import torch


def compare(live: Any, saved: Any) -> list[str]:
    """Return the differences that keep ``live`` from loading ``saved``; empty if it fits.

    Modules, optimizers and learning rate schedulers are compared; other objects always fit.
    """
    if isinstance(live, torch.nn.Module):
        return _compare_modules(live.state_dict(), saved)
    if isinstance(live, torch.optim.Optimizer):
        return _compare_optimizers(live.state_dict(), saved)
    if isinstance(live, torch.optim.lr_scheduler.LRScheduler):
        return _compare_keys(live.state_dict(), saved, "entry")
    return []


def _compare_keys(live: Mapping[str, Any], saved: Any, kind: str) -> list[str]:
    if not isinstance(saved, Mapping):
        return [f"the file holds a {type(saved).__name__}, not a state_dict"]
    differences = [f"{kind} {key} is missing in the file" for key in live if key not in saved]
    return differences + [f"{kind} {key} is only in the file" for key in saved if key not in live]


def _compare_modules(live: Mapping[str, Any], saved: Any) -> list[str]:
    differences = _compare_keys(live, saved, "layer")
    for key in live.keys() & saved.keys() if isinstance(saved, Mapping) else ():
        differences += _compare_tensors(f"layer {key}", live[key], saved[key])
    return sorted(differences)


def _compare_tensors(name: str, live: Any, saved: Any) -> list[str]:
    here, there = getattr(live, "shape", None), getattr(saved, "shape", None)
    if here != there:
        return [f"{name} is {_show(there)} in the file, {_show(here)} here"]
    # load_state_dict() would cast silently, and the run would not continue with the saved values.
    here, there = getattr(live, "dtype", None), getattr(saved, "dtype", None)
    return [f"{name} is {there} in the file, {here} here"] if here != there else []


def _compare_optimizers(live: Mapping[str, Any], saved: Any) -> list[str]:
    try:
        sizes = [[len(g["params"]) for g in s["param_groups"]] for s in (live, saved)]
        here, there = _tensors_of(live), _tensors_of(saved)
    except (KeyError, TypeError, AttributeError):
        return ["the file holds no optimizer state"]
    if sizes[0] != sizes[1]:
        return [f"parameters per group are {sizes[1]} in the file, {sizes[0]} here"]
    options = [sorted(s["param_groups"][0]) for s in (live, saved)] if sizes[0] else [[], []]
    if options[0] != options[1]:
        return [f"options are {', '.join(options[1])} in the file, {', '.join(options[0])} here"]
    # An optimizer that has made no step yet has no tensors to compare.
    return [
        difference
        for (parameter, key), tensor in here.items()
        if (parameter, key) in there
        for difference in _compare_tensors(
            f"{key} of parameter {parameter}", tensor, there[parameter, key]
        )
    ]


def _tensors_of(optimizer_state: Mapping[str, Any]) -> dict[tuple[Any, str], torch.Tensor]:
    return {
        (parameter, key): value
        for parameter, entries in optimizer_state["state"].items()
        for key, value in entries.items()
        if isinstance(value, torch.Tensor)
    }


def _show(shape: Any) -> str:
    return "no tensor" if shape is None else str(list(shape))
