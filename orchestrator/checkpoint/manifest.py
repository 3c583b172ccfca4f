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

from orchestrator.checkpoint.adopted import Adopted
from orchestrator.checkpoint.manifest_fields import (
    LARGEST_NUMBER,
    NAME_BELOW,
    JsonObject,
    count_of,
    is_path,
    text_of,
    typed,
)
from orchestrator.checkpoint.position import MAXIMUM_EPOCH, MAXIMUM_STEP, Position
from orchestrator.system.json_input import parse_object
from orchestrator.system.text import storable

FORMAT_VERSION = 1
MAXIMUM_MANIFEST_BYTES = 1 << 20
MAXIMUM_WORLD_SIZE = 1 << 16
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Reason(StrEnum):
    """Why a checkpoint was made."""

    PERIODIC = "periodic"
    EMERGENCY = "emergency"
    CRASH = "crash"
    REQUESTED = "requested"
    FINAL = "final"
    IMPORTED = "imported"
    """Made from a file of another program: its state.pt has the classic form and nothing else."""


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and hexadecimal xxh3-128 digest of one file of the checkpoint."""

    bytes: int
    xxh3_128: str


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json.

    ``step`` and ``epoch`` count completed ones; ``time`` is UTC in ISO 8601.
    """

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
    """Digests of the parts of state.pt; a session compares them with its state after resuming."""
    classes: dict[str, str] = field(default_factory=dict)
    """The class of each registered object, by its name; empty where they are not known."""
    doubts: list[str] = field(default_factory=list)
    """Reasons why this may differ from the checkpoint of a run that was never interrupted."""
    framework: str | None = None
    """The framework whose trainer has saved the files; None for the state of a session."""
    adopted: Adopted | None = None
    """What the script has saved for itself; None for what a session or a framework has saved."""
    start: dict[str, Any] | None = None
    """How the training was started (rundir/start.py); None in older checkpoints."""
    options: dict[str, dict[str, Any]] | None = None
    """The options of each optimizer as the script had set them, before any step."""
    world_size: int = 1
    """The number of ranks that have trained it together."""
    differing: list[str] = field(default_factory=list)
    """The names of tensors that all ranks should hold equally, and did not."""
    replicas: dict[str, str] = field(default_factory=dict)
    """Digests of what all ranks should hold equally; only in the draft of a rank's snapshot."""

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
        """Return the text of manifest.json; non-finite metrics become strings, as JSON needs."""
        content: JsonObject = {"format_version": FORMAT_VERSION, **asdict(self)}
        content["metrics"] = json_metrics(self.metrics)
        for key in ("framework", "adopted", "classes", "start", "options", "differing", "replicas"):
            if not content[key]:
                del content[key]
        if (size := content.pop("world_size")) != 1:
            content["world"] = {"size": size}
        if self.adopted is not None:
            content["adopted"] = {k: v for k, v in asdict(self.adopted).items() if v is not None}
        return json.dumps(content, indent=2, allow_nan=False).encode() + b"\n"

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Parse and check manifest.json. Raises ValueError with the reason it cannot be used."""
        manifest = cls.draft_from_json(text)
        if not manifest.files:
            raise ValueError("manifest.json names no files")
        if manifest.adopted is not None:
            manifest.adopted.check_names(manifest.files)
        return manifest

    @classmethod
    def draft_from_json(cls, text: bytes) -> Self:
        """Parse and check a text that may still lack files, as a snapshot's. Raises ValueError."""
        try:
            content: JsonObject = parse_object(text, has_paths=True)
        except ValueError as error:
            raise ValueError(f"manifest.json is not JSON ({error})") from None
        version = content.get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(f"manifest.json has format version {version!r}, not {FORMAT_VERSION}")
        try:
            framework = None
            if "framework" in content:
                framework = text_of(typed(content, "framework", str))
            adopted = None
            if content.get("adopted") is not None:
                adopted = Adopted.from_json(typed(content, "adopted", dict))
            of_session = framework is None and adopted is None
            return cls(
                run_id=storable(typed(content, "run_id", str)),
                step=count_of(content, "step", MAXIMUM_STEP),
                epoch=count_of(content, "epoch", MAXIMUM_EPOCH),
                reason=Reason(typed(content, "reason", str)),
                metrics={text_of(k): float(v) for k, v in typed(content, "metrics", dict).items()},
                healthy=typed(content, "healthy", bool),
                time=text_of(typed(content, "time", str)),
                files=_file_records(
                    typed(content, "files", dict), PLAIN_NAME if of_session else NAME_BELOW
                ),
                versions=_texts(typed(content, "versions", dict)),
                digests=_texts(typed(content, "digests", dict)),
                classes=_texts(typed(content, "classes", dict)) if "classes" in content else {},
                doubts=list(map(text_of, typed(content, "doubts", list))),
                framework=framework,
                adopted=adopted,
                start=typed(content, "start", dict) if "start" in content else None,
                options=_options(typed(content, "options", dict)) if "options" in content else None,
                world_size=_world_size(content),
                differing=list(map(text_of, typed(content, "differing", list)))
                if "differing" in content
                else [],
                replicas=_texts(typed(content, "replicas", dict)) if "replicas" in content else {},
            )
        except KeyError as error:
            raise ValueError(f"manifest.json lacks {error}") from None
        except (TypeError, OverflowError) as error:
            raise ValueError(f"manifest.json is malformed ({error})") from None


def exactness_of(doubts: Iterable[str]) -> str:
    """Return EXACT, or APPROXIMATE with each of the reasons once."""
    reasons = "; ".join(dict.fromkeys(doubts))
    return f"APPROXIMATE: {reasons}" if reasons else "EXACT"


def json_metrics(metrics: dict[str, float]) -> dict[str, float | str]:
    """Return metrics as strict JSON can hold them; ``float()`` reads both forms back."""
    return {k: v if math.isfinite(v) else str(v) for k, v in metrics.items()}


def _texts(content: JsonObject) -> dict[str, str]:
    return {text_of(key): text_of(value) for key, value in content.items()}


def _world_size(content: JsonObject) -> int:
    if "world" not in content:
        return 1
    size = count_of(typed(content, "world", dict), "size", MAXIMUM_WORLD_SIZE)
    if size < 1:
        raise ValueError("manifest.json has a world of no rank")
    return size


def _options(content: JsonObject) -> dict[str, dict[str, Any]]:
    options: dict[str, dict[str, Any]] = {}
    for name, values in content.items():
        if not isinstance(values, dict):
            raise ValueError(f"manifest.json has options of {name!r} that are not an object")
        options[name] = values
    return options


def _file_records(files: dict[str, JsonObject], allowed: re.Pattern[str]) -> dict[str, FileRecord]:
    records = {}
    for name, record in files.items():
        # A manifest is data from the disk: a name with a slash would read or delete elsewhere.
        if not allowed.fullmatch(name) or not is_path(name):
            raise ValueError(f"manifest.json names a file outside its directory: {name!r}")
        records[name] = FileRecord(
            bytes=count_of(record, "bytes", LARGEST_NUMBER), xxh3_128=str(record["xxh3_128"])
        )
    return records
