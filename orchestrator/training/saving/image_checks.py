"""Checks of an image in memory, at a time when the live tensors are changing already."""

from collections.abc import Callable, Sequence

import torch

from orchestrator.training.saving.image import Frozen, Layout
from orchestrator.training.saving.slot_memory import SlotMemory
from orchestrator.training.state.tensor_kinds import all_finite


def addresses_in(frozen: Frozen, layout: Layout, target: SlotMemory) -> dict[int, int]:
    """Return where the image has the bytes of each storage, by its ``_cdata``."""
    located = zip(frozen.storages, layout.offsets, strict=True)
    return {storage._cdata: target.address + offset for storage, offset in located}


def is_finite(
    parameters: Sequence[torch.Tensor],
    frozen: Frozen,
    layout: Layout,
    target: SlotMemory,
    breathe: Callable[[], None],
) -> bool:
    """Return whether the parameters are finite in the image."""
    locations = dict(
        zip(
            (storage._cdata for storage in frozen.storages),
            zip(layout.offsets, layout.sizes, strict=True),
            strict=True,
        )
    )
    checked = set()
    for parameter in parameters:
        breathe()
        location = locations.get(parameter.untyped_storage()._cdata)
        # A parameter that the state_dict leaves out is not in the image.
        if location is not None and location not in checked:
            checked.add(location)
            offset, size = location
            whole = size // parameter.element_size() * parameter.element_size()
            if not all_finite(target.data[offset : offset + whole].view(parameter.dtype)):
                return False
    return True
