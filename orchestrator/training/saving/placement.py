"""Completes an image whose storages have been copied to where an earlier layout had them."""

from collections.abc import Callable

from orchestrator.training.saving.image import Layout
from orchestrator.training.saving.slot_memory import SlotMemory


def place(target: SlotMemory, copied: Layout, layout: Layout, breathe: Callable[[], None]) -> None:
    """Move the storages from where ``copied`` has them to their places, and write what is between.

    All of them move in one direction, or stay. ``breathe`` is called after each.
    """
    if copied.offsets != layout.offsets:
        pairs = zip(copied.offsets, layout.offsets, layout.sizes, strict=True)
        moves = [move for move in pairs if move[2]]
        grows = moves[-1][1] > moves[-1][0]
        for source, destination, size in reversed(moves) if grows else moves:
            target.move(source, destination, size)
            breathe()
    for offset, piece in layout.pieces:
        target.write(offset, piece)
        breathe()
