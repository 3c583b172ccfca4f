"""Checks the paths that the states of Lightning's callbacks name, before a callback gets its state.

Lightning deletes what they name, and loads ``ckpt_path="best"`` with all the code that is in it.
They come from a checkpoint, which other users may have changed.
"""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.training.exits import print_message

_SINGLE = ("best_model_path", "last_model_path", "kth_best_model_path")
_SCORED = "best_k_models"
# A logger of Lightning's counts this up at each start.
_VERSION = re.compile(r"version_\d+")


def with_checked_paths(states: Any, callbacks: Iterable[Any]) -> dict[Any, Any]:
    """Return the states of callbacks without paths that are not below their callback's directory.

    Where one is elsewhere, all paths in that state are forgotten, since they depend on each other.
    That is printed, once for all states.
    """
    live = {callback.state_key: callback for callback in callbacks}
    forgotten: list[str] = []
    checked = dict(states) if isinstance(states, Mapping) else {}
    for key, state in checked.items():
        directory = getattr(live.get(key), "dirpath", None)
        where = None if directory is None else str(directory)
        bad = [text for text in _paths_in(state) if text != "" and not _is_below(text, where)]
        if bad:
            checked[key] = state | {name: "" for name in _SINGLE if name in state}
            if _SCORED in state:
                checked[key][_SCORED] = {}
            name = str(key).partition("{")[0]
            forgotten.append(f"{bad[0]!r} as a file of {name}, which saves in {where}")
    if forgotten:
        print_message(
            f"the checkpoint names {forgotten[0]}: this is not used, and that callback goes on as "
            "if it had saved nothing before"
        )
    return checked


def _paths_in(state: Any) -> list[Any]:
    if not isinstance(state, dict):
        return []
    scored = state.get(_SCORED, {})
    # What is no dictionary stands for itself, and is below no directory.
    names = list(scored) if isinstance(scored, dict) else [scored]
    return [state[name] for name in _SINGLE if name in state] + names


def _is_below(path: Any, directory: str | None) -> bool:
    """Return whether a path is plainly below a callback's directory, or that of another version."""
    if not isinstance(path, str) or directory is None or "\0" in path:
        return False
    above, parts = directory.rstrip("/").split("/"), path.split("/")
    rest = parts[len(above) :]
    # A chain of protocols has a "::" in it.
    if not rest or {"", ".", ".."} & set(rest) or any("::" in part for part in rest):
        return False
    differing = len(above)
    for index, (wanted, part) in enumerate(zip(above, parts, strict=False)):
        if wanted == part:
            continue
        if not (_VERSION.fullmatch(wanted) and _VERSION.fullmatch(part)):
            return False
        differing = min(differing, index)
    if "://" in directory:
        return True
    root = os.path.realpath("/".join(parts[:differing]) or ("/" if directory[0] == "/" else "."))
    return os.path.commonpath([root, os.path.realpath(path)]) == root
