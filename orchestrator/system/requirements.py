"""The oldest version that works of each package that orchestrator needs, and the check for torch.

The table stands in the code because pip's metadata are not at hand in a plain source folder, and
because a package can be replaced after pip has checked it.
"""

import re

from orchestrator.errors import ConfigError

Version = tuple[int, ...]

LEAST_VERSIONS: dict[str, Version] = {
    "jinja2": (3, 1),
    "psutil": (6,),
    "rich": (13, 7),
    "structlog": (24, 1),
    "tenacity": (9,),
    "torch": (2, 7),  # 2.6 lacks torch.utils.serialization, which aligns tensors in a snapshot
    "watchdog": (6,),
    "xxhash": (3, 4),
}


def too_old(package: str, installed: str) -> str | None:
    """Return the oldest version that works where ``installed`` is older than that, else None.

    A version that does not begin with numbers counts as new enough.
    """
    least = LEAST_VERSIONS[package]
    numbers = re.match(r"\d+(\.\d+)*", installed)
    if numbers is None or tuple(map(int, numbers[0].split("."))) >= least:
        return None
    return ".".join(map(str, least))


def check_torch(installed: str) -> None:
    """Raise ConfigError where the version ``installed`` of torch is too old to train with."""
    if least := too_old("torch", installed):
        raise ConfigError(
            f"cannot train with torch {installed}: orchestrator needs torch {least} or newer; "
            f"install a newer one where this script runs (pip install 'torch>={least}'), "
            "then run again"
        )
