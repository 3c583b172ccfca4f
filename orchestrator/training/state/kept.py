"""Objects without a state_dict, such as replay buffers and environments, as state.

What such an object holds is followed through its attributes and containers. A resume puts it back
into the object that the script has made by then, so that names and references stay valid.
"""

from typing import Any

from orchestrator.errors import ConfigError, UnstorableError
from orchestrator.training.state.composite import Composite
from orchestrator.training.state.kept_capture import CODE, LEAVES, Capture
from orchestrator.training.state.kept_restore import Restore, is_of_another_class
from orchestrator.training.state.plain_values import to_plain

KEPT = "__kept__"
"""The only key of the state of a kept object; no other object has it."""


class Kept(Composite):
    """An object of the script with a ``state_dict()`` and a ``load_state_dict()`` made for it."""

    def __init__(self, name: str, value: Any) -> None:
        """Check that all that ``value`` holds can be stored and put back.

        Raises:
            ConfigError: It cannot.
        """
        self._name, self._value = name, value
        self._parts: list[Any] = []
        if isinstance(value, (*LEAVES, tuple, *CODE)):
            raise ConfigError(
                f"cannot keep {name}: a {type(value).__name__} does not change in place; keep "
                "plain values in session.state"
            )
        try:
            to_plain(self.state_dict(), name)
        except UnstorableError as error:
            raise ConfigError(
                f"cannot keep {name}: {error.where} cannot be stored, since {error.problem}; give "
                f"the class of {name} a state_dict() and a load_state_dict(), or keep only parts"
            ) from error

    def state_dict(self) -> dict[str, Any]:
        """Return what the object holds; its arrays and tensors share their memory with it.

        Raises:
            UnstorableError: Part of it has no form that can be stored.
        """
        capture = Capture()
        try:
            state = {KEPT: capture.node(self._value, self._name)}
        except RecursionError as error:
            raise UnstorableError(self._name, "it is nested too deeply") from error
        self._parts = capture.stateful
        return state

    def parts(self) -> list[Any]:
        """Return the objects with a ``state_dict()`` that the last state contains."""
        return self._parts

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put what ``state_dict`` returned back into the object.

        Raises:
            ValueError: The object cannot hold it any more.
        """
        node = state[KEPT]
        fits = not is_of_another_class(node, self._value)
        if not fits or Restore().value(node, self._value, self._name) is not self._value:
            raise ValueError(
                f"{self._name} is a {type(self._value).__name__} that cannot hold what was saved: "
                "its shape, dtype or class has changed"
            )
