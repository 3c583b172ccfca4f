"""Reading of checkpoint files that other programs have written, in the classic form.

The classic form is what scripts commonly pass to ``torch.save``: a dict with ``epoch``, with
``<name>_state_dict`` for each object, and optionally with ``step`` and ``loss``.
"""

import operator
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from orchestrator.checkpoint.position import MAXIMUM_EPOCH, MAXIMUM_STEP
from orchestrator.errors import ConfigError
from orchestrator.system.memory import memory_limited
from orchestrator.training.formats.safetensors import is_safetensors, read_safetensors
from orchestrator.training.state.progress import SUFFIX
from orchestrator.training.state.stored_files import first_line, load

LONGEST_SHOWN = 100
DEEPEST = 100
MOST_PARTS = 10_000_000
# A view may repeat its data (stride 0), and is looked at in full. Many names may share one tensor.
LARGEST_VIEWS_BYTES = 1 << 30
MOST_SHARED = 100
# A file is mapped or read, its tensors are copied, and a pickle has Python's objects.
MEMORY_FOR_FILE = 3
MEMORY_BYTES = 2 << 30
_END = object()
_MOST = {"epoch": MAXIMUM_EPOCH, "step": MAXIMUM_STEP}


def read_classic(source: Path) -> dict[str, Any]:
    """Read a file in the classic form; ``epoch`` and ``step`` are numbers of completed ones.

    Raises ConfigError if the file is missing, cannot be loaded or has another form.
    """
    return _checked(_loaded(source), source)


def read_foreign(source: Path, name: str, counts: Mapping[str, int]) -> dict[str, Any]:
    """Read a file in the classic form, or one of weights alone (torch.save or safetensors).

    Weights alone become the state of the object ``name`` at epoch 0. ``counts`` replaces the
    file's ``epoch`` and ``step``. Whatever the file says, reading it takes no more memory than
    suits its size. Raises ConfigError.
    """
    with memory_for(source):
        content: Mapping[str, Any] = (
            read_safetensors(source) if is_safetensors(source) else _loaded(source)
        )
    if is_state_dict(content):
        content = {name + SUFFIX: content, "epoch": 0}
    return _checked({**content, **counts}, source)


def memory_for(file: Path) -> AbstractContextManager[None]:
    """Limit the memory that reading the file may take, in a process that does nothing else."""
    size = file.stat().st_size if os.path.isfile(file) else 0
    return memory_limited(MEMORY_FOR_FILE * size + MEMORY_BYTES)


def is_state_dict(value: Any) -> bool:
    """Return whether this is the state of a module: tensors by name."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(
            isinstance(item, torch.Tensor) or str(key).endswith("_extra_state")
            for key, item in value.items()
        )
    )


def _loaded(source: Path) -> dict[str, Any]:
    if not os.path.exists(source):
        raise ConfigError(f"cannot start from {source}: there is no such file")
    # torch would wait for the writer of a pipe.
    if not (os.path.isfile(source) or os.path.isdir(source)):
        raise ConfigError(f"cannot start from {source}: it is not a regular file")
    try:
        _refuse_compressed(source)
        content = load(source)
        refuse_hostile(content)
        return content
    except Exception as error:
        # The rest of torch's message says how to load the file unsafely.
        problem = first_line(error).partition(". ")[0]
        if isinstance(error, MemoryError):
            problem = "it asks for far more memory than its size"
        raise ConfigError(
            f"cannot start from {source}: {problem}; give a file that torch.load reads with its "
            "safe default"
        ) from error


def _refuse_compressed(source: Path) -> None:
    """Refuse an archive that torch.save has not made. Raises ValueError, OSError."""
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            members = archive.infolist()
        if {member.compress_type for member in members} - {zipfile.ZIP_STORED}:
            raise ValueError("it is compressed, which torch.save does not do")
        if sum(member.file_size for member in members) > os.stat(source).st_size:
            raise ValueError("its parts share their data, which torch.save does not do")


def refuse_hostile(content: Any) -> None:
    """Refuse what a few bytes of a file can make too deep, too many or too large to work with.

    Raises ValueError.
    """
    parts = views = stored = 0
    storages = set[int]()
    levels: list[Iterator[Any]] = [iter((content,))]
    while levels:
        if (value := next(levels[-1], _END)) is _END:
            levels.pop()
            continue
        # Counted as often as it is referred to: whoever walks the content does so too.
        parts += 1
        if len(levels) > DEEPEST or parts > MOST_PARTS:
            raise ValueError("its content is nested too deeply, or refers to itself too often")
        if isinstance(value, Mapping):
            levels.append(iter(value.values()))
        elif isinstance(value, list | tuple | set | frozenset):
            levels.append(iter(value))
        elif isinstance(value, torch.Tensor) and value.is_meta:
            raise ValueError("it has a tensor without data")
        elif isinstance(value, torch.Tensor) and value.layout is torch.strided:
            storage = value.untyped_storage()
            if storage._cdata not in storages:
                storages.add(storage._cdata)
                stored += storage.nbytes()
            views += value.numel() * value.element_size()
            if views > LARGEST_VIEWS_BYTES + MOST_SHARED * stored:
                raise ValueError(f"its tensors spread their data over {views} bytes")


def _checked(content: dict[str, Any], source: Path) -> dict[str, Any]:
    if "epoch" not in content or not any(str(key).endswith(SUFFIX) for key in content):
        raise ConfigError(
            f"cannot start from {source}: it must have an 'epoch' and a '<name>_state_dict', and "
            f"its keys are {', '.join(map(str, content))}"
        )
    for key, most in _MOST.items():
        try:
            content[key] = operator.index(content.get(key, 0))
            if not 0 <= content[key] <= most:
                raise TypeError
        except TypeError:
            raise ConfigError(
                f"cannot start from {source}: its {key!r} is {repr(content[key])[:LONGEST_SHOWN]}, "
                f"not a whole number of at least 0 and at most {most}"
            ) from None
    return content
