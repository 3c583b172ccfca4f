"""Reading of checkpoint files that other programs have written, in the classic form.

The classic form is what scripts commonly pass to ``torch.save``: a dict with ``epoch``, with
``<name>_state_dict`` for each object, and optionally with ``step`` and ``loss``.
"""

import operator
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from orchestrator.checkpoint.position import MAXIMUM_EPOCH, MAXIMUM_STEP
from orchestrator.errors import ConfigError
from orchestrator.training.formats.safetensors import is_safetensors, read_safetensors
from orchestrator.training.state.progress import SUFFIX
from orchestrator.training.state.restore import first_line, load

LONGEST_SHOWN = 100
DEEPEST = 100
MOST_PARTS = 10_000_000
# A view may repeat its data (stride 0), and is written out in full.
LARGEST_VIEW_BYTES = 1 << 30
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
    file's ``epoch`` and ``step``. Raises ConfigError.
    """
    if is_safetensors(source):
        content: Mapping[str, Any] = read_safetensors(source)
    else:
        content = _loaded(source)
    if is_state_dict(content):
        content = {name + SUFFIX: content, "epoch": 0}
    return _checked({**content, **counts}, source)


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
    if not source.exists():
        raise ConfigError(f"cannot start from {source}: there is no such file")
    try:
        content = load(source)
        refuse_hostile(content)
        return content
    except Exception as error:
        # The rest of torch's message says how to load the file unsafely.
        problem = first_line(error).partition(". ")[0]
        raise ConfigError(
            f"cannot start from {source}: {problem}; give a file that torch.load reads with its "
            "safe default"
        ) from error


def refuse_hostile(content: Any) -> None:
    """Refuse what a few bytes of a file can make too deep, too many or too large to work with.

    Raises ValueError.
    """
    parts = 0
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
        elif isinstance(value, torch.Tensor) and value.layout is torch.strided:
            size = value.numel() * value.element_size()
            if size > max(LARGEST_VIEW_BYTES, value.untyped_storage().nbytes()):
                raise ValueError(f"a tensor of it spreads its data over {size} bytes")


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
