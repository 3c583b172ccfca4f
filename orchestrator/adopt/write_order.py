"""Whether the parts of a unit that is written over again and again are of one save.

A script writes the parts of each save in the same order. Where a part that comes early is newer
than one that comes late, the next save has begun.
"""

import time
from collections.abc import Mapping
from pathlib import Path

from orchestrator.adopt.file_check import IncompleteError
from orchestrator.adopt.files import SavedFiles
from orchestrator.adopt.save_check import Completeness

# While the order is unknown, parts that rest for this long, and for longer than it took to write
# them, are of one save.
REST_NS = 1_000_000_000


class WriteOrder:
    """The order in which the running trainer writes the parts of a unit, as far as it is seen."""

    def __init__(self) -> None:
        self._first: dict[Path, set[str]] = {}

    def forget(self) -> None:
        """Forget what was seen: another trainer begins."""
        self._first.clear()

    def is_known(self, path: Path, before: Mapping[str, int]) -> bool:
        """Return whether anything tells the order; ``before`` has the times of an older version."""
        return bool(before) or path in self._first

    def learn(self, files: SavedFiles, before: Mapping[str, int]) -> None:
        """Learn from a look at a save under way: what is new was written before what is not."""
        new = _new_parts(files, before)
        if 0 < len(new) < len(files.paths):
            self._first[files.path] = new

    def check(self, files: SavedFiles, before: Mapping[str, int]) -> Completeness:
        """Return whether all parts are of one save."""
        now = files.times_of_members
        ranks = _times_of_parts(files, before)
        if not ranks and (first := self._first.get(files.path)):
            ranks = {name: int(name not in first) for name in now}
        if not ranks:
            spread_ns = max(now.values()) - min(now.values())
            rest_ns = time.time_ns() - max(now.values())
            doubt = "it is not known yet in which order its files are written"
            return Completeness(rest_ns > max(spread_ns, REST_NS), doubt)
        for early in ranks:
            for late in ranks:
                if ranks[early] < ranks[late] and now[early] > now[late]:
                    return Completeness(
                        False, f"{early} is newer than {late}, which was written after it before"
                    )
        return Completeness(True)


def check_parts_new(files: SavedFiles, before: Mapping[str, int]) -> None:
    """Check that no part of a unit is still that of an earlier save. Raises IncompleteError."""
    new = _new_parts(files, before)
    if new and (old := files.times_of_members.keys() - new):
        raise IncompleteError(f"it is partly overwritten: {min(new)} is new, {min(old)} is not")


def _new_parts(files: SavedFiles, before: Mapping[str, int]) -> set[str]:
    old = _times_of_parts(files, before)
    return {name for name, time_ns in files.times_of_members.items() if old.get(name) != time_ns}


def _times_of_parts(files: SavedFiles, times: Mapping[str, int]) -> dict[str, int]:
    """Return when each part of a unit was written, by the times of its files in some version."""
    found = {}
    for part in files.times_of_members:
        of_part = [t for name, t in times.items() if f"{name}/".startswith(f"{part}/")]
        if of_part:
            found[part] = max(of_part)
    return found
