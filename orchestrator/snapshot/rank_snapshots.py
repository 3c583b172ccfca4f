"""The snapshots of a run, in the slots of each of its ranks.

A snapshot of the run is a generation that is complete on every rank. The supervisor announces a
generation, and the slot for it, only when the one before is complete on every rank or given up.
That slot is never the one that holds the newest snapshot of the run. So a rank overwrites a
snapshot of the run only when a newer one is complete on every rank, and whichever instruction is a
rank's last, the newest one stays whole.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from orchestrator.checkpoint.boxes import Box
from orchestrator.snapshot.slots import Slots, Snapshot

# A difference in more tensors than this has one cause, which the first ones tell as well.
MOST_NAMES = 20


class RankSnapshots:
    """The snapshots in the slots of all ranks, which come in the order of the ranks."""

    def __init__(self, of_ranks: Sequence[Slots]) -> None:
        self._of_ranks = of_ranks

    def generations(self) -> list[int]:
        """Return the generations that are complete on every rank, newest first."""
        complete = (slots.generations().keys() for slots in self._of_ranks)
        return sorted(set.intersection(*map(set, complete)), reverse=True)

    def next_slot(self) -> int:
        """Return the slot for the next generation: not that of the newest complete one."""
        newest = next(iter(self.generations()), None)
        return 0 if newest is None else 1 - self._of_ranks[0].generations()[newest]

    def newest_step_and_age(self) -> tuple[int, float] | None:
        """Return step and age in seconds of the newest snapshot, from the tables alone."""
        for generation in self.generations():
            slot = self._of_ranks[0].generations().get(generation)
            if slot is not None:
                return self._of_ranks[0].step_and_age(slot)
        return None

    def snapshots(self) -> list[Snapshot]:
        """Return the snapshots of the run, newest first."""
        if len(self._of_ranks) == 1:
            return self._of_ranks[0].snapshots()
        return list(self._whole())

    def _whole(self) -> Iterator[Snapshot]:
        known = [{s.generation: s for s in slots.snapshots()} for slots in self._of_ranks]
        for generation in self.generations():
            parts = [of_rank[generation] for of_rank in known if generation in of_rank]
            # A failing trainer may have written anything over its own part.
            if len(parts) == len(known) and len({part.position for part in parts}) == 1:
                yield joined(parts)

    def forget(self) -> None:
        """Mark every slot as torn; call it only while no trainer runs."""
        for slots in self._of_ranks:
            slots.forget()


def joined(parts: Sequence[Snapshot]) -> Snapshot:
    """Return the snapshot of a run, whose parts are one of each rank."""
    main, *others = parts
    differing = differing_names(parts)
    manifest = replace(
        main.manifest,
        healthy=all(part.manifest.healthy for part in parts) and not differing,
        world_size=len(parts),
        replicas={},
        differing=differing[:MOST_NAMES],
    )
    return replace(main, manifest=manifest, others=tuple(others))


def differing_names(parts: Sequence[Snapshot]) -> list[str]:
    """Return the names of what ranks should hold equally, and do not.

    A piece of a sharded tensor is compared between the ranks that hold it, anything else between
    all.
    """
    replicas = [part.manifest.replicas for part in parts]
    names = dict.fromkeys(name for each in replicas for name in each)
    return [name for name in names if len(_digests_of(name, replicas)) > 1]


def _digests_of(name: str, replicas: Sequence[Mapping[str, str]]) -> set[str | None]:
    is_piece = name.endswith("]")
    return {each.get(name) for each in replicas if not is_piece or name in each}


def piece_label(name: str, box: Box) -> str:
    """Return the name of a piece of a tensor, by which replicas of it are compared."""
    pairs = zip(box.offset, box.shape, strict=True)
    return f"{name}[{', '.join(f'{begin}:{begin + length}' for begin, length in pairs)}]"
