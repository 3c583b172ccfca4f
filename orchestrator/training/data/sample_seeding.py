"""Seeds the random streams that the samples of a batch see, as a function of the batch.

Each batch re-seeds the streams that its samples see, so that augmentation depends neither on where
the run was cut nor on the number of workers.
"""

from typing import Any

from orchestrator.training.data.own_generators import OwnGenerators
from orchestrator.training.state import rng


class Indices(list[Any]):
    """The indices of one batch, with the seed for its samples' random streams."""

    seed: int


class SingleIndex:
    """The index of one sample, for loaders that do not batch."""

    def __init__(self, index: Any, seed: int) -> None:
        self.index = index
        self.seed = seed


class SeededDataset:
    """The dataset, whose samples see random streams seeded for their batch.

    Everything else is passed through, for ``worker_init_fn`` and other code that uses it.
    """

    def __init__(self, dataset: Any) -> None:
        self.__dict__["_dataset"] = dataset
        self.__dict__["last_seed"] = 0
        self.__dict__["_own_generators"] = OwnGenerators(dataset)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "last_seed":
            self.__dict__[name] = value
        else:
            setattr(self._dataset, name, value)

    def __getitems__(self, indices: Indices) -> Any:
        self.last_seed = indices.seed
        with rng.scoped(indices.seed, self._own_generators.find()):
            if hasattr(self._dataset, "__getitems__"):
                return self._dataset.__getitems__(list(indices))
            return [self._dataset[index] for index in indices]

    def __getitem__(self, single: SingleIndex) -> Any:
        self.last_seed = single.seed
        with rng.scoped(single.seed, self._own_generators.find()):
            return self._dataset[single.index]

    def __len__(self) -> int:
        return len(self._dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_dataset", "_own_generators"):
            raise AttributeError(name)  # unpickling asks before __dict__ is filled
        return getattr(self._dataset, name)


class SeededCollate:
    """The collate function, seeded for its batch as well, since it may mix or crop at random.

    A worker receives it in one piece with the dataset, so that both still share the last seed.
    """

    def __init__(self, dataset: SeededDataset, collate: Any) -> None:
        self._dataset = dataset
        self._collate = collate
        self._own_generators = OwnGenerators(collate)

    def __call__(self, samples: Any) -> Any:
        """Return the batch."""
        seed = rng.derive_seed(self._dataset.last_seed)
        with rng.scoped(seed, self._own_generators.find()):
            return self._collate(samples)
