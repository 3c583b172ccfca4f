"""Whose the files of a save are: a script is not told to resume from those of another user."""

import contextlib
import os
from pathlib import Path

from orchestrator.adopt.files import SavedFiles
from orchestrator.rundir.ownership import is_shared, owner_of_new_files, user_name
from orchestrator.rundir.paths import RunDir
from orchestrator.rundir.trust import trusted_users
from orchestrator.system.process_tree import descendants


class FileOwners:
    """The users whose files are the script's.

    They are this user, root, those that are trusted with the run, and those as whom the trainer
    runs. Members of a group of this user's that may write to the directory are no strangers either.
    """

    def __init__(self, run: RunDir) -> None:
        self._users = {os.geteuid(), 0, *trusted_users(run)}

    def stranger_of(self, files: SavedFiles) -> str | None:
        """Return the name of another user to whom a file belongs; None where there is none."""
        for path in (files.root / name for name in files.states):
            with contextlib.suppress(FileNotFoundError):  # the script has deleted it meanwhile
                facts = os.lstat(path)
                if facts.st_uid not in self._users and self._is_foreign(facts, path.parent):
                    return user_name(facts.st_uid)
        return None

    def _is_foreign(self, facts: os.stat_result, folder: Path) -> bool:
        if is_shared(facts, folder.stat()):
            return False
        # A command such as sudo is looked for only here, since it costs a look at all processes.
        self._users |= _users_of(descendants())
        return facts.st_uid not in self._users and facts.st_uid != owner_of_new_files(folder)


def _users_of(pids: list[int]) -> set[int]:
    users = set()
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended, or the system has no /proc
            users.add(os.stat(f"/proc/{pid}").st_uid)
    return users
