"""A script that saves a generator and a discriminator in JSON files of their own.

``pairs.py WAY ATTEMPTS [--netG FILE] [--netD FILE]``: each attempt but the last is killed after it
has written the generator of its third save. WAY is ``numbered``, ``fixed`` or ``variable``, which
is numbered and reads what to resume from in its environment. The fixed files are only written over
when the run has a checkpoint of what they hold.
"""

import argparse
import json
import os
import signal
import time
from pathlib import Path

from published import count_checkpoints, wait_for_checkpoint

PAUSE_SECONDS = 0.4

parser = argparse.ArgumentParser()
parser.add_argument("way")
parser.add_argument("attempts", type=int)
parser.add_argument("--netG")
parser.add_argument("--netD")
arguments = parser.parse_args()

counter = Path("attempts")
attempt = int(counter.read_text()) if counter.exists() else 0
counter.write_text(str(attempt + 1))
given = {"netG": arguments.netG, "netD": arguments.netD}
if arguments.way == "variable":
    given = json.loads(os.environ.get("ORCHESTRATOR_RESUME_PATHS", "{}"))
read = {name: json.loads(Path(file).read_text())["work"] for name, file in given.items() if file}
print("begins with work", sorted(read.items()), flush=True)
first = max(read.values(), default=0) + 1
Path("out").mkdir(exist_ok=True)


for work in range(first, first + 3):
    before = count_checkpoints()
    for part in ("netG", "netD"):
        name = f"{part}.json" if arguments.way == "fixed" else f"{part}_epoch_{work}.json"
        Path("out", name).write_text(json.dumps({"work": work, "of": part}))
        if part == "netG" and work == first + 2 and attempt + 1 < arguments.attempts:
            time.sleep(PAUSE_SECONDS)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(PAUSE_SECONDS / 4)
    print("saved", work, flush=True)
    if arguments.way == "fixed":
        wait_for_checkpoint(before)
    time.sleep(PAUSE_SECONDS * 3)
