"""How far training has come, as a value that can be compared."""

from dataclasses import dataclass

# The names of checkpoints have room for twelve digits.
MAXIMUM_STEP = 10**12 - 1
MAXIMUM_EPOCH = 2**63 - 1


@dataclass(frozen=True, order=True)
class Position:
    """The optimizer steps and epochs that a training state has completed.

    The order is by step, then by epoch: at the end of an epoch the same step is further on. A
    checkpoint's ``PublicationOrder`` is another order, and mypy refuses to compare the two.
    """

    step: int
    epoch: int
