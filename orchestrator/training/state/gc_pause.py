"""Holds Python's garbage collector back while a state is captured."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def paused_collector() -> Iterator[None]:
    """Let the collector rest in the block.

    To capture 100,000 tensors makes as many objects, none of them garbage. The collector would look
    through all of them again and again, which takes as long as the capture itself.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
