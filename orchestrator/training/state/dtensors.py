"""DTensors: tensors of which each rank holds a piece, the local tensor.

``torch.distributed.tensor`` takes a while to import. A script that has no DTensors may not have
done so, and then nothing here does either.
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from orchestrator.checkpoint.boxes import Box, Cut, box_of
from orchestrator.checkpoint.shards import KeyPath, Layout, shown
from orchestrator.errors import UnstorableError
from orchestrator.training.state.plain_values import like

_MODULE = "torch.distributed.tensor"
_PLACEMENT = re.compile(r"S\((\d+)\)|_S\((\d+), (\d+)\)|R")


@dataclass(frozen=True)
class Placed:
    """Where a DTensor is: how it is cut over which ranks, and the box of this rank.

    Attributes:
        layout: What is the same of it on all ranks.
        stride: The strides of the whole tensor.
        mesh: The mesh of ranks.
        placements: What each dimension of the mesh does with it.
        box: What this rank holds of it; empty where it is not in the mesh.
    """

    layout: Layout
    stride: tuple[int, ...]
    mesh: Any
    placements: tuple[Any, ...]
    box: Box

    @property
    def is_cut(self) -> bool:
        """Whether ranks hold different pieces of it."""
        placements = zip(self.layout.placements, self.layout.mesh, strict=True)
        return any(text != "R" and ranks > 1 for text, ranks in placements)

    @property
    def has_replicas(self) -> bool:
        """Whether several ranks hold the same piece of it."""
        placements = zip(self.layout.placements, self.layout.mesh, strict=True)
        return any(text == "R" and ranks > 1 for text, ranks in placements)


def is_dtensor(value: Any) -> bool:
    """Return whether a value is a DTensor."""
    module = sys.modules.get(_MODULE)
    return module is not None and isinstance(value, module.DTensor)


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return the local tensor of a DTensor, and any other tensor as it is."""
    if not is_dtensor(tensor):
        return tensor
    with torch.no_grad():
        local: torch.Tensor = tensor.to_local()  # type: ignore[attr-defined]
        return local.detach()


def place_of(tensor: Any, path: KeyPath) -> Placed:
    """Return where a DTensor is.

    Raises:
        UnstorableError: What this rank holds is no box of it.
    """
    mesh, placements, size = tensor.device_mesh, tuple(tensor.placements), tuple(tensor.shape)
    texts = tuple(_text_of(placement, path) for placement in placements)
    names = tuple(mesh.mesh_dim_names or ())
    layout = Layout(dtype_name(tensor.dtype), size, tuple(mesh.shape), names, texts)
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        box: Box | None = Box((0,) * len(size), (0,) * len(size))
    else:
        box = box_of(size, layout.mesh, coordinate, cuts_of(texts))
    if box is None or (coordinate and box.shape != tuple(local_of(tensor).shape)):
        raise UnstorableError(
            shown(path), f"the piece that a rank holds of it ({', '.join(texts)}) is no box of it"
        )
    return Placed(layout, tuple(tensor.stride()), mesh, placements, box)


def _text_of(placement: Any, path: KeyPath) -> str:
    kind = type(placement).__name__
    if kind == "Shard":
        return f"S({placement.dim})"
    if kind == "_StridedShard":
        return f"_S({placement.dim}, {placement.split_factor})"
    if kind == "Replicate":
        return "R"
    raise UnstorableError(shown(path), f"each rank holds a part of its sum ({placement})")


def cuts_of(placements: tuple[str, ...]) -> list[Cut | None]:
    """Return how these placements cut a tensor. Raises ValueError for any other text."""
    cuts: list[Cut | None] = []
    for text in placements:
        if (match := _PLACEMENT.fullmatch(text)) is None:
            raise ValueError(f"{text!r} is no placement")
        plain, strided, factor = match.groups()
        if text == "R":
            cuts.append(None)
        else:
            cuts.append(Cut(int(plain or strided or 0), int(factor or 1)))
    return cuts


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a type in torch."""
    return str(dtype).removeprefix("torch.")


def distributed(local: torch.Tensor, place: Placed) -> torch.Tensor:
    """Return the DTensor of which this is the local tensor, without asking any other rank."""
    kind = sys.modules[_MODULE].DTensor
    with torch.no_grad():
        made: torch.Tensor = kind.from_local(
            local,
            place.mesh,
            place.placements,
            run_check=False,
            shape=torch.Size(place.layout.size),
            stride=place.stride,
        )
    return made


Change = Callable[[torch.Tensor, KeyPath], torch.Tensor]
"""Returns what a tensor at a path is replaced with."""


def with_tensors(value: Any, path: KeyPath, change: Change) -> Any:
    """Return a state with its tensors replaced; containers in which none is are not copied."""
    if isinstance(value, torch.Tensor):
        return change(value, path)
    if isinstance(value, Mapping):
        items = {key: with_tensors(item, (*path, key), change) for key, item in value.items()}
        changed = any(items[key] is not value[key] for key in items)
        return like(value, items) if changed else value
    if type(value) in (list, tuple):
        listed = [with_tensors(item, (*path, i), change) for i, item in enumerate(value)]
        changed = any(a is not b for a, b in zip(listed, value, strict=True))
        return type(value)(listed) if changed else value
    return value


def tensors_in(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, torch.Tensor]]:
    """Yield the tensors in a state, each with the keys that lead to it."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors_in(item, (*path, key))
    elif type(value) in (list, tuple):
        for number, item in enumerate(value):
            yield from tensors_in(item, (*path, number))


def localized(state: Any) -> Any:
    """Return a state with local tensors in the place of DTensors."""
    if _MODULE not in sys.modules:
        return state
    return with_tensors(state, (), _localize)


def _localize(tensor: torch.Tensor, path: KeyPath) -> torch.Tensor:
    return local_of(tensor)
