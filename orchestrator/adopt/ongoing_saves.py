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

    def is_under_way(self) -> bool:
        """Return whether a file of a save is open for writing, or a part was just written."""
        directories, paths = self.pattern.find()
        real = {Path(os.path.realpath(directory)) for directory in directories}
        for file in files_open_for_writing():
            if self._covers(file) or (file.parent in real and _TEMPORARY.search(file.name)):
                return True
        units = map(self.pattern.members, paths)
        in_parts = [members for members in units if len(members) > 1 or os.path.isdir(members[0])]
        saves = map(self.pattern.look_at, in_parts)
        changed_ns = max((files.last_change_ns for files in saves if files), default=0)
        return time.time_ns() - changed_ns < BETWEEN_FILES_NS

    def _covers(self, real_file: Path) -> bool:
        """Return whether a file, named without links, is one of a save."""
        for pattern in self.pattern.patterns:
            real_base = Path(os.path.realpath(pattern.base))
            if real_file.is_relative_to(real_base):
                file = pattern.base / real_file.relative_to(real_base)
                if pattern.covers(file):
                    return True
        return False
