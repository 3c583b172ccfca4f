"""Whose everything is that a script or a framework has written, from its own directory down."""

import contextlib
import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from orchestrator.rundir.ownership import is_shared, owner_of_new_files, user_name
from orchestrator.system.real_trees import Entry, opened_directory, walk_tree
from orchestrator.system.regular_files import open_directory


class ForeignError(Exception):
    """Something belongs to a stranger, whose name is ``user``."""

    def __init__(self, user: str, path: Path) -> None:
        super().__init__(f"{path} belongs to {user}")
        self.user = user


class TreeOwners:
    """The users whose files count: this user, root and the given ones.

    Members of a group of this user's that may write to the directory count too, where that
    directory is the base, or belongs to such a user: one that a stranger has made says nothing.
    """

    def __init__(self, users: Collection[int] = ()) -> None:
        self._users = {os.geteuid(), 0, *users}
        self._owners_shown: dict[Path, int] = {}

    def entries(self, path: Path, base: Path) -> Iterator[Entry]:
        """Yield the file at ``path``, or everything in the directory there; no link is followed.

        Each is checked before, and so is every directory below ``base``. Raises ForeignError for
        what is a stranger's, and OSError.
        """
        with contextlib.ExitStack() as opened:
            folder = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
            opened.callback(os.close, folder)
            sharing, place = os.fstat(folder), base
            *above, name = path.relative_to(base).parts
            for part in above:
                folder = open_directory(part, folder)
                opened.callback(os.close, folder)
                place /= part
                sharing = self._sharing_in(place, os.fstat(folder), sharing, base)
            facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if not stat.S_ISDIR(facts.st_mode):
                self._sharing_in(path, facts, sharing, base)
                yield Entry(name, facts, folder)
                return
            top = opened.enter_context(opened_directory(name, folder))
            sharing_of = {"": self._sharing_in(path, os.fstat(top), sharing, base)}
            for entry in walk_tree(top):
                around = sharing_of[os.path.dirname(entry.name)]
                inside = self._sharing_in(path / entry.name, entry.facts, around, base)
                if entry.is_directory:
                    sharing_of[entry.name] = inside
                elif stat.S_ISLNK(entry.facts.st_mode):
                    self._check_target(path / entry.name, entry.folder, around, base)
                yield entry

    def _check_target(self, link: Path, folder: int, around: os.stat_result, base: Path) -> None:
        with contextlib.suppress(OSError):  # it leads to nothing that can be loaded
            self._sharing_in(link, os.stat(link.name, dir_fd=folder), around, base)

    def _sharing_in(
        self, path: Path, facts: os.stat_result, around: os.stat_result, base: Path
    ) -> os.stat_result:
        """Return the directory that says which group's files in this one are no stranger's.

        ``around`` is the one that says so for what has these facts. Raises ForeignError.
        """
        if facts.st_uid in self._users:
            return facts if stat.S_ISDIR(facts.st_mode) else around
        if not is_shared(facts, around) and self._is_foreign(facts.st_uid, base):
            raise ForeignError(user_name(facts.st_uid), path)
        return around

    def _is_foreign(self, user: int, base: Path) -> bool:
        if base not in self._owners_shown:  # each answer costs a new file
            self._owners_shown[base] = owner_of_new_files(base)
        return user not in self._users and user != self._owners_shown[base]
