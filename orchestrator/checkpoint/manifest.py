"""manifest.json: what a checkpoint holds, and the digests that prove it.

The format is docs/reference/checkpoint-format.md.
"""

import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self, TypeVar

from orchestrator.checkpoint.position import MAXIMUM_EPOCH, MAXIMUM_STEP, Position
from orchestrator.system.json_input import parse_object
from orchestrator.system.text import storable

FORMAT_VERSION = 1
MAXIMUM_MANIFEST_BYTES = 1 << 20
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# A script's files may have any names, in folders too, but none that leads elsewhere.
NAME_BELOW = re.compile(r"(?!\.{0,2}(?:/|$))[^/\0]+(?:/(?!\.{0,2}(?:/|$))[^/\0]+)*")

JsonObject = dict[str, object]
"""An object of manifest.json that has not been checked yet."""

T = TypeVar("T")


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
class Adopted:
    """What the script itself has saved at ``path`` (--adopt), as the manifest describes it."""

    path: str
    is_directory: bool
    numbered: bool
    """Whether the step is the number in the name, and not a count of such saves."""
    written_here: bool
    """Whether it was seen being written while a trainer of this run was running."""
    kept: bool
    """Whether the files are copies beside the manifest, since the script overwrites its own."""
    modified_ns: dict[str, int]
    """The modification time of each file."""
    number: int | None = None
    """The number in the name, if there is one."""
    path_from_run: str | None = None
    """The path relative to the run directory, for a project that is moved as a whole."""

    @classmethod
    def from_json(cls, content: JsonObject) -> Self:
        """Parse and check the object. Raises ValueError, KeyError and TypeError."""
        relative = content.get("path_from_run")
        has_number = content.get("number") is not None
        return cls(
            number=_count(content, "number") if has_number else None,
            path=_path_of_files(_typed(content, "path", str), absolute=True),
            is_directory=_typed(content, "is_directory", bool),
            numbered=_typed(content, "numbered", bool),
            written_here=_typed(content, "written_here", bool),
            kept=_typed(content, "kept", bool),
            modified_ns={k: int(v) for k, v in _typed(content, "modified_ns", dict).items()},
            path_from_run=None
            if relative is None
            else _path_of_files(_typed(content, "path_from_run", str), absolute=False),
        )

    def check_names(self, files: Iterable[str]) -> None:
        """Check that these files of the manifest are the ones described here. Raises ValueError."""
        if self.modified_ns.keys() != set(files):
            raise ValueError("manifest.json has modified_ns for other files than it names")
        if not self.is_directory and self.modified_ns.keys() != {os.path.basename(self.path)}:
            raise ValueError(f"manifest.json names other files than {self.path!r}")


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
        for key in ("framework", "adopted", "classes", "start", "options"):
            if not content[key]:
                del content[key]
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
                framework = _text(_typed(content, "framework", str))
            adopted = None
            if content.get("adopted") is not None:
                adopted = Adopted.from_json(_typed(content, "adopted", dict))
            of_session = framework is None and adopted is None
            return cls(
                run_id=storable(_typed(content, "run_id", str)),
                step=_count(content, "step", MAXIMUM_STEP),
                epoch=_count(content, "epoch", MAXIMUM_EPOCH),
                reason=Reason(_typed(content, "reason", str)),
                metrics={_text(k): float(v) for k, v in _typed(content, "metrics", dict).items()},
                healthy=_typed(content, "healthy", bool),
                time=_text(_typed(content, "time", str)),
                files=_file_records(
                    _typed(content, "files", dict), PLAIN_NAME if of_session else NAME_BELOW
                ),
                versions=_texts(_typed(content, "versions", dict)),
                digests=_texts(_typed(content, "digests", dict)),
                classes=_texts(_typed(content, "classes", dict)) if "classes" in content else {},
                doubts=list(map(_text, _typed(content, "doubts", list))),
                framework=framework,
                adopted=adopted,
                start=_typed(content, "start", dict) if "start" in content else None,
                options=_options(_typed(content, "options", dict))
                if "options" in content
                else None,
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


def _typed(content: JsonObject, key: str, kind: type[T]) -> T:
    value = content[key]
    if not isinstance(value, kind):
        raise ValueError(f"manifest.json has {key} = {value!r}, not a {kind.__name__}")
    return value


def _path_of_files(text: str, *, absolute: bool) -> str:
    """Return a path of a script's files in its only form, without links of ``..`` in the middle."""
    parts = text.split("/")
    below = "/".join(parts[parts.count("..") :] if not absolute else parts[1:])
    if os.path.isabs(text) != absolute or not NAME_BELOW.fullmatch(below) or not _is_path(text):
        raise ValueError(f"manifest.json has the path {text!r}, which is not in its plain form")
    return text


def _text(value: object) -> str:
    """Return a text that every encoder takes: lone surrogates, which only paths need, escaped."""
    return str(value).encode(errors="backslashreplace").decode()


def _texts(content: JsonObject) -> dict[str, str]:
    return {_text(key): _text(value) for key, value in content.items()}


def _options(content: JsonObject) -> dict[str, dict[str, Any]]:
    options: dict[str, dict[str, Any]] = {}
    for name, values in content.items():
        if not isinstance(values, dict):
            raise ValueError(f"manifest.json has options of {name!r} that are not an object")
        options[name] = values
    return options


def _count(content: JsonObject, key: str, maximum: int | None = None) -> int:
    value = _typed(content, key, int)
    if maximum is not None and value > maximum:
        raise ValueError(f"manifest.json has {key} = {value}, and the most is {maximum}")
    if value < 0 or isinstance(value, bool):
        raise ValueError(f"manifest.json has {key} = {value!r}, not a count")
    return value


def _is_path(name: str) -> bool:
    """Return whether the system can encode a name."""
    try:
        os.fsencode(name)
    except ValueError:
        return False
    return True


def _file_records(files: dict[str, JsonObject], allowed: re.Pattern[str]) -> dict[str, FileRecord]:
    records = {}
    for name, record in files.items():
        # A manifest is data from the disk: a name with a slash would read or delete elsewhere.
        if not allowed.fullmatch(name) or not _is_path(name):
            raise ValueError(f"manifest.json names a file outside its directory: {name!r}")
        records[name] = FileRecord(bytes=_count(record, "bytes"), xxh3_128=str(record["xxh3_128"]))
    return records
