"""Whose the files of a save are: a script is not told to resume from those of another user."""

import contextlib
import os
import stat
from pathlib import Path

from orchestrator.adopt.files import SavedFiles
from orchestrator.rundir.ownership import is_shared, owner_of_new_files, user_name
from orchestrator.rundir.paths import RunDir
from orchestrator.rundir.trust import trusted_users
from orchestrator.system.process_tree import descendants
from orchestrator.system.real_trees import walk_tree
from orchestrator.system.regular_files import open_directory


class FileOwners:
    """The users whose files are the script's.

    They are this user, root, those that are trusted with the run, and those as whom the trainer
    runs. Members of a group of this user's that may write to the directory are no strangers either,
    where that directory is the one that the pattern names, or belongs to such a user: one that a
    stranger has made says nothing.
    """

    def __init__(self, run: RunDir) -> None:
        self._users = {os.geteuid(), 0, *trusted_users(run)}

    def stranger_of(self, files: SavedFiles) -> str | None:
        """Return the name of another user to whom something of it belongs; None without one.

        That may be a file, a link or what it names, a directory in it or one above it. Raises
        OSError where not all of it can be looked at, as when it is being deleted.
        """
        try:
            for member in files.members or (files,):
                self._check(member.path, *member.bases)
        except _ForeignError as error:
            return user_name(error.owner)
        return None

    def _check(self, path: Path, base: Path) -> None:
        """Check everything from the base down to the files. Raises _ForeignError and OSError."""
        with contextlib.ExitStack() as opened:
            folder = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
            opened.callback(os.close, folder)
            sharing = os.fstat(folder)
            *above, name = path.relative_to(base).parts
            for part in above:
                folder = open_directory(part, folder)
                opened.callback(os.close, folder)
                sharing = self._sharing_in(os.fstat(folder), sharing, base)
            facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
            sharing = self._sharing_in(facts, sharing, base)
            if not stat.S_ISDIR(facts.st_mode):
                return
            top = open_directory(name, folder)
            opened.callback(os.close, top)
            sharing_of = {"": self._sharing_in(os.fstat(top), sharing, base)}
            for entry in walk_tree(top):
                around = sharing_of[os.path.dirname(entry.name)]
                inside = self._sharing_in(entry.facts, around, base)
                if entry.is_directory:
                    sharing_of[entry.name] = inside
                elif stat.S_ISLNK(entry.facts.st_mode):
                    self._check_target(entry.name, entry.folder, around, base)

    def _check_target(self, name: str, folder: int, around: os.stat_result, base: Path) -> None:
        with contextlib.suppress(OSError):  # it leads to nothing that can be loaded
            self._sharing_in(os.stat(os.path.basename(name), dir_fd=folder), around, base)

    def _sharing_in(
        self, facts: os.stat_result, around: os.stat_result, base: Path
    ) -> os.stat_result:
        """Return the directory that says which group's files in this one are no stranger's.

        ``around`` is the one that says so for what has these facts. Raises _ForeignError.
        """
        if facts.st_uid in self._users:
            return facts if stat.S_ISDIR(facts.st_mode) else around
        if not is_shared(facts, around) and self._is_foreign(facts.st_uid, base):
            raise _ForeignError(facts.st_uid)
        return around

    def _is_foreign(self, user: int, base: Path) -> bool:
        # A command such as sudo is looked for only here, since it costs a look at all processes.
        self._users |= _users_of(descendants())
        return user not in self._users and user != owner_of_new_files(base)


class _ForeignError(Exception):
    """Something belongs to a stranger."""

    def __init__(self, owner: int) -> None:
        super().__init__(owner)
        self.owner = owner


def _users_of(pids: list[int]) -> set[int]:
    users = set()
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended, or the system has no /proc
            users.add(os.stat(f"/proc/{pid}").st_uid)
    return users
