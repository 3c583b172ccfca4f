"""Who besides its user may change a run directory or a file (docs/explanation/security.md)."""

import contextlib
import grp
import os
import pwd
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

from orchestrator.errors import ConfigError


def refuse_unsafe(directories: list[Path]) -> None:
    """Refuse directories that every user may write to, and links to directories.

    The first is the run directory, which may itself be reached through a link. Raises ConfigError.
    """
    for number, directory in enumerate(directories):
        if number > 0 and os.path.islink(directory):
            raise ConfigError(
                f"cannot use the run directory {directories[0]}: {directory} is a symbolic link, "
                "which could lead elsewhere; put the whole run there with --run-dir"
            )
        mode = directory.stat().st_mode
        if mode & stat.S_IWOTH and _has_permissions(directory):
            raise ConfigError(
                f"cannot use the run directory {directories[0]}: every user of this machine may "
                f"write to {directory}; take that right away with `chmod o-w {directory}`, or "
                "name a directory below it with --run-dir"
            )


def refuse_writable(run_dir: Path, names: Iterable[str]) -> None:
    """Refuse files and directories below the run directory that every user may write to.

    Raises ConfigError.
    """
    for name in names:
        with contextlib.suppress(OSError):  # it was deleted
            if not _is_writable_by_all(run_dir, name):
                continue
            if not _has_permissions(run_dir):
                return
            raise ConfigError(
                f"cannot resume in {run_dir}: every user of this machine may write to {name} "
                f"there; look at what it holds, and take that right away with "
                f"`chmod -R o-w {run_dir}`"
            )


def _is_writable_by_all(run_dir: Path, name: str) -> bool:
    """Return whether every user may write to it, and may enter the directories on the way."""
    mode = os.lstat(run_dir / name).st_mode
    if not mode & stat.S_IWOTH or stat.S_ISLNK(mode):
        return False
    return all((run_dir / above).stat().st_mode & stat.S_IXOTH for above in Path(name).parents)


def others_who_may_write(directory: Path) -> str | None:
    """Return who else may change the run, as a sentence for its user; None if only root may."""
    try:
        facts = directory.stat()
    except OSError:
        return None
    if facts.st_uid not in (os.geteuid(), 0):
        return (
            f"the run directory {directory} belongs to the user {user_name(facts.st_uid)}, who can "
            "change what this run loads"
        )
    if (group := group_that_may_write(facts)) is not None:
        return (
            f"every member of the group {group} can change what this run loads from the run "
            f"directory {directory}"
        )
    return None


def group_that_may_write(facts: os.stat_result) -> str | None:
    """Return the group that may write to a file or directory, if others than its owner are in it.

    The private group of the owner and that of root are passed over.
    """
    group = _group(facts.st_gid)
    is_shared = facts.st_mode & stat.S_IWGRP and group not in (user_name(facts.st_uid), "root")
    return group if is_shared else None


def is_written_by_one(directory: os.stat_result) -> bool:
    """Return whether the directory is this user's or root's, and nobody else may write to it."""
    is_own = directory.st_uid in (os.geteuid(), 0)
    may_others = directory.st_mode & stat.S_IWOTH or group_that_may_write(directory) is not None
    return is_own and not may_others


def stranger_behind(path: Path, opened: os.stat_result) -> str | None:
    """Return who besides this user and root may have written a file, or placed a link to it.

    ``opened`` are the facts of what was opened at ``path``. None if nobody may. Raises OSError.
    """
    if (user := stranger_of(opened) or stranger_of(path.lstat())) is not None:
        return user
    if opened.st_mode & stat.S_IWOTH and _has_permissions(path.parent):
        return "every user, as its permissions are"
    return None


def stranger_of(facts: os.stat_result) -> str | None:
    """Return which user something belongs to, if that is neither this one nor root."""
    is_strange = facts.st_uid not in (os.geteuid(), 0)
    return f"the user {user_name(facts.st_uid)}" if is_strange else None


def is_shared(facts: os.stat_result, directory: os.stat_result) -> bool:
    """Return whether a group of this user's that may write to the directory has the file.

    Where every user may write to it, the set-group-ID bit of the directory gives the group away.
    """
    writers = directory.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    has_group = writers == stat.S_IWGRP and facts.st_gid == directory.st_gid
    return has_group and facts.st_gid in (os.getegid(), *os.getgroups())


def owner_of_new_files(directory: Path) -> int:
    """Return whose the filesystem says this user's files are: some show one owner for all."""
    facts = _facts_of_new_file(directory)
    return os.geteuid() if facts is None else facts.st_uid


def _has_permissions(directory: Path) -> bool:
    """Return whether the filesystem keeps permissions: some show the same ones for everything."""
    facts = _facts_of_new_file(directory)
    return facts is None or not facts.st_mode & stat.S_IWOTH


def _facts_of_new_file(directory: Path) -> os.stat_result | None:
    """Return what the filesystem shows of a new file; None where none can be made."""
    # By its descriptor: at its path another user could have put another one by now.
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=directory) as file:
        return os.fstat(file.fileno())
    return None


def user_name(number: int) -> str:
    """Return the name of an account, or its number where it has none here."""
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(number).pw_name
    return str(number)


def _group(number: int) -> str:
    with contextlib.suppress(KeyError):
        return grp.getgrgid(number).gr_name
    return str(number)
