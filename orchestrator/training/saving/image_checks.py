"""Looks into an image in memory, when the live tensors are changing already."""

from collections.abc import Sequence

import torch

from orchestrator.training.saving.image import Frozen, Layout
from orchestrator.training.saving.slot_memory import SlotMemory
from orchestrator.training.state.digests import digest_parts
from orchestrator.training.state.registry import all_finite


def digests_of(frozen: Frozen, layout: Layout, target: SlotMemory) -> dict[str, str]:
    """The digests of the parts of the state that is in the image."""
    places = zip(frozen.storages, layout.offsets, strict=True)
    addresses = {storage._cdata: target.address + offset for storage, offset in places}
    return digest_parts(frozen.tree, addresses)


def is_finite(
    parameters: Sequence[torch.Tensor], frozen: Frozen, layout: Layout, target: SlotMemory
) -> bool:
    """Whether the parameters are finite there."""
    places = dict(
        zip(
            (storage._cdata for storage in frozen.storages),
            zip(layout.offsets, layout.sizes, strict=True),
            strict=True,
        )
    )
    checked = set()
    for parameter in parameters:
        place = places.get(parameter.untyped_storage()._cdata)
        # A parameter that the state_dict leaves out is not in the image.
        if place is not None and place not in checked:
            checked.add(place)
            offset, size = place
            whole = size // parameter.element_size() * parameter.element_size()
            if not all_finite(target.data[offset : offset + whole].view(parameter.dtype)):
                return False
    return True
