"""Conversion of a run's states for its checkpoints, strict until something has been saved.

Before the first save, what cannot be stored is refused by name. After it, nothing that a script
adds to its state ends the training: the last value that could be stored is kept, or the entry is
left out, and the run is APPROXIMATE.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from orchestrator.errors import FreedStorageError, UnstorableError
from orchestrator.training.exits import print_message
from orchestrator.training.state.plain_values import copy_containers, like, to_plain

_NOTHING = object()


class PlainCapture:
    """Converts states to plain values, and remembers the last ones.

    Attributes:
        is_strict: Whether what cannot be stored is refused.
        problems: What could not be stored, for the exactness of the run.
    """

    def __init__(self) -> None:
        self.is_strict = True
        self.problems: list[str] = []
        self._last: dict[str, Any] = {}

    def convert(self, name: str, state_of: Callable[[], Any]) -> Any:
        """Return the plain form of what ``state_of`` returns.

        Raises:
            UnstorableError: Part of it cannot be stored, and nothing has been saved yet.
            FreedStorageError: A tensor has no memory at this moment.
        """
        try:
            plain = to_plain(state_of(), name)
        except FreedStorageError:
            raise
        except Exception as error:  # what an object's state_dict() raises
            if self.is_strict:
                raise
            plain = self._last_of(name, state_of, error)
        self._last[name] = copy_containers(plain, [])
        return plain

    def _last_of(self, name: str, state_of: Callable[[], Any], error: Exception) -> Any:
        last = self._last.get(name, _NOTHING)
        try:
            plain = self._storable_part(name, state_of(), last)
        except FreedStorageError:
            raise
        except UnstorableError as its_own:
            plain = self._replace(its_own, last)
        except Exception as its_own:
            problem = f"its state_dict() fails ({type(its_own).__name__}: {its_own})"
            plain = self._replace(UnstorableError(name, problem), last)
        if plain is _NOTHING:
            raise error
        return plain

    def _storable_part(self, where: str, value: Any, last: Any) -> Any:
        """Return the plain form of ``value`` with the last values where there is none."""
        try:
            return to_plain(value, where)
        except FreedStorageError:
            raise
        except UnstorableError as error:
            if type(value) not in (dict, OrderedDict):
                return self._replace(error, last)
        last_items = last if isinstance(last, dict) else {}
        content = {}
        for key, item in value.items():
            try:
                to_plain({key: None}, where)
            except UnstorableError as error:
                self._replace(error, _NOTHING)
                continue
            plain = self._storable_part(f"{where}[{key!r}]", item, last_items.get(key, _NOTHING))
            if plain is not _NOTHING:
                content[key] = plain
        return like(value, content)

    def _replace(self, error: UnstorableError, last: Any) -> Any:
        kept = "left out" if last is _NOTHING else "stored with its last value"
        problem = f"{error.where} could not be stored and is {kept}"
        if problem not in self.problems:
            self.problems.append(problem)
            print_message(f"{error}. It is {kept}, training goes on, and the run is APPROXIMATE")
        return last
