"""manifest.json: what a checkpoint holds, and the digests that prove it.

The format is docs/reference/checkpoint-format.md.
"""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self

from orchestrator.checkpoint.position import Position

FORMAT_VERSION = 1
MAXIMUM_MANIFEST_BYTES = 1 << 20
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# What a script has saved may have any names, in folders too, but none that leads elsewhere.
NAME_BELOW = re.compile(r"(?!\.{0,2}(?:/|$))[^/\0]+(?:/(?!\.{0,2}(?:/|$))[^/\0]+)*")


class Reason(StrEnum):
    """Why a checkpoint was made."""

    PERIODIC = "periodic"
    EMERGENCY = "emergency"
    CRASH = "crash"
    REQUESTED = "requested"
    FINAL = "final"
    IMPORTED = "imported"
    """From a file of another program: its state.pt has the classic form and nothing else."""


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and hexadecimal xxh3-128 digest of one file of the checkpoint."""

    bytes: int
    xxh3_128: str


@dataclass(frozen=True)
class Adopted:
    """Of a checkpoint that the script itself has saved (--adopt): what lies at ``path``.

    ``numbered``: its step is the number in its name, and not a count of such saves.
    ``written_here``: it was seen being written while a trainer of this run was running.
    ``kept``: the files are copies that lie beside the manifest, since the script overwrites them.
    ``modified_ns``: when each file was written last.
    """

    path: str
    is_directory: bool
    numbered: bool
    written_here: bool
    kept: bool
    modified_ns: dict[str, int]

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Parse and check. Raises ValueError, KeyError and TypeError."""
        return cls(
            path=_typed(content, "path", str),
            is_directory=_typed(content, "is_directory", bool),
            numbered=_typed(content, "numbered", bool),
            written_here=_typed(content, "written_here", bool),
            kept=_typed(content, "kept", bool),
            modified_ns={k: int(v) for k, v in _typed(content, "modified_ns", dict).items()},
        )


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json; ``time`` is UTC in ISO 8601, counts are of completed ones."""

    run_id: str
    step: int
    epoch: int
    reason: Reason
    metrics: dict[str, float]
    healthy: bool
    time: str
    files: dict[str, FileRecord]
    versions: dict[str, str]
    digests: dict[str, str] = field(default_factory=dict)
    """Of the parts of state.pt; a session that resumes compares them with what it has then."""
    doubts: list[str] = field(default_factory=list)
    """Why this may differ from the checkpoint of a run that was never interrupted."""
    framework: str | None = None
    """Whose trainer has saved it, in its own form; None for the state of a session."""
    adopted: Adopted | None = None

    @property
    def position(self) -> Position:
        """The steps and epochs that the saved state has completed."""
        return Position(self.step, self.epoch)

    @property
    def exactness(self) -> str:
        """EXACT, or APPROXIMATE and why."""
        return exactness_of(self.doubts)

    @property
    def total_bytes(self) -> int:
        """Size of all files together."""
        return sum(record.bytes for record in self.files.values())

    def to_json(self) -> bytes:
        """The text of manifest.json; non-finite metrics become strings, which JSON can hold."""
        content: dict[str, Any] = {"format_version": FORMAT_VERSION, **asdict(self)}
        content["metrics"] = json_metrics(self.metrics)
        for key in ("framework", "adopted"):
            if content[key] is None:
                del content[key]
        return json.dumps(content, indent=2, allow_nan=False).encode() + b"\n"

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Parse and check manifest.json. Raises ValueError with the reason it cannot be used."""
        manifest = cls.draft_from_json(text)
        if not manifest.files:
            raise ValueError("manifest.json names no files")
        return manifest

    @classmethod
    def draft_from_json(cls, text: bytes) -> Self:
        """Parse one that may still lack its files, as a snapshot's does. Raises ValueError."""
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"manifest.json is not JSON ({error})") from None
        if not isinstance(content, dict):
            raise ValueError("manifest.json is not an object")
        version = content.get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(f"manifest.json has format version {version!r}, not {FORMAT_VERSION}")
        try:
            framework = _typed(content, "framework", str) if "framework" in content else None
            adopted = content.get("adopted")
            is_plain = framework is None and adopted is None
            return cls(
                run_id=_typed(content, "run_id", str),
                step=_count(content, "step"),
                epoch=_count(content, "epoch"),
                reason=Reason(content["reason"]),
                metrics={k: float(v) for k, v in _typed(content, "metrics", dict).items()},
                healthy=_typed(content, "healthy", bool),
                time=_typed(content, "time", str),
                files=_file_records(
                    _typed(content, "files", dict), PLAIN_NAME if is_plain else NAME_BELOW
                ),
                versions=_typed(content, "versions", dict),
                digests=_typed(content, "digests", dict),
                doubts=list(map(str, _typed(content, "doubts", list))),
                framework=framework,
                adopted=None if adopted is None else Adopted.from_json(adopted),
            )
        except KeyError as error:
            raise ValueError(f"manifest.json lacks {error}") from None
        except (TypeError, OverflowError) as error:
            raise ValueError(f"manifest.json is malformed ({error})") from None


def exactness_of(doubts: Iterable[str]) -> str:
    """EXACT, or APPROXIMATE and each of the reasons once."""
    reasons = "; ".join(dict.fromkeys(doubts))
    return f"APPROXIMATE: {reasons}" if reasons else "EXACT"


def json_metrics(metrics: dict[str, float]) -> dict[str, float | str]:
    """Metrics as strict JSON can hold them: ``float()`` reads both forms back."""
    return {k: v if math.isfinite(v) else str(v) for k, v in metrics.items()}


def _typed(content: dict[str, Any], key: str, kind: type) -> Any:
    value = content[key]
    if not isinstance(value, kind):
        raise ValueError(f"manifest.json has {key} = {value!r}, not a {kind.__name__}")
    return value


def _count(content: dict[str, Any], key: str) -> int:
    value: int = _typed(content, key, int)
    if value < 0 or isinstance(value, bool):
        raise ValueError(f"manifest.json has {key} = {value!r}, not a count")
    return value


def _file_records(files: dict[str, Any], allowed: re.Pattern[str]) -> dict[str, FileRecord]:
    records = {}
    for name, record in files.items():
        # A manifest is data from the disk: a name with a slash would read or delete elsewhere.
        if not allowed.fullmatch(name):
            raise ValueError(f"manifest.json names a file outside its directory: {name!r}")
        records[name] = FileRecord(bytes=_count(record, "bytes"), xxh3_128=str(record["xxh3_128"]))
    return records
