"""Comparison of a saved state with a live object: keys, shapes, dtypes, groups and options.

An object that loads states in a way of its own decides by loading, on a copy where it can be
copied. What it has taken over is then compared with what was saved.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from orchestrator.errors import MismatchError
from orchestrator.training.state.digests import digest
from orchestrator.training.state.dtensors import localized
from orchestrator.training.state.tensor_kinds import is_uninitialized

SHOWN_DIFFERENCES = 12


@dataclass(frozen=True)
class Expectation:
    """What an object can load, as far as that is known without loading.

    Attributes:
        kind: ``module``, ``optimizer`` or ``scheduler``; None for objects that are not compared.
        state: Its state when this was noted; of tensors only shapes and dtypes are compared.
        class_name: The full name of its class.
        decides_itself: Whether it is a module that loads states in a way of its own.
    """

    kind: str | None
    state: Any
    class_name: str
    decides_itself: bool


def expectation_of(live: Any) -> Expectation:
    """Return what ``live`` can load now."""
    kinds = {
        "module": torch.nn.Module,
        "optimizer": torch.optim.Optimizer,
        "scheduler": torch.optim.lr_scheduler.LRScheduler,
    }
    kind = next((name for name, base in kinds.items() if isinstance(live, base)), None)
    state = None if kind is None else localized(live.state_dict())
    own = kind == "module" and loads_in_its_own_way(live)
    return Expectation(kind, state, class_name(live), own)


def class_name(value: Any) -> str:
    """Return the full name of an object's class."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def loads_in_its_own_way(module: torch.nn.Module) -> bool:
    """Return whether a module may load what torch.nn.Module would refuse.

    That holds if part of it is lazy, has hooks on loading, or overrides the methods that load.
    """
    base = torch.nn.Module
    return any(
        type(part).load_state_dict is not base.load_state_dict
        or not type(part)._load_from_state_dict.__module__.startswith("torch.nn.modules.")
        or not all(map(_keeps_names, part._load_state_dict_pre_hooks.values()))
        for part in module.modules()
    )


def _keeps_names(hook: Any) -> bool:
    """Return whether a hook on loading is one of fully_shard, which only frees whole weights."""
    function = getattr(hook, "hook", hook)
    return str(getattr(function, "__module__", "")).startswith("torch.distributed.fsdp._fully")


def compare(expected: Expectation, saved: Any, saved_class: str | None = None) -> list[str]:
    """Return the differences that keep an object from loading ``saved``; empty if it fits.

    Modules, optimizers and learning rate schedulers are compared; other objects always fit. An
    optimizer or scheduler of the ``saved_class`` may have entries that come with its first step.
    """
    same_class = expected.class_name == saved_class
    if expected.kind == "module":
        return _compare_modules(expected.state, saved)
    if expected.kind == "optimizer":
        return _compare_optimizers(expected.state, saved, may_have_more=same_class)
    if expected.kind == "scheduler":
        return _compare_keys(expected.state, saved, "entry", may_have_more=same_class)
    return []


def may_load_anyway(expected: Expectation, saved_class: str | None) -> bool:
    """Return whether only the object itself knows if a state that differs can be loaded."""
    return expected.decides_itself or (
        expected.kind == "optimizer" and expected.class_name == saved_class
    )


def rehearse(live: Any, saved: Any) -> list[str] | None:
    """Load ``saved`` into a copy of ``live``, and return what it has not taken over.

    Returns None where ``live`` cannot be copied. Raises what loading raises.
    """
    # The parameters of an optimizer stay those of the model.
    parameters = [p for g in getattr(live, "param_groups", ()) for p in g["params"]]
    try:
        stand_in = copy.deepcopy(live, {id(parameter): parameter for parameter in parameters})
    except Exception:  # whatever its parts raise
        return None
    stand_in.load_state_dict(copy.deepcopy(saved))
    return lost(saved, live, stand_in)


