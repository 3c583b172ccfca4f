"""Whether a script is in the middle of a save, as far as that can be seen from outside."""

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from orchestrator.adopt.unit_pattern import UnitPattern
from orchestrator.system.open_files import files_open_for_writing

# The parts of a directory or a unit are written with pauses between them.
BETWEEN_FILES_NS = 1_000_000_000
# What a file is called that is renamed once it is complete.
_TEMPORARY = re.compile(r"tmp|temp|part|incomplete", re.IGNORECASE)


@dataclass(frozen=True)
class OngoingSaves:
    """The saves under the names of a pattern that are under way."""

    pattern: UnitPattern

    def under_way(self) -> set[Path]:
        """Return the saves that have a file open for writing, or a part that was just written.

        A save that goes on for some time is found under the same path each time.
        """
        directories, paths = self.pattern.find()
        real = {Path(os.path.realpath(directory)) for directory in directories}
        found = set()
        for file in files_open_for_writing():
            if (save := self._save_of(file)) is not None:
                found.add(save)
            elif file.parent in real and _TEMPORARY.search(file.name):
                found.add(file)
        units = map(self.pattern.members, paths)
        in_parts = [members for members in units if len(members) > 1 or os.path.isdir(members[0])]
        for members in in_parts:
            files = self.pattern.look_at(members)
            if files is not None and time.time_ns() - files.last_change_ns < BETWEEN_FILES_NS:
                found.add(members[0])
        return found

    def _save_of(self, real_file: Path) -> Path | None:
        """Return the path of the save that a file, named without links, belongs to, or None."""
        for pattern in self.pattern.patterns:
            real_base = Path(os.path.realpath(pattern.base))
            if real_file.is_relative_to(real_base):
                file = pattern.base / real_file.relative_to(real_base)
                if pattern.covers(file):
                    path = Path(*file.parts[: len(pattern.base.parts) + len(pattern.levels)])
                    return next(iter(self.pattern.members(path)), path)
        return None
