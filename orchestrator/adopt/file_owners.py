"""Whose the files of a save are: a script is not told to resume from those of another user."""

import contextlib
import os
from collections import deque
from pathlib import Path

from orchestrator.adopt.files import SavedFiles
from orchestrator.rundir.paths import RunDir
from orchestrator.rundir.tree_owners import ForeignError, TreeOwners
from orchestrator.rundir.trust import trusted_users
from orchestrator.system.process_tree import descendants


class FileOwners(TreeOwners):
    """The users whose files are the script's: also those trusted with the run, and the trainer's.

    The trainer may run as others, by a command such as sudo.
    """

    def __init__(self, run: RunDir) -> None:
        super().__init__(trusted_users(run))

    def stranger_of(self, files: SavedFiles) -> str | None:
        """Return the name of another user to whom something of it belongs; None without one.

        That may be a file, a link or what it names, a directory in it or one above it. Raises
        OSError where not all of it can be looked at, as when it is being deleted.
        """
        try:
            for member in files.members or (files,):
                deque(self.entries(member.path, *member.bases), maxlen=0)
        except ForeignError as error:
            return error.user
        return None

    def _is_foreign(self, user: int, base: Path) -> bool:
        if not super()._is_foreign(user, base):
            return False
        # Only here, since it costs a look at all processes.
        self._users |= _users_of(descendants())
        return user not in self._users


def _users_of(pids: list[int]) -> set[int]:
    users = set()
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended, or the system has no /proc
            users.add(os.stat(f"/proc/{pid}").st_uid)
    return users
