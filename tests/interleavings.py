"""Interleavings of code that shares memory, in which each single load and store is one step.

The code that is tested runs unchanged, each part in a thread of its own. Only one thread runs at a
time: whoever loads or stores gives the turn to one that chance chooses.
"""

import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

# The part of the turns after which the same part goes on: longer stretches find other faults.
STAY = 0.5
# Parts that wait for each other for ever take more; those that do not have taken 57,000.
MOST_STEPS = 500_000


@contextmanager
def on_one_processor() -> Iterator[None]:
    """Keep this thread, and those that it starts, on one processor: a turn costs half as much."""
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {random.choice(tuple(processors))})
    try:
        yield
    finally:
        os.sched_setaffinity(0, processors)


class StoppedError(BaseException):
    """The interleaving has ended: whatever still runs is killed here."""


class Interleaving:
    """Runs parts by turns, until one of them returns or raises."""

    def __init__(self, seed: int, after_store: Callable[[], object] = lambda: None) -> None:
        """Call ``after_store`` after each store."""
        self.chance = random.Random(seed)
        self.after_store = after_store
        self._locks: list[threading.Lock] = []
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._favoured: int | None = None
        self._steps = 0
        self._buffered: list[BufferedPage] = []

    def buffered(self, values: "memoryview | list[int]") -> "BufferedPage":
        """Return a page whose stores reach ``values`` later, in order, as a processor's do."""
        self._buffered.append(BufferedPage(self, values))
        return self._buffered[-1]

    def direct(self, values: "memoryview | list[int]") -> "SteppedPage":
        """Return a page each of whose loads and stores is a step."""
        return SteppedPage(self, values)

    def barrier(self) -> None:
        """Let every store reach its page, as a full barrier on all processors does."""
        for page in self._buffered:
            page.drain()

    def run(self, parts: Sequence[Callable[[], Any]]) -> None:
        """Run all parts by turns until the first returns; raise what one of them raised."""
        self._locks = [threading.Lock() for _ in parts]
        for lock in self._locks:
            lock.acquire()
        with on_one_processor():
            self._run(parts)
        if self._error is not None:
            raise self._error

    def _run(self, parts: Sequence[Callable[[], Any]]) -> None:
        threads = [
            threading.Thread(target=self._play, args=(number, part), daemon=True)
            for number, part in enumerate(parts)
        ]
        for thread in threads:
            thread.start()
        self._local_turn(0)
        for thread in threads:
            thread.join()

    def _play(self, number: int, part: Callable[[], Any]) -> None:
        self._locks[number].acquire()
        try:
            if not self._ended.is_set():
                part()
        except StoppedError:
            pass
        except BaseException as error:
            self._error = self._error or error
        self._ended.set()
        for lock in self._locks:
            with suppress(RuntimeError):  # it is not locked
                lock.release()

    def _local_turn(self, number: int) -> None:
        self._favoured = number
        self._locks[number].release()

    def step(self) -> None:
        """End a step: give the turn to a part that chance chooses. Call it in a part only."""
        if self._ended.is_set():
            raise StoppedError
        self._steps += 1
        assert self._steps < MOST_STEPS, "the parts wait for each other"
        if self._buffered and self.chance.random() < STAY:
            self.chance.choice(self._buffered).drain(1)
        own = self._favoured
        assert own is not None
        if self.chance.random() < STAY:
            return
        other = self.chance.randrange(len(self._locks))
        if other != own:
            self._local_turn(other)
            self._locks[own].acquire()
            if self._ended.is_set():
                raise StoppedError


class SteppedPage:
    """A page each of whose loads and stores is a step."""

    def __init__(self, interleaving: Interleaving, values: "memoryview | list[int]") -> None:
        self._interleaving = interleaving
        self.stored = values

    def __getitem__(self, index: int) -> int:
        self._interleaving.step()
        return self.load(index)

    def __setitem__(self, index: int, value: int) -> None:
        self._interleaving.step()
        self.store(index, value)
        self._interleaving.after_store()

    def load(self, index: int) -> int:
        return self.stored[index]

    def store(self, index: int, value: int) -> None:
        self.stored[index] = value


class BufferedPage(SteppedPage):
    """A page with a store buffer: its own loads see what it has stored, others see that later."""

    def __init__(self, interleaving: Interleaving, values: "memoryview | list[int]") -> None:
        super().__init__(interleaving, values)
        self.waiting: list[tuple[int, int]] = []

    def load(self, index: int) -> int:
        own = [value for at, value in self.waiting if at == index]
        return own[-1] if own else self.stored[index]

    def store(self, index: int, value: int) -> None:
        self.waiting.append((index, value))

    def drain(self, most: int | None = None) -> None:
        """Let the oldest stores reach the page."""
        count = len(self.waiting) if most is None else most
        for index, value in self.waiting[:count]:
            self.stored[index] = value
        del self.waiting[:count]
