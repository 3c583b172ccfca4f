"""A script whose only sign of life, for a while, is of one kind: ``quiet.py KIND SECONDS``."""

import sys
import time
from pathlib import Path

PAUSE_SECONDS = 0.5


def prints() -> None:
    print("still at it", flush=True)


def reads() -> None:
    Path(sys.executable).read_bytes()


kind, seconds = sys.argv[1], float(sys.argv[2])
shows_life = {"prints": prints, "reads": reads}[kind]
ends = time.monotonic() + seconds
while time.monotonic() < ends:
    shows_life()
    time.sleep(PAUSE_SECONDS)
