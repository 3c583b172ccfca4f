"""Whether to resume from files of a run that another user has made (docs/explanation/security.md).

Ownership is the fact that tells: a copy belongs to whoever made it, so a run that is moved to
another machine or place stays its user's own.
"""

import contextlib
import os
import stat
from collections import defaultdict
from glob import glob

from orchestrator.errors import ConfigError
from orchestrator.rundir.ownership import (
    is_shared,
    owner_of_new_files,
    refuse_writable,
    user_name,
)
from orchestrator.rundir.paths import RunDir
from orchestrator.rundir.records import MAXIMUM_JSON_BYTES
from orchestrator.system.durable import write_json
from orchestrator.system.json_input import parse_object
from orchestrator.system.regular_files import open_regular

TRUST_VARIABLE = "ORCHESTRATOR_TRUST"
_FORMAT_VERSION = 1
# What a start reads and acts on. A file gets into a directory only by who may write to that, so the
# directories of attempts and checkpoints stand for their content.
_HISTORY = ("*.json*", "attempts/*", "checkpoints/step-*", "checkpoints/step-*/*")


def refuse_foreign(run: RunDir, *, trusted: bool) -> None:
    """Refuse to resume from files that every user may write to, or of users who are not trusted.

    With ``trusted`` these users are recorded, and later starts accept them. Raises ConfigError.
    """
    refuse_writable(run.root, _history(run))
    owners = _strangers(run)
    if not owners or not owners.keys() - trusted_users(run):
        return
    names = " and ".join(sorted(map(user_name, owners)))
    if not trusted:
        name = min(min(files) for files in owners.values())
        others = sum(map(len, owners.values())) - 1
        raise ConfigError(
            f"cannot resume in {run.root}: {name} there"
            f"{f' and {others} more' if others else ''} belong{'' if others else 's'} to {names}, "
            f"and this run would train on what is in them; if you trust {names} with this run, add "
            f"--trust once (without a supervisor: {TRUST_VARIABLE}=on); for weights alone use "
            "`orchestrator checkpoints import`"
        )
    try:
        # A file that others may write into would not be this user's word.
        write_json(
            run.trust_file,
            {"format_version": _FORMAT_VERSION, "users": sorted(owners)},
            mode=0o644,
        )
    except OSError as error:
        raise ConfigError(f"cannot write {run.trust_file}: {error.strerror}") from None


def _strangers(run: RunDir) -> dict[int, list[str]]:
    """Return the files of the run's history that belong to others, by the number of their owner.

    Members of a group of this user's that may write to the run are no strangers.
    """
    owners: dict[int, list[str]] = defaultdict(list)
    for name in _history(run):
        with contextlib.suppress(OSError):  # it was deleted
            facts = os.lstat(run.root / name)
            if facts.st_uid in (os.geteuid(), 0):
                continue
            if not is_shared(facts, (run.root / name).parent.stat()):
                owners[facts.st_uid].append(name)
    if owners:
        owners.pop(owner_of_new_files(run.root), None)
    return owners


def _history(run: RunDir) -> list[str]:
    return [name for pattern in _HISTORY for name in glob(pattern, root_dir=run.root)]


def trusted_users(run: RunDir) -> set[int]:
    """Return the users in the record, if no other user could have written it."""
    try:
        with open(open_regular(run.trust_file, os.O_RDONLY), "rb") as file:
            facts = os.fstat(file.fileno())
            is_own = facts.st_uid in (os.geteuid(), 0) and facts.st_nlink == 1
            if not is_own or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return set()
            users = parse_object(file.read(MAXIMUM_JSON_BYTES)).get("users")
    except (OSError, ValueError):
        return set()
    return {user for user in users if type(user) is int} if isinstance(users, list) else set()
