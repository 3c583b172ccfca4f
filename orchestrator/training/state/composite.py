"""Registered objects that contain modules and optimizers."""

import abc
from collections.abc import Iterable
from typing import Any


class Composite(abc.ABC):
    """One registered object whose state contains those of several modules and optimizers."""

    @abc.abstractmethod
    def parts(self) -> Iterable[Any]:
        """Return these modules and optimizers."""
