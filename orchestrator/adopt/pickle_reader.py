"""Reads what a pickle would load, without loading it: nothing it names is imported or called.

The work is bounded, whatever the bytes are: in opcodes, in the length of a text that is kept, and
in the memory for all of them. Values that no check asks for are not built at all.
"""

import contextlib
import pickletools
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, BinaryIO

# Reading this many takes some seconds; a longer pickle holds numbers one by one.
MOST_OPCODES = 2_000_000
MOST_SKIMMED_OPCODES = 5_000_000
# An argument that is longer is an array, whose bytes are passed over.
LONGEST_ARGUMENT_BYTES = 1 << 20
LONGEST_LINE_BYTES = 1 << 16
# Longer texts are neither names of files nor keys.
LONGEST_KEPT_TEXT = 4096
MOST_KEPT_TEXT = 64 << 20
_SKIP_BYTES = 1 << 20

_GETS = {"GET", "BINGET", "LONG_BINGET"}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
_CREATIONS = {"REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class DamagedPickleError(Exception):
    """Raised when a pickle ends too early, or is none."""


class PickleTooLargeError(Exception):
    """Raised when a pickle takes more work than a check may take; nothing is wrong with it."""


@dataclass(eq=False)
class PickledObject:
    """An object that the pickle would create; ``state`` is what it would be given."""

    state: Any = None


@dataclass(eq=False)
class PickleContent:
    """What a pickle holds: texts, integers, tuples, dicts with texts as keys, and objects.

    Everything else is None.
    """

    root: Any = None
    persistent_ids: list[Any] = field(default_factory=list)
    objects: list[PickledObject] = field(default_factory=list)
    """The objects that are given a state."""


def ends_with_pickle(file: BinaryIO, size: int) -> bool:
    """Return whether the file is one pickle to its last byte; joblib, say, adds bytes after it."""
    try:
        for opcode, _, _ in islice(pickletools.genops(_Skimmed(file, size)), MOST_SKIMMED_OPCODES):  # type: ignore[arg-type]
            if opcode.name == "STOP":
                return not file.read(1)
    except (ValueError, TypeError, OverflowError, MemoryError):
        pass
    return False


def read_pickle(file: BinaryIO, size: int) -> PickleContent:
    """Read a pickle of ``size`` bytes. Raises DamagedPickleError, PickleTooLargeError, OSError."""
    machine = _Machine()
    try:
        for opcode, argument, _ in _opcodes(file, size):
            machine.execute(opcode, argument)
    except (ValueError, IndexError) as error:
        raise DamagedPickleError(str(error)) from None
    except (TypeError, OverflowError, MemoryError) as error:
        raise PickleTooLargeError(str(error)) from None
    return machine.content


def _opcodes(file: BinaryIO, size: int) -> Iterator[tuple[pickletools.OpcodeInfo, Any, Any]]:
    skimmed: Any = _Skimmed(file, size)
    for count, operation in enumerate(pickletools.genops(skimmed)):
        if count == MOST_OPCODES:
            raise PickleTooLargeError(f"it has more than {MOST_OPCODES} operations")
        yield operation


class _Skimmed:
    """A file that skips long arguments, such as arrays: pickletools needs only their length."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size

    def tell(self) -> int:
        return self._file.tell()

    def readline(self) -> bytes:
        return self._file.readline(LONGEST_LINE_BYTES)

    def read(self, count: int) -> bytes | range:
        if count <= LONGEST_ARGUMENT_BYTES:
            return self._file.read(count)
        here = self._file.tell()
        # Not as bytes: a text of that length raises TypeError, and counts as too large.
        return range(self._skip(min(here + count, self._size)) - here)

    def _skip(self, position: int) -> int:
        with contextlib.suppress(OSError, ValueError):
            return self._file.seek(position)
        while self._file.tell() < position and self._file.read(_SKIP_BYTES):
            pass
        return self._file.tell()


class _Machine:
    """The stack and the memo of an unpickler, with plain values only.

    No value is hashed, compared or shown unless it is a text or an integer: nested values that
    share their parts would take exponential time.
    """

    def __init__(self) -> None:
        self.content = PickleContent()
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._memoized = 0
        self._kept_text = 0

    def execute(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Execute one operation. Raises ValueError, IndexError and PickleTooLargeError."""
        name, stack = opcode.name, self._stack
        if name in _GETS:
            stack.append(self._memo.get(int(argument)))
        elif name == "MEMOIZE":
            self._memoize(self._memoized)
        elif name in _PUTS:
            self._memoize(int(argument))
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name in _TUPLES:
            count = _TUPLES[name]
            if len(stack) < count:
                raise IndexError("the stack is empty")
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "DICT":
            items = self._since_mark()
            stack.append({})
            self._set_items(items)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            self._set_items([key, value])
        elif name == "SETITEMS":
            self._set_items(self._since_mark())
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], PickledObject):
                stack[-1].state = state
                self.content.objects.append(stack[-1])
        elif name in _CREATIONS:
            self._replace(opcode)
            stack[-1] = PickledObject()
        elif name in ("BINPERSID", "PERSID"):
            self.content.persistent_ids.append(stack.pop() if name == "BINPERSID" else argument)
            stack.append(None)
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "STOP":
            self.content.root = stack.pop()
        else:
            self._replace(opcode)
            if isinstance(argument, str | int) and opcode.stack_after and not opcode.stack_before:
                stack[-1] = self._kept(argument)

    def _kept(self, value: str | int) -> Any:
        if not isinstance(value, str):
            return value
        self._kept_text += len(value)
        if self._kept_text > MOST_KEPT_TEXT:
            raise PickleTooLargeError("its texts are too long")
        return value if len(value) <= LONGEST_KEPT_TEXT else None

    def _memoize(self, index: int) -> None:
        self._memoized += 1
        value = self._stack[-1]
        if value is not None:
            self._memo[index] = value

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, dict):
            keys, values = items[::2], items[1::2]
            target.update((k, v) for k, v in zip(keys, values, strict=False) if type(k) is str)

    def _replace(self, opcode: pickletools.OpcodeInfo) -> None:
        """Take from the stack what the operation takes, and put None for what it puts there."""
        takes = opcode.stack_before
        if pickletools.markobject in takes:
            self._since_mark()
            takes = takes[: takes.index(pickletools.markobject)]
        if len(self._stack) < len(takes):
            raise IndexError("the stack is empty")
        del self._stack[len(self._stack) - len(takes) :]
        self._stack += [None] * len(opcode.stack_after)
