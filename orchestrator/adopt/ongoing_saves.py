"""Whether a script is in the middle of a save, as far as that can be seen from outside."""

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from orchestrator.adopt.files import SavedFiles
from orchestrator.adopt.pattern import Pattern
from orchestrator.system.open_files import files_open_for_writing

# The parts of a directory are written with pauses between them.
BETWEEN_FILES_NS = 1_000_000_000
# What a file is called that is renamed once it is complete.
_TEMPORARY = re.compile(r"tmp|temp|part|incomplete", re.IGNORECASE)


@dataclass(frozen=True)
class OngoingSaves:
    """The saves under the names of a pattern that are under way."""

    pattern: Pattern

    def is_under_way(self) -> bool:
        """Return whether a file of a save is open for writing, or a directory has just changed."""
        directories, paths = self.pattern.find()
        real = {Path(os.path.realpath(directory)) for directory in directories}
        base, real_base = self.pattern.base, Path(os.path.realpath(self.pattern.base))
        for file in files_open_for_writing():
            if file.is_relative_to(real_base) and self.pattern.covers(
                base / file.relative_to(real_base)
            ):
                return True
            if file.parent in real and _TEMPORARY.search(file.name):
                return True
        newest = (SavedFiles.at(path) for path in paths if path.is_dir())
        changed_ns = max((files.last_change_ns for files in newest if files), default=0)
        return time.time_ns() - changed_ns < BETWEEN_FILES_NS
