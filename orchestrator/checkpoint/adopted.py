"""What a script has saved for itself, as the manifest of its seal describes it."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from orchestrator.checkpoint.manifest_fields import (
    LARGEST_NUMBER,
    NAME_BELOW,
    JsonObject,
    count_of,
    is_path,
    text_of,
    typed,
)

# Each file is compared with each member.
MOST_MEMBERS = 100


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
    members: dict[str, str] | None = None
    """What the script writes together, ``path`` first: by name, relative to a common folder."""

    @classmethod
    def from_json(cls, content: JsonObject) -> Self:
        """Parse and check the object. Raises ValueError, KeyError and TypeError."""
        relative = content.get("path_from_run")
        has_number = content.get("number") is not None
        return cls(
            number=count_of(content, "number", LARGEST_NUMBER) if has_number else None,
            path=_path_of_files(typed(content, "path", str), absolute=True),
            is_directory=typed(content, "is_directory", bool),
            numbered=typed(content, "numbered", bool),
            written_here=typed(content, "written_here", bool),
            kept=typed(content, "kept", bool),
            modified_ns=_times(typed(content, "modified_ns", dict)),
            path_from_run=None
            if relative is None
            else _path_of_files(typed(content, "path_from_run", str), absolute=False),
            members=_members(typed(content, "members", dict)) if "members" in content else None,
        )

    def folder_from(self, path: Path) -> Path:
        """Return the directory that its files are named relative to, if it is at ``path``."""
        if self.members is not None:
            return path.parents[next(iter(self.members.values())).count("/")]
        return path if self.is_directory else path.parent

    def paths_from(self, path: Path) -> dict[str, Path]:
        """Return what the script wrote together, by name, if the first of it is at ``path``."""
        if self.members is None:
            return {"path": path}
        folder = self.folder_from(path)
        return {name: folder / member for name, member in self.members.items()}

    def check_names(self, files: Iterable[str]) -> None:
        """Check that these files of the manifest are the ones described here. Raises ValueError."""
        if self.modified_ns.keys() != set(files):
            raise ValueError("manifest.json has modified_ns for other files than it names")
        if self.members is not None:
            self._check_members(self.members)
        elif not self.is_directory and self.modified_ns.keys() != {os.path.basename(self.path)}:
            raise ValueError(f"manifest.json names other files than {self.path!r}")

    def _check_members(self, members: dict[str, str]) -> None:
        paths = list(members.values())
        for text in (self.path, self.path_from_run or self.path):
            if not f"/{text}/".endswith(f"/{paths[0]}/"):
                raise ValueError(f"manifest.json has other members than {text!r}")
        owners = [[p for p in paths if f"{name}/".startswith(f"{p}/")] for name in self.modified_ns]
        # Each file is of one member, and each member has files: so none is inside of another.
        if any(len(found) != 1 for found in owners) or {p for p, *_ in owners} != set(paths):
            raise ValueError("manifest.json names other files than those of its members")


def _path_of_files(text: str, *, absolute: bool) -> str:
    """Return a path of a script's files in its only form, without links of ``..`` in the middle."""
    parts = text.split("/")
    below = "/".join(parts[parts.count("..") :] if not absolute else parts[1:])
    if os.path.isabs(text) != absolute or not NAME_BELOW.fullmatch(below) or not is_path(text):
        raise ValueError(f"manifest.json has the path {text!r}, which is not in its plain form")
    return text


def _times(content: JsonObject) -> dict[str, int]:
    times = {name: typed(content, name, int) for name in content}
    if any(abs(time) > LARGEST_NUMBER for time in times.values()):
        raise ValueError("manifest.json has a modified_ns that is no time")
    return times


def _members(content: JsonObject) -> dict[str, str]:
    members = {text_of(n): _path_of_files(typed(content, n, str), absolute=False) for n in content}
    leads_elsewhere = any(".." in path.split("/") for path in members.values())
    if not 2 <= len(set(members.values())) == len(members) <= MOST_MEMBERS or leads_elsewhere:
        raise ValueError(f"manifest.json has the members {content!r}, which are no unit")
    return members
