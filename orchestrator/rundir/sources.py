"""What a training is made from: its configuration files, and its script's repository."""

import contextlib
import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

CONFIGURATION_SUFFIXES = frozenset(
    {".yaml", ".yml", ".json", ".jsonnet", ".toml", ".ini", ".cfg", ".conf", ".gin", ".py"}
)
MAXIMUM_CONFIGURATION_BYTES = 4 << 20
DIGEST_CHARACTERS = 16
GIT_SECONDS = 2.0


def configuration_of(command: list[str], script: Path | None) -> dict[str, str]:
    """Return the digest of each configuration file that a command names, by its name there."""
    digests = {}
    for word in command[1:]:
        name = word.rpartition("=")[2] if word.startswith("-") else word.removeprefix("@")
        path = Path(name)
        with contextlib.suppress(OSError, ValueError):
            if path.suffix.lower() not in CONFIGURATION_SUFFIXES or not os.path.isfile(path):
                continue
            if path.resolve() != script and path.stat().st_size <= MAXIMUM_CONFIGURATION_BYTES:
                digests[name] = short_digest(path.read_bytes())
    return digests


def git_state(directory: Path) -> dict[str, Any] | None:
    """Return ``revision`` and ``dirty`` of the repository around a directory; None without one."""
    try:
        revision = _git(directory, "rev-parse", "HEAD").strip()
        changes = _git(directory, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"revision": revision, "dirty": bool(changes.strip())}


def _git(directory: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(directory), *words],
        capture_output=True,
        check=True,
        text=True,
        timeout=GIT_SECONDS,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
    ).stdout


def short_digest(data: bytes) -> str:
    """Return a digest that tells contents apart and gives none away."""
    return hashlib.sha256(data).hexdigest()[:DIGEST_CHARACTERS]
