"""A resumable training orchestrator: stop or kill a PyTorch run, lose nothing, or seconds.

The command line is ``orchestrator`` (or ``python -m orchestrator``). A training script imports
``Session``, which loads PyTorch. Importing the package alone does not.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.training import Session as Session

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the session on first use: the command line must not wait for PyTorch."""
    if name == "Session":
        from orchestrator.training import Session

        return Session
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
