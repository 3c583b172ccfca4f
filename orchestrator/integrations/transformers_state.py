"""Checks the Trainer's own state of a checkpoint, which other users may have changed.

The Trainer takes any value for any field, sets any attribute of a callback that the state names,
and loads weights from whatever directory it calls the best.
"""

import os
import re
import sys
import types
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from transformers import TrainerState
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from orchestrator.errors import ConfigError
from orchestrator.system.json_input import parse_object
from orchestrator.training.exits import print_message

_CALLBACKS = "stateful_callbacks"
_CHECKPOINT = re.compile(PREFIX_CHECKPOINT_DIR + r"-\d+")


def check_fields(file: Path) -> None:
    """Check that a file has the fields of the Trainer's state, with values of their types.

    Raises ConfigError.
    """
    hints = get_type_hints(TrainerState) | {_CALLBACKS: dict}
    try:
        # It has a part for each logged step.
        values = parse_object(file.read_bytes(), most_parts=sys.maxsize)
    except FileNotFoundError:
        return  # the Trainer goes on without it
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot resume: {file} cannot be read: {error}") from None
    for name, value in values.items():
        if name not in hints or not _is_of(value, hints[name]):
            raise ConfigError(
                f"cannot resume: {file} has {value!r:.60} for {name[:60]!r}, which this version of "
                "transformers does not write; use the version that wrote it, or move "
                f"{file.parents[1]} away to resume from the checkpoint before"
            )


def check_state(state: TrainerState, callbacks: Iterable[Any], output_dir: str) -> None:
    """Leave out of a state what is not the Trainer's own or the script's, and print it.

    ``callbacks`` are those of the script, and the Trainer's control.
    """
    best = state.best_model_checkpoint
    if best is not None and not _is_checkpoint_in(best, output_dir):
        state.best_model_checkpoint = None
        print_message(
            f"the checkpoint names {best!r} as the best one, which is no checkpoint in "
            f"{output_dir}: this is not used"
        )
    of_class: dict[str, list[ExportableState]] = defaultdict(list)
    for callback in callbacks:
        if isinstance(callback, ExportableState):
            of_class[type(callback).__name__].append(callback)
    left_out: list[str] = []
    states: Any = state.stateful_callbacks
    for name, live in of_class.items():
        if name not in states:
            continue  # it is new in the script
        stored, exported = states[name], [each.state() for each in live]
        known = _with_names_of_all(exported)
        if isinstance(stored, list):
            states[name] = [_known_part(each, known, name, left_out) for each in stored]
        else:
            states[name] = _known_part(stored, known, name, left_out)
    if left_out:
        print_message(f"the checkpoint sets {left_out[0]}, which is no state of it: not used")


def _with_names_of_all(exported: list[Any]) -> dict[str, dict[str, Any]]:
    """Return what callbacks of one class export, by the part that it is in and its name."""
    return {
        part: {name: value for each in exported for name, value in each.get(part, {}).items()}
        for part in ("args", "attributes")
    }


def _known_part(
    stored: Any, known: dict[str, dict[str, Any]], name: str, left_out: list[str]
) -> dict[str, dict[str, Any]]:
    """Return what is stored of a callback, without what it does not export itself."""
    kept: dict[str, dict[str, Any]] = {}
    for part, live in known.items():
        given = stored.get(part) if isinstance(stored, dict) else None
        values = given if isinstance(given, dict) else {}
        fitting = {n: v for n, v in values.items() if n in live and _is_like(v, live[n])}
        left_out += [f"{n!r} of {name} to {values[n]!r:.60}" for n in values.keys() - fitting]
        # A callback may be made with these arguments, and needs all of them.
        kept[part] = live | fitting if part == "args" else fitting
    return kept


def _is_like(value: Any, live: Any) -> bool:
    """Return whether a value of JSON may take the place of this one."""
    if live is None:
        return True
    if isinstance(live, (int, float)) and not isinstance(live, bool):
        return _is_of(value, float)
    return type(value) is (list if isinstance(live, tuple) else type(live))


def _is_of(value: Any, hint: Any) -> bool:
    """Return whether a value of JSON fits a type as it is written in a class; not what is in it."""
    if get_origin(hint) in (Union, types.UnionType):
        return any(_is_of(value, each) for each in get_args(hint))
    kind = get_origin(hint) or hint
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _is_checkpoint_in(path: str, output_dir: str) -> bool:
    folder, name = os.path.split(path)
    return bool(_CHECKPOINT.fullmatch(name)) and os.path.abspath(folder) == os.path.abspath(
        output_dir
    )