def lost(saved: Any, before: Any, loaded: Any) -> list[str]:
    """Return what ``loaded`` has not taken over from ``saved``, and what it has lost by loading."""
    now = localized(loaded.state_dict())
    lines = _lost(saved, now, "")
    if isinstance(loaded, torch.optim.Optimizer):
        for here, there in zip(before.param_groups, now["param_groups"], strict=True):
            lines += [f"option {key} is missing in the file" for key in here.keys() - there.keys()]
    return lines


def _lost(saved: Any, now: Any, where: str) -> list[str]:
    if isinstance(saved, Mapping) and isinstance(now, Mapping):
        return [
            line
            for key, value in saved.items()
            for line in (
                _lost(value, now[key], f"{where}[{key!r}]")
                if key in now
                else [f"{where}[{key!r}] would be dropped"]
            )
        ]
    if isinstance(saved, list | tuple) and isinstance(now, Sequence) and len(saved) == len(now):
        pairs = enumerate(zip(saved, now, strict=True))
        return [line for i, (a, b) in pairs for line in _lost(a, b, f"{where}[{i}]")]
    return [] if digest(saved) == digest(now) else [f"{where} would have another value"]


def _compare_keys(
    live: Mapping[str, Any], saved: Any, kind: str, *, may_have_more: bool = False
) -> list[str]:
    if not isinstance(saved, Mapping):
        return [f"the file holds a {type(saved).__name__}, not a state_dict"]
    differences = [f"{kind} {key} is missing in the file" for key in live if key not in saved]
    if may_have_more:
        return differences
    return differences + [f"{kind} {key} is only in the file" for key in saved if key not in live]


def _compare_modules(live: Mapping[str, Any], saved: Any) -> list[str]:
    differences = _compare_keys(live, saved, "layer")
    for key in live.keys() & saved.keys() if isinstance(saved, Mapping) else ():
        differences += _compare_tensors(f"layer {key}", live[key], saved[key])
    return sorted(differences)


def _compare_tensors(name: str, live: Any, saved: Any) -> list[str]:
    here, there = _shape_of(live), _shape_of(saved)
    if here != there:
        return [f"{name} is {_show(there)} in the file, {_show(here)} here"]
    # load_state_dict() would cast silently, and the run would not continue with the saved values.
    here, there = getattr(live, "dtype", None), getattr(saved, "dtype", None)
    return [f"{name} is {there} in the file, {here} here"] if here != there else []


def _compare_optimizers(live: Mapping[str, Any], saved: Any, *, may_have_more: bool) -> list[str]:
    try:
        sizes = [[len(g["params"]) for g in s["param_groups"]] for s in (live, saved)]
        here, there = _tensors_of(live), _tensors_of(saved)
    except (KeyError, TypeError, AttributeError):
        return ["the file holds no optimizer state"]
    if sizes[0] != sizes[1]:
        return [f"parameters per group are {sizes[1]} in the file, {sizes[0]} here"]
    groups = zip(live["param_groups"], saved["param_groups"], strict=True)
    for mine, others in groups:
        if mine.keys() == others.keys() or (may_have_more and mine.keys() < others.keys()):
            continue
        listed = [", ".join(sorted(group)) for group in (others, mine)]
        return [f"options are {listed[0]} in the file, {listed[1]} here"]
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


def _shape_of(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and is_uninitialized(value):
        return "not initialised"
    return getattr(value, "shape", None)


def _show(shape: Any) -> str:
    if isinstance(shape, str):
        return shape
    return "no tensor" if shape is None else str(list(shape))


def mismatch(source: Path, differences: list[str]) -> MismatchError:
    """Return the error for a state of ``source`` that the objects of the script do not fit."""
    shown = differences[:SHOWN_DIFFERENCES]
    if len(differences) > len(shown):
        shown.append(f"and {len(differences) - len(shown)} more")
    return MismatchError(
        f"cannot resume from {source}: it does not fit the objects of this script\n  "
        + "\n  ".join(shown)
        + "\nuse the script that made it, or start over with another run directory"
    )
