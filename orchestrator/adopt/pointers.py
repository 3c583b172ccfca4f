"""The files in which frameworks keep the name of their newest checkpoint, beside the checkpoints.

A script that looks there fails, or begins from zero, when that checkpoint was half-written and is
set aside. The file then has to name the one that is resumed from.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.adopt.file_check import IncompleteError
from orchestrator.adopt.files import SavedFiles
from orchestrator.adopt.pattern import Pattern
from orchestrator.adopt.save_check import examine
from orchestrator.system.durable import Disk, replace_file
from orchestrator.system.regular_files import read_regular

# DeepSpeed; detectron2 and MMEngine, with a path or a name.
BY_NAME = ("latest", "last_checkpoint")
# Megatron-LM and verl.
BY_NUMBER = "latest_checkpointed_iteration.txt"
LARGEST_POINTER_BYTES = 4096


@dataclass(frozen=True)
class Pointer:
    """A file that names a checkpoint: ``before``, the name or number, ``after``."""

    file: Path
    before: str
    named: str
    after: str


def repair_pointers(pattern: Pattern, chosen: Path, disk: Disk) -> Iterator[Pointer]:
    """Let the files beside ``chosen`` name it, where they name none that is whole.

    Only what the pattern names may be named there: other contents are left alone. Yield each file
    as it was. Raises OSError.
    """
    for name in (*BY_NAME, BY_NUMBER):
        pointer = _read(chosen.parent / name, pattern.base)
        if pointer is None:
            continue
        if name == BY_NUMBER:
            number = pattern.step_of(chosen)
            is_stale = number is not None and _names_no_whole_number(pattern, chosen, pointer.named)
            wanted = str(number)
        else:
            is_stale = _names_no_whole_path(pattern, chosen, pointer)
            wanted = chosen.name
        if is_stale:
            text = pointer.before + wanted + pointer.after
            replace_file(pointer.file, text.encode(), disk, below=pattern.base)
            yield pointer


def _read(file: Path, base: Path) -> Pointer | None:
    real_parents = len(file.relative_to(base).parts) - 1
    try:
        text = read_regular(file, LARGEST_POINTER_BYTES, real_parents=real_parents).decode()
    except (OSError, ValueError):
        return None  # there is none, or a link, or something else of that name
    path = text.strip()
    named = os.path.basename(path)
    before, _, after = text.rpartition(named) if named else ("", "", text)
    return Pointer(file, before, named, after)


def _names_no_whole_path(pattern: Pattern, chosen: Path, pointer: Pointer) -> bool:
    if not pointer.named:
        return True  # the script was killed while it wrote the file
    folder, path = chosen.parent, chosen.parent / pointer.named
    said = pointer.before.strip()
    is_here = not said or Path(os.path.abspath(said)) == folder
    return is_here and path != chosen and pattern.names(path) and not _is_whole(path, pattern)


def _names_no_whole_number(pattern: Pattern, chosen: Path, number: str) -> bool:
    if number and not number.isdecimal():
        return False  # "release"
    beside = [path for path in pattern.find()[1] if path.parent == chosen.parent]
    of_number = [path for path in beside if number and pattern.step_of(path) == int(number)]
    return chosen not in of_number and not any(_is_whole(path, pattern) for path in of_number)


def _is_whole(path: Path, pattern: Pattern) -> bool:
    saved = SavedFiles.at(path, bases=[pattern.base])
    if saved is None:
        return False
    try:
        examine(saved)
    except IncompleteError:
        return False
    except Exception:
        return True  # it is not known to be torn
    return True
