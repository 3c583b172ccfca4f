"""Finds out whether a save is whole, from its files and from what the run has saved before."""

from collections.abc import Mapping
from pathlib import Path

from orchestrator.adopt.file_check import IncompleteError
from orchestrator.adopt.save_check import check_all_new, examine
from orchestrator.adopt.seal_store import Seal
from orchestrator.adopt.tracked_saves import TrackedSave
from orchestrator.adopt.write_order import WriteOrder, check_parts_new


class SaveExaminer:
    """Examines the saves of a run, and the order of their parts where names come again."""

    def __init__(self) -> None:
        self.order = WriteOrder()

    def examine(
        self,
        save: TrackedSave,
        seals: Mapping[Path, Seal],
        before: Mapping[str, int],
        *,
        names_return: bool,
    ) -> None:
        """Record in ``save`` whether it is whole.

        ``before`` has the times of the files in an earlier version, ``names_return`` says that the
        script writes over them. Raises OSError.
        """
        files = save.files
        try:
            if files.missing:
                names = ", ".join(path.name for path in files.missing)
                raise IncompleteError(f"it lacks {names}, which belongs to it")
            check_all_new(files.modified_ns, before)
            check_parts_new(files, before)
            sizes = _usual_sizes(seals, len(files.paths))
            found = list(map(examine, files.members or (files,), sizes))
            save.completeness = next((part for part in found if not part.proven), found[0])
            if files.members and names_return and save.completeness.proven:
                save.completeness = self.order.check(files, before)
        except IncompleteError as error:
            save.problem = str(error)
        except OSError:
            raise
        except Exception as error:
            # Its files hold what no check expects; the other saves are looked at all the same.
            save.problem = f"it cannot be examined: {error!r}"


def _usual_sizes(seals: Mapping[Path, Seal], parts: int) -> list[dict[str, int] | None]:
    """Return the sizes of the files in the newest seal of directories, for each part of a unit."""
    directories = [seal for seal in seals.values() if seal.adopted.is_directory]
    newest = max(directories, key=lambda seal: seal.checkpoint.order, default=None)
    if newest is None:
        return [None] * parts
    sizes = {name: record.bytes for name, record in newest.checkpoint.manifest.files.items()}
    members = newest.adopted.members
    if members is None:
        return [sizes]
    return [_below(f"{member}/", sizes) or None for member in members.values()]


def _below(folder: str, sizes: dict[str, int]) -> dict[str, int]:
    return {n.removeprefix(folder): size for n, size in sizes.items() if n.startswith(folder)}
