"""Reading of checkpoint files that other programs have written, in the classic form.

The classic form is what scripts commonly pass to ``torch.save``: a dict with ``epoch``, with
``<name>_state_dict`` for each object, and optionally with ``step`` and ``loss``.
"""

import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from orchestrator.errors import ConfigError
from orchestrator.training.formats.safetensors import is_safetensors, read_safetensors
from orchestrator.training.state.progress import SUFFIX
from orchestrator.training.state.restore import first_line, load

# The control page stores each counter in 64 bits.
_LARGEST_COUNT = 2**63 - 1


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
        return load(source)
    except Exception as error:
        # The rest of torch's message says how to load the file unsafely.
        problem = first_line(error).partition(". ")[0]
        raise ConfigError(
            f"cannot start from {source}: {problem}; give a file that torch.load reads with its "
            "safe default"
        ) from error


def _checked(content: dict[str, Any], source: Path) -> dict[str, Any]:
    if "epoch" not in content or not any(str(key).endswith(SUFFIX) for key in content):
        raise ConfigError(
            f"cannot start from {source}: it must have an 'epoch' and a '<name>_state_dict', and "
            f"its keys are {', '.join(map(str, content))}"
        )
    for key in ("epoch", "step"):
        try:
            content[key] = operator.index(content.get(key, 0))
            if not 0 <= content[key] <= _LARGEST_COUNT:
                raise TypeError
        except TypeError:
            raise ConfigError(
                f"cannot start from {source}: its {key!r} is {content[key]!r}, not a whole number "
                "of at least 0"
            ) from None
    return content
