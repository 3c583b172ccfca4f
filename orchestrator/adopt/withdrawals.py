"""Withdraws the seals of saves that the script has deleted or writes again."""

import contextlib
import os
from collections.abc import Mapping

from orchestrator.adopt.file_owners import FileOwners
from orchestrator.adopt.files import SavedFiles
from orchestrator.adopt.scan_events import Withdrawn
from orchestrator.adopt.seal_store import Seal, SealStore
from orchestrator.adopt.write_ledger import WriteLedger


def withdraw_seals(store: SealStore, ledger: WriteLedger, *, has_one_path: bool) -> list[Withdrawn]:
    """Withdraw the seals whose files are no longer what was sealed.

    The last seal stays, and so does the newest when its files are deleted: without any the run
    would start from zero. ``has_one_path`` says that all seals are of one path.
    """
    events: list[Withdrawn] = []
    seals = store.seals()
    newest = max(seals.values(), key=lambda seal: seal.checkpoint.order, default=None)
    for path, seal in seals.items():
        files, sealed = store.files_now(seal), seal.adopted.modified_ns
        if files is not None and files.modified_ns == sealed:
            continue
        if files is not None and _has_rewritten(files.modified_ns, sealed):
            ledger.record_rewriting()
        if seal.adopted.kept and (files is not None or has_one_path):
            continue
        if len(seals) == 1 or (files is None and seal is newest):
            continue
        if files is None and not os.path.isdir(path.parent):
            continue  # perhaps it is not mounted
        if files is not None:
            ledger.record_rewrite(path, sealed)
        with contextlib.suppress(OSError):  # the next scan tries again
            store.withdraw(seal)
            events.append(Withdrawn(seal.checkpoint, _why(seal, files)))
    return events


def withdraw_foreign(store: SealStore, owners: FileOwners) -> list[Withdrawn]:
    """Withdraw the seals of saves in whose place another user has put something since."""
    events: list[Withdrawn] = []
    for seal in store.seals().values():
        files = None if seal.adopted.kept else store.files_now(seal)
        if files is None:
            continue
        with contextlib.suppress(OSError):  # the next scan tries again
            if (stranger := owners.stranger_of(files)) is not None:
                store.withdraw(seal)
                events.append(Withdrawn(seal.checkpoint, f"it belongs to {stranger} now"))
    return events


def _why(seal: Seal, files: SavedFiles | None) -> str:
    sealed = seal.adopted.modified_ns
    if files is None:
        return "the script has deleted it"
    if files.modified_ns.items() < sealed.items():
        return f"the script has deleted {min(sealed.keys() - files.modified_ns.keys())}"
    return "it is being written again"


def _has_rewritten(now: Mapping[str, int], before: Mapping[str, int]) -> bool:
    """Return whether a file was written again; a new one beside the others destroys nothing."""
    return any(now[name] != before[name] for name in now.keys() & before.keys())
