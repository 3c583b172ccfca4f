"""Seeds the random streams that the samples of a batch see, as a function of the batch.

Each batch re-seeds the streams that its samples see, so that augmentation depends neither on where
the run was cut nor on the number of workers.
"""

from typing import Any

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

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "last_seed":
            self.__dict__[name] = value
        else:
            setattr(self._dataset, name, value)

    def __getitems__(self, indices: Indices) -> Any:
        self.last_seed = indices.seed
        with rng.scoped(indices.seed):
            if hasattr(self._dataset, "__getitems__"):
                return self._dataset.__getitems__(list(indices))
            return [self._dataset[index] for index in indices]

    def __getitem__(self, single: SingleIndex) -> Any:
        self.last_seed = single.seed
        with rng.scoped(single.seed):
            return self._dataset[single.index]

    def __len__(self) -> int:
        return len(self._dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_dataset":
            raise AttributeError(name)  # unpickling asks before __dict__ is filled
        return getattr(self._dataset, name)


class SeededCollate:
    """The collate function, seeded for its batch as well, since it may mix or crop at random.

    A worker receives it in one piece with the dataset, so that both still share the last seed.
    """

    def __init__(self, dataset: SeededDataset, collate: Any) -> None:
        self._dataset = dataset
        self._collate = collate

    def __call__(self, samples: Any) -> Any:
        """Return the batch."""
        with rng.scoped(rng.derive_seed(self._dataset.last_seed)):
            return self._collate(samples)
