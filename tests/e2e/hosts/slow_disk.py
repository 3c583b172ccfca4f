"""The orchestrator on a disk that needs two seconds for 16 MiB."""

import os
import time
from typing import Any

from orchestrator.__main__ import main

BYTES_PER_SECOND = 8 << 20
LARGE_BYTES = 1 << 20

write = os.write


def write_slowly(descriptor: int, data: Any) -> int:
    if len(data) > LARGE_BYTES:
        time.sleep(len(data) / BYTES_PER_SECOND)
    return write(descriptor, data)


os.write = write_slowly
main()
