"""What of the registered objects is sharded over the ranks of a run, and which piece is whose.

States are kept with local tensors in the place of DTensors, so that a file can be read by a process
that belongs to no group. Back they go as DTensors, each rank with its own piece: no rank asks
another one.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from orchestrator.checkpoint.boxes import box_of
from orchestrator.checkpoint.shards import KeyPath, Layout, ShardedTensor, ShardIndex
from orchestrator.errors import ConfigError, UnstorableError
from orchestrator.training.state.dtensors import (
    Placed,
    cuts_of,
    distributed,
    is_dtensor,
    place_of,
    tensors_in,
    with_tensors,
)
from orchestrator.training.state.dtensors import local_of as local_of_dtensor
from orchestrator.training.state.progress import SUFFIX
from orchestrator.training.state.wrappers import plain_name

# What an optimizer keeps for a parameter is below this key, by the number of the parameter.
STATE = "state"


class Sharding:
    """Knows where each DTensor is that a registered object has had in its state."""

    def __init__(self, objects: Mapping[str, Any]) -> None:
        """Note where the parameters are.

        Raises:
            ConfigError: What a rank holds of one cannot be told from the others.
        """
        self._places: dict[KeyPath, Placed] = {}
        self._noted: dict[KeyPath, Any] = {}
        self._parameters = {
            name + SUFFIX: [p for group in value.param_groups for p in group["params"]]
            for name, value in objects.items()
            if isinstance(value, torch.optim.Optimizer)
        }
        for name, value in objects.items():
            parameters = value.named_parameters() if isinstance(value, torch.nn.Module) else ()
            for key, parameter in parameters:
                if is_dtensor(parameter):
                    self._note(parameter, (name + SUFFIX, plain_name(key)))
            for number, parameter in enumerate(self._parameters.get(name + SUFFIX, ())):
                if is_dtensor(parameter):
                    place_of(parameter, (name + SUFFIX, STATE, number))

    @classmethod
    def of(cls, objects: Mapping[str, Any]) -> "Sharding | None":
        """Return the sharding of these objects; None where none has a parameter that is a DTensor.

        Raises:
            ConfigError: A rank holds a part of a sum, or a piece that is no box.
        """
        try:
            sharding = cls(objects)
        except UnstorableError as error:
            raise ConfigError(
                f"cannot save {error.where} with several ranks: {error.problem}; lay it out in "
                "another way, or use one process"
            ) from error
        parameters = [p for each in sharding._parameters.values() for p in each]
        return sharding if sharding._places or any(map(is_dtensor, parameters)) else None

    def _note(self, tensor: Any, path: KeyPath) -> Placed:
        # The same until the script lays the tensor out anew.
        noted = (tensor.device_mesh, tensor.placements, tensor.shape, tensor.dtype)
        if self._noted.get(path) != noted:
            self._places[path] = place_of(tensor, path)
            self._noted[path] = noted
        return self._places[path]

    # --- saving ------------------------------------------------------------------------------

    def localize(self, name: str, state: Any) -> Any:
        """Return the state of a registered object with local tensors in the place of DTensors.

        Raises:
            UnstorableError: A rank holds a part of a sum, or a piece that is no box.
        """
        return with_tensors(state, (name + SUFFIX,), self._localize)

    def _localize(self, tensor: torch.Tensor, path: KeyPath) -> torch.Tensor:
        if not is_dtensor(tensor):
            return tensor
        self._note(tensor, path)
        return local_of_dtensor(tensor)

    def place_at(self, path: KeyPath) -> Placed | None:
        """Return where the tensor at a path is of which ranks hold different pieces."""
        place = self._places.get(path)
        return place if place is not None and place.is_cut else None

    def pieces_of(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the local tensors in a state of which other ranks have other pieces.

        Each is below the same keys as in ``state``, in dicts only.
        """
        pieces: dict[str, Any] = {}
        for path, tensor, _ in self._cut_in(state):
            put(pieces, path, tensor)
        return pieces

    def index_of(self, state: Mapping[str, Any], file: str) -> ShardIndex:
        """Return the index of what a rank holds of the sharded tensors in a state."""
        cut = {path: (place.layout, place.box) for path, _, place in self._cut_in(state)}
        tensors = {path: ShardedTensor(layout, {file: box}) for path, (layout, box) in cut.items()}
        return ShardIndex(tensors)

    def _cut_in(self, state: Mapping[str, Any]) -> Iterator[tuple[KeyPath, torch.Tensor, Placed]]:
        for key, value in state.items():
            for path, tensor in tensors_in(value, (key,)):
                if (place := self.place_at(path)) is not None:
                    yield path, tensor, place

    # --- restoring ---------------------------------------------------------------------------

    def learn(self, name: str, state: Any) -> None:
        """Note where the DTensors in the state of a live object are."""
        self.localize(name, state)

    def expect(self, path: KeyPath, layout: Layout) -> Placed | None:
        """Return where the tensor belongs that a checkpoint has at a path; None if not known.

        An optimizer has no state before its first step. What has the size of its parameter is cut
        as that is; anything else as the checkpoint says, over a mesh of the same shape.
        """
        if (known := self._places.get(path)) is not None:
            return known
        parameter = self._parameter_of(path)
        if is_dtensor(parameter) and tuple(parameter.shape) == layout.size:
            self._places[path] = place_of(parameter, path)
            return self._places[path]
        for place in self._places.values():
            if (place.layout.mesh, place.layout.names) == (layout.mesh, layout.names):
                return self._on_mesh(place, path, layout)
        return None

    def belongs_to_piece(self, path: KeyPath) -> bool:
        """Return whether this is what an optimizer keeps for a parameter that is a DTensor."""
        return is_dtensor(self._parameter_of(path))

    def _parameter_of(self, path: KeyPath) -> Any:
        match path:
            case (str(key), "state", int(number), name) if name != "step":
                parameters = self._parameters.get(key, [])
                return parameters[number] if number < len(parameters) else None
        return None

    def _on_mesh(self, place: Placed, path: KeyPath, layout: Layout) -> Placed | None:
        known = [p for p in self._places.values() if p.layout.placements == layout.placements]
        coordinate = place.mesh.get_coordinate()
        if not known or coordinate is None:
            return None
        box = box_of(layout.size, layout.mesh, coordinate, cuts_of(layout.placements))
        if box is None:
            return None
        stride = tuple(torch.empty(layout.size, device="meta").stride())
        placed = Placed(layout, stride, place.mesh, known[0].placements, box)
        self._places[path] = placed
        return placed

    def distributed(self, name: str, live: Any, state: Any) -> Any:
        """Return a state with DTensors where the live object has them or will have them."""
        is_module = isinstance(live, torch.nn.Module)

        def restore(tensor: torch.Tensor, path: KeyPath) -> torch.Tensor:
            if is_module:
                path = (path[0], plain_name(str(path[1])), *path[2:])
            place = self._places.get(path)
            return tensor if place is None else distributed(tensor, place)

        return with_tensors(state, (name + SUFFIX,), restore)


def put(tree: dict[Any, Any], path: KeyPath, value: Any) -> None:
    """Put a value below the keys of a path, in dicts that are made as needed."""
    *above, last = path
    for key in above:
        tree = tree.setdefault(key, {})
    tree[last] = value
